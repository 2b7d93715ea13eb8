"""What transfer takes from the task before, and from inputs of another style, by how strongly a method holds on.

    python experiments/forgetting/run.py --workdir=runs/forgetting
    python experiments/forgetting/run.py --on=cifar10 --data-dir=DIR --workdir=runs/forgetting

runs configs/forgetting.py once for each style of the test images (a cell that the workdir has is not run again), and
writes `results.csv`, `table.md` and `forgetting.png` of all targets that are there. Training never sees a style: the
same cell trains the same model, and only the test rows differ.
"""

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jtransfer import config as configs
from jtransfer.curves import run as curves
from jtransfer.curves.points import interval
from jtransfer.data import glyphs, sources
from jtransfer.data.dataset import LABELS, Lazy
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIG = Path(__file__).parents[2] / "configs" / "forgetting.py"
CLEAN = "own"
LOOKS = {"logistic": ("#777777", "s"), "finetune": ("#222222", "X"), "LP-FT": (COLOURS[5], "*")}
LOOKS |= {name: (COLOURS[i], MARKERS[i]) for i, name in enumerate(("L2-SP", "EWC", "LwF", "LoRA", "WiSE-FT"))}


def turned(image, rng):
    """By 25 degrees, to either side."""
    from scipy.ndimage import rotate

    return rotate(image, rng.choice([-25, 25]), reshape=False, order=1, mode="nearest")


def noisy(image, rng):
    """With Gaussian noise, a quarter of the range."""
    return image + 0.25 * rng.standard_normal(image.shape)


