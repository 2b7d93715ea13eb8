"""Results -> table and figure: the transfer curve of each method, with its cost and an honest interval.

Results are rows, one for each (method, shots, seed). A report reads these fields of a row:
`method`, `how` it comes to its predictions, `shots` (training labels a class, or `labels` altogether: "rows"; 0
without), `seed`, `metric`
(with `better` and `unit`, see `cells.value`), its value under `test_...` (None where every trial diverged),
`trainable` (parameters that learn) and `flops_per_step` (of one compiled training step, or None where the compiler
tells none).
"""

import itertools
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from jtransfer import files
from jtransfer.data.subsets import validation_rows, validation_shots
from jtransfer.errors import InputError
from jtransfer.figures import COLOURS, MARKERS, render, style
from jtransfer.storage.cells import ACCURACY, value
from jtransfer.texts import code, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Results = Sequence[Mapping]

MISSING = "–"
BASELINES = {"scratch": "#606060", "pixels": "#8f8f8f"}
"""Methods that use no pretrained weights, and their greys; `scratch(...)` and `scratch + ...` count as scratch."""
NO_LABELS = "#333333"


class Point(NamedTuple):
    """The metric of one method at one number of shots.

    Attributes:
        mean: Over seeds; nan where all diverged.
        half: Half width of the 95% interval of the mean, in the same unit; nan for one seed.
        n: Number of seeds in the mean.
        diverged: Number of seeds that are not, as none of their trials stayed finite.
    """

    mean: float
    half: float
    n: int
    diverged: int = 0


class Shown(NamedTuple):
    """What the points of a report are of.

    Attributes:
        metric: Its name.
        better: "higher" or "lower".
        unit: "%" for shares, or "".
    """

    metric: str
    better: str
    unit: str

    @classmethod
    def of(cls, results: Results) -> "Shown":
        """Of some rows, as their first has it."""
        return cls(**{key: results[0].get(key, usual) for key, usual in ACCURACY.items()})

    @property
    def words(self) -> str:
        """What it is called, as "accuracy" or "mean per class"."""
        return self.metric.replace("_", " ")

    def text(self, value: float) -> str:
        """A value as it is shown: shares to a tenth of a percent, others to three digits."""
        return f"{value:.1f}" if self.unit else f"{value:.3g}"

    @property
    def scale(self) -> int:
        """What values are multiplied by."""
        return 100 if self.unit else 1


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of the 95% Student-t interval, `t_{0.975, n-1} s / sqrt(n)`; nan for one value.

    `s` is the standard deviation with n - 1 in the denominator (Student 1908, doi:10.2307/2331554).

    >>> interval([0.5, 0.7])
    (0.6, 1.2706...)
    """
    values = list(values)
    n = len(values)
    if not n:
        raise InputError("values are empty; expected at least one to take the mean of")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, whose import takes a second

    s = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, float(stdtrit(n - 1, 0.975)) * s / math.sqrt(n)


def gather(results: Results) -> dict[tuple[str, int], Point]:
    """The cells of the report: `{("probe", 5): Point(mean=0.91, half=0.012, n=5)}`, in order of first appearance.

    Raises:
        InputError: no rows, a seed that stands twice in a cell (it would narrow the interval for nothing), or a
            share outside -1..1.
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


def _shown(results) -> dict[tuple[str, int], Point]:
    """The points as they are shown: shares in %."""
    scale = Shown.of(results).scale if results else 1
    return {cell: p._replace(mean=scale * p.mean, half=scale * p.half) for cell, p in gather(results).items()}


