"""What a finetuned encoder keeps: probes and CKA layer by layer, before and after, on the task and on another one.

    python experiments/what_transfers/run.py --backbone=DIR --workdir=runs/what_transfers

finetunes on AG News with all weights and with LoRA, evaluates the encoder before and after on AG News and on SST (all
unless the workdir has it), and writes `table.md` and `what_transfers.png`. README.md beside this file says what is
measured.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from jtransfer import cli
from jtransfer.curves.report import interval
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIGS = Path(__file__).parents[2] / "configs"
TUNED = "tfds:ag_news_subset?train=train[2000:]&test=test[:1000]"  # no row that a probe is fitted on
TASKS = {  # a part of each, so that two cores do it in minutes
    "AG News": "tfds:ag_news_subset?train=train[:2000]&test=test[:1000]",
    "SST": "tfds:sst_binary?train=train[:2000]&test=test[:1000]",
}
METHODS = {"finetune": ("finetune", 1e-4), "LoRA": ("lora(rank=8)", 1e-3)}
"""How they are called in a config, and their learning rates."""
STEPS = 100  # of 16 texts
STATES = ("before", *METHODS)
LAYERS = tuple(f"hidden_{i}.mean" for i in range(7))


def main(argv):
    """Train, evaluate, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="of the finetuning: its order of rows and its new weights")
    options = parser.parse_args(argv)
    rows = evaluated(options, "before", 0, options.backbone)
    for seed in range(options.seeds):
        for name, (method, rate) in METHODS.items():
            trained = options.workdir / f"train-{name}-{seed}"
            cli.run(
                "train",
                *(f"--config={CONFIGS}/finetune_text.py:data={TUNED},method={method}", f"--workdir={trained}"),
                *(f"--config.backbone={options.backbone}", f"--config.optimiser.rate={rate}"),
                *(f"--config.seed={seed}", f"--config.steps={STEPS}"),
            )
            rows += evaluated(options, name, seed, str(trained / "model"))
    (options.workdir / "table.md").write_text(table(rows))
    (options.workdir / "what_transfers.png").write_bytes(render(figure(rows), "png"))
    print(f"\nWritten to {options.workdir}: table.md, what_transfers.png")


def evaluated(options, state, seed, backbone):
    """Rows of probes on every layer of an encoder, and of its CKA with the encoder before, on both tasks."""
    rows = []
    for task, data in TASKS.items():
        workdir = options.workdir / f"evaluate-{state}-{seed}-{task.replace(' ', '_')}"
        protocols = ("probe", *([] if state == "before" else [f"cka(reference='{options.backbone}')"]))
        cli.run(
            "evaluate",
            *(f"--config={CONFIGS}/evaluate.py:load.tokens=48,layers={'+'.join(LAYERS)}", f"--workdir={workdir}"),
            *(f"--config.backbone={backbone}", f"--config.data={data}"),
            *(f"--config.protocols={','.join(protocols)}", f"--config.store={options.workdir / 'features'}"),
            "--config.validation=0.3",  # λ by a tenth of 2000 rows moves a layer by three points
        )
        found = map(json.loads, (workdir / "results.jsonl").read_text().splitlines())
        rows += [{"state": state, "task": task, "seed": seed} | row for row in found]
    return rows


def measured(rows, kind, state, task):
    """Mean and half width of the 95% interval over seeds, layer by layer: "probe" accuracy in %, or "cka"."""
    own = [row for row in rows if (row["state"], row["task"]) == (state, task) and row["protocol"].startswith(kind)]
    if kind == "probe":
        return [interval(100 * row["metrics"]["accuracy"] for row in own if row["layer"] == layer) for layer in LAYERS]
    return [interval(row["metrics"][layer] for row in own) for layer in LAYERS]


def table(rows):
    """A line for each task, encoder and measure."""
    lines = [["task", "encoder", "", *map(str, range(len(LAYERS)))]]
    for task in TASKS:
        for state in STATES:
            for kind, name, places in (("probe", "probe (%)", 1), ("cka", "CKA", 3)):
                if kind == "probe" or state != "before":
                    points = measured(rows, kind, state, task)
                    lines.append([task, state, name, *(text(*point, places) for point in points)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        f"| {' | '.join(x.ljust(width) for x, width in zip(line, widths, strict=True))} |\n" for line in lines
    )


def text(mean, half, places):
    """A number and its interval, if it has one."""
    return f"{mean:.{places}f}" + ("" if math.isnan(half) else f" ± {half:.{places}f}")


def figure(rows):
    """Probes above, CKA below; the task that was trained on at the left, the other at the right."""
    with style():
        picture, *axes = canvas(8, 5.6, 2, 2)
        for column, task in enumerate(TASKS):
            for kind, panel in (("probe", axes[column]), ("cka", axes[2 + column])):
                for number, state in enumerate(STATES):
                    if kind == "probe" or state != "before":
                        means, halves = zip(*measured(rows, kind, state, task), strict=True)
                        look = {"color": COLOURS[number], "marker": MARKERS[number], "label": state}
                        panel.errorbar(range(len(LAYERS)), means, halves, elinewidth=1, capsize=2, **look)
            axes[column].set_title(f"{task}: {'not ' * column}finetuned on", loc="left", fontsize=11)
            axes[2 + column].set(xlabel="block (0: embeddings)", ylim=(0, 1.03))
        axes[0].set_ylabel("probe accuracy (%)")
        axes[2].set_ylabel("CKA with the same layer before")
        axes[1].legend(frameon=False, loc="lower left")
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
