"""Ways of adapting, compared on every target that was run: accuracies, costs, paired differences and the frontier.

    python experiments/adaptation/show.py --workdir=runs/adaptation
    python experiments/adaptation/show.py --workdir=runs/unfreezing

reads the workdirs of curves that lie in a folder, one for each target, and writes `results.csv`, `table.md` and
`frontier.png` beside them. Costs are there where `jtransfer curve` was run with `costs=True`.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

from jtransfer.curves.frontier import best
from jtransfer.curves.points import interval
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

ORDER = ("digits", "cifar10", "sst_binary", "ag_news")
AT = 16  # labels per class of the figure
FROZEN = " + frozen_norm"
SPAN = 15  # points below the best that the figure shows; what is lower stands at its edge, with its value
PLAIN = "finetune"
WITHOUT = "without the backbone"
FAMILIES = {  # by how a method's text begins, in this order; what else there is trains an addition of low rank
    WITHOUT: ("pixels", "words", "scratch"),
    "frozen features": ("logistic", "probe", "zero_shot", "clip_adapter", "tip_adapter"),
    "all weights": ("finetune", "probe >> finetune", "layerwise", "unfreeze", "zero_shot >> finetune"),
    "few weights": ("bitfit", "norm", "ia3", "top_blocks"),
    "bottlenecks": ("houlsby", "pfeiffer", "adaptformer", "compacter"),
    "tokens": ("prompt", "prefix", "vpt", "coop"),
    "low rank and relatives": ("",),
}


def main(argv):
    """Gather and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="with a folder for each target")
    workdir = parser.parse_args(argv).workdir
    found = {file.parent.name for file in workdir.glob("*/results.jsonl")}
    there = [*(on for on in ORDER if on in found), *sorted(found - {*ORDER})]
    rows = [row | {"target": on} for on in there for row in lines(workdir / on / "results.jsonl")]
    keys = ("target", "method", "shots", "seed", "test_accuracy")
    kept = [{key: row[key] for key in keys} | {"rate": (row["hyper"] or {}).get("rate")} for row in rows]
    with open(workdir / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, kept[0], lineterminator="\n")
        table.writeheader()
        table.writerows(kept)
    parts = []
    for on in there:
        parts += [accuracies(rows, on), above(rows, on), needs(whole(workdir / on / "costs.json"))]
    (workdir / "table.md").write_text("\n".join(parts))
    (workdir / "frontier.png").write_bytes(render(figure(rows, there), "png"))
    print(f"Written to {workdir}: results.csv, table.md, frontier.png")


def lines(file):
    """The rows of a file."""
    return list(map(json.loads, file.read_text().splitlines()))


def whole(file):
    """The content of a file; nothing where it is missing."""
    return json.loads(file.read_text()) if file.exists() else []


def by_seed(rows, on, method, shots):
    """The accuracies in %, by seed."""
    own = [row for row in rows if (row["target"], row["method"], row["shots"]) == (on, method, shots)]
    return {row["seed"]: 100 * row["test_accuracy"] for row in own if row["test_accuracy"] is not None}


def shots_of(rows, on):
    """The numbers of labels per class, of what draws any."""
    return sorted({row["shots"] for row in rows if row["target"] == on and row["shots"]})


def methods_of(rows, on):
    """The methods that were run, in their order."""
    return list(dict.fromkeys(row["method"] for row in rows if row["target"] == on))


def family(method):
    """The family of a method, by the longest beginning that it has."""
    found = [(len(start), name) for name, starts in FAMILIES.items() for start in starts if method.startswith(start)]
    return max(found)[1]


def plain_of(methods):
    """What finetunes all weights: with frozen statistics, where the network has any."""
    return next((name for name in methods if name.startswith(PLAIN)), None)


