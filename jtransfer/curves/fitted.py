"""The arms of a curve that solve for a head on frozen features, without a training loop: probes and prototypes."""

import time
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import checkpoints
from jtransfer.curves.arms import Arm, Cell, Examples
from jtransfer.curves.named import ZERO_SHOT
from jtransfer.errors import InputError
from jtransfer.models.heads import votes
from jtransfer.solvers import few_shot as fits
from jtransfer.storage.cells import ResultRow
from jtransfer.train import costs
from jtransfer.train.by_names import EMBEDS, ClassNames


@dataclass(frozen=True, eq=False)
class Fitted(Arm):
    """A method that solves for its head.

    Attributes:
        name: Name of the method, as the config writes it.
        examples: The examples that it learns from.
        fit: Solves for the heads.
        backbone: The backbone whose features it reads.
        batch: Number of examples in the forward pass whose FLOPs are reported.
        reads: The output of the backbone that heads are fitted on.
        names: The names of the classes, for a fit that reads them.
    """

    name: str
    examples: Examples
    fit: fits.Fit
    backbone: checkpoints.Backbone
    batch: int
    reads: str = "features"
    names: ClassNames | None = None

    how = "solved"

    def compile(self, seeds: int) -> Cell:
        """Read the features and compile the test; the cell fits the heads of all seeds in one program."""
        examples, backbone, features = self.examples, self.backbone, self.features
        tree, labels = backbone.params | backbone.state, examples.on_device["labels"]
        test = examples.places(examples.test)
        cached = "keys" in self.fit.leaves
        trainable = (
            examples.most[0] * features.shape[1] if cached else (features.shape[1] + 1) * len(examples.dataset.classes)
        )
        flops = costs.forward_flops(backbone.model, tree, examples.shapes(self.batch))

        @jax.jit
        def tested(kernels, biases, more):
            logits = jnp.einsum("nd,sdc->snc", features[test], kernels) + biases[:, None]
            if more:
                logits += jax.vmap(lambda own: votes(features[test], **own))(more)
            return jax.vmap(examples.measured, (0, None))(logits, labels[test]), jnp.isfinite(logits).all((-1, -2))

        def cell(shots, seeds):
            started = time.perf_counter()
            heads = self.heads(shots, seeds)
            measured, finite = map(np.asarray, tested(heads.kernels, heads.biases, dict(heads.more)))
            if not finite.all():
                raise InputError(f"{self.name}: the heads of {shots} per class are not finite on the test rows")
            seconds = (time.perf_counter() - started) / len(seeds)
            return [
                self.row(
                    *(shots, seed, heads.chosen[i], float(heads.values[i]), measured[i]),
                    *(trainable, flops, seconds, examples.source and examples.source.before),
                )
                for i, seed in enumerate(seeds)
            ]

        return cell

    @property
    def features(self) -> jax.Array:
        """Features of all rows that are used, `[u, d]` float32."""
        return self.examples.features(self.backbone, self.reads)

    @cached_property
    def keys(self) -> jax.Array:
        """The mean of the features of random views of each row that may be trained on, `[u, d]`."""
        return self.examples.views(self.backbone, self.reads, self.fit.views, self.fit.flip)

    def heads(self, shots: int, seeds: list[int]) -> fits.FewShotHeads:
        """The head of each seed, with the hyper-parameters that validation chose; arrays begin with `[seeds]`."""
        examples = self.examples
        draws = zip(*(examples.drawn(shots, seed) for seed in seeds), strict=True)
        padded = [_padded(part, size) for part, size in zip(draws, examples.most, strict=True)]
        labels = np.asarray(examples.on_device["labels"])
        named = {"named": self.names.head} if self.fit.names else {}
        features = self.features if self.fit.least else None
        named |= {"keys": self.keys} if self.fit.views else {}
        return self.fit.call(features, labels, len(examples.dataset.classes), *padded, examples.metric, **named)

    def about(self, rows: list[ResultRow]) -> list[str]:
        """One sentence that says how the heads are solved for."""
        return [f"{self.name}: solved on frozen features; {self.fit.how}."]


def is_fit(name: str) -> bool:
    """Whether the text of a method names a fit alone, as `ridge` or `prototypes('lda')`; a phase of it does not.

    `zero_shot` alone, which looks at no label, is an arm of its own.
    """
    return ">>" not in name and name.partition("(")[0].strip() in fits.FITS.keys() - {ZERO_SHOT}


def build(
    name: str, examples: Examples, backbone: checkpoints.Backbone, batch: int, names: ClassNames | None = None
) -> Fitted:
    """The arm of a method that solves for its head.

    Args:
        name: The method, as the config writes it.
        examples: The examples that it learns from.
        backbone: The backbone whose features it reads.
        batch: Number of examples in the forward pass whose FLOPs are reported.
        names: The names of the classes, and the backbone that reads them.

    Raises:
        InputError: an unknown fit or option, data without one class a row, fewer shots than the fit needs, or a
            backbone that cannot read names where the fit asks for them.
    """
    fit = fits.parse(name)
    if not fit.names:
        return of_fit(name, fit, examples, backbone, batch)
    names.check(name, fit, examples.example)
    return of_fit(name, fit, examples, names.images, batch, EMBEDS, names)


def of_fit(
    name: str,
    fit: fits.Fit,
    examples: Examples,
    backbone: checkpoints.Backbone,
    batch: int,
    reads: str = "features",
    names: ClassNames | None = None,
) -> Fitted:
    """The arm of a fit that is parsed already, on an output of the backbone; other arguments are those of `build`.

    Raises:
        InputError: data without one class a row, or fewer shots than the fit needs.
    """
    if examples.dataset.targets != "classes":
        raise InputError(
            f"config.methods: '{name}' is of one class a row, which {examples.dataset.name} has not; leave it out"
        )
    if (fewest := min(examples.shots)) < fit.least:
        raise InputError(f"method '{name}' needs {fit.least} examples of each class; config.shots has {fewest}")
    return Fitted(name, examples, fit, backbone, batch, reads, names)


def _padded(draws, size):
    rows = np.stack([np.pad(draw, (0, size - len(draw))) for draw in draws])
    weights = np.stack([np.arange(size) < len(draw) for draw in draws]).astype(np.float32)
    return rows, weights
