"""The figure of what accuracy costs: each method by the parameters that it trains, and by the FLOPs of its step."""

from typing import TYPE_CHECKING

from jtransfer.curves.figure import looks
from jtransfer.curves.points import Results, Shown, by_rows, seeds_text, shots_of, shown_points
from jtransfer.errors import InputError
from jtransfer.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = {"trainable": "parameters that learn", "flops_per_step": "FLOPs of a step (of a solved head, a forward pass)"}


def best(costs: dict[str, float], means: dict[str, float], higher: bool = True) -> list[str]:
    """The methods that no other beats: none has as good a mean at less cost, or a better one at as little.

    Args:
        costs: By method.
        means: By method, of the same methods.
        higher: Whether higher means are better.

    Returns:
        Names, by rising cost.
    """
    sign, found = 1 if higher else -1, []
    for method in sorted(costs, key=lambda method: (costs[method], -sign * means[method])):
        if not found or sign * means[method] > sign * means[found[-1]]:
            found.append(method)
    return found


def figure(results: Results, title: str, shots: int | None = None) -> "Figure":
    """The metric at one number of shots against two costs, with a line through the methods that no other beats.

    Args:
        results: Rows; see the top of `report.py`. Methods that train nothing are left out.
        title: What stands above the axes.
        shots: Number of shots; None for the most.

    Raises:
        InputError: no method that learns at this number of shots; and as `points.gather`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    points = {cell: point for cell, point in shown_points(results).items() if point.n}
    shots = max(shots_of(points), default=0) if shots is None else shots
    costs = {name: _costs(results, shots, name) for name in COSTS}
    points = {method: point for (method, k), point in points.items() if k == shots and method in costs["trainable"]}
    if not points:
        raise InputError(f"no method learns at {shots} shots; there are {', '.join(map(str, shots_of(points)))}")
    shown, styles = Shown.of(results), looks({(method, shots): point for method, point in points.items()})
    with style():
        drawn = Figure(figsize=(10, 5), dpi=150)
        FigureCanvasAgg(drawn)
        for place, (name, words) in zip((0.07, 0.41), COSTS.items(), strict=True):
            axes = drawn.add_axes((place, 0.13, 0.3, 0.73), xscale="log")
            own = {method: costs[name][method] for method in points if method in costs[name]}
            for method, cost in own.items():
                point, look = points[method], styles[method]
                axes.errorbar(
                    [cost], [point.mean], [point.half], elinewidth=1, markersize=6.5, linestyle="none", zorder=3,
                    color=look["color"], marker=look["marker"], label=method,
                )  # fmt: skip
            line = best(own, {method: points[method].mean for method in own}, shown.better == "higher")
            where = [own[method] for method in line], [points[method].mean for method in line]
            axes.plot(*where, color="#999999", linewidth=1, drawstyle="steps-post", zorder=2)
            axes.set_xlabel(words)
            wide = max(own.values()) > 20 * min(own.values())
            axes.xaxis.set_major_locator(LogLocator() if wide else MaxNLocator(5))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
        first, second = drawn.axes
        low, high = first.get_ylim()
        for axes in drawn.axes if shown.unit else ():
            axes.set_ylim(max(low, min(0, *(point.mean for point in points.values()))), min(high, 100))
        second.set_ylim(first.get_ylim())
        second.set_yticklabels([])
        first.set_ylabel(f"test {shown.words}" + (" (%)" if shown.unit else ""))
        handles, names = first.get_legend_handles_labels()
        drawn.legend(handles, names, loc="center left", bbox_to_anchor=(0.72, 0.5), frameon=False, fontsize=9)
        drawn.text(0.02, 0.955, title, fontsize=13, fontweight="bold", va="center")
        drawn.text(0.02, 0.905, _subtitle(points, shots, by_rows(results)), fontsize=10, color="#555555", va="center")
    return drawn


def _subtitle(points, shots, of_rows) -> str:
    seeds = seeds_text(max(point.n for point in points.values()))
    labels = f"{shots} training rows" if of_rows else f"{shots} labels per class"
    return f"{labels}, mean over {seeds} and its 95% interval; the line: no other is better at as little"


def _costs(results, shots, name) -> dict[str, float]:
    """What each method costs at a number of shots; without those that cost nothing."""
    rows = [row for row in results if row["shots"] == shots and row["trainable"] and row[name]]
    return {row["method"]: row[name] for row in rows}