def text(values, sign=""):
    """Mean and half width of the 95% interval; one value alone; a dash for none."""
    values = list(values)
    if len(values) < 2:
        return f"{values[0]:{sign}.1f}" if values else "–"
    mean, half = interval(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def grid(heads, cells):
    """A table in Markdown."""
    head = f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"
    return "\n".join([*head, *(f"| `{name}` | {' | '.join(line)} |" for name, line in cells.items())]) + "\n"


def accuracies(rows, on):
    """Parameters, FLOPs and the accuracy at each number of labels."""
    cells, every = {}, shots_of(rows, on)
    for method in methods_of(rows, on):
        own = next(row for row in rows if (row["target"], row["method"]) == (on, method))
        values = [by_seed(rows, on, method, k).values() for k in (every if own["shots"] else (0,))]
        shown = [text(one) for one in values] if own["shots"] else [text(values[0]), *["–"] * (len(every) - 1)]
        cells[method] = [f"{own['trainable']:,}", f"{own['flops_per_step'] / 1e6:,.3g}", *shown]
    return f"## {on}\n\n" + grid([on, "parameters", "MFLOP / step", *map(str, every)], cells)


def above(rows, on):
    """What each method is above finetuning, paired by seed; in bold where the interval does not reach zero."""
    every = shots_of(rows, on)
    methods = [name for name in methods_of(rows, on) if by_seed(rows, on, name, every[-1])]
    if (plain := plain_of(methods)) is None:
        return ""
    cells = {}
    for method in methods:
        values = [paired(rows, on, method, plain, k) for k in every]
        shown = [f"**{text(one, '+')}**" if clear(one) else text(one, "+") for one in values]
        if method != plain:
            cells[method] = shown
    return grid([f"less `{plain}`", *map(str, every)], cells)


def paired(rows, on, method, plain, shots):
    """Differences in points, seed by seed."""
    own, other = by_seed(rows, on, method, shots), by_seed(rows, on, plain, shots)
    return [own[seed] - other[seed] for seed in own if seed in other]


def clear(values):
    """Whether the interval of some differences leaves zero out."""
    mean, half = interval(values) if len(values) > 1 else (0, 0)
    return abs(mean) > half


def needs(costs):
    """Memory, bytes that are kept, and time, each time as a share of finetuning's; of all phases the most."""
    if not costs:
        return ""
    plain = next(one for one in costs if one["method"].startswith(PLAIN))
    cells = {
        one["method"]: [
            f"{one['peak_bytes'] / 2**20:,.1f}",
            f"{one['kept_bytes'] / 2**10:,.1f}",
            *(
                f"{one[key] / plain[key]:.2f}" if one.get(key) else "–"
                for key in ("seconds_step", "seconds_prediction", "seconds_merged")
            ),
        ]
        for one in costs
    }
    heads = ["costs", "peak MiB", "kept KiB", "time of a step", "of a prediction", "of one merged"]
    return grid(heads, cells)


def figure(rows, there):
    """For each target, the accuracy at `AT` labels against parameters, and against FLOPs."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    names = list(FAMILIES)
    with style():
        picture, *axes = canvas(4 * len(there), 7.4, 2, len(there))
        for place, axis in enumerate(axes):
            on, key = there[place % len(there)], ("trainable", "flops_per_step")[place // len(there)]
            own = [row for row in rows if row["target"] == on and row["shots"] == AT and row["trainable"]]
            if key == "flops_per_step":  # those of another model lie far to the left
                own = [row for row in own if family(row["method"]) != WITHOUT]
            cost = {row["method"]: row[key] for row in own}
            means = {name: np.mean([*by_seed(rows, on, name, AT).values()]) for name in cost}
            low = max(means.values()) - SPAN
            for name in cost:
                number = names.index(family(name))
                shown = {"color": [*COLOURS, "#777777"][number], "marker": MARKERS[number]}
                axis.plot(cost[name], max(means[name], low), linestyle="none", label=family(name), **shown)
                if means[name] < low:
                    note = f"{name.split('(')[0]} {means[name]:.0f}%"
                    axis.annotate(note, (cost[name], low), (0, 6), textcoords="offset points", size=7, rotation=60)
            line = best(cost, {name: max(mean, low) for name, mean in means.items()})
            axis.plot(
                [cost[x] for x in line],
                [max(means[x], low) for x in line],
                color="#999",
                lw=1,
                ds="steps-post",
                zorder=0,
            )
            for name in (name for name in line if means[name] >= low):
                axis.annotate(
                    name.removesuffix(FROZEN).split("(")[0],
                    (cost[name], means[name]),
                    (3, 4),
                    textcoords="offset points",
                    size=7,
                )
            axis.set(xscale="log", xlabel=("parameters that learn", "FLOPs of a step")[place // len(there)])
            wide = max(cost.values()) > 20 * min(cost.values())
            axis.xaxis.set_major_locator(LogLocator() if wide else MaxNLocator(4))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.xaxis.set_minor_formatter(NullFormatter())
            if place < len(there):
                axis.set_title(on)
            if not place % len(there):
                axis.set_ylabel(f"test accuracy at {AT} labels per class, %")
        seen = {label: mark for axis in axes for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        order = [name for name in names if name in seen]
        picture.legend(
            [seen[name] for name in order], order, loc="outside lower center", ncols=2 * len(there), frameon=False
        )
    return picture


if __name__ == "__main__":
    main(sys.argv[1:])
