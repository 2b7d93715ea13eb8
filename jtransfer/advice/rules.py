"""From evidence to a method: what a trial finds decides, and the table of data size x domain gap where it does not.

The table is the usual one (CS231n, "Transfer Learning": a small or a large dataset, similar to the source or not). Its
borders are the constants below, each with where it comes from; none is sharp.
"""

import math
from collections.abc import Collection, Mapping, Sequence
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
TIE = 0.01
"""A rule of thumb: methods that the trial does not tell apart, and that lie within a point, are told apart by the
table. Where it finds a method a point behind, its best guess is worth more than a rule of thumb."""

SMALL = "small"
TABLE = {
    ("few", "near"): ("logistic", SMALL),
    ("few", "far"): (SMALL, "logistic"),
    ("many", "near"): ("finetune", SMALL),
    ("many", "far"): ("finetune", SCRATCH),
}
"""First and second choice by labels and gap. A linear probe is `logistic`, which is its optimum; `SMALL` stands for a
method that trains little of the backbone."""

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


def better_baseline(accuracies: Mapping[str, Sequence[float]], baselines: Sequence[str]) -> str:
    """Of the methods that use no backbone the one with the best mean accuracy; see `compare`."""
    return max(baselines, key=lambda name: math.fsum(accuracies[name]))


def negative_transfer(found: Mapping[str, Comparison]) -> str:
    """Whether a backbone harms: with it worse than without it (Wang et al. 2019, arXiv:1811.09751).

    "present" if every method that uses it is worse than the better baseline, "none" if any is better, else "undecided".
    By chance alone the first comes up in at most 2.5% of trials, the second in 2.5% for each method that is tried.

    Args:
        found: Each method that uses the backbone, compared with `better_baseline`.
    """
    verdicts = {comparison.harm for comparison in found.values()}
    return PRESENT if verdicts == {PRESENT} else NONE if NONE in verdicts else UNDECIDED


def extrapolated(
    accuracies: Mapping[int, Mapping[str, Sequence[float]]], count: int, linear: Collection[str] = ()
) -> dict[str, list[float]]:
    """What each method would reach with `count` labels, by the curve through its two largest counts, seed by seed.

    A linear head on given features is a model of fixed size: its error falls in 1 / labels to a limit (Amari and Murata
    1993, "Statistical Theory of Learning Curves under Entropic Loss Criterion"). The error of a network that learns
    features falls by a small power of the labels over decades (Hestness et al. 2017, arXiv:1712.00409), here by as much
    for each doubling. As draws are nested, the difference of two methods has an interval, which covers draws and starts
    but not that their curves are others.

    Args:
        accuracies: By labels of each class, of each method one for each seed.
        count: Labels of each class.
        linear: The methods that are linear heads.

    Returns:
        Accuracies of each method by seed, of which only differences mean something (they may be above 1); those of the
        largest count where there is no other, or where `count` is no larger.
    """
    *before, last = sorted(accuracies)
    shares = {True: 0.0, False: 0.0}
    if before and count > last:
        shares = {kind: share_added(before[-1], last, count, kind) for kind in shares}
    first = accuracies[before[-1] if before else last]
    return {
        name: [y + shares[name in linear] * (y - x) for x, y in zip(first[name], own, strict=True)]
        for name, own in accuracies[last].items()
    }


def share_added(first: int, last: int, count: int, linear: bool) -> float:
    """How much of what a method gained from `first` to `last` labels it gains again up to `count`; see `extrapolated`.

    >>> share_added(10, 40, 160, linear=True), share_added(10, 40, 160, linear=False)
    (0.25, 1.0)
    """
    if linear:
        return (1 / last - 1 / count) / (1 / first - 1 / last)
    return math.log(count / last) / math.log(last / first)


def with_more_steps(
    estimates: Mapping[str, Sequence[float]], gains: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Estimates to which a method that would gain by more steps adds what the last doubling of its steps gained.

    If each doubling gains half of what the one before it gained, all further ones together gain as much as the last.
    Only gains that are positive on average count.

    Args:
        estimates: Of each method one for each seed.
        gains: Of the methods that ran with half as many steps too: accuracy with all minus that with half, by seed.
    """
    return {
        name: [x + y for x, y in zip(own, gains[name], strict=True)]
        if math.fsum(gains.get(name, ())) > 0
        else list(own)
        for name, own in estimates.items()
    }


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
        reasons: What led to them, in sentences.
    """

    method: str
    alternative: str
    reasons: list[str]


def recommend(choices: Sequence[str], estimates: Mapping[str, Sequence[float]]) -> Choice:
    """A method and an alternative.

    The trial decides: its best method is the choice, unless the table prefers one that the trial does not find worse
    (the interval of their difference reaches 0, and its middle is at most `TIE` below). The alternative is the best of
    the others by the trial.

    Args:
        choices: The table's, best first; those that were not tried are passed over.
        estimates: Of every method that was tried, one for each seed.
    """
    means = {name: math.fsum(own) / len(own) for name, own in estimates.items()}
    best = max(means, key=means.get)
    versus = compare(estimates, best)
    open_ = [name for name, own in versus.items() if own.harm != PRESENT and own.difference >= -TIE]
    preferred = [name for name in choices if name == best or name in open_]
    method = preferred[0] if preferred else best
    alternative = max((name for name in means if name != method), key=means.get)
    if method != best:
        said = f"The trial finds {best} no better than {method} that it could tell ({_reversed(versus[method])} points)"
        return Choice(method, alternative, [f"{said}; the table prefers {method}."])
    second = versus[alternative]
    clear = "and tells them apart" if second.harm == PRESENT else "which it does not tell apart"
    reasons = [f"The trial finds {best} best, {_reversed(second)} points before {alternative}, {clear}."]
    if choices and choices[0] in versus:
        reasons[0] += f" The table says {choices[0]}, which is {points(versus[choices[0]])} points from it."
    return Choice(method, alternative, reasons)


def _reversed(comparison):
    return points(comparison._replace(difference=-comparison.difference))


def points(comparison: Comparison) -> str:
    """A difference and the half width of its interval as text, in points: `+1.2 ± 0.3`."""
    return f"{100 * comparison.difference:+.1f} ± {100 * comparison.half:.1f}"
