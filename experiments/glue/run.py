"""GLUE's cola, mrpc and rte with a real sentence encoder: full finetuning and LoRA, a rate chosen, then five seeds.

    python experiments/glue/run.py --backbone=DIR --data_dir=DIR --workdir=runs/glue
    python experiments/glue/run.py --backbone=DIR --data_dir=DIR --workdir=runs/glue --tasks=cola --seeds=1

For each method the rate is chosen on CoLA, with seed 0 on nine tenths of its training rows, measured on the last tenth.
At that rate every seed trains on all training rows of each task, and GLUE's validation is looked at after the last step
alone. Runs that are done are read, those that were stopped go on. Writes `results.csv` and `results.md` after each run.
"""

import argparse
import csv
import json
from pathlib import Path

from jtransfer.cli import run
from jtransfer.intervals import interval

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "text" / "glue.py"
CHOSEN_ON = "cola"
TASKS, METRICS = ("cola", "mrpc", "rte"), ("matthews", "f1", "accuracy")
RATES = {"finetune": (5e-5, 1e-4), "lora(rank=8)": (1e-3, 3e-3)}
EPOCHS = 3


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


def shown(values):
    """Mean and half width of the 95% Student-t interval, in %; "" for no values."""
    return "{:.1f} ± {:.1f}".format(*interval(values)) if values else ""


if __name__ == "__main__":
    main()
