"""The rows of `run.py` as tables and as a figure."""

from collections import defaultdict

import numpy as np

from jtransfer.curves.report import interval
from jtransfer.data import glyphs
from jtransfer.figures import COLOURS

CEILING = {"color": "#606060", "lw": 1.2}
MEASURED, BINARY = {"marker": "o", "ms": 4, "ls": "-"}, {"marker": "s", "ms": 4, "ls": "--"}


def points(rows, part, keys, value="accuracy"):
    """Mean and half width of the 95% interval over draws, by the values of `keys`; what a draw repeats is averaged."""
    cells = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["part"] == part:
            cells[tuple(row[key] for key in keys)][row["draw"]].append(row[value])
    return {cell: interval(np.mean(repeats) for repeats in draws.values()) for cell, draws in cells.items()}


def along(rows, part, keys, axis, value="accuracy"):
    """The same as curves: `{cell: {x: (mean, half)}}` with the values of `axis` as x."""
    curves = defaultdict(dict)
    for (*cell, x), point in points(rows, part, (*keys, axis), value).items():
        curves[tuple(cell)][x] = point
    return curves


def tables(rows) -> str:
    """All the numbers as Markdown."""
    arm = ("method", "attributes")
    seen, held_out = (along(rows, "seen", arm, "seen", value) for value in ("accuracy", "held_out"))
    few, few_top = (along(rows, "few", (), "count", value)[()] for value in ("accuracy", "ceiling"))
    shared, groups = along(rows, "shared rows", arm, "distinct"), along(rows, "shared rows", (), "distinct")[()]
    features, printed = (points(rows, "features", ("features",), value) for value in ("accuracy", "printed"))
    parts = [points(rows, "generalised", (*arm, "how"), value) for value in ("seen", "unseen", "harmonic")]
    counts = list(seen["bridge", "measured"])
    return "\n".join(
        (
            table(
                ("method", "attributes", *counts, "held-out letters"),
                *((*cell, *curve.values(), held_out[cell][counts[-1]]) for cell, curve in seen.items()),
            ),
            table(
                (f"bridge by cosine, measured, less ... ({counts[-1]} letters)", "", "digits", "held-out letters"),
                *((*cell, *differences(rows, cell, counts[-1])) for cell in seen if cell != ("bridge", "measured")),
            ),
            table(
                ("features", "bridge, measured attributes", "centroids of printed digits"),
                *((*cell, point, printed[cell]) for cell, point in features.items()),
            ),
            table(
                ("distinct rows", "", *groups),
                *((*cell, *curve.values()) for cell, curve in shared.items()),
                ("*ceiling*", "", *(f"{10 * k}" for k in groups)),
            ),
            table(("binary attributes", *few), ("bridge", *few.values()), ("*ceiling*", *few_top.values())),
            table(
                ("method", "attributes", "scores", "seen", "unseen", "harmonic"),
                *((*cell, *(part[cell] for part in parts)) for cell in parts[0]),
            ),
            table(
                ("digit", "found (%)", "taken for most often (%)", "among all 62 classes most often (%)"),
                *digits(rows),
            ),
        )
    )


def differences(rows, other, count):
    """How far the bridge by cosine, from what was measured, is above another arm: means over draws, paired."""
    found = {(*map(row.get, ("method", "attributes")), row["draw"]): row for row in rows if row.get("seen") == count}
    draws = sorted({draw for *_, draw in found})
    for value in ("accuracy", "held_out"):
        yield interval(found["bridge", "measured", i][value] - found[*other, i][value] for i in draws)


def digits(rows):
    """For each digit, over all draws: how often it is found among the digits, and what else it is taken for."""
    counts = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["part"] == "digits":
            for name in ("among", "anything"):
                counts[row["digit"]][name] += np.array(row[name])

    def commonest(shares, number):
        order = np.argsort(-shares, kind="stable")[:number]
        return ", ".join(f"`{glyphs.CLASSES[c]}` {100 * shares[c]:.0f}" for c in order)

    for digit, count in counts.items():
        among, anything = (x / x.sum() for x in count.values())
        others = among * (np.arange(10) != digit)
        yield f"`{digit}`", f"{100 * among[digit]:.0f}", commonest(others, 1), commonest(anything, 3)


