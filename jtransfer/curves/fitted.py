"""The arms of a curve that solve for a head on frozen features, without a training loop: probes and prototypes."""

import time
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import checkpoints, models
from jtransfer.curves.arms import Arm, Cell, Examples
from jtransfer.errors import InputError
from jtransfer.solvers import few_shot as fits
from jtransfer.storage.cells import ResultRow
from jtransfer.train import costs, trials


@dataclass(frozen=True, eq=False)
class Fitted(Arm):
    """One method that is solved for.

    Attributes:
        name: As the config writes it.
        examples: What it learns of.
        fit: What it does.
        backbone: Whose features it reads.
        batch: Examples of which the cost of a forward pass is told.
    """

    name: str
    examples: Examples
    fit: fits.Fit
    backbone: checkpoints.Backbone
    batch: int

    how = "solved"

    def compile(self, seeds: int) -> Cell:
        """See `Arm`; all draws of a cell are fitted in one program."""
        examples, backbone, features = self.examples, self.backbone, self.features
        tree, labels = backbone.params | backbone.state, examples.on_device["labels"]
        test = examples.places(examples.test)
        shapes = {k: jax.ShapeDtypeStruct((self.batch, *x.shape[1:]), x.dtype) for k, x in examples.example.items()}
        trainable = (features.shape[1] + 1) * len(examples.dataset.classes)
        flops = costs.forward_flops(backbone.model, tree, shapes)

        @jax.jit
        def tested(kernels, biases):
            logits = jnp.einsum("nd,sdc->snc", features[test], kernels) + biases[:, None]
            return jax.vmap(examples.measured, (0, None))(logits, labels[test]), jnp.isfinite(logits).all((-1, -2))

        def cell(shots, seeds):
            started = time.perf_counter()
            heads = self.heads(shots, seeds)
            measured, finite = map(np.asarray, tested(heads.kernels, heads.biases))
            if not finite.all():
                raise InputError(f"{self.name}: the heads of {shots} per class are not finite on the test rows")
            seconds = (time.perf_counter() - started) / len(seeds)
            return [
                self.row(
                    *(shots, seed, heads.chosen[i], float(heads.values[i]), measured[i]), trainable, flops, seconds
                )
                for i, seed in enumerate(seeds)
            ]

        return cell

    @cached_property
    def features(self) -> jax.Array:
        """Of all rows that are used `[u, d]`, float32."""
        examples, backbone = self.examples, self.backbone

        @jax.jit
        def read(tree, inputs):
            def features(some):
                return models.apply(backbone.model, tree, some)["features"]

            return trials.in_blocks(features, inputs, np.arange(len(examples.rows)))

        return read(backbone.params | backbone.state, examples.on_device["inputs"]).astype(jnp.float32)

    def heads(self, shots: int, seeds: list[int]) -> fits.FewShotHeads:
        """The head of each seed, of which validation chose what there is to choose."""
        examples = self.examples
        draws = zip(*(examples.drawn(shots, seed) for seed in seeds), strict=True)
        padded = [_padded(part, size) for part, size in zip(draws, examples.most, strict=True)]
        labels = np.asarray(examples.on_device["labels"])
        return self.fit.call(self.features, labels, len(examples.dataset.classes), *padded, examples.metric)

    def about(self, rows: list[ResultRow]) -> list[str]:
        """See `Arm`."""
        return [f"{self.name}: solved on frozen features; {self.fit.how}."]


def is_fit(name: str) -> bool:
    """Whether a config's method is one that is fitted."""
    return ">>" not in name and name.partition("(")[0].strip() in fits.FITS


def build(name: str, examples: Examples, backbone: checkpoints.Backbone, batch: int) -> Fitted:
    """The arm of a method that is fitted.

    Args:
        name: As the config writes it.
        examples: What it learns of.
        backbone: Whose features it reads.
        batch: Examples of which the cost of a forward pass is told.

    Raises:
        InputError: an unknown one, one that needs more examples than the fewest shots, or data without classes.
    """
    return of_fit(name, fits.parse(name), examples, backbone, batch)


def of_fit(name: str, fit: fits.Fit, examples: Examples, backbone: checkpoints.Backbone, batch: int) -> Fitted:
    """The arm of a fit; arguments and errors are those of `build`."""
    if examples.dataset.targets != "classes":
        raise InputError(
            f"config.methods: '{name}' is of one class a row, which {examples.dataset.name} has not; leave it out"
        )
    if (fewest := min(examples.shots)) < fit.least:
        raise InputError(f"method '{name}' needs {fit.least} examples of each class; config.shots has {fewest}")
    return Fitted(name, examples, fit, backbone, batch)


def _padded(draws, size):
    rows = np.stack([np.pad(draw, (0, size - len(draw))) for draw in draws])
    weights = np.stack([np.arange(size) < len(draw) for draw in draws]).astype(np.float32)
    return rows, weights