def blurred(image, rng):
    """With a Gaussian of a pixel and a half."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (1.5, 1.5, 0))


def pale(image, rng):
    """With a quarter of the contrast."""
    return 0.5 + (image - 0.5) / 4


def fonts(dataset):
    """The classes as fonts draw them, which the backbone was pretrained on, and this target is not."""
    bases, rows = glyphs.bases("validation"), np.arange(1000)
    images, labels = glyphs.examples(bases, jax.random.key(1), rows, np.arange(10))
    return replace(
        dataset,
        name=f"{dataset.name}, fonts",
        inputs=np.concatenate([dataset.inputs, np.asarray(images, np.float32)]),
        labels=np.concatenate([dataset.labels, np.asarray(labels, np.int32)]),
        test=len(dataset.labels) + rows,
    )


def changed(change):
    """The test images after `change`; images for training stay."""

    def to(dataset):
        def one(row, image):
            whole = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
            whole = np.clip(change(whole, np.random.default_rng(row)), 0, 1)
            return np.round(255 * whole).astype(np.uint8) if image.dtype == np.uint8 else whole.astype(np.float32)

        inputs, test = dataset.inputs, {*dataset.test.tolist()}
        if isinstance(inputs, Lazy):
            read = inputs.read
            inputs = replace(
                inputs,
                read=lambda rows: [
                    one(row, image) if row in test else image
                    for row, image in zip(rows.tolist(), read(rows), strict=True)
                ],
                identity=f"{inputs.identity}, {change.__name__}",
            )
        else:
            inputs = np.array(inputs)
            inputs[dataset.test] = [one(row, inputs[row]) for row in dataset.test]
        return replace(dataset, name=f"{dataset.name}, {change.__name__}", inputs=inputs)

    return to


STYLES = {
    "digits": {CLEAN: lambda dataset: dataset, "turned": changed(turned), "noisy": changed(noisy), "fonts": fonts},
    "cifar10": {CLEAN: lambda dataset: dataset, **{f.__name__: changed(f) for f in (noisy, blurred, pale)}},
}


def main(argv):
    """Run the curves, gather, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--on", nargs="*", choices=STYLES, default=["digits"], help="targets; none to show what is there"
    )
    parser.add_argument("--backbone", help="instead of the config's, on the hub or a directory")
    parser.add_argument("--data-dir", default="", help="where prepared datasets lie")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    for on in options.on:
        own = [f"--config.backbone={options.backbone}"] if options.backbone else []
        _, config = configs.load("curve", f"{CONFIG}:on={on}", [*own, f"--config.data_dir={options.data_dir}"])
        dataset = sources.load(config.data, config.data_dir, LABELS)
        for name, change in STYLES[on].items():
            curve = curves.prepare(config, change(dataset))
            curves.run(curve, options.workdir / on / name, say(name))
    rows = gathered(options.workdir)
    with open(options.workdir / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    there = [on for on in STYLES if any(of(rows, on, name, "other") for name in methods_of(rows, on)[1:])]
    (options.workdir / "table.md").write_text("\n".join(table_of(rows, on) + differences(rows, on) for on in there))
    (options.workdir / "forgetting.png").write_bytes(render(figure(rows, there), "png"))
    print(f"\nWritten to {options.workdir}: results.csv, table.md, forgetting.png")


def say(name):
    """A listener of a curve that prints each cell."""

    def cell(method, shots, rows, left):
        if rows:
            print(f"{name:8} {method:50} {100 * np.mean([row['test_accuracy'] for row in rows]):5.1f}%", flush=True)

    return cell


def gathered(workdir):
    """A row for each target, method and seed: accuracy on the target, on the source, and on each style."""
    found = {}
    for on, styles in STYLES.items():
        for name in styles:
            file = workdir / on / name / "results.jsonl"
            for row in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
                own = found.setdefault((on, row["method"], row["seed"]), {"target": on})
                own |= {"method": row["method"], "seed": row["seed"], name: row["test_accuracy"]}
                if row.get("source_before") is not None:
                    own |= {"before": row["source_before"], "source": row["source_after"]}
    first = ("target", "method", "seed", "before", "source")
    keys = dict.fromkeys((*first, *(key for row in found.values() for key in row)))
    return [{key: row.get(key, "") for key in keys} for row in found.values()]


def columns(on):
    """The columns of a target's table, by the keys of a row."""
    other = [name for name in STYLES[on] if name != CLEAN]
    return {"source": "source", CLEAN: on, **{name: name for name in other}, "other": "mean of the styles"}


def of(rows, on, method, key):
    """The values of a column in %, seed after seed; "other" is the mean over all styles but the target's own."""
    own = [row for row in rows if (row["target"], row["method"]) == (on, method)]
    keys = [name for name in STYLES[on] if name != CLEAN] if key == "other" else [key]
    found = [[row.get(key, "") for key in keys] for row in own]
    return [100 * np.mean(values) for values in found if "" not in values]


def methods_of(rows, on):
    """The methods that were run, in their order."""
    return list(dict.fromkeys(row["method"] for row in rows if row["target"] == on))


def text(values, sign=""):
    """Mean and half width of the 95% interval; a dash for nothing."""
    if len(values) == 0:
        return "–"
    mean, half = interval(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def grid(heads, lines):
    """A table in Markdown."""
    head = f"| method | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"
    return "\n".join([*head, *(f"| `{name}` | {' | '.join(cells)} |" for name, cells in lines.items())]) + "\n\n"


def table_of(rows, on):
    """Accuracy of each method on the source, the target and the styles."""
    shown = {key: head for key, head in columns(on).items() if of(rows, on, methods_of(rows, on)[0], key)}
    lines = {name: [text(of(rows, on, name, key)) for key in shown] for name in methods_of(rows, on)}
    return grid(shown.values(), lines)


def differences(rows, on):
    """What each method is above plain finetuning, paired by seed."""
    plain = next(name for name in methods_of(rows, on) if name.startswith("finetune"))
    shown = {key: head for key, head in columns(on).items() if of(rows, on, plain, key)}
    lines = {
        f"{name}` - `{plain}": [text(np.subtract(of(rows, on, name, k), of(rows, on, plain, k)), "+") for k in shown]
        for name in methods_of(rows, on)
        if name != plain
    }
    return grid(shown.values(), lines)


def family(method):
    """The name of a method without its strength, as a figure has it."""
    for mark, name in {"wise_ft": "WiSE-FT", "l2sp": "L2-SP", "ewc": "EWC", "lwf": "LwF", "lora": "LoRA"}.items():
        if mark in method:
            return name
    return "LP-FT" if method.startswith("logistic >>") else method.split(" + ")[0]


def figure(rows, there):
    """For each target, the accuracy on the source or on other styles against that on the target, by strength."""
    panels = [(on, key) for on in there for key in ("source", "other") if of(rows, on, methods_of(rows, on)[0], key)]
    with style():
        picture, *axes = canvas(4.2 * len(panels), 4, 1, len(panels))
        for axis, (on, key) in zip(axes, panels, strict=True):
            by = {}
            for method in methods_of(rows, on):
                place = [of(rows, on, method, k) for k in (CLEAN, key)]
                by.setdefault(family(method), []).append([np.mean(x) if x else np.nan for x in place])
            for name, points in by.items():
                axis.plot(*np.transpose(points), color=LOOKS[name][0], marker=LOOKS[name][1], label=name)
            axis.set_xlabel(f"accuracy on {on}, %")
            axis.set_ylabel("accuracy on the source, %" if key == "source" else "accuracy on other styles, %")
        marks = axes[0].get_legend_handles_labels()
        picture.legend(*marks, loc="outside lower center", ncols=4, frameon=False)
    return picture


if __name__ == "__main__":
    main(sys.argv[1:])
