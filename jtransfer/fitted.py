"""The arms of a curve that fit a head on frozen features, without a training loop: probes and prototypes."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import checkpoints, models
from jtransfer.arms import Cell, Examples
from jtransfer.data.subsets import few_shot, validation_shots
from jtransfer.errors import InputError
from jtransfer.evaluate import few_shot as fits
from jtransfer.train import costs, trials


@dataclass(frozen=True, eq=False)
class Fitted:
    """One method of a curve that is fitted.

    Attributes:
        name: As the config writes it.
        fit: What it does.
        backbone: Whose features it reads.
    """

    name: str
    fit: fits.Fit
    backbone: checkpoints.Backbone


def is_fit(name: str) -> bool:
    """Whether a config's method is one that is fitted."""
    return name.partition("(")[0].strip() in fits.FITS


def build(config: Any, name: str, backbone: checkpoints.Backbone) -> Fitted:
    """The arm of a method that is fitted.

    Raises:
        InputError: an unknown one, or one that needs more examples than the fewest shots.
    """
    fit = fits.parse(name)
    if min(config.shots) < fit.least:
        raise InputError(
            f"method '{name}' needs {fit.least} examples of each class; config.shots has {min(config.shots)}"
        )
    return Fitted(name, fit, backbone)


def cell(config: Any, arm: Fitted, examples: Examples) -> Cell:
    """What the arm does at some shots, for some seeds: all its draws are fitted in one program."""
    dataset, backbone = examples.dataset, arm.backbone
    classes, tree = len(dataset.classes), backbone.params | backbone.state
    most = max(config.shots)

    @jax.jit
    def read(tree, inputs):
        everything = np.arange(len(examples.rows))
        return trials.in_blocks(lambda some: models.apply(backbone.model, tree, some)["features"], inputs, everything)

    inputs, labels = examples.on_device
    features = read(tree, inputs).astype(jnp.float32)
    test = examples.places(examples.test)
    batch = {key: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype) for key, x in examples.example.items()}
    costs_of_all = {
        "trainable": (features.shape[1] + 1) * classes,
        "flops_per_step": costs.forward_flops(backbone.model, tree, batch),
    }

    @jax.jit
    def right(kernels, biases):
        logits = jnp.einsum("nd,sdc->snc", features[test], kernels) + biases[:, None]
        return (logits.argmax(-1) == labels[test]).mean(-1), jnp.isfinite(logits).all((-1, -2))

    def run(shots, seeds):
        started = time.perf_counter()
        draws = [few_shot(dataset.labels, dataset.pool, shots, seed) for seed in seeds]
        padded = [
            _padded([examples.places(rows) for rows in part], classes * size)
            for part, size in zip(zip(*draws, strict=True), (most, validation_shots(most)), strict=True)
        ]
        heads = arm.fit.call(features, np.asarray(labels), classes, *padded)
        accuracy, finite = map(np.asarray, right(heads.kernels, heads.biases))
        if not finite.all():
            raise InputError(f"{arm.name}: the heads of {shots} per class are not finite on the test rows")
        seconds = (time.perf_counter() - started) / len(seeds)
        return [
            {
                "method": arm.name,
                "shots": shots,
                "seed": seed,
                "hyper": heads.chosen[i],
                "val_accuracy": float(heads.accuracy[i]),
                "test_accuracy": float(accuracy[i]),
                **costs_of_all,
                "seconds": seconds,
            }
            for i, seed in enumerate(seeds)
        ]

    return run


def _padded(draws, size):
    rows = np.stack([np.pad(draw, (0, size - len(draw))) for draw in draws])
    weights = np.stack([np.arange(size) < len(draw) for draw in draws]).astype(np.float32)
    return rows, weights
