"""How far does an ImageNet network transfer, and which score says so before any training?

    python experiments/transfer_distance/run.py --backbone=DIR --data-dir=DIR --workdir=runs/transfer_distance

measures one network on targets of growing distance, and networks that were damaged step by step on photographs; what
the workdir has is not measured again. It writes `results.csv`, `table.md` and `transfer_distance.png`. README.md beside
this file says what is measured.
"""

import argparse
import dataclasses
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import show
import targets

from jtransfer import checkpoints, methods, models, starts
from jtransfer.data import sources
from jtransfer.data.subsets import batches, few_shot
from jtransfer.evaluate import domain_gap, transferability
from jtransfer.evaluate.features import extract
from jtransfer.evaluate.metrics import log_softmax
from jtransfer.objectives import classification, make_loss
from jtransfer.objectives.metrics import METRICS
from jtransfer.optimiser import Optimiser
from jtransfer.solvers import few_shot as fits
from jtransfer.train import TrainState, make_step
from jtransfer.tree import partition

SHOTS, SEEDS, L2 = (5, 25), 5, (1e-3, 1e-2, 1e-1, 1.0)
FEW = 25  # labels per class where the networks are compared, and where one is trained from scratch
SIDE = 64  # pixels that the network sees of a target
RATE, STEPS, BATCH = 3e-3, 200, 32
SMALL = {"block": "basic", "stem": 16, "widths": (16, 32, 64), "depths": (1, 1, 1)}


class Network(NamedTuple):
    """How a network is made of the checkpoint.

    Attributes:
        side: Of its images, in pixels.
        fresh: Stages that start at random, the last ones; the layer above them, too.
        noise: Standard deviation of what is added to the kernels, in standard deviations of each.
    """

    side: int = SIDE
    fresh: int = 0
    noise: float = 0.0

    def __str__(self):
        stages = f", {self.fresh} stage{'s' * (self.fresh > 1)} fresh" if self.fresh else ""
        return f"{self.side} px{stages}" + (f", noise {self.noise:g}" if self.noise else "")


NETWORKS = (
    *(Network(side) for side in (32, SIDE, 96, 128)),
    *(Network(fresh=stages) for stages in (1, 2, 3, 4, 5)),
    *(Network(noise=sigma) for sigma in (0.1, 0.2, 0.3, 0.4, 0.6)),
    *(Network(side, fresh=2) for side in (32, 96)),
    *(Network(side, noise=0.2) for side in (32, 96)),
)


