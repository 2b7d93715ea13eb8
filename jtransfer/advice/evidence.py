"""What is measured before the trial: how much of the classes features explain, and how far the source is."""

from typing import Any, NamedTuple

import numpy as np

from jtransfer.evaluate import transferability as scores
from jtransfer.evaluate.protocols.rows import ProtocolRun
from jtransfer.evaluate.task import TargetTask


class Evidence(NamedTuple):
    """What was measured before the trial.

    Attributes:
        lines: For each number what it is, its value and how it came about, as texts.
        explained: Share of the classes that the features explain; see `share_explained`.
        error: Of the domain classifier, 0..0.5; None without a source.
    """

    lines: list[tuple[str, str, str]]
    explained: float
    error: float | None


def measure(
    task: TargetTask, counts: np.ndarray, transferability: ProtocolRun, domain_gap: ProtocolRun | None, source: str = ""
) -> Evidence:
    """Score the training rows, and compare them with the source.

    Args:
        task: Training rows as a dataset of their own.
        counts: Training rows of each class that the dataset has.
        transferability: Scores the task.
        domain_gap: Compares the task with the source; None where it is unknown.
        source: Name of the source.
    """
    error = None
    if task.backbone.classes:
        task.reader(task.dataset, *task.layers, "logits")  # both in one pass, for the protocols to find in the store
    (features,), labels = task.features(*task.layers), task.dataset.labels
    explained = share_explained(features, labels)
    lines = [
        (
            "labels",
            f"{counts.sum():,}",
            f"training rows of {len(counts)} classes, {counts.min():,} to {counts.max():,} of each",
        ),
        (
            "classes explained",
            f"{explained:.0%}",
            f"by a linear map of the features: shrunk H-score over {len(np.unique(labels)) - 1}, adjusted so that "
            "shuffled labels reach 0%",
        ),
    ]
    for row in transferability():
        shown = {name: "–" if value is None else f"{value:.3g}" for name, value in row["metrics"].items()}
        lines += [(name, value, row["how"]) for name, value in shown.items()]
    if domain_gap is None:
        lines.append(("domain gap", "unknown", "config.source names no source: the classes explained stand for it"))
        return Evidence(lines, explained, error)
    (row,) = domain_gap()
    error, squared, p_value, frechet = row["metrics"].values()
    lines += [
        (
            "domain classifier's error",
            f"{error:.1%}",
            f"telling rows held out from {source} from training rows, cross-validated; 50% is chance",
        ),
        ("proxy A-distance", f"{2 * (1 - 2 * error):.2f}", "2 (1 - 2 error): 0 for the same domain, 2 for two apart"),
        (
            "MMD p-value",
            f"{p_value:.2g}",
            f"permutation test of MMD² {squared:.3g}: small where the domains differ at all",
        ),
        ("Fréchet distance", f"{frechet:.3g}", "of the features, in their own squared units"),
    ]
    return Evidence(lines, explained, error)


PERMUTATIONS = 10
"""How often labels are shuffled, to tell what is explained by chance."""


def share_explained(features: Any, labels: np.ndarray) -> float:
    """Share of the classes that a linear map of features explains beyond chance, about 0 to 1.

    The shrunk H-score over its bound is the mean squared canonical correlation of features and classes. Of few rows
    shuffled labels are explained too, so it is adjusted as the Rand index is: what these reach becomes 0.

    Args:
        features: `[n, d]`.
        labels: `[n]`.

    Raises:
        InputError: as `transferability.h_score`.
    """
    rng, bound = np.random.default_rng(0), len(np.unique(labels)) - 1
    shuffled = [scores.h_score(features, rng.permutation(labels), "ledoit_wolf") for _ in range(PERMUTATIONS)]
    chance = np.mean(shuffled) / bound
    return float((scores.h_score(features, labels, "ledoit_wolf") / bound - chance) / (1 - chance))