def table_markdown(results: Results, protocol: Sequence[str]) -> str:
    """The table as Markdown: a row for each method, its cost, a column for each number of shots, and the protocol.

    Args:
        results: Rows; see the top of this file.
        protocol: One sentence for each thing that a reader must know to repeat the numbers.
    """
    points = _shown(results)
    look = Shown.of(results)
    best = _best(points, look)
    unit, scale = _unit(results)
    shots = _shots(points)
    lines = [["method", "trainable parameters", f"{unit} / step", *map(str, shots)]]
    for method in _methods(points):
        # Code marks, because a method's name may hold a pattern.
        line = [code(method), _trainable(results, method), _flops(results, method, scale)]
        for cell in ((method, k) for k in shots):
            line.append(f"**{_text(points[cell], look)}**" if cell in best else _text(points.get(cell), look))
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [
        [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        for line in (lines[0], rule, *lines[1:])
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    bullets = "".join(f"- {plain(line)}\n" for line in protocol)
    return f"{table}\n\n{_caption(results, points)}\n" + (f"\n{bullets}" if bullets else "")


def terminal_table(results: Results) -> "Table":
    """The same table for a terminal, with each half width under its mean: seven numbers of shots fit 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    points = _shown(results)
    look = Shown.of(results)
    best = _best(points, look)
    unit, scale = _unit(results)
    caption = Text(_caption(results, points).replace("`", ""))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    # The names alone give way when room is short: a number that is cut is a wrong number.
    table.add_column("method", overflow="fold")
    for name in ("trainable\nparameters", f"{unit}\n/ step", *map(str, _shots(points))):
        table.add_column(name, justify="right", no_wrap=True)
    for method in _methods(points):
        line = [Text(method), _trainable(results, method), _flops(results, method, scale)]
        for cell in ((method, k) for k in _shots(points)):
            mean, *half = _text(points.get(cell), look).replace(" (", "\n(").split(" ± ")
            text = Text(mean, style="bold" if cell in best else "")
            line.append(text.append(f"\n±{half[0]}", "not bold dim") if half else text)
        table.add_row(*line)
    return table


def figure(results: Results, title: str) -> "Figure":
    """The transfer curves: the metric on test rows against labels per class, with 95% bands, named at their ends.

    The state of matplotlib is left as it was: no pyplot, and no style of the user's enters.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = {cell: point for cell, point in _shown(results).items() if point.n}
    shots = [k for k in _shots(points) if k]
    shown = Shown.of(results)
    with style():
        figure = Figure(figsize=(8, 5), dpi=150)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.085, 0.13, 0.6, 0.73), xscale="log")
        _tick(axes, shots, validation_rows if _by_rows(results) else validation_shots)
        ends = [_draw(axes, points, method, look) for method, look in _looks(points).items()]
        if ends:
            _limit(axes, points, shots, shown)
            _name(figure, axes, ends)
        axes.set_xlabel(f"labels{'' if _by_rows(results) else ' per class'} (training + validation)")
        axes.set_ylabel(f"test {shown.words}" + (" (%)" if shown.unit else ""))
        size = min(13, 13 * 74 / max(len(title), 1))  # some 74 characters fill the width at 13 points
        figure.text(0.02, 0.955, title, fontsize=size, fontweight="bold", va="center")
        figure.text(0.02, 0.905, _subtitle(points), fontsize=10, color="#555555", va="center")
    return figure


def write(results: Results, workdir: epath.PathLike, protocol: Sequence[str], title: str) -> None:
    """Write `curve.png`, `curve.svg` and `table.md` into `workdir`, a directory or an object store's prefix."""
    workdir = epath.Path(workdir)
    # All is rendered before anything is written, so that an error leaves the last report whole.
    table, drawn = table_markdown(results, protocol), figure(results, title)
    pictures = {f"curve.{kind}": render(drawn, kind) for kind in ("png", "svg")}
    for name, content in {**pictures, "table.md": table}.items():
        files.write(workdir / name, content)


def _by_rows(results) -> bool:
    """Whether shots are rows altogether, of data that have not one class a row."""
    return any(row.get("labels") == "rows" for row in results)


def _methods(points) -> list[str]:
    return list(dict.fromkeys(method for method, _ in points))


def _shots(points) -> list[int]:
    return sorted({shots for _, shots in points})


def _best(points, look) -> set[tuple[str, int]]:
    """The cells that show the best mean of their column; a cell alone in its column beats nobody."""
    shown, best = (
        {cell: look.text(point.mean) for cell, point in points.items()},
        max if look.better == "higher" else min,
    )
    columns = [[cell for cell in points if cell[1] == shots and points[cell].n] for shots in _shots(points)]
    tops = [best(column, key=lambda cell: points[cell].mean) for column in columns if len(column) > 1]
    return {cell for cell in points for top in tops if cell[1] == top[1] and shown[cell] == shown[top]}