def table(*lines) -> str:
    """Markdown, of texts, numbers and points; the first line is the head."""

    def text(cell):
        if isinstance(cell, tuple):
            return f"{100 * cell[0]:.1f}" + (f" ± {100 * cell[1]:.1f}" if np.isfinite(cell[1]) else "")
        return str(cell)

    lines = [[text(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        f"| {' | '.join(x.ljust(width) for x, width in zip(line, widths, strict=True))} |\n" for line in lines
    )


def draw(rows, file):
    """Four panels: methods, decisions, shared rows, few attributes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"}
    with plt.rc_context({**style, "font.size": 9.5, "axes.axisbelow": True, "legend.frameon": False}):
        figure, ((methods, decisions), (shared, few)) = plt.subplots(2, 2, figsize=(10, 7.4), sharey=True)
        curves = along(rows, "seen", ("method", "attributes"), "seen")
        for name, colour in zip(("DAP", "bridge", "ESZSL"), (COLOURS[2], COLOURS[0], COLOURS[1]), strict=True):
            for kind, look in (("measured", MEASURED), ("binary", BINARY)):
                if (name, kind) in curves:
                    _line(methods, curves[name, kind], f"{name}, {kind}", {"color": colour, **look})
        printed, _ = points(rows, "features", ("features",), "printed")["letters",]
        methods.axhline(100 * printed, ls=":", label="centroids of printed digits", **CEILING)
        names = {"bridge": "cosine", "bridge, dot": "dot product", "bridge, euclidean": "distance"}
        for (name, label), colour in zip(names.items(), (COLOURS[0], COLOURS[3], COLOURS[4]), strict=True):
            for kind, look in (("measured", MEASURED), ("binary", BINARY)):
                _line(decisions, curves[name, kind], f"{label}, {kind}", {"color": colour, **look})
        colours = {"DAP": COLOURS[2], "bridge": COLOURS[0]}
        for (name, kind), curve in along(rows, "shared rows", ("method", "attributes"), "distinct").items():
            look = {"color": colours[name], **(BINARY if kind == "binary" else MEASURED)}
            _line(shared, curve, f"{name}, {kind}", look)
        shared.plot(list(curve), [10 * k for k in curve], label="ceiling", **CEILING)
        _line(few, along(rows, "few", (), "count")[()], "bridge, binary", {"color": COLOURS[0], **BINARY})
        _line(few, along(rows, "few", (), "count", "ceiling")[()], "ceiling", CEILING)
        for axes, title, label in (
            (methods, "Methods", "seen classes (letters)"),
            (decisions, "Decisions of the bridge", "seen classes (letters)"),
            (shared, "Digits that share rows", "distinct rows among ten digits"),
            (few, "Few attributes, drawn at random", "binary attributes"),
        ):
            axes.axhline(10, color="#bbbbbb", lw=1, zorder=0)
            axes.text(1, 10.5, "chance", color="#888888", fontsize=8, ha="right", transform=axes.get_yaxis_transform())
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xlabel(label)
            axes.legend(fontsize=8, loc=(0.6, 0.7) if axes is few else "upper left")
        methods.set_ylabel("accuracy on handwritten digits (%)")
        shared.set_ylabel("accuracy on handwritten digits (%)")
        methods.set_ylim(0, 102)
        for axes in (methods, decisions):
            axes.set_xticks(list(curves["bridge", "measured"]))
        figure.tight_layout()
        figure.savefig(file, dpi=110)


def _line(axes, curve, label, look):
    x, values = list(curve), 100 * np.nan_to_num(np.array(list(curve.values())))
    axes.plot(x, values[:, 0], label=label, **look)
    low, high = values[:, 0] - values[:, 1], values[:, 0] + values[:, 1]
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
