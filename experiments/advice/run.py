"""Regret of `jtransfer advise`: what the method that it names loses to the best, with all labels, on the test rows.

For every set of `sets.py` the advice is asked for; then all methods of its trial are trained with the most labels that
the training rows offer, and tested on the test rows. What is done already is not done again.

TFDS_DATA_DIR=... python experiments/advice/run.py --checkpoints=DIR --workdir=runs/advice [--only tuned]
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from sets import FRESH, TUNED

from jtransfer import config as configs
from jtransfer.advice import run as advise
from jtransfer.advice.trial import Size, config_of, enough
from jtransfer.curves import run as curves
from jtransfer.curves.points import interval
from jtransfer.data import sources
from jtransfer.storage.cells import value

SEEDS = {"glyphs-vit": 3}
"""Of the truth, where it is not 2."""
MOST_STEPS = {"glyphs-vit": 1000}
"""Of the truth, where it is not 120."""


def main():
    """All sets of the list, and after each of them the table of what is known."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--checkpoints", required=True, help="where the directories of the backbones lie")
    flags.add_argument("--workdir", default="runs/advice")
    flags.add_argument("--only", nargs="*", help="sets, or `tuned` or `fresh`; without it all")
    flags = flags.parse_args()
    workdir = Path(flags.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for part, sets in (("tuned", TUNED), ("fresh", FRESH)):
        for name, own in sets.items():
            if not flags.only or {part, name} & set(flags.only):
                keep(workdir / "regret.csv", name, one(part, name, own, Path(flags.checkpoints), workdir))


def keep(file, name, rows):
    """Put the rows of a set into a file, in the place of those that it had, in the order of the sets."""
    kept = []
    if file.exists():
        with open(file) as before:
            kept = [row for row in csv.DictReader(before) if row["set"] != name]
    order = [*TUNED, *FRESH]
    with open(file, "w", newline="") as after:
        writer = csv.DictWriter(after, rows[0].keys())
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=lambda row: order.index(row["set"])))


def one(part, name, own, checkpoints, workdir):
    """The rows of one set: a row for each method."""
    directory = workdir / name.replace(", ", "-").replace(" ", "-")
    data, backbone = own["data"], own["backbone"]
    if data == "npz:drawn_or_photographed.npz":
        data = f"npz:{drawn_or_photographed(workdir)}"
    place = backbone if backbone == "glyphs-vit" else str(checkpoints / backbone)
    metric = {"metrics": ("accuracy",), "store": str(workdir / "features")}
    config = ConfigDict(configs.completed("advise", own | metric | {"data": data, "backbone": place}))
    advice, seconds = asked(config, directory / "advice")

    steps = min(enough(advice["most"], advice["classes"], config.batch), MOST_STEPS.get(backbone, 120))
    size = Size(tuple(advice["estimates"]), (advice["most"],), steps, SEEDS.get(backbone, 2))
    whole = config_of(config, size)
    whole.update(test_rows=1000 if backbone != "glyphs-vit" else 2000)
    rows = curves.run(curves.prepare(whole), directory / "truth", say(name, "truth"))
    reached = {method: [value(row) for row in rows if row["method"] == method] for method in advice["estimates"]}
    means = {method: float(np.mean([x for x in values if x is not None])) for method, values in reached.items()}
    best, last = max(means.values()), str(max(advice["shots"]))
    print(f"{name}: {advice['method']}, regret {100 * (best - means[advice['method']]):.1f} points", flush=True)
    place = f"{advice['labels']} {advice['gap']}"
    return [
        {
            "part": part,
            "set": name,
            "labels": advice["most"],
            "method": method,
            "test": round(100 * means[method], 2),
            "half": round(100 * interval(reached[method])[1], 2),
            "regret": round(100 * (best - means[method]), 2),
            "advised": int(method == advice["method"]),
            "alternative": int(method == advice["alternative"]),
            "table": int(method == advice["table"][place]),
            "trial_labels": last,
            "trial": round(100 * float(np.mean(advice["accuracies"][last][method])), 2),
            "estimate": round(100 * float(np.mean(advice["estimates"][method])), 2),
            "steps": advice["steps"].get(method, 0),
            "truth_steps": steps if method in advice["steps"] else 0,
            "negative_transfer": advice["negative_transfer"],
            "estimated_seconds": round(seconds["estimated"]),
            "trial_seconds": round(seconds["trial"]),
        }
        for method in means
    ]


def asked(config, directory):
    """What `advice.json` holds, from the command's own functions; and the trial's seconds, by estimate and by clock."""
    advise.check(config, directory)
    plan = advise.sized(advise.prepare(config), directory)
    print(f"{config.data}: {plan.trial}", flush=True)
    evidence, started, kept = advise.measure(plan), time.perf_counter(), directory / "seconds.json"
    advise.run(plan, evidence, directory, say(config.data, "trial"))
    if not kept.exists():  # of a trial that was not stopped in between
        seconds = {"estimated": plan.trial.seconds, "trial": time.perf_counter() - started}
        kept.write_text(json.dumps(seconds))
    return json.loads((directory / "advice.json").read_text()), json.loads(kept.read_text())


def say(name, what):
    """A function that prints what a curve has done."""
    started = time.monotonic()

    def on_cell(method, shots, rows, left):
        if rows:
            found = [value(row) for row in rows if value(row) is not None]
            mean = 100 * math.fsum(found) / len(found) if found else math.nan
            print(f"{time.monotonic() - started:6.0f} s  {name}  {what}  {method} {shots}: {mean:.1f}", flush=True)

    return on_cell


def drawn_or_photographed(workdir):
    """A file of animals, drawn (emoji) or photographed (cifar10): grey, 32x32; 500 of each to train on, 150 to test."""
    file = workdir / "drawn_or_photographed.npz"
    if not file.exists():
        from PIL import Image

        arrays = {}
        for split, count in (("", 500), ("test_", 150)):
            images, labels = [], []
            for label, name in enumerate(("tfds:emoji_captions?label=group", "tfds:cifar10")):
                dataset = sources.load(name)
                rows = dataset.test if split else dataset.pool
                animals = ("Animals & Nature",) if label == 0 else ("bird", "cat", "deer", "dog", "frog", "horse")
                wanted = [dataset.classes.index(animal) for animal in animals]
                for row in rows[np.isin(dataset.labels[rows], wanted)][:count]:
                    pixels = np.asarray(dataset.inputs[np.array([row])][0])
                    pixels = pixels if pixels.dtype == np.uint8 else (255 * pixels).astype(np.uint8)
                    images.append(np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32))))
                    labels.append(label)
            arrays |= {f"{split}images": np.stack(images), f"{split}labels": np.array(labels)}
        np.savez(file, classes=np.array(["drawn", "photographed"]), **arrays)
    return file


if __name__ == "__main__":
    main()