def _text(point: Point | None, look: Shown) -> str:
    if point is None:
        return MISSING
    if not point.n:
        return f"{MISSING} ({point.diverged} diverged)"
    return look.text(point.mean) + ("" if math.isnan(point.half) else f" ± {look.text(point.half)}")


def _costs(results, method, field) -> list[float]:
    return sorted({row[field] for row in results if row["method"] == method and row[field] is not None})


def _trainable(results, method) -> str:
    return _span([f"{count:,}" for count in _costs(results, method, "trainable")])


def _flops(results, method, scale) -> str:
    return _span([_number(flops / scale) for flops in _costs(results, method, "flops_per_step")])


def _span(texts) -> str:
    """One text where all are the same; first to last where shots change the cost (a larger batch, say)."""
    if not texts:
        return MISSING
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]}–{texts[-1]}"


def _number(value: float) -> str:
    """Three significant digits or the whole part: 0.052, 1.23, 45.6, 1,234."""
    if 0 < value < 0.0005:
        return "<0.001"
    places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 or not value else 3
    return f"{value:,.{places}f}"


def _unit(results) -> tuple[str, float]:
    most = max((row["flops_per_step"] or 0 for row in results), default=0)
    return ("GFLOP", 1e9) if most >= 1e10 else ("MFLOP", 1e6)


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def _caption(results, points) -> str:
    """What the numbers are; the usual number of seeds, then each column or cell that has another."""
    points, shown = {cell: point for cell, point in points.items() if point.n} or points, Shown.of(results)
    columns = {k: {cell: point.n for cell, point in points.items() if cell[1] == k} for k in _shots(points)}
    counts = Counter(n for k, column in columns.items() if k or len(columns) == 1 for n in column.values())
    usual = max(counts, key=lambda n: (counts[n], n))
    others = []
    for k, column in columns.items():
        same = len(set(column.values())) == 1
        cells = list(column.items())[: 1 if same else None]
        others += [f"{_seeds(n)} {'' if same else f'for `{name}` '}at {k}" for (name, _), n in cells if n != usual]
    half = " ± half width of its 95% Student-t interval" if any(point.n > 1 for point in points.values()) else ""
    sentences = [
        f"Test {shown.words}{' in %' if shown.unit else ''} by training "
        + (
            "rows (validation takes a quarter more)"
            if _by_rows(results)
            else "labels per class (validation takes up to 4 more)"
        ),
        f"Mean over {_seeds(usual)}{half}" + (f"; but {', '.join(others)}" if others else ""),
        _solved(results),
        "One seed gives no interval" if any(point.n == 1 for point in points.values()) else "",
        f"Bold: the {shown.better.replace('er', 'est')} mean of a column" if _best(points, shown) else "",
        *(
            f"`{method}` learns nothing: its cost is one forward pass"
            for method in _methods(points)
            if not any(_costs(results, method, "trainable"))
        ),
    ]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _solved(results) -> str:
    """Which methods are solved for, where there are others that are trained."""
    methods = list(dict.fromkeys(f"`{row['method']}`" for row in results if row.get("how") == "solved"))
    return f"Solved to the optimum, not trained by steps: {', '.join(methods)}" if methods else ""


def _subtitle(points) -> str:
    if not points:
        return "every trial diverged"
    counts = {point.n for (_, k), point in points.items() if k} or {point.n for point in points.values()}
    many = _seeds(max(counts)) if len(counts) == 1 else f"{min(counts)} to {_seeds(max(counts))}"
    return f"{many}, no interval" if counts == {1} else f"mean over {many} and its 95% Student-t interval"


def _looks(points) -> dict[str, dict]:
    """Lines of each method: colour for the pretrained, dashed greys for baselines, no mark for what has no labels."""
    looks, learners = {}, 0
    for method in _methods(points):
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
