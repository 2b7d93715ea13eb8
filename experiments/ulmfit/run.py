"""ULMFiT from its first step to its last: what each part is worth by labels, and what the language model forgets.

    TFDS_DATA_DIR=... python experiments/ulmfit/run.py --workdir=runs/ulmfit
    TFDS_DATA_DIR=... python experiments/ulmfit/run.py --workdir=runs/ulmfit --small

pretrains a language model (configs/text/awd_lstm_small.py), lets it learn each target's texts (ulmfit_lm.py), draws the
curves of the ablation (ulmfit.py), and measures what each way of finetuning leaves of the perplexity on the pretraining
corpus, whose words the model keeps for that. What the workdir has is not run again. Each target's directory gets the
`table.md` and `curve.png` of its ablation, the workdir `forgetting.md`. `--lm` and `--curve` are each followed by a
flag for these commands, and may be repeated: `--lm=--config.steps=100`.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import optax

import jtransfer as jt
from jtransfer import config as configs
from jtransfer.cli import run
from jtransfer.curves import report
from jtransfer.train import runs
from jtransfer.train.state import TrainState
from jtransfer.tree import partition

TEXT = Path(__file__).parents[2] / "configs" / "text"
CORPUS = "tfds:wikitext2?train=validation&test=test"
TARGETS = ("ag_news_subset", "sst_binary")
SMALL = {
    "pretrain": ":width=64,hidden=128,steps=400,eval_every=200",
    "target": "steps=100,eval_every=100,checkpoint_every=100",
    "curve": "steps=32,seeds=3,test_rows=300",
    "classifier": "steps=64",
}
FULL = {"pretrain": "", "target": "steps=1200", "curve": "steps=240", "classifier": "steps=320"}
CLASSIFIER = "packing=,batch=32,load.tokens=48,eval_every=1000"
"""What stands behind the paths of configs; the last of a classifier with all labels."""

FORGETTING = {
    "as pretrained": None,
    "language model: `finetune`": ("lm(ar=2.0, tar=1.0)", "finetune"),
    "language model: `layerwise(0.385)`": ("lm(ar=2.0, tar=1.0)", "layerwise(0.385, tied='embeddings/.*')"),
    "language model: `unfreeze(1, 2, decay=0.385)`": (
        "lm(ar=2.0, tar=1.0)",
        "unfreeze(1, 2, decay=0.385, tied='embeddings/.*')",
    ),
    "classifier: `finetune`": ("classification(hidden=50)", "finetune"),
    "classifier: `layerwise(0.385)`": ("classification(hidden=50)", "layerwise(0.385)"),
    "classifier: `unfreeze(1, 2, decay=0.385)`": ("classification(hidden=50)", "unfreeze(1, 2, decay=0.385)"),
}
"""Ways of finetuning the pretrained model on the first target, each with what is learned there and the method."""

LEFT_OUT = {
    ("slanted", "unfreeze(1, 2, decay=0.385)"): "all of it",
    ("slanted", "unfreeze(1, 2)"): "no discriminative rates",
    ("slanted", "layerwise(0.385)"): "no gradual unfreezing",
    ("slanted", "finetune"): "neither of these",
    ("flat", "unfreeze(1, 2, decay=0.385)"): "no slanted triangle",
    ("flat", "finetune"): "none of the three",
    ("slanted", "probe"): "the head alone",
    ("slanted", "scratch"): "no language model",
}
"""What a method of each curve is without."""


def main(argv):
    """Run what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="a smaller model and fewer steps")
    parser.add_argument("--on", nargs="*", choices=TARGETS, default=list(TARGETS), help="targets")
    parser.add_argument("--lm", action="append", default=[], help="a flag of the pretraining")
    parser.add_argument("--curve", action="append", default=[], help="a flag of the curves")
    options = parser.parse_args(argv)
    workdir, sizes = options.workdir, SMALL if options.small else FULL
    start = workdir / "pretrained"
    train(f"{TEXT}/awd_lstm_small.py{sizes['pretrain']}", start, *options.lm)
    for on in options.on:
        about = f"backbone={start}/model,data=tfds:{on},{sizes['target']}"
        train(f"{TEXT}/ulmfit_lm.py:{about}", workdir / on / "lm")
        about = f"on={on},backbone={workdir / on}/lm/model,{sizes['curve']}"
        flat = ",optimiser.schedule=constant,methods=unfreeze(1, 2, decay=0.385)+finetune"
        for kind, keys in {"slanted": "", "flat": flat}.items():
            run("curve", f"--config={TEXT}/ulmfit.py:{about}{keys}", f"--workdir={workdir / on / kind}", *options.curve)
        both = [(kind, row) for kind in ("slanted", "flat") for row in rows_of(workdir / on / kind)]
        rows = [row | {"method": LEFT_OUT[kind, row["method"]]} for kind, row in both]
        report.write(rows, workdir / on, [], f"ULMFiT on {on}, and without its parts")
    file = workdir / "forgetting.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name, how in FORGETTING.items():
        if name not in found:
            found[name] = forgotten(workdir, start / "model", options.on[0], how, sizes)
            file.write_text(json.dumps(found, indent=1))
    lines = [f"| {name} | {found[name]:.1f} |" for name in FORGETTING]
    head = ["| finetuned on the target's | perplexity on wikitext2 |", "| --- | ---: |"]
    (workdir / "forgetting.md").write_text("\n".join([*head, *lines]) + "\n")
    print(f"Written to {workdir}: forgetting.md, and in each target's directory table.md and curve.png")


def train(config, directory, *flags):
    """Train unless the model is there."""
    if not (directory / "model").exists():
        run("train", f"--config={config}", f"--workdir={directory}", *flags)


def rows_of(directory):
    """The rows of a curve."""
    return map(json.loads, (directory / "results.jsonl").read_text().splitlines())


def forgotten(workdir, start, on, how, sizes):
    """The perplexity on the pretraining corpus after finetuning on a target, by the decoder of the pretrained model."""
    if how is None:
        return perplexity(start, start)
    objective, method = how
    directory = workdir / "forgetting" / configs.slug(f"{objective}-{method}".replace("/", "-"))
    steps = sizes["target"] if objective.startswith("lm") else f"{sizes['classifier']},{CLASSIFIER}"
    about = f"backbone={start},data=tfds:{on},tokenizer=,{steps}"
    flags = f"--config.method={method}", f"--config.objective={objective}"
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


if __name__ == "__main__":
    main(sys.argv[1:])
