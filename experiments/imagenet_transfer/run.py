"""Transfer from ImageNet to photographs and to drawings, by labels, by method and by resolution.

    python experiments/imagenet_transfer/run.py --backbone=DIR --workdir=runs/imagenet_transfer

runs curves of configs/imagenet_quickstart.py (a cell that the workdir has is not run again, so a stopped run goes on,
and a smaller one can be added to), and writes `results.csv`, `table.md` and `imagenet_transfer.png`. With `--methods`,
`--shots`, `--seeds`, `--targets` or `--images` it runs a part; with `--seeds=0` it only shows what there is.
"""

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path

from jtransfer import cli
from jtransfer.config import slug
from jtransfer.curves.points import interval
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIG = Path(__file__).parent / "config.py"
TARGETS = {  # data, classes, and the numbers of labels per class
    "cifar10": ("tfds:cifar10", 10, (1, 5, 25, 100, 300, 1500)),
    "emoji": ("tfds:emoji_captions?label=group", 9, (1, 5, 25, 100)),
}
BANDS = {(100, 1000): "head", (1000, 10_000): "last blocks", (10_000, 100_000): "everything"}
"""What a textbook's table says should learn, by the number of labelled images; `config.py` counts them from 0."""
SEEDS = (5, 3, 2)  # draws of the labelled images, in each band
METHODS = {  # that have every band, and how a figure shows them
    "scratch": {"color": "#606060", "marker": "x", "ls": "--"},
    "pixels": {"color": "#8f8f8f", "marker": "+", "ls": "--"},
    "logistic": {"color": COLOURS[1], "marker": MARKERS[1]},
    "top_blocks(1)": {"color": COLOURS[2], "marker": MARKERS[2]},
    "finetune": {"color": COLOURS[3], "marker": MARKERS[3]},
    "finetune + frozen_norm": {"color": COLOURS[0], "marker": MARKERS[4]},
    "logistic >> finetune + frozen_norm": {"color": COLOURS[5], "marker": MARKERS[0]},
}
SMALL = {  # that have the first band alone
    "probe": {"color": "#606060", "marker": "x"},
    "bitfit": {"color": COLOURS[3], "marker": MARKERS[3], "ls": ":"},
    "bitfit + frozen_norm": {"color": COLOURS[3], "marker": MARKERS[3]},
    "houlsby(width=16)": {"color": COLOURS[2], "marker": MARKERS[2], "ls": ":"},
    "houlsby(width=16) + frozen_norm": {"color": COLOURS[2], "marker": MARKERS[2]},
    "lora(target='.*conv')": {"color": COLOURS[0], "marker": MARKERS[0]},
}
ALL = METHODS | SMALL
STARVED = ("top_blocks(1)", "finetune + frozen_norm")  # that have the steps of the next band too
IMAGE = 64  # side of the images, but for RESOLVED
IMAGES = (32, 64, 96, 128, 224)
RESOLVED = "logistic"  # the method that all resolutions have, and that others are compared with
BASELINE = "scratch"
LIMIT = 100  # labels per class up to which there are other resolutions


