"""Transfer from ImageNet to photographs and to drawings, by labels, by method and by resolution.

    python experiments/imagenet_transfer/run.py --backbone=DIR --workdir=runs/imagenet_transfer

runs curves of configs/imagenet_quickstart.py (a cell that the workdir has is not run again, so a stopped run goes on,
and a smaller one can be added to), and writes `results.csv`, `table.md` and `imagenet_transfer.png`. With `--methods`,
`--shots`, `--seeds`, `--targets` or `--images` it runs a part; with `--seeds=0` it only shows what there is.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from jtransfer import cli
from jtransfer.curves.points import interval
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIG = Path(__file__).parents[2] / "configs" / "imagenet_quickstart.py"
TARGETS = {  # data, classes, and the numbers of labels per class that all methods have
    "cifar10": ("tfds:cifar10", 10, (1, 2, 5, 10, 25, 50, 100, 300, 1000, 4500)),
    "emoji": ("tfds:emoji_captions?label=group", 9, (1, 2, 5, 10, 25, 50, 100, 230)),
}
METHODS = {  # and how a figure shows them
    "scratch": {"color": "#606060", "marker": "x", "ls": "--"},
    "pixels": {"color": "#8f8f8f", "marker": "+", "ls": "--"},
    "probe": {"color": COLOURS[0], "marker": MARKERS[0]},
    "logistic": {"color": COLOURS[1], "marker": MARKERS[1]},
    "top_blocks(1)": {"color": COLOURS[2], "marker": MARKERS[2]},
    "finetune": {"color": COLOURS[3], "marker": MARKERS[3]},
    "finetune + frozen_norm": {"color": COLOURS[4], "marker": MARKERS[4]},
    "bitfit": {"color": COLOURS[5], "marker": MARKERS[5]},
    "lora(target='.*conv')": {"color": COLOURS[0], "marker": MARKERS[6], "ls": ":"},
    "houlsby(width=16)": {"color": COLOURS[1], "marker": "*", "ls": ":"},
    "bitfit + frozen_norm": {"color": COLOURS[5], "marker": MARKERS[5], "ls": ":"},
    "houlsby(width=16) + frozen_norm": {"color": COLOURS[2], "marker": "*", "ls": ":"},
}
IMAGE = 64  # side of the images, but for RESOLVED
IMAGES = (32, 64, 96, 128, 224)
RESOLVED = "logistic"  # the method that all resolutions have
BASELINE = "scratch"
LIMIT = 100  # labels per class up to which the claim is about
BANDS = {(100, 1000): "head", (1000, 10_000): "last blocks", (10_000, 100_000): "everything"}
"""What a textbook's table says should learn, by the number of labelled images."""