def main(argv):
    """Measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0.in1k")
    parser.add_argument("--data-dir", required=True, help="where cifar10 and the other datasets are prepared")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    targets.write(options.workdir / "targets", options.data_dir)
    cases = [(Network(), target) for target in targets.TARGETS]
    cases += [(network, "photographs") for network in NETWORKS if network != Network()]
    files = show.files([kept(options, network, target) for network, target in cases])
    for name, content in files.items():
        (options.workdir / name).write_bytes(content)
    print(f"\nWritten to {options.workdir}: {', '.join(files)}")


def kept(options, network, target):
    """What is measured of a network on a target, from the workdir if it is there."""
    file = options.workdir / "cells" / f"{target}-{network.side}-{network.fresh}-{network.noise:g}.json"
    if not file.exists():
        print(f"{target}, {network}", flush=True)
        row = {"target": target, "network": str(network)} | measured(options, network, target)
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".part").write_text(json.dumps(row))
        file.with_suffix(".part").replace(file)
    return json.loads(file.read_text())


def measured(options, network, target):
    """Accuracies by method and shots, one for each seed, and scores of the training rows."""
    data = sources.load(f"npz:{options.workdir}/targets/{target}.npz")
    backbone, prepare = starts.load_for(options.backbone, {"image": network.side}, data)
    backbone = damaged(backbone, network)
    found = extract(backbone, data.inputs, prepare, ["features", "logits"])
    features, labels, pool = found["features"], data.labels, data.pool
    theta, said = np.exp(log_softmax(found["logits"][pool])), found["logits"][pool].argmax(-1)
    many = SHOTS if network == Network() else (FEW,)
    accuracies = {"logistic": {shots: logistic(features, data, shots) for shots in many}}
    scores = {
        "LEEP": transferability.leep(theta, labels[pool]),
        "NCE": transferability.nce(said, labels[pool]),
        "LogME": transferability.logme(features[pool], labels[pool]),
        "H-score": transferability.h_score(features[pool], labels[pool], "ledoit_wolf"),
    }
    if network == Network():
        pixels = data.inputs[:].reshape(len(labels), -1)
        accuracies["pixels"] = {shots: logistic(pixels, data, shots) for shots in SHOTS}
        accuracies["scratch"] = {FEW: [scratch(data, seed) for seed in range(SEEDS)]}
        there = source(options, network.side)
        scores["Fréchet distance"] = domain_gap.frechet(there, features[data.test])
        width = domain_gap.mmd(there[::2], there[1::2], 1).bandwidth
        scores["MMD²"] = domain_gap.mmd(there, features[data.test], bandwidth=width).squared
        scores["classifier's error"] = domain_gap.domain_classifier(there, features[data.test], folds=3, most=300).error
    return {"classes": len(data.classes), "accuracies": accuracies, "scores": scores}


@cache
def source_of(backbone, file, side):
    """Features of photographs that no target holds, by the whole network."""
    data = sources.load(f"npz:{file}")
    loaded, prepare = starts.load_for(backbone, {"image": side}, data)
    return extract(loaded, data.inputs, prepare, ["features"])["features"][data.pool]


def source(options, side):
    """`source_of` the options."""
    return source_of(options.backbone, options.workdir / "targets" / "source.npz", side)


def damaged(backbone: checkpoints.Backbone, network: Network) -> checkpoints.Backbone:
    """A backbone whose last stages start again at random, as He et al. (2015) do it, or whose kernels are noisy."""
    rng, stages = np.random.default_rng(0), sorted({*re.findall(r"stage_\d+", " ".join(backbone.params))})
    again = tuple(f"{stage}/" for stage in stages[len(stages) - network.fresh :])
    again += ("top/",) if network.fresh else ()

    def leaf(path, x):
        x, bare = np.asarray(x), path.removeprefix("batch_stats/")
        if bare.endswith("conv/kernel") and network.noise:
            return x + network.noise * x.std() * rng.standard_normal(x.shape, np.float32)
        if not bare.startswith(again or "none"):
            return x
        if bare.endswith("kernel"):
            return rng.standard_normal(x.shape, np.float32) * np.sqrt(2 / np.prod(x.shape[:-1]), dtype=np.float32)
        return np.full_like(x, bare.endswith(("scale", "var")))

    parts = ({path: leaf(path, x) for path, x in part.items()} for part in (backbone.params, backbone.state))
    return dataclasses.replace(backbone, **dict(zip(("params", "state"), parts, strict=True)))


def logistic(features, data, shots):
    """Test accuracy of the curve's `logistic`, for each seed: its draws, its λ, chosen on its validation rows."""
    train, validation = zip(*(few_shot(data.labels, data.pool, shots, seed) for seed in range(SEEDS)), strict=True)
    draws = [(np.stack(rows), np.ones((SEEDS, len(rows[0])), np.float32)) for rows in (train, validation)]
    heads = fits.logistic(L2).call(features, data.labels, len(data.classes), *draws, METRICS["accuracy"])
    logits = features[data.test] @ np.asarray(heads.kernels) + np.asarray(heads.biases)[:, None]
    return (logits.argmax(-1) == data.labels[data.test]).mean(-1).tolist()


@cache
def small(classes):
    """A residual network of 80,000 parameters, a step of its training, and what it predicts."""
    backbone = models.build("resnet", image=(targets.SIDE, targets.SIDE), **SMALL)
    example = targets.SIDE, targets.SIDE, 3
    adapted = methods.adapt(methods.scratch(), models.Classifier(backbone, classes), {}, example)
    transformation = Optimiser("adamw", rate=RATE).build(adapted.rates, steps=STEPS)
    step = jax.jit(make_step(make_loss(adapted.model, classification()), transformation), donate_argnums=0)
    predict = jax.jit(lambda tree, x: models.apply(adapted.model, tree, x, train=False)["logits"])
    return adapted, transformation, step, predict


def scratch(data, seed):
    """Test accuracy of the small network on the draw of a seed."""
    rows, _ = few_shot(data.labels, data.pool, FEW, seed)
    adapted, transformation, step, predict = small(len(data.classes))
    key, start = jax.random.split(jax.random.key(seed))
    tree, others = adapted.start(start, {})
    trainable, frozen = partition(tree, adapted.rates)
    state = TrainState.create(key, trainable, others, transformation)
    for some in batches(rows, BATCH, STEPS, seed):
        state, _ = step(state, frozen, {"inputs": data.inputs[some], "labels": data.labels[some]})
    logits = predict(state.trainable | frozen | state.state, data.inputs[data.test])
    return float((np.asarray(logits).argmax(-1) == data.labels[data.test]).mean())


if __name__ == "__main__":
    main(sys.argv[1:])