def main(argv):
    """Run the curves, gather, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0.in1k", help="on the hub, or a directory")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--shots", nargs="+", type=int, help="labels per class")
    parser.add_argument("--images", nargs="+", type=int, choices=IMAGES, default=list(IMAGES), help="sides, in pixels")
    parser.add_argument("--seeds", type=int, default=max(SEEDS), help="at most; 0 to show what there is")
    options = parser.parse_args(argv)
    for target in options.targets if options.seeds else ():
        for image in options.images:
            curves(options, target, image)
    rows = gathered(options.workdir)
    with open(options.workdir / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    lines = [show(rows, target) for show in (table_of, gains) for target in TARGETS] + [resolutions(rows), claim(rows)]
    (options.workdir / "table.md").write_text("\n".join(lines))
    (options.workdir / "imagenet_transfer.png").write_bytes(render(figure(rows), "png"))
    print(f"\nWritten to {options.workdir}: results.csv, table.md, imagenet_transfer.png")


def curves(options, target, image):
    """Run the curves of one target at one resolution: one for each method and band, as bands have other steps."""
    data, _, shots = TARGETS[target]
    shots = [k for k in shots if (not options.shots or k in options.shots) and (image == IMAGE or k <= LIMIT)]
    for (band, seeds), name in itertools.product(enumerate(SEEDS), options.methods):
        own = [k for k in shots if band in bands_of(target, name, k)]
        if own and (name == RESOLVED or image == IMAGE):
            cli.run(
                *("curve", f"--config={CONFIG}:band={band},method={name},data={data},load.image={image}"),
                *(
                    f"--workdir={place(options.workdir, target, image, band, name)}",
                    f"--config.seeds={min(seeds, options.seeds)}",
                ),
                *(f"--config.shots={','.join(map(str, own))}", f"--config.backbone={options.backbone}"),
            )


def place(workdir, target, image, band, name):
    """Where one curve lies."""
    return workdir / f"{target}-{image}-{band}" / slug(name)


def bands_of(target, name, shots):
    """The bands whose recipe a method has at so many labels per class; first that of the number of images."""
    own = band_of(target, shots)
    more = name in STARVED and 1 < shots <= LIMIT
    return (own, own + 1) if more else (own,) if name in METHODS or own == 0 else ()


def band_of(target, shots):
    """The band of so many labels per class; fewer than 100 images count as the first."""
    return next(band for band, (_, end) in enumerate(BANDS) if shots * TARGETS[target][1] <= end)


def gathered(workdir):
    """A row for each run of every curve in a workdir."""
    rows = []
    for target in TARGETS:
        for image, band, name in itertools.product(IMAGES, range(len(BANDS)), ALL):
            file = place(workdir, target, image, band, name) / "results.jsonl"
            for row in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
                kept = {key: row[key] for key in ("method", "shots", "seed")}
                what = {"target": target, "image": image, "band": band, **kept, "test_accuracy": row["test_accuracy"]}
                rows.append(what | {"rate": row["hyper"].get("rate")})
    return rows


def points(rows, target, method, image=IMAGE, more=0):
    """By labels per class: the mean accuracy in %, half the width of its 95% interval, and the number of seeds.

    `more` says of how many bands further the steps are.
    """
    own = [row for row in rows if (row["target"], row["method"], row["image"]) == (target, method, image)]
    own = [row for row in own if row["band"] == band_of(target, row["shots"]) + more]
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
    found = {f"`{name}`": points(rows, target, name) for name in ALL}
    found |= {f"`{name}`, steps of the next band": points(rows, target, name, more=1) for name in STARVED}
    shots = sorted({k for of in found.values() for k in of})
    lines = [[what, *(text(of.get(k)) for k in shots)] for what, of in found.items() if of]
    return grid([target, *map(str, shots)], lines)


def resolutions(rows):
    """A line for each target and resolution, a column for each number of labels per class."""
    found = {(target, image): points(rows, target, RESOLVED, image) for target in TARGETS for image in IMAGES}
    shots = sorted({k for of in found.values() for k in of if k <= LIMIT})
    lines = [[target, str(image), *(text(of.get(k)) for k in shots)] for (target, image), of in found.items() if of]
    return grid([RESOLVED, "pixels", *map(str, shots)], lines)


def paired(rows, target, method, more=0):
    """By labels per class: how many points a method is above `RESOLVED`, draw by draw, as `points` has it."""
    own = [row for row in rows if row["target"] == target and row["test_accuracy"] is not None]
    own = [row for row in own if row["image"] == IMAGE]
    base = {(row["shots"], row["seed"]): row["test_accuracy"] for row in own if row["method"] == RESOLVED}
    own = [row for row in own if row["method"] == method and (row["shots"], row["seed"]) in base]
    both = [row | {"test_accuracy": row["test_accuracy"] - base[row["shots"], row["seed"]]} for row in own]
    return points(both, target, method, more=more)


def gains(rows, target):
    """A line for each method that uses the backbone, a column for each number of labels: points above `RESOLVED`."""
    names = [name for name in ALL if name not in ("scratch", "pixels", RESOLVED)]
    found = {f"`{name}`": paired(rows, target, name) for name in names}
    found |= {f"`{name}`, steps of the next band": paired(rows, target, name, more=1) for name in STARVED}
    shots = sorted({k for of in found.values() for k in of})
    lines = [[what, *(text(of.get(k)) for k in shots)] for what, of in found.items() if of]
    return grid([f"{target}, less `{RESOLVED}`", *map(str, shots)], lines)


def claim(rows):
    """For each target and method, at how many numbers of labels per class it lies above scratch.

    Above means that the two 95% intervals do not touch; a single seed has no interval and counts for nothing.
    """
    lines = []
    for target in TARGETS:
        base = points(rows, target, BASELINE)
        for name in ALL:
            both = {k: (point, base[k]) for k, point in points(rows, target, name).items() if k in base}
            compared = {k: pair for k, pair in both.items() if min(seeds for *_, seeds in pair) > 1}
            if name != BASELINE and compared:
                apart = [k for k, ((a, s, _), (b, t, _)) in compared.items() if a - s > b + t]
                where = ", ".join(map(str, apart)) or "none"
                lines.append(f"- {target}, `{name}`: above {BASELINE} at {where} of {', '.join(map(str, compared))}.\n")
    return f"Intervals apart, by labels per class:\n\n{''.join(lines)}"


def figure(rows):
    """Above: methods by labelled images, with the textbook's bands. Below: methods that train little; resolutions."""
    with style():
        picture, photographs, drawings, small, sizes = canvas(11, 11, 2, 2)
        for panel, target in ((photographs, "cifar10"), (drawings, "emoji")):
            classes = TARGETS[target][1]
            own = {name: points(rows, target, name) for name in METHODS}
            for name, found in own.items():
                draw(panel, {k * classes: point for k, point in found.items()}, METHODS[name] | {"label": name})
            for name in STARVED:
                more = {k * classes: point for k, point in points(rows, target, name, more=1).items()}
                if more:
                    draw(panel, more, METHODS[name] | {"label": f"{name}, steps of the next band", "ls": ":"})
            most = 2.5 * classes * max((k for found in own.values() for k in found), default=LIMIT)
            logarithmic(panel, (7, most), [n for n in (10, 100, 1000, 10_000) if n < most])
            for shade, ((start, end), learns) in enumerate(BANDS.items()):
                if start < most:
                    end = min(end, most)
                    panel.axvspan(start, end, color="#000000", alpha=0.03 + 0.03 * shade, linewidth=0, zorder=0)
                    top = {"xy": ((start * end) ** 0.5, 1), "xycoords": ("data", "axes fraction"), "ha": "center"}
                    panel.annotate(learns, va="top", fontsize=9, color="#555555", **top)
            panel.margins(y=0.1)
            panel.set(xlabel="labelled images for training", ylabel="test accuracy (%)")
            panel.set_title(f"{target}, {classes} classes, {IMAGE} pixels", loc="left", fontsize=11)
        for number, (name, look) in enumerate(SMALL.items()):
            found = {k * 1.06 ** (number - 2.5): p for k, p in paired(rows, "cifar10", name).items()}  # side by side
            draw(small, found, look | {"label": name})
        small.axhline(0, color="#888888", linewidth=1)
        logarithmic(small, (0.7, 1.5 * LIMIT), [k for k in TARGETS["cifar10"][2] if k <= LIMIT])
        small.set(xlabel="training labels per class", ylabel=f"points above {RESOLVED}, draw by draw")
        small.set_title(f"cifar10, {IMAGE} pixels: methods that train little", loc="left", fontsize=11)
        by = {image: points(rows, "cifar10", RESOLVED, image) for image in IMAGES}
        for number, k in enumerate(k for k in TARGETS["cifar10"][2] if k <= LIMIT):
            found = {image: of[k] for image, of in by.items() if k in of}
            if len(found) < 2:
                continue
            look = {"color": COLOURS[number], "marker": MARKERS[number], "label": f"{k} labels per class"}
            draw(sizes, found, look)
        logarithmic(sizes, (28, 256), IMAGES)
        sizes.set(xlabel="side of the images, in pixels", ylabel="test accuracy (%)")
        sizes.set_title(f"cifar10, {RESOLVED}, by resolution", loc="left", fontsize=11)
        for panel in (photographs, small):
            panel.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        sizes.legend(frameon=False, fontsize=9, loc="lower right")
        return picture


def logarithmic(panel, limits, ticks):
    """A logarithmic axis that names these numbers alone."""
    panel.set(xscale="log", xlim=limits)
    panel.set_xticks(ticks, [f"{n:,}" for n in ticks])
    panel.set_xticks([], minor=True)


def draw(panel, found, look):
    """One line with its intervals; of a method that was not run, the legend's entry alone."""
    means, halves, _ = zip(*found.values(), strict=True) if found else ((), (), ())
    panel.errorbar(list(found), means, halves, elinewidth=1, capsize=2, **look)


if __name__ == "__main__":
    main(sys.argv[1:])
