"""From evidence to a method: the table of data size x domain gap, and the verdict of a trial against scratch.

The table is the usual one (CS231n, "Transfer Learning": a small or a large dataset, similar to the source or not). Its
borders are the constants below, each with where it comes from; none is sharp.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtransfer.curves.report import interval

SCRATCH = "scratch"

FEW_ROWS = 800
"""Up to here a linear probe on ImageNet's backbones did as well as finetuning or better, and beyond it finetuning did
(Kornblith et al. 2019, arXiv:1805.08974)."""
FEW_PER_CLASS = 16
"""Where the literature of few-shot learning ends (CLIP, arXiv:2103.00020; CoOp, arXiv:2109.01134)."""
PARAMETERS_PER_ROW = 10_000
"""A rule of thumb between two findings with ViT-B/16: at 86,000 of its parameters a labelled row (VTAB-1k) training few
of them beat finetuning in most tasks (Jia et al. 2022, arXiv:2203.12119); at 1,700 (CIFAR) finetuning is the custom."""
NEAR, FAR = 0.8, 0.5
"""Rules of thumb for the share of the classes that frozen features explain: from the first on a task is near whatever
its inputs look like, below the second it is far; between them the domain classifier decides, if there is a source."""
APART = 0.05
"""A rule of thumb: a domain classifier that errs in fewer rows has found two domains that are apart."""
TELLING = 0.25
"""A rule of thumb: with this share of the labels a trial tells more of a task than the table."""

SMALL = "small"
TABLE = {
    ("few", "near"): ("probe", SMALL),
    ("few", "far"): (SMALL, "probe"),
    ("many", "near"): ("finetune", SMALL),
    ("many", "far"): ("finetune", SCRATCH),
}
"""First choice and alternative by labels and gap; `SMALL` stands for a method that trains little of the backbone."""

PRESENT, NONE, UNDECIDED = "present", "none", "undecided"


class Comparison(NamedTuple):
    """A method against another: for every seed the same labels, and the same held-out rows for all.

    Attributes:
        accuracy: Of the method on those rows, mean over seeds, 0..1.
        difference: Mean over seeds of its accuracy minus the other's.
        half: Half width of the 95% Student-t interval of the difference.
    """

    accuracy: float
    difference: float
    half: float

    @property
    def harm(self) -> str:
        """ "present" if the whole interval lies below 0, "none" if it lies above, else "undecided"."""
        if self.difference + self.half < 0:
            return PRESENT
        return NONE if self.difference - self.half > 0 else UNDECIDED


def compare(accuracies: Mapping[str, Sequence[float]], reference: str = SCRATCH) -> dict[str, Comparison]:
    """Every method against the reference, seed by seed.

    Args:
        accuracies: Of each method one for each seed, 0..1, in the same order of seeds.
        reference: One of the methods.

    Returns:
        The comparison of every other method, by name.
    """
    found = {}
    for name, own in accuracies.items():
        differences = [mine - other for mine, other in zip(own, accuracies[reference], strict=True)]
        found[name] = Comparison(math.fsum(own) / len(own), *interval(differences))
    return {name: comparison for name, comparison in found.items() if name != reference}


def negative_transfer(found: Mapping[str, Comparison]) -> str:
    """Whether a backbone harms: with it worse than without it (Wang et al. 2019, arXiv:1811.09751).

    "present" if every method that uses it is worse than scratch, "none" if any is better, else "undecided". By chance
    alone the first comes up in at most 2.5% of trials, the second in 2.5% for each method that is tried.
    """
    verdicts = {comparison.harm for comparison in found.values()}
    return PRESENT if verdicts == {PRESENT} else NONE if NONE in verdicts else UNDECIDED


def labels(counts: Sequence[int], parameters: int) -> tuple[str, str]:
    """Whether labels are "few" or "many", and why.

    Args:
        counts: Labelled rows of each class.
        parameters: Of the backbone.
    """
    rows, median = int(np.sum(counts)), float(np.median(counts))
    few = rows <= FEW_ROWS or median <= FEW_PER_CLASS or parameters > PARAMETERS_PER_ROW * rows
    return "few" if few else "many", (
        f"{rows:,} rows (few: at most {FEW_ROWS}), {median:g} of a class (few: at most {FEW_PER_CLASS}), and "
        f"{parameters / rows:,.0f} parameters of the backbone a row (few: more than {PARAMETERS_PER_ROW:,})"
    )


def gap(explained: float, error: float | None) -> tuple[str, str]:
    """Whether a task is "near" to what the backbone knows or "far" from it, and why.

    Args:
        explained: Share of the classes that the features explain, 0..1.
        error: Of the domain classifier, 0..0.5; None without a source.
    """
    share = f"frozen features explain {explained:.0%} of the classes"
    if explained >= NEAR:
        return "near", f"{share} (near from {NEAR:.0%} on)"
    if explained < FAR:
        return "far", f"{share} (far below {FAR:.0%})"
    if error is None:
        middle = (NEAR + FAR) / 2
        where = "near" if explained >= middle else "far"
        return where, f"{share} (near from {middle:.0%} on, where no source is known)"
    where = "far" if error < APART else "near"
    return where, f"{share}, and a classifier of the domains errs in {error:.0%} (far below {APART:.0%})"


class Choice(NamedTuple):
    """What to use.

    Attributes:
        method: The first choice.
        alternative: The second.
        reasons: What beside the table led to them, in sentences.
    """

    method: str
    alternative: str
    reasons: list[str]


def recommend(choices: Sequence[str], accuracies: Mapping[str, Sequence[float]], share: float) -> Choice:
    """A method and an alternative.

    Negative transfer means scratch. Otherwise the table's choices stand, but for those that the trial finds worse than
    scratch. A method that beats the choice in the trial takes its place if the trial tells of the task as it is, and is
    the alternative if it had too few of the labels for that.

    Args:
        choices: The table's, best first.
        accuracies: Of the trial; see `compare`.
        share: Of the labels at hand that the trial trained on, 0..1.
    """
    found = compare(accuracies)
    if negative_transfer(found) == PRESENT:
        names = " and ".join(found)
        return Choice(SCRATCH, choices[0], [f"The trial finds {names} worse than scratch; so try other backbones too."])
    harmful = [name for name, comparison in found.items() if comparison.harm == PRESENT]
    kept = [name for name in dict.fromkeys([*choices, *found, SCRATCH]) if name not in harmful]
    method = next(name for name in kept if name != SCRATCH)
    alternative = next(name for name in kept if name != method)
    reasons = [f"The trial finds {name} worse than scratch." for name in harmful]
    versus = compare(accuracies, method) if method in accuracies else {}
    better = {name: comparison.difference for name, comparison in versus.items() if comparison.harm == NONE}
    if better:
        best = max(better, key=better.get)
        seen = f"finds {best} better than {method} ({points(versus[best])} points)"
        if share >= TELLING:
            reasons.append(f"The trial, with {share:.0%} of the labels, {seen}, and overrules the table.")
            method, alternative = best, method
        else:
            reasons.append(f"The trial {seen}, but with {share:.0%} of the labels: compare the two with more.")
            alternative = best
    return Choice(method, alternative, reasons)


def points(comparison: Comparison) -> str:
    """A difference and the half width of its interval as text, in points: `+1.2 ± 0.3`."""
    return f"{100 * comparison.difference:+.1f} ± {100 * comparison.half:.1f}"
