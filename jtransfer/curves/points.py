"""The points of a curve: the mean of a metric and its interval for each method and number of shots."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jtransfer.errors import InputError
from jtransfer.intervals import interval
from jtransfer.storage.cells import ACCURACY, value

Results = Sequence[Mapping]
"""Rows of a curve; see the top of `report.py`."""


class Point(NamedTuple):
    """The metric of one method at one number of shots.

    Attributes:
        mean: Mean over seeds; nan where all diverged.
        half: Half width of the 95% interval of the mean, in the unit of `mean`; nan for one seed.
        n: Number of seeds in the mean.
        diverged: Number of seeds that have no value, as none of their trials stayed finite.
    """

    mean: float
    half: float
    n: int
    diverged: int = 0


class Shown(NamedTuple):
    """The metric that a report shows.

    Attributes:
        metric: Name of the metric.
        better: Which values are better, "higher" or "lower".
        unit: The unit in which values are shown: "%" for shares, or "".
    """

    metric: str
    better: str
    unit: str

    @classmethod
    def of(cls, results: Results) -> "Shown":
        """The metric of some rows, at least one, as the first of them says; accuracy where it says nothing."""
        return cls(**{key: results[0].get(key, usual) for key, usual in ACCURACY.items()})

    @property
    def words(self) -> str:
        """The name in words, as "accuracy" or "mean per class"."""
        return self.metric.replace("_", " ")

    def text(self, value: float) -> str:
        """A scaled value as it is shown: shares to a tenth of a percent, others to three digits."""
        return f"{value:.1f}" if self.unit else f"{value:.3g}"

    @property
    def scale(self) -> int:
        """The factor that values are multiplied by before they are shown."""
        return 100 if self.unit else 1


def gather(results: Results) -> dict[tuple[str, int], Point]:
    """The cells of the report: `{("probe", 5): Point(mean=0.91, half=0.012, n=5)}`, in order of first appearance.

    Raises:
        InputError: no rows, rows of different metrics, a seed that stands twice in a cell (it would narrow the interval
            for nothing), or a share outside -1..1.
    """
    cells: dict[tuple[str, int], dict[int, float | None]] = {}
    shown = Shown.of(results) if results else Shown(**ACCURACY)
    for row in results:
        method, shots, seed = (row[name] for name in ("method", "shots", "seed"))
        place = f"method '{method}', shots {shots}, seed {seed}"
        if row.get("metric", "accuracy") != shown.metric:
            raise InputError(f"{place} shows {row['metric']}, other rows {shown.metric}; expected one metric")
        reached = value(row)
        if reached is not None and shown.unit and not -1 <= reached <= 1:
            raise InputError(f"test_{shown.metric} of {place} is {reached}; expected -1..1")
        seeds = cells.setdefault((method, shots), {})
        if seed in seeds:
            raise InputError(f"results hold two rows for {place}; expected one")
        seeds[seed] = reached
    if not cells:
        raise InputError("results are empty; expected at least one row to report")
    points = {}
    for cell, seeds in cells.items():
        known = [one for one in seeds.values() if one is not None]
        mean, half = interval(known) if known else (math.nan, math.nan)
        points[cell] = Point(mean, half, len(known), len(seeds) - len(known))
    return points


def shown_points(results) -> dict[tuple[str, int], Point]:
    """The points of `gather` as they are shown: shares in %."""
    scale = Shown.of(results).scale if results else 1
    return {cell: p._replace(mean=scale * p.mean, half=scale * p.half) for cell, p in gather(results).items()}


def by_rows(results) -> bool:
    """Whether shots count all training rows, not rows of each class: of data without one class a row."""
    return any(row.get("labels") == "rows" for row in results)


def methods_of(points: Mapping[tuple[str, int], Point]) -> list[str]:
    """Methods that have points, in order of first appearance."""
    return list(dict.fromkeys(method for method, _ in points))


def shots_of(points: Mapping[tuple[str, int], Point]) -> list[int]:
    """Numbers of shots that have points, ascending."""
    return sorted({shots for _, shots in points})


def seeds_text(n: int) -> str:
    """A number of seeds in words, as "1 seed" or "5 seeds"."""
    return f"{n} seed" if n == 1 else f"{n} seeds"
