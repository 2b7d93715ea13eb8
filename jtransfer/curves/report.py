"""Results -> table and figure: the transfer curve of each method, with its cost and an honest interval.

Results are rows, one for each (method, shots, seed). A report reads these fields of a row:

    method                  the method, as the config writes it
    how                     how it comes to its predictions: "trained", "solved" or "zero-shot"
    shots                   training labels of each class, or of all rows where `labels` is "rows"; 0 without labels
    seed                    the seed of the draw
    metric, better, unit    what is shown, as in `points.Shown`; its value is `test_METRIC`, None where all diverged
    trainable               parameters that learn
    flops_per_step          FLOPs of one training step, or of one forward pass where none is trained; None if unknown
    source_before, source_after    accuracy on the source task, where one is named; after is None without the backbone
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from jtransfer import files
from jtransfer.curves.figure import figure
from jtransfer.curves.points import (
    Point,
    Results,
    Shown,
    by_rows,
    gather,
    interval,
    methods_of,
    seeds_text,
    shots_of,
    shown_points,
)
from jtransfer.figures import render
from jtransfer.texts import code, plain

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Point", "figure", "gather", "interval", "table_markdown", "terminal_table", "write"]

MISSING = "–"


def table_markdown(results: Results, protocol: Sequence[str]) -> str:
    """The table as Markdown: a row for each method, its cost, a column for each number of shots, and the protocol.

    Args:
        results: Rows; see the top of this file.
        protocol: One sentence for each thing that a reader must know to repeat the numbers.

    Raises:
        InputError: rows that `gather` refuses.
    """
    points = shown_points(results)
    look = Shown.of(results)
    best = _best(points, look)
    unit, scale = _unit(results)
    shots = shots_of(points)
    kept = ["source accuracy"] if has_source(results) else []
    lines = [["method", "trainable parameters", f"{unit} / step", *kept, *map(str, shots)]]
    for method in methods_of(points):
        # Code marks, because a method's name may hold a pattern.
        line = [code(method), _trainable(results, method), _flops(results, method, scale)]
        line += [_source(results, method)] if kept else []
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
    """The table of `table_markdown` for a terminal, each half width under its mean: 7 numbers of shots fit 80 columns.

    Raises:
        InputError: rows that `gather` refuses.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    points = shown_points(results)
    look = Shown.of(results)
    best = _best(points, look)
    unit, scale = _unit(results)
    caption = Text(_caption(results, points).replace("`", ""))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    # The names alone give way when room is short: a number that is cut is a wrong number.
    table.add_column("method", overflow="fold")
    kept = ["source\naccuracy"] if has_source(results) else []
    for name in ("trainable\nparameters", f"{unit}\n/ step", *kept, *map(str, shots_of(points))):
        table.add_column(name, justify="right", no_wrap=True)
    for method in methods_of(points):
        line = [Text(method), _trainable(results, method), _flops(results, method, scale)]
        line += [_source(results, method)] if kept else []
        for cell in ((method, k) for k in shots_of(points)):
            mean, *half = _text(points.get(cell), look).replace(" (", "\n(").split(" ± ")
            text = Text(mean, style="bold" if cell in best else "")
            line.append(text.append(f"\n±{half[0]}", "not bold dim") if half else text)
        table.add_row(*line)
    return table


def write(results: Results, workdir: epath.PathLike, protocol: Sequence[str], title: str) -> None:
    """Write `curve.png`, `curve.svg` and `table.md`.

    Args:
        results: Rows; see the top of this file.
        workdir: A directory or an object store's prefix.
        protocol: The sentences under the table, as `table_markdown` takes them.
        title: The title of the figure.

    Raises:
        InputError: rows that `gather` refuses; nothing is written then.
        MachineError: a file cannot be written.
    """
    workdir = epath.Path(workdir)
    # All is rendered before anything is written, so that an error leaves the last report whole.
    table, drawn = table_markdown(results, protocol), figure(results, title)
    pictures = {f"curve.{kind}": render(drawn, kind) for kind in ("png", "svg")}
    for name, content in {**pictures, "table.md": table}.items():
        files.write(workdir / name, content)


def _best(points, look) -> set[tuple[str, int]]:
    """The cells that show the best mean of their column; a cell alone in its column beats nobody."""
    shown, best = (
        {cell: look.text(point.mean) for cell, point in points.items()},
        max if look.better == "higher" else min,
    )
    columns = [[cell for cell in points if cell[1] == shots and points[cell].n] for shots in shots_of(points)]
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


def has_source(results: Results) -> bool:
    """Whether the accuracy on a source task was measured before and after."""
    return any("source_before" in row for row in results)


def _source(results, method) -> str:
    """The source accuracy in %, before and, in the mean over seeds, after training on the most labels."""
    rows = [row for row in results if row["method"] == method and row.get("source_after") is not None]
    after = [row["source_after"] for row in rows if row["shots"] == max(one["shots"] for one in rows)]
    return f"{100 * rows[0]['source_before']:.1f} → {100 * math.fsum(after) / len(after):.1f}" if rows else MISSING


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


def _caption(results, points) -> str:
    """What the numbers are; the usual number of seeds, then each column or cell that has another."""
    points, shown = {cell: point for cell, point in points.items() if point.n} or points, Shown.of(results)
    columns = {k: {cell: point.n for cell, point in points.items() if cell[1] == k} for k in shots_of(points)}
    counts = Counter(n for k, column in columns.items() if k or len(columns) == 1 for n in column.values())
    usual = max(counts, key=lambda n: (counts[n], n))
    others = []
    for k, column in columns.items():
        same = len(set(column.values())) == 1
        cells = list(column.items())[: 1 if same else None]
        others += [f"{seeds_text(n)} {'' if same else f'for `{name}` '}at {k}" for (name, _), n in cells if n != usual]
    half = " ± half width of its 95% Student-t interval" if any(point.n > 1 for point in points.values()) else ""
    sentences = [
        f"Test {shown.words}{' in %' if shown.unit else ''} by training "
        + (
            "rows (validation takes a quarter more)"
            if by_rows(results)
            else "labels per class (validation takes up to 4 more)"
        ),
        f"Mean over {seeds_text(usual)}{half}" + (f"; but {', '.join(others)}" if others else ""),
        _solved(results),
        "One seed gives no interval" if any(point.n == 1 for point in points.values()) else "",
        f"Bold: the {shown.better.replace('er', 'est')} mean of a column" if _best(points, shown) else "",
        *(
            f"`{method}` learns nothing: its cost is one forward pass"
            for method in methods_of(points)
            if not any(_costs(results, method, "trainable"))
        ),
    ]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _solved(results) -> str:
    """Which methods are solved for, where there are others that are trained."""
    methods = list(dict.fromkeys(f"`{row['method']}`" for row in results if row.get("how") == "solved"))
    return f"Solved for, not trained by steps: {', '.join(methods)}" if methods else ""
