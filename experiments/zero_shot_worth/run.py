"""How many labels per class zero-shot is worth on real handwritten digits, for CLIPs that saw captions of fonts alone.

    python experiments/zero_shot_worth/run.py --backbones runs/clip-0/model runs/clip-1/model --workdir=runs/worth

runs the curve of configs/quickstart.py from each backbone (unless the workdir has it), reads off with how many labels
each method reaches that backbone's zero-shot accuracy, and writes `results.jsonl`, `table.md` and `worth.png`.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import jtransfer
from jtransfer import cli
from jtransfer.curves.worth import ZERO_SHOT, worth
from jtransfer.data import sources
from jtransfer.evaluate.report import canvas
from jtransfer.evaluate.zero_shot import text_classifier, zero_shot
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.py"
SHOTS = (1, 2, 3, 5, 10, 25)
METHODS = (ZERO_SHOT, "pixels", "prototypes", "probe", "lora(rank=4)", "finetune")


def main(argv):
    """Run the curves, read them, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["glyphs-clip"])
    parser.add_argument("--seeds", type=int, default=5, help="draws of the labelled images")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    found = []
    for number, backbone in enumerate(options.backbones):
        everywhere = accuracy(backbone)
        workdir = options.workdir / f"backbone-{number}"
        cli.run(
            *("curve", f"--config={CONFIG}", f"--workdir={workdir}", f"--config.backbone={backbone}"),
            *(f"--config.shots={','.join(map(str, SHOTS))}", f"--config.seeds={options.seeds}"),
            f"--config.methods={','.join(METHODS)}",
        )
        rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
        (tested,) = (row["test_accuracy"] for row in rows if row["method"] == ZERO_SHOT)
        for method, labels in worth(rows).items():
            row = {"backbone": number, "zero_shot": tested, "zero_shot_all": everywhere, "method": method}
            found.append(row | {key: getattr(labels, key) for key in ("labels", "low", "high")} | {"text": str(labels)})
    (options.workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (options.workdir / "table.md").write_text(table(found))
    (options.workdir / "worth.png").write_bytes(render(figure(found), "png"))
    print(f"\nWritten to {options.workdir}: results.jsonl, table.md, worth.png")


def accuracy(name):
    """Zero-shot on all 1797 digits, those included that the curve draws its labels from."""
    data, backbone = sources.load("digits"), jtransfer.load(name)
    embeds = backbone(backbone.preprocess(images=data.inputs))["image_embeds"]
    return zero_shot(embeds, data.labels, text_classifier(backbone, data.classes)).top1


def table(found):
    """A line for each method, a column for each backbone."""
    levels = {row["backbone"]: (100 * row["zero_shot"], 100 * row["zero_shot_all"]) for row in found}
    heads = [f"seed {i}: zero-shot {tested:.1f}% ({every:.1f}% of all 1797)" for i, (tested, every) in levels.items()]
    lines = [f"| labels per class of | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for method in dict.fromkeys(row["method"] for row in found):
        cells = [row["text"] for row in found if row["method"] == method]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(found):
    """Labels of every method with their intervals; what is outside the shots that were run stands at the edge."""
    ends = 0.5 * SHOTS[0], 2 * SHOTS[-1]

    def inside(labels):
        return min(max(labels, ends[0]), ends[1])

    methods = list(dict.fromkeys(row["method"] for row in found))
    backbones = sorted({row["backbone"] for row in found})
    with style():
        picture, axes = canvas(6.5, 0.6 + 0.55 * len(methods), 1, 1)
        for row in found:
            place = methods.index(row["method"]) + 0.22 * (row["backbone"] - (len(backbones) - 1) / 2)
            colour = COLOURS[row["backbone"]]
            if not math.isnan(row["low"]):
                axes.plot([inside(row["low"]), inside(row["high"])], [place] * 2, color=colour, linewidth=1.5)
            axes.plot(
                inside(row["labels"]),
                place,
                color=colour,
                marker=MARKERS[row["backbone"]],
                linestyle="none",
                markersize=5,
            )
        for number in backbones:
            (level,) = {row["zero_shot"] for row in found if row["backbone"] == number}
            label = f"pretraining seed {number}, zero-shot {100 * level:.1f}%"
            axes.plot([], [], color=COLOURS[number], marker=MARKERS[number], label=label)
        ticks = ends[0], *SHOTS, ends[1]
        axes.set(xscale="log", xlim=(0.9 * ends[0], 1.1 * ends[1]), ylim=(len(methods) - 0.5, -0.5))
        axes.set_xticks(ticks, [f"<{SHOTS[0]}", *map(str, SHOTS), f">{SHOTS[-1]}"])
        axes.minorticks_off()
        axes.set_yticks(range(len(methods)), methods)
        axes.set_xlabel("labels per class with which the method equals zero-shot (95% interval)")
        axes.legend(frameon=False, fontsize=8)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
