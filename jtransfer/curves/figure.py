"""The figure of a curve."""

import itertools
import math
import re
import textwrap
from typing import TYPE_CHECKING

from jtransfer.curves.points import Results, Shown, by_rows, methods_of, seeds_text, shots_of, shown_points
from jtransfer.data.subsets import validation_rows, validation_shots
from jtransfer.figures import COLOURS, MARKERS, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = {"scratch": "#606060", "pixels": "#8f8f8f", "words": "#8f8f8f"}
"""Methods that use no pretrained weights, and their greys; `scratch(...)` and `scratch + ...` count as scratch."""

NO_LABELS = "#333333"
"""The grey of methods that see no labels."""


def figure(results: Results, title: str) -> "Figure":
    """The transfer curves: the metric on test rows against labels per class, with 95% bands, named at their ends.

    The state of matplotlib is left as it was: no pyplot, and no style of the user's enters.

    Args:
        results: Rows; see the top of `report.py`.
        title: What stands above the axes.

    Raises:
        InputError: rows that `points.gather` refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = {cell: point for cell, point in shown_points(results).items() if point.n}
    shots = [k for k in shots_of(points) if k]
    shown = Shown.of(results)
    with style():
        figure = Figure(figsize=(8, 5), dpi=150)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.085, 0.13, 0.6, 0.73), xscale="log")
        _tick(axes, shots, validation_rows if by_rows(results) else validation_shots)
        ends = [_draw(axes, points, method, look) for method, look in looks(points).items()]
        if ends:
            _limit(axes, points, shots, shown)
            _name(figure, axes, ends)
        axes.set_xlabel(f"labels{'' if by_rows(results) else ' per class'} (training + validation)")
        axes.set_ylabel(f"test {shown.words}" + (" (%)" if shown.unit else ""))
        size = min(13, 13 * 74 / max(len(title), 1))  # some 74 characters fill the width at 13 points
        figure.text(0.02, 0.955, title, fontsize=size, fontweight="bold", va="center")
        figure.text(0.02, 0.905, _subtitle(points), fontsize=10, color="#555555", va="center")
    return figure


def _subtitle(points) -> str:
    if not points:
        return "every trial diverged"
    counts = {point.n for (_, k), point in points.items() if k} or {point.n for point in points.values()}
    many = seeds_text(max(counts)) if len(counts) == 1 else f"{min(counts)} to {seeds_text(max(counts))}"
    return f"{many}, no interval" if counts == {1} else f"mean over {many} and its 95% Student-t interval"


def looks(points) -> dict[str, dict]:
    """Lines of each method: colour for the pretrained, dashed greys for baselines, no mark for what has no labels."""
    looks, learners = {}, 0
    for method in methods_of(points):
        name = re.match(r"\w*", method)[0]
        if not any(shots for other, shots in points if other == method):
            looks[method] = {"color": NO_LABELS, "ls": (0, (6, 3)), "lw": 1.3, "zorder": 2.5}
        elif name in BASELINES:
            mark = MARKERS[list(BASELINES).index(name)]
            looks[method] = {"color": BASELINES[name], "marker": mark, "ls": (0, (3, 1.5)), "lw": 1.6, "zorder": 3}
        else:
            # 6 colours and 7 marks: a pair comes back only after 42 methods.
            colour, mark = COLOURS[learners % len(COLOURS)], MARKERS[learners % len(MARKERS)]
            looks[method] = {"color": colour, "marker": mark, "ls": "-", "lw": 2.2, "zorder": 4}
            learners += 1
    return looks


def _draw(axes, points, method, look) -> tuple[str, str, float, float]:
    """Draw one method; returns its name, its colour, and the shots (0: all along) and % where its line ends."""
    cells = sorted((shots, point) for (name, shots), point in points.items() if name == method)
    if cells[0][0] == 0:
        axes.axhline(cells[0][1].mean, **{**look, "marker": None})
        cells = cells[1:] or cells
    shots, means = [k for k, _ in cells if k], [point.mean for k, point in cells if k]
    halves = [point.half for k, point in cells if k]
    axes.plot(shots, means, markersize=6.5, markeredgecolor="white", markeredgewidth=0.8, clip_on=False, **look)
    low, high = ([mean + sign * half for mean, half in zip(means, halves, strict=True)] for sign in (-1, 1))
    axes.fill_between(shots, low, high, color=look["color"], alpha=0.14, linewidth=0, zorder=2)
    # A band needs two neighbours; the thin bar shows the interval of a lone point too.
    axes.vlines(shots, low, high, color=look["color"], linewidth=1, alpha=0.55, zorder=2.2)
    return method, look["color"], cells[-1][0], cells[-1][1].mean


def _tick(axes, shots, validation) -> None:
    """Label each number of shots "5 + 4"; in two lines where two of them are close."""
    gaps = [math.log(right / left) / math.log(shots[-1] / shots[0]) for left, right in itertools.pairwise(shots)]
    crowded = min(gaps, default=1) < 0.13
    axes.set_xticks(shots, [f"{k}{chr(10) if crowded else ' '}+ {validation(k)}" for k in shots])
    axes.set_xticks([], minor=True)
    if crowded:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0 + 0.03, box.width, box.height - 0.03))


def _limit(axes, points, shots, shown) -> None:
    """Room for every mean and interval and for ten points at least, but no accuracy below 0 or above 100."""
    ends = [p.mean + s * (0 if math.isnan(p.half) else p.half) for p in points.values() for s in (-1, 1)]
    low, high = min(ends), max(ends)
    if shown.unit:
        low, high = max(low, min(0, *(p.mean for p in points.values()))), min(high, 100)
        room = max(0.05 * (high - low), 5 - (high - low) / 2)
        bottom, top = low - room, high + room
        axes.set_ylim(bottom if bottom > 3 or low < 0 else 0, top if top < 97 else 100)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=7)
    else:
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1
        axes.set_ylim(low - room, high + room)
    first, last = (shots[0], shots[-1]) if shots else (1, 1)
    margin = (last / first) ** 0.035 if first < last else 2
    axes.set_xlim(first / margin, last * margin)


def _name(figure, axes, ends) -> None:
    """Write each name right of the axes at the height of its line's end, moved apart just enough to be read."""
    import numpy as np
    from matplotlib.lines import Line2D
    from scipy.optimize import isotonic_regression

    ends = sorted(ends, key=lambda end: end[3])
    names = [
        figure.text(0, 0, textwrap.fill(method, 24), color=colour, va="center", fontsize=10.5, linespacing=1.05)
        for method, colour, _, _ in ends
    ]
    boxes = [name.get_window_extent(figure.canvas.get_renderer()) for name in names]
    wide, high = figure.bbox.size
    box, gap = axes.get_position(), 0.035
    right = 1 - max(extent.width for extent in boxes) / wide - gap - 0.015
    axes.set_position((box.x0, box.y0, right - box.x0, box.height))
    heights = np.array([extent.height / high + 0.008 for extent in boxes])
    places = axes.transData.transform([(k or axes.get_xlim()[1], percent) for _, _, k, percent in ends]) / (wide, high)
    # Least squares under "no two overlap" is isotonic regression, once the heights below each name are taken off.
    below = np.concatenate([[0], np.cumsum((heights[1:] + heights[:-1]) / 2)])
    fitted = isotonic_regression(places[:, 1] - below).x
    ys = np.clip(fitted, box.y0, max(box.y1 - below[-1], box.y0)) + below
    for name, (x, y), height, (_, colour, _, _) in zip(names, places, ys, ends, strict=True):
        name.set_position((right + gap, height))
        # Dotted where a curve ends early, so that the leader is not taken for it.
        line = {"linestyle": ":" if x < right - 0.1 else "-", "linewidth": 0.8, "alpha": 0.7}
        figure.add_artist(Line2D([x, right + gap - 0.006], [y, height], color=colour, **line))
