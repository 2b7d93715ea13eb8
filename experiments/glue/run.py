"""GLUE's rte, mrpc and cola with a real sentence encoder: full finetuning and LoRA, a rate chosen, then five seeds.

    python experiments/glue/run.py --backbone=DIR --data_dir=DIR --workdir=runs/glue
    python experiments/glue/run.py --backbone=DIR --data_dir=DIR --workdir=runs/glue --tasks=rte --seeds=1

For each task and method the rate is chosen with seed 0 on nine tenths of the training rows and measured on the last
tenth; then every seed trains on all training rows at that rate, and GLUE's validation is looked at after the last step
alone. Runs that are done are read, those that were stopped go on. Writes `results.csv`.
"""

import argparse
import csv
import json
from pathlib import Path

from jtransfer.cli import run

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "text" / "glue.py"
CHIEF = {"rte": "accuracy", "mrpc": "f1", "cola": "matthews"}
RATES = {"finetune": (2e-5, 5e-5, 1e-4), "lora(rank=8)": (2e-4, 5e-4, 1e-3)}
EPOCHS = {"finetune": 4, "lora(rank=8)": 5}


def trained(asked, task, method, rate, seed, tuned=False):
    """The metrics of a run after its last step."""
    slug = method.partition("(")[0]
    workdir = Path(asked.workdir) / f"{task}-{slug}-{rate:g}-{'tuned' if tuned else seed}"
    about = f"task={task},method={method},rate={rate:g},epochs={EPOCHS[method]},tuned={tuned}"
    where = [f"--config.backbone={asked.backbone}", f"--config.data_dir={asked.data_dir}", f"--config.seed={seed}"]
    run("train", f"--config={CONFIG}:{about}", f"--workdir={workdir}", *where)
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def main():
    """Do what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("backbone", "data_dir", "workdir"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--tasks", default=",".join(CHIEF))
    parser.add_argument("--seeds", type=int, default=5)
    asked, rows = parser.parse_args(), []
    for task in asked.tasks.split(","):
        for method, rates in RATES.items():
            of = {rate: trained(asked, task, method, rate, 0, tuned=True) for rate in rates}
            best = max(rates, key=lambda rate: of[rate][f"test_{CHIEF[task]}"])
            for seed in range(asked.seeds):
                found = trained(asked, task, method, best, seed)
                named = {name: found.get(f"test_{name}") for name in ("accuracy", "f1", "matthews")}
                rows.append({"task": task, "method": method, "rate": best, "seed": seed, **named})
    with open(Path(asked.workdir) / "results.csv", "w", newline="") as opened:
        table = csv.DictWriter(opened, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
