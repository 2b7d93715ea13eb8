"""How many labels is zero-shot worth? Where the curve of a method crosses the accuracy that needs no label.

As in CLIP (Radford et al. 2021, arXiv:2103.00020, section 3.1.5 and figure 7): log-linear interpolation between the
numbers of shots that were run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jtransfer.storage.cells import value

ZERO_SHOT = "zero_shot"
RESAMPLES = 2000
"""How often seeds are drawn anew for an interval."""


@dataclass(frozen=True)
class Worth:
    """Labels per class with which a method reaches the metric of a reference that needs no labels.

    The 95% interval is over seeds, for the test rows that there are. It is a bootstrap whose means are spread out as
    Student's t has it, because a bootstrap of few seeds is too narrow.

    Attributes:
        labels: Labels with which the mean over seeds reaches the reference; 0 where the fewest shots that were run
            reach it, infinite where the most do not.
        low: Lower end of the interval of `labels`; nan for a single seed.
        high: Upper end of the interval of `labels`; nan for a single seed.
        fewest: The fewest shots that were run.
        most: The most shots that were run.
    """

    labels: float
    low: float
    high: float
    fewest: int
    most: int

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" (95% interval {self._text(self.low)} to {self._text(self.high)})"
        return self._text(self.labels) + interval

    def _text(self, labels):
        if labels == 0:
            return f"less than {self.fewest}"
        return f"more than {self.most}" if math.isinf(labels) else f"{labels:.1f}"


def worth(rows: Sequence[Mapping], reference: str = ZERO_SHOT) -> dict[str, Worth]:
    """What the reference is worth in labels of every method that has at least two numbers of shots.

    Args:
        rows: Results of a curve; see the top of `report.py`.
        reference: The method without labels; without a row of it nothing is returned.

    Returns:
        By method, in order of first appearance. Rows that diverged do not count.
    """
    from scipy.special import ndtri, stdtrit  # quantiles, as those of scipy.stats, whose import takes a second

    rows = [row for row in rows if value(row) is not None]  # what diverged says nothing
    level = [_up(row) for row in rows if row["method"] == reference]
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows if level):
        own = {(row["shots"], row["seed"]): _up(row) for row in rows if row["method"] == method}
        shots = sorted({shots for shots, _ in own if shots})
        seeds = sorted({seed for _, seed in own if all((k, seed) in own for k in shots)})
        if len(shots) < 2 or not seeds:
            continue
        curves = np.array([[own[k, seed] for k in shots] for seed in seeds])
        low, high = math.nan, math.nan
        if len(seeds) > 1:
            draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
            mean, few = curves.mean(axis=0), len(seeds)
            wider = stdtrit(few - 1, 0.975) / ndtri(0.975) * math.sqrt(few / (few - 1))
            means = mean + wider * (curves[draws].mean(axis=1) - mean)
            resampled = np.sort([crossing(shots, own, np.mean(level)) for own in means])
            low, high = resampled[round(0.025 * (RESAMPLES - 1))], resampled[round(0.975 * (RESAMPLES - 1))]
        labels = crossing(shots, curves.mean(axis=0), np.mean(level))
        found[method] = Worth(labels, float(low), float(high), shots[0], shots[-1])
    return found


def _up(row) -> float:
    """What the row shows, or less that where less is better."""
    return -value(row) if row.get("better") == "lower" else value(row)


def crossing(shots: Sequence[int], accuracies: Sequence[float], level: float) -> float:
    """Shots at which a curve first reaches a level, by interpolation that is linear in the logarithm of the shots.

    Args:
        shots: Numbers of shots, ascending.
        accuracies: The metric at each number of shots, higher values being better.
        level: The metric to reach.

    >>> crossing([1, 4], [0.5, 0.7], 0.6)
    2.0

    Returns:
        0 where the first point reaches it, infinity where none does.
    """
    if accuracies[0] >= level:
        return 0.0
    for i in range(1, len(shots)):
        below, reached = accuracies[i - 1], accuracies[i]
        if reached >= level:
            share = (level - below) / (reached - below)
            return float(2 ** (math.log2(shots[i - 1]) + share * math.log2(shots[i] / shots[i - 1])))
    return math.inf