def main(argv):
    """Run the curves, gather, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0.in1k", help="on the hub, or a directory")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shots", nargs="+", type=int, help="labels per class")
    parser.add_argument("--images", nargs="+", type=int, choices=IMAGES, default=list(IMAGES), help="sides, in pixels")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the labelled images; 0 to show what there is")
    options = parser.parse_args(argv)
    for target in options.targets if options.seeds else ():
        for image in options.images:
            curve(options, target, image)
    rows = gathered(options.workdir)
    with open(options.workdir / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    lines = [table_of(rows, target) for target in TARGETS] + [resolutions(rows), claim(rows)]
    (options.workdir / "table.md").write_text("\n".join(lines))
    (options.workdir / "imagenet_transfer.png").write_bytes(render(figure(rows), "png"))
    print(f"\nWritten to {options.workdir}: results.csv, table.md, imagenet_transfer.png")


def curve(options, target, image):
    """Run one curve: one target at one resolution."""
    data, _, shots = TARGETS[target]
    methods = [name for name in options.methods if image == IMAGE or name == RESOLVED]
    shots = [k for k in shots if (not options.shots or k in options.shots) and (image == IMAGE or k <= LIMIT)]
    if methods and shots:
        cli.run(
            *("curve", f"--config={CONFIG}:data={data},load.image={image}", f"--config.backbone={options.backbone}"),
            *(f"--workdir={options.workdir / f'{target}-{image}'}", f"--config.seeds={options.seeds}"),
            *(f"--config.methods={','.join(methods)}", f"--config.shots={','.join(map(str, shots))}"),
        )


def gathered(workdir):
    """A row for each run of every curve in a workdir."""
    rows = []
    for target in TARGETS:
        for image in IMAGES:
            file = workdir / f"{target}-{image}" / "results.jsonl"
            for row in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
                kept = {key: row[key] for key in ("method", "shots", "seed")}
                what = {"target": target, "image": image, **kept, "test_accuracy": row["test_accuracy"]}
                rows.append(what | {"rate": row["hyper"].get("rate")})
    return rows


def points(rows, target, method, image=IMAGE):
    """By labels per class: the mean accuracy in %, half the width of its 95% interval, and the number of seeds."""
    own = [row for row in rows if (row["target"], row["method"], row["image"]) == (target, method, image)]
    own = [row for row in own if row["test_accuracy"] is not None]  # None where every trial diverged
    shots = sorted({row["shots"] for row in own})
    by = {k: [100 * row["test_accuracy"] for row in own if row["shots"] == k] for k in shots}
    return {k: (*interval(values), len(values)) for k, values in by.items()}


def text(point):
    """A point as a table has it; without an interval where there is one seed."""
    if not point:
        return "–"
    mean, half, seeds = point
    return f"{mean:.1f}" + (f" ± {half:.1f}" if seeds > 1 else "")


def grid(head, lines):
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])


def table_of(rows, target):
    """A line for each method, a column for each number of labels per class."""
    found = {name: points(rows, target, name) for name in METHODS}
    shots = sorted({k for of in found.values() for k in of})
    lines = [[f"`{name}`", *(text(of.get(k)) for k in shots)] for name, of in found.items() if of]
    return grid([target, *map(str, shots)], lines)


def resolutions(rows):
    """A line for each target and resolution, a column for each number of labels per class."""
    found = {(target, image): points(rows, target, RESOLVED, image) for target in TARGETS for image in IMAGES}
    shots = sorted({k for of in found.values() for k in of if k <= LIMIT})
    lines = [[target, str(image), *(text(of.get(k)) for k in shots)] for (target, image), of in found.items() if of]
    return grid([RESOLVED, "pixels", *map(str, shots)], lines)


def claim(rows):
    """For each target and method, at how many numbers of labels per class up to `LIMIT` it lies above scratch.

    Above means that the two 95% intervals do not touch; a single seed has no interval and counts for nothing.
    """
    lines = []
    for target in TARGETS:
        base = points(rows, target, BASELINE)
        for name in METHODS:
            both = {k: (point, base[k]) for k, point in points(rows, target, name).items() if k in base and k <= LIMIT}
            compared = {k: pair for k, pair in both.items() if min(seeds for *_, seeds in pair) > 1}
            if name != BASELINE and compared:
                apart = [k for k, ((a, s, _), (b, t, _)) in compared.items() if a - s > b + t]
                where = ", ".join(map(str, apart)) or "none"
                lines.append(f"- {target}, `{name}`: above {BASELINE} at {where} of {', '.join(map(str, compared))}.\n")
    return f"Intervals apart, by labels per class up to {LIMIT}:\n\n{''.join(lines)}"


def figure(rows):
    """Above: methods by labelled images, with the textbook's bands. Below: one method by resolution."""
    most = max(row["shots"] * TARGETS[row["target"]][1] for row in rows)
    with style():
        picture, *axes = canvas(10, 8, 2, 2)
        for column, (target, (_, classes, _)) in enumerate(TARGETS.items()):
            methods, sizes = axes[column], axes[2 + column]
            for name, look in METHODS.items():
                if any(row["method"] == name for row in rows):
                    draw(methods, points(rows, target, name), classes, look | {"label": name})
            for number, image in enumerate(IMAGES):
                if any(row["image"] == image for row in rows):
                    found = {k: p for k, p in points(rows, target, RESOLVED, image).items() if k <= LIMIT}
                    look = {"color": COLOURS[number], "marker": MARKERS[number], "label": f"{image} pixels"}
                    draw(sizes, found, classes, look)
            for panel in (methods, sizes):
                panel.set(xscale="log", xlim=(7, 1.6 * most), xlabel="labelled images for training")
                ticks = [n for n in (10, 100, 1000, 10_000) if n < 1.6 * most]
                panel.set_xticks(ticks, [f"{n:,}" for n in ticks])
            for shade, ((start, end), learns) in enumerate(BANDS.items()):
                if start < most:
                    end = min(end, 1.6 * most)
                    methods.axvspan(start, end, color="#000000", alpha=0.04 + 0.04 * shade, linewidth=0, zorder=0)
                    place = {"xy": ((start * end) ** 0.5, 0.02), "xycoords": ("data", "axes fraction"), "ha": "center"}
                    methods.annotate(learns, rotation=90, va="bottom", fontsize=9, color="#555555", **place)
            methods.set_title(f"{target}, {classes} classes, {IMAGE} pixels", loc="left", fontsize=11)
            sizes.set_title(f"{target}, {RESOLVED}", loc="left", fontsize=11)
        for panel in axes[::2]:
            panel.set_ylabel("test accuracy (%)")
        for panel in axes[1::2]:
            panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return picture


def draw(panel, found, classes, look):
    """One line with its intervals; of a method that was not run, the legend's entry alone."""
    means, halves, _ = zip(*found.values(), strict=True) if found else ((), (), ())
    panel.errorbar([k * classes for k in found], means, halves, elinewidth=1, capsize=2, **look)


if __name__ == "__main__":
    main(sys.argv[1:])
