"""GLUE's cola, mrpc and rte with a real sentence encoder: full finetuning and LoRA, a rate chosen, then five seeds.

    python experiments/glue/run.py --backbone=DIR --data_dir=DIR --workdir=runs/glue
    python experiments/glue/run.py --backbone=DIR --data_dir=DIR --workdir=runs/glue --tasks=cola --seeds=1

For each method the rate is chosen on CoLA, with seed 0 on nine tenths of its training rows, measured on the last tenth.
At that rate every seed trains on all training rows of each task, and GLUE's validation is looked at after the last step
alone. Runs that are done are read, those that were stopped go on. After each run `results.csv`, `results.md` and
`glue.png` are written.
"""

import argparse
import csv
import json
from pathlib import Path

from jtransfer.cli import run
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style
from jtransfer.intervals import interval

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "text" / "glue.py"
CHOSEN_ON = "cola"
TASKS, METRICS = ("cola", "mrpc", "rte"), ("matthews", "f1", "accuracy")
RATES = {"finetune": (5e-5, 1e-4), "lora(rank=8)": (1e-3, 3e-3)}
EPOCHS = 3
PARAMETERS, SHOWN = 22.7, {"cola": "matthews", "mrpc": "f1", "rte": "accuracy"}
PUBLISHED = {
    "BERT-Mini": (11.2, {"cola": 0.0, "mrpc": 81.1, "rte": 57.9}),
    "BERT-Small": (28.8, {"cola": 27.8, "mrpc": 83.4, "rte": 61.8}),
    "MiniLM-L12": (33, {"cola": 58.5, "mrpc": 89.5, "rte": 73.3}),
    "BERT-Medium": (41.4, {"cola": 38.0, "mrpc": 86.6, "rte": 62.2}),
    "DistilBERT": (66, {"cola": 47.2, "mrpc": 85.6, "rte": 60.6}),
    "BERT-base": (110, {"cola": 58.9, "mrpc": 87.3, "rte": 68.6}),
}
"""Millions of parameters and metrics in %; README.md has the sources, and what differs."""


def trained(asked, task, method, rate, seed, tuned=False):
    """The metrics of a run after its last step."""
    slug = method.partition("(")[0]
    workdir = Path(asked.workdir) / f"{task}-{slug}-{rate:g}-{'tuned' if tuned else seed}"
    about = f"task={task},method={method},rate={rate:g},epochs={EPOCHS},tuned={tuned}"
    where = [f"--config.backbone={asked.backbone}", f"--config.data_dir={asked.data_dir}", f"--config.seed={seed}"]
    run("train", f"--config={CONFIG}:{about}", f"--workdir={workdir}", *where)
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def main():
    """Do what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("backbone", "data_dir", "workdir"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    asked, rows = parser.parse_args(), []
    best = {}
    for method, rates in RATES.items():
        tuned = {rate: trained(asked, CHOSEN_ON, method, rate, 0, tuned=True)["test_matthews"] for rate in rates}
        best[method] = max(rates, key=tuned.get)
    for task in asked.tasks.split(","):
        for method, rate in best.items():
            for seed in range(asked.seeds):
                found = trained(asked, task, method, rate, seed)
                named = {name: found.get(f"test_{name}") for name in METRICS}
                rows.append({"task": task, "method": method, "rate": rate, "seed": seed, **named})
                write(Path(asked.workdir), rows)


def write(workdir, rows):
    """The rows so far, and their means over seeds."""
    with (workdir / "results.csv").open("w", newline="") as opened:
        table = csv.DictWriter(opened, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    lines = [["task, metric", *RATES, "second less first"], ["---", *["---:"] * (len(RATES) + 1)]]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        for metric in (name for name in METRICS if own[0][name] is not None):
            each = [[100 * row[metric] for row in own if row["method"] == method] for method in RATES]
            each.append([lora - full for full, lora in zip(*each, strict=False)])  # of each seed
            lines.append([f"{task}, {metric}", *map(shown, each)])
    (workdir / "results.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    (workdir / "glue.png").write_bytes(render(figure(rows), "png"))


def figure(rows):
    """Each task's metric by the size of the encoder: both methods here, and what is published of others."""
    with style():
        picture, *panels = canvas(11, 3.8, 1, len(SHOWN))
        for axes, (task, metric) in zip(panels, SHOWN.items(), strict=True):
            for name, (size, published) in PUBLISHED.items():
                place = size, published[task]
                axes.plot(*place, ".", color="#888888")
                below = name in ("BERT-Small", "DistilBERT")  # as others stand beside them
                look = {"xytext": (3, -10) if below else (0, 4), "ha": "left" if below else "center", "fontsize": 8}
                axes.annotate(name, place, textcoords="offset points", **look)
            for number, method in enumerate(RATES):
                own = [100 * row[metric] for row in rows if row["task"] == task and row["method"] == method]
                if own:
                    mean, half = interval(own)
                    look = {"color": COLOURS[number], "marker": MARKERS[number], "label": f"all-MiniLM-L6, {method}"}
                    axes.errorbar(PARAMETERS * (1.04 if number else 0.96), mean, half, capsize=2, ls="", **look)
            axes.set(xscale="log", xlabel="million parameters")
            axes.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
            axes.set_xticks([], minor=True)
            axes.margins(0.16, 0.12)
            axes.set_title(f"{task}: {metric} (%)", loc="left", fontsize=11)
        panels[0].legend(frameon=False, loc="lower right", fontsize=9)
        return picture


def shown(values):
    """Mean and half width of the 95% Student-t interval, in %; "" for no values."""
    return "{:.1f} ± {:.1f}".format(*interval(values)) if values else ""


if __name__ == "__main__":
    main()
