"""Results of an evaluation as a table and figures: every number beside the protocol that it comes from."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from jtransfer import files
from jtransfer.config import slug
from jtransfer.figures import COLOURS, MARKERS, render, style
from jtransfer.texts import cell, code, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

ResultRows = Sequence[Mapping[str, Any]]

SHARES = (
    "accuracy",
    "top-",
    "mean per class",
    "NMI",
    "ARI",
    "recall",
    "R@",
    "mAP",
    "AUROC",
    "ECE",
    "share",
    "error",
    "from",
    "to",
)
"""Beginnings and ends of the names of metrics that are shown in %."""
SHOWN = 3
"""Metrics of a row that the terminal shows beside the first."""


def shown(name: str, value: float | None) -> str:
    """A metric as text: shares in % with one digit, others with four significant ones."""
    if value is None or not math.isfinite(value):
        return "–"
    if any(name.startswith(share) or name.endswith(share) for share in SHARES):
        return f"{100 * value:.1f}"
    return f"{value:.4g}"


def chosen(row: Mapping[str, Any]) -> str:
    """Hyper-parameters as text: `k=20, validation=0.95`."""
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row["chosen"].items())


def table_markdown(rows: ResultRows, about: Sequence[str]) -> str:
    """A table with a line for each row, all its metrics and what was chosen; then how each number came about."""
    lines = ["| protocol | layer | result | more | chosen on validation |", "| --- | --- | ---: | --- | --- |"]
    for row in rows:
        (first, value), *others = row["metrics"].items()
        more = ", ".join(f"{name} {shown(name, number)}" for name, number in others)
        parts = row["layer"], f"{first} {shown(first, value)}", more, chosen(row)
        lines.append(f"| {code(row['protocol'])} | {' | '.join(map(cell, parts))} |")
    sentences = [*about, *_hows(rows)]
    return "\n".join(lines) + "\n\nShares in %.\n\n" + "".join(f"- {plain(line)}\n" for line in sentences)


def terminal_table(rows: ResultRows) -> "Table":
    """The table for a terminal: the first metric of each row, and a few of the other metrics below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption="Shares in %; all in table.md")
    layers = len({row["layer"] for row in rows}) > 1
    for name in ("protocol", *["layer"] * layers):
        table.add_column(name, overflow="fold")
    table.add_column("result", overflow="fold", ratio=1)
    for row in rows:
        (first, value), *others = row["metrics"].items()
        result = Text(plain(f"{first} {shown(first, value)}"), style="bold")
        more = plain(", ".join(f"{name} {shown(name, number)}" for name, number in others[:SHOWN]))
        result.append(f"\n{more}" if more else "", "not bold dim")
        table.add_row(Text(plain(row["protocol"])), *[row["layer"]] * layers, result)
    return table


def _hows(rows):
    return dict.fromkeys(f"{row['protocol']}: {row['how']}." for row in rows)


def write(rows: ResultRows, workdir: epath.PathLike, about: Sequence[str], title: str) -> list[str]:
    """Write `table.md`, `results.png` and a figure for each series and matrix; returns their names."""
    contents: dict[str, bytes | str] = {"table.md": table_markdown(rows, about)}
    contents["results.png"] = render(figure(rows, title), "png")
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        own = [row for row in rows if row["protocol"] == protocol]
        stem = slug(protocol)[:100]
        if any(file.startswith(f"{stem}.") or file.startswith(f"{stem}-") for file in contents):  # spelt otherwise
            stem += f"-{len(contents)}"
        if any("series" in row for row in own):
            contents[f"{stem}.png"] = render(_lines(own, title), "png")
        for row in own:
            for number, (name, matrix) in enumerate(row.get("matrix", {}).items()):
                contents[f"{stem}-{number or 'map'}.png"] = render(_map(name, matrix), "png")
    for name, content in contents.items():
        files.write(epath.Path(workdir) / name, content)
    return list(contents)


def figure(rows: ResultRows, title: str) -> "Figure":
    """The first metric of each row as a dot, where it is a share; a line for each protocol, a colour for each layer."""
    dots = [(row, *next(iter(row["metrics"].items()))) for row in rows]
    dots = [(row, name, value) for row, name, value in dots if shown(name, 0.5) == "50.0" and shown(name, value) != "–"]
    labels = list(dict.fromkeys(f"{row['protocol']}\n{name}" for row, name, _ in dots))
    layers = list(dict.fromkeys(row["layer"] for row, _, _ in dots))
    with style():
        picture, axes = canvas(8, 1.6 + 0.55 * max(len(labels), 1))
        for row, name, value in dots:
            place, look = labels.index(f"{row['protocol']}\n{name}"), layers.index(row["layer"])
            colour, mark = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
            axes.plot(100 * value, place, mark, color=colour, markersize=8, label=row["layer"])
            if len(layers) == 1:
                axes.annotate(
                    f"{100 * value:.1f}", (100 * value, place), (8, 0), textcoords="offset points", va="center"
                )
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlabel("% on the test rows")
        axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
        if len(layers) > 1:
            handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            axes.legend(handles.values(), handles.keys(), frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
        return picture


def _lines(rows, title):
    """The series of every row of a protocol in one figure, a panel for each title."""
    panels = list(dict.fromkeys(name for row in rows for name in row.get("series", {})))
    with style():
        picture, *axes = canvas(6.5, 4.2 * len(panels), len(panels))
        for panel, name in zip(axes, panels, strict=True):
            for number, row in enumerate(row for row in rows if name in row.get("series", {})):
                line = row["series"][name]
                panel.plot(line["x"], line["y"], marker=".", color=COLOURS[number % len(COLOURS)], label=row["layer"])
            panel.set(xlabel=line["xlabel"], ylabel=line["ylabel"], xscale=line.get("xscale", "linear"))
            panel.set_title(f"{rows[0]['protocol']}: {name}\n{title}", loc="left", fontsize=11)
            if len({row["layer"] for row in rows}) > 1:
                panel.legend(frameon=False)
        return picture


def _map(title, matrix):
    rows, columns = len(matrix["rows"]), len(matrix["columns"])
    with style():
        picture, axes = canvas(2.6 + 0.55 * columns, 2.2 + 0.45 * rows)
        image = axes.imshow(matrix["values"], cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(columns), matrix["columns"], rotation=45, ha="right")
        axes.set_yticks(range(rows), matrix["rows"])
        axes.grid(visible=False)
        for i, line in enumerate(matrix["values"]):
            for j, value in enumerate(line):
                colour = "black" if value > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(title, loc="left", fontsize=10)
        picture.colorbar(image, ax=axes)
        return picture


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple:
    """A figure of so many inches, and its panels row by row; no pyplot. Draw inside `figures.style()`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(picture)
    return picture, *(picture.add_subplot(rows, columns, number + 1) for number in range(rows * columns))
