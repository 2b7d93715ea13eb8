"""ULMFiT from its first step to its last: what each part is worth by labels, and what the language model forgets.

    TFDS_DATA_DIR=... python experiments/ulmfit/run.py --workdir=runs/ulmfit
    TFDS_DATA_DIR=... python experiments/ulmfit/run.py --workdir=runs/ulmfit --small

pretrains a language model (configs/text/awd_lstm_small.py), lets it learn each target's texts (ulmfit_lm.py), draws the
curves of the ablation (ulmfit.py), and measures what each way of finetuning leaves of the perplexity on the pretraining
corpus. What the workdir has is not run again. `table.md` and `ulmfit.png` show all of it. `--lm` and `--curve` are each
followed by a flag for these commands, and may be repeated: `--lm=--config.steps=100`.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import jtransfer as jt
from jtransfer import config as configs
from jtransfer.cli import main as command
from jtransfer.curves.points import interval
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style
from jtransfer.train import runs
from jtransfer.train.state import TrainState
from jtransfer.tree import partition

TEXT = Path(__file__).parents[2] / "configs" / "text"
CORPUS = "tfds:wikitext2?train=validation&test=test"
CLASSES = {"ag_news_subset": 4, "sst_binary": 2}
SMALL = {
    "pretrain": ":width=64,hidden=128,steps=400,eval_every=200",
    "target": "steps=120,eval_every=120",
    "curve": "steps=32,seeds=3,test_rows=300",
    "classifier": "steps=64",
}
FULL = {"pretrain": "", "target": "steps=600", "curve": "steps=80", "classifier": "steps=320"}
"""What stands behind the paths of configs."""

FORGETTING = {
    "as pretrained": None,
    "language model: `finetune`": ("lm", "finetune"),
    "language model: `layerwise(0.385)`": ("lm", "layerwise(0.385)"),
    "language model: `unfreeze(1, 2, decay=0.385)`": ("lm", "unfreeze(1, 2, decay=0.385)"),
    "classifier: `finetune`": ("classification(hidden=50)", "finetune"),
    "classifier: `layerwise(0.385)`": ("classification(hidden=50)", "layerwise(0.385)"),
    "classifier: `unfreeze(1, 2, decay=0.385)`": ("classification(hidden=50)", "unfreeze(1, 2, decay=0.385)"),
}
"""Ways of finetuning the pretrained model on the first target, each with what is learned there and the method."""


def main(argv):
    """Run what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="a smaller model and fewer steps")
    parser.add_argument("--on", nargs="*", choices=CLASSES, default=list(CLASSES), help="targets; none to show")
    parser.add_argument("--lm", action="append", default=[], help="a flag of the pretraining")
    parser.add_argument("--curve", action="append", default=[], help="a flag of the curves")
    options = parser.parse_args(argv)
    workdir, sizes = options.workdir, SMALL if options.small else FULL
    start = workdir / "pretrained"
    if options.on:
        train(f"{TEXT}/awd_lstm_small.py{sizes['pretrain']}", start, *options.lm)
    for on in options.on:
        about = f"backbone={start}/model,data=tfds:{on},{sizes['target']}"
        train(f"{TEXT}/ulmfit_lm.py:{about}", workdir / on / "lm")
        about = f"on={on},backbone={workdir / on}/lm/model,{sizes['curve']}"
        run("curve", f"{TEXT}/ulmfit.py:{about}", workdir / on / "slanted", *options.curve)
        about += ",optimiser.schedule=constant,methods=unfreeze(1, 2, decay=0.385)+finetune"
        run("curve", f"{TEXT}/ulmfit.py:{about}", workdir / on / "flat", *options.curve)
    file = workdir / "forgetting.json"
    if options.on:
        found = json.loads(file.read_text()) if file.exists() else {}
        for name, how in FORGETTING.items():
            if name not in found:
                found[name] = forgotten(workdir, start / "model", options.on[0], how, sizes)
                file.write_text(json.dumps(found, indent=1))
    there = [on for on in CLASSES if (workdir / on / "slanted" / "results.jsonl").exists()]
    parts = [accuracies(workdir, on) for on in there]
    if file.exists():
        lines = [f"| {name} | {value:.1f} |" for name, value in json.loads(file.read_text()).items()]
        parts.append("\n".join(["| finetuned on the target's | perplexity on wikitext2 |", "| --- | ---: |", *lines]))
    (workdir / "table.md").write_text("\n\n".join(parts) + "\n")
    (workdir / "ulmfit.png").write_bytes(render(figure(workdir, there), "png"))
    print(f"Written to {workdir}: table.md, ulmfit.png")


def run(what, config, directory, *flags):
    """One command of jtransfer, which goes on where it was."""
    if code := command([what, f"--config={config}", f"--workdir={directory}", *flags]):
        sys.exit(code)


def train(config, directory, *flags):
    """Train unless the model is there."""
    if not (directory / "model").exists():
        run("train", config, directory, *flags)


def forgotten(workdir, start, on, how, sizes):
    """The perplexity on the pretraining corpus after finetuning on a target, by the decoder of the pretrained model."""
    if how is None:
        return perplexity(start, start)
    objective, method = how
    directory = workdir / "forgetting" / configs.slug(f"{objective}-{method}")
    if how == ("lm", "layerwise(0.385)"):
        directory = workdir / on / "lm"  # which is there
    elif objective == "lm":
        train(
            f"{TEXT}/ulmfit_lm.py:backbone={start},data=tfds:{on},{sizes['target']}",
            directory,
            f"--config.method={method}",
        )
    else:  # with all labels
        about = f"backbone={start},data=tfds:{on},{sizes['classifier']},packing=,batch=32,load.tokens=48"
        flags = f"--config.objective={objective}", f"--config.method={method}", "--config.eval_every=1000"
        train(f"{TEXT}/ulmfit_lm.py:{about}", directory, *flags)
    return perplexity(directory / "model", start)


def perplexity(model, decoder):
    """Of the layers and embeddings of a model under the decoder of another, on the held-out split of the corpus."""
    flags = [f"--config.backbone={decoder}", f"--config.data={CORPUS}", "--config.method=finetune"]
    prepared = runs.prepare(configs.load("train", f"{TEXT}/ulmfit_lm.py", flags)[1])
    learned = {path: x for path, x in jt.load(str(model)).params.items() if not path.startswith("source_head/")}
    trainable, frozen = partition(dict(prepared.adapted.base) | learned, prepared.adapted.rates)
    state = TrainState.create(jax.random.key(0), trainable, {}, optax.identity())
    return prepared.task.data.evaluate(prepared.adapted)(state, frozen)["test_perplexity"]


def rows_of(workdir, on, name):
    """The rows of a curve; none where it was not drawn."""
    file = workdir / on / name / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def ablation(workdir, on):
    """Accuracies in %, seed after seed, by what is left out and labels per class."""
    known = {"unfreeze(1, 2, decay=0.385)": "all of it", "unfreeze(1, 2)": "no discriminative rates"}
    known |= {"layerwise(0.385)": "no gradual unfreezing", "finetune": "neither of these"}
    known |= {"probe": "the head alone", "scratch": "no language model"}
    found = {}
    for name in ("slanted", "flat"):
        for row in rows_of(workdir, on, name):
            said = known.get(row["method"], row["method"])
            said = (
                {"all of it": "no slanted triangle", "neither of these": "none of the three"}[said]
                if name == "flat"
                else said
            )
            found.setdefault(said, {}).setdefault(row["shots"], []).append(100 * row["test_accuracy"])
    return found


def accuracies(workdir, on):
    """A table: a row for each thing that is left out, a column for each number of labels."""
    found = ablation(workdir, on)
    shots = sorted({count for own in found.values() for count in own})
    head = [f"| {on} | {' | '.join(str(CLASSES[on] * count) for count in shots)} |", f"| --- |{' ---: |' * len(shots)}"]
    return "\n".join(
        [
            *head,
            *(
                f"| {name} | {' | '.join(_cell(own.get(count, [])) for count in shots)} |"
                for name, own in found.items()
            ),
        ]
    )


def _cell(values):
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    mean, half = interval(values)
    return f"{mean:.1f} ± {half:.1f}"


def figure(workdir, there):
    """Accuracy against the number of labels, a panel for each target."""
    with style():
        picture, *panels = canvas(5.2 * max(len(there), 1), 4.2, columns=max(len(there), 1))
        for panel, on in zip(panels, there, strict=False):
            for i, (name, own) in enumerate(ablation(workdir, on).items()):
                looks = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
                x = np.array(sorted(own))
                panel.plot(x * CLASSES[on], [np.mean(own[count]) for count in sorted(own)], label=name, **looks)
            panel.set(xscale="log", xlabel="labels", ylabel="test accuracy in %", title=on)
        if there:
            panels[0].legend(fontsize=8)
    return picture


if __name__ == "__main__":
    main(sys.argv[1:])
