"""DINOv2's linear evaluation: linear heads over a grid of learning rates, blocks and pooling, trained in one pass.

Each head reads the class tokens of the last blocks, each after the model's final normalisation, and perhaps the mean of
the last block's patches. All heads see the same batches, and their losses are summed, so one step of one program serves
the whole grid. From DINOv2 (Oquab et al. 2023, arXiv:2304.07193, `dinov2/eval/linear.py`), with two deviations:

- The head is chosen on validation rows, which neither trained it nor are reported on. DINOv2 reports the best of its 52
  heads on the very set that chose it.
- Features are extracted once, without augmentation. DINOv2 crops and flips every training image anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtransfer.checkpoints import Backbone
from jtransfer.data import subsets
from jtransfer.errors import InputError
from jtransfer.solvers import checks

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
BLOCKS = (1, 4)
STEPS = 12_500
BATCH = 1024
"""The protocol's learning rates for a batch of 256, last blocks, steps, and rows a step: 128 on each of 8 devices."""


@dataclass(frozen=True, eq=False)
class GridHead:
    """One linear head of the grid. Called with features `[n, width]` by layer, it gives logits `[n, classes]`.

    Attributes:
        blocks: How many of the last blocks' class tokens it reads.
        pooled: Whether it reads the mean of the last block's patches too.
        rate: Its learning rate as listed, for a batch of 256.
        accuracy: On the validation rows, 0..1; -1 if it diverged.
        kernel: `[width * layers, classes]`.
        bias: `[classes]`.
    """

    blocks: int
    pooled: bool
    rate: float
    accuracy: float
    kernel: np.ndarray
    bias: np.ndarray

    def __call__(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([features[layer] for layer in self.layers], axis=1) @ self.kernel + self.bias

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it reads, in the order of its kernel."""
        return layers(self.blocks, self.pooled)

    @property
    def name(self) -> str:
        """What tells it from the others, for people: "4 blocks + patches, rate 0.01"."""
        read = f"{self.blocks} block{'s' if self.blocks > 1 else ''}{' + patches' if self.pooled else ''}"
        return f"{read}, rate {self.rate:g}"


class GridResult(NamedTuple):
    """The trained grid.

    Attributes:
        best: The head with the best accuracy on the validation rows; of equals the first.
        heads: All of them, in DINOv2's order: by blocks, then without and with patches, then by rate.
    """

    best: GridHead
    heads: tuple[GridHead, ...]


def layers(blocks: int = max(BLOCKS), pooled: bool = True) -> tuple[str, ...]:
    """Names of the layers that a head reads, in DINOv2's order: class tokens from the earliest block on, then patches.

    For `extract`. A grid reads what its largest head does.
    """
    return tuple(f"hidden_-{i}.cls.normed" for i in range(blocks, 0, -1)) + ("hidden_-1.mean.normed",) * pooled


def layers_of(backbone: Backbone, blocks: Sequence[int] = BLOCKS) -> tuple[str, ...]:
    """Names of the layers that a grid reads of a backbone.

    Raises:
        InputError: a backbone that has no class token, as convolutional ones, or fewer blocks.
    """
    blocks, config = _blocks(blocks), backbone.config.vision_tower
    if not (config.cls and config.grid):
        raise InputError(
            f"backbone '{backbone.name}' has no class token before patches, which DINOv2's linear grid reads; "
            "use the linear probe"
        )
    if max(blocks) > config.depth:  # the state before them would be the embeddings
        raise InputError(
            f"blocks are {list(blocks)}, but backbone '{backbone.name}' has {config.depth}; leave out what is more"
        )
    return layers(max(blocks))


def linear_grid(
    features: Mapping[str, Any],
    labels: Any,
    train: Any,
    validation: Any,
    *,
    classes: int | None = None,
    blocks: Sequence[int] = BLOCKS,
    rates: Sequence[float] = RATES,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
) -> GridResult:
    """Train a linear head for every number of blocks, without and with patches, at every rate; choose on validation.

    Kernels start from N(0, 0.01²) and biases at 0. SGD with momentum 0.9 and no weight decay follows the mean
    cross-entropy of batches from shuffled epochs of the training rows; rates are times `batch / 256` and fall to 0 by a
    cosine. How far a head can go in that grows with `rate * steps * batch`: fewer steps on fewer rows (the protocol's
    are ten epochs of ImageNet) favour larger rates, and may want some beyond the list.

    The features of these rows are on the device whole.

    Args:
        features: `[n, width]` by layer, at least those of `layers(max(blocks))`.
        labels: `[n]`.
        train: Rows to train on `[m]`.
        validation: Rows to choose on, none of them in `train`. No other row has a say.
        classes: How many there are; None for as many as the largest label says.
        blocks: Numbers of last blocks to read.
        rates: Learning rates for a batch of 256.
        steps: Number of steps of the optimiser.
        batch: Rows a step.
        seed: Of the batches, by `data.subsets.batches`, and of the kernels: the one at place i of `rates` starts from
            `numpy.random.default_rng([seed, blocks, pooled, i])`, whatever else is in the grid.

    Raises:
        InputError: features, labels, rows or options that cannot be used; or that no head is finite in the end.
    """
    if steps < 1 or seed < 0:
        raise InputError(f"steps is {steps} and seed {seed}; expected at least 1 and at least 0")
    blocks, rates = check(blocks, rates, steps, batch)
    found = _alike(features, layers(max(blocks)), blocks)
    labels = checks.labels(labels, len(found[0]), classes)
    train, validation = _apart(train, validation, len(labels))
    checks.labels(labels[train], len(train), classes, "labels of the training rows")
    classes, width = classes or int(labels.max()) + 1, found[0].shape[1]
    heads = 2 * len(blocks) * len(rates)
    checks.fits(
        heads * width * (max(blocks) + 1) * classes, f"{heads} heads of {classes} classes", "give fewer rates or blocks"
    )
    batches = subsets.batches(np.arange(len(train)), batch, steps, seed).astype(np.int32)
    groups = tuple(product(blocks, (False, True)))
    # Side by side, the layers are the class tokens from the earliest block on and then the patches, so that the columns
    # which any head reads are next to each other.
    spans = tuple(((max(blocks) - n) * width, (max(blocks) + pooled) * width) for n, pooled in groups)
    dtype = jnp.promote_types(found[0].dtype, jnp.float32)
    kernels = []
    for group, (first, end) in zip(groups, spans, strict=True):
        generators = [np.random.default_rng([seed, *group, i]) for i in range(len(rates))]
        starts = [generator.normal(0, 0.01, (end - first, classes)) for generator in generators]
        kernels.append(np.stack(starts, axis=1).astype(dtype))
    on_train, on_validation = (([jnp.asarray(x[rows]) for x in found], labels[rows]) for rows in (train, validation))
    trained = jax.device_get(_train(kernels, rates * batch / 256, batches, on_train, on_validation, spans))
    heads = tuple(
        GridHead(*group, float(rate), float(accuracy), kernel, bias)
        for group, arrays in zip(groups, trained, strict=True)
        for rate, accuracy, kernel, bias in zip(rates, *arrays, strict=True)
    )
    best = max(heads, key=lambda head: head.accuracy)
    if best.accuracy < 0:
        raise InputError(f"all {len(heads)} heads diverged; are the features after the final normalisation?")
    return GridResult(best, heads)


@partial(jax.jit, static_argnames="spans")
@jax.default_matmul_precision("highest")
def _train(kernels, rates, batches, train, validation, spans):
    """Accuracies `[rates]`, kernels `[rates, d, classes]` and biases of each group of heads that read the same columns.

    Kernels start as `[d, rates, classes]`, which one matrix product applies to a batch for all rates. `train` and
    `validation` are features of each layer, `[m, width]`, and labels `[m]`; `batches [steps, batch]` are rows of
    `train`. Of all layers side by side, `spans` are the first column of each group and the one after its last.
    """
    dtype, classes = kernels[0].dtype, kernels[0].shape[-1]
    cosine = optax.cosine_decay_schedule(1.0, len(batches))
    optimiser = optax.sgd(lambda step: rates[:, None] * cosine(step), momentum=0.9)

    def side_by_side(layers):
        return jnp.concatenate(layers, axis=1).astype(dtype)

    def loss(heads, x, targets):
        total = 0.0
        for (first, end), (kernel, bias) in zip(spans, heads, strict=True):
            logits = jnp.einsum("nd,drc->nrc", x[:, first:end], kernel) + bias
            total += optax.softmax_cross_entropy(logits, targets[:, None]).mean(axis=0).sum()
        return total  # whose gradient for a head is that of its own loss

    def step(carry, rows):
        heads, state = carry
        layers, labels = train
        targets = jax.nn.one_hot(labels[rows], classes, dtype=dtype)
        gradients = jax.grad(loss)(heads, side_by_side([x[rows] for x in layers]), targets)
        updates, state = optimiser.update(gradients, state)
        return (optax.apply_updates(heads, updates), state), None

    heads = [(kernel, jnp.zeros(kernel.shape[1:], dtype)) for kernel in kernels]
    (heads, _), _ = jax.lax.scan(step, (heads, optimiser.init(heads)), batches)
    x = side_by_side(validation[0])

    def accuracy(x, kernel, bias):
        logits = x @ kernel + bias
        return jnp.where(jnp.isfinite(logits).all(), (logits.argmax(-1) == validation[1]).mean(), -1.0)

    trained = []
    for (first, end), (kernel, bias) in zip(spans, heads, strict=True):
        kernel = kernel.swapaxes(0, 1)
        reached = jax.lax.map(lambda head, x=x[:, first:end]: accuracy(x, *head), (kernel, bias))
        trained.append((reached, kernel, bias))
    return trained


def check(blocks: Sequence[int], rates: Sequence[float], steps: int, batch: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Blocks and rates, if a grid can be trained with them.

    Raises:
        InputError: naming what cannot be used.
    """
    for what, value in (("steps", steps), ("batch", batch)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{what} is {value!r}; expected at least 1")
    return _blocks(blocks), checks.penalties(rates, "rates are")


def _blocks(blocks):
    blocks = tuple(blocks)
    if not blocks or len(set(blocks)) < len(blocks) or not all(isinstance(n, int) and n > 0 for n in blocks):
        raise InputError(f"blocks are {list(blocks)}; expected different whole numbers of at least 1")
    return blocks


def _alike(features, names, blocks):
    """Features of the layers of these names, all of one shape."""
    if missing := [name for name in names if name not in features]:
        raise InputError(f"features have no layer '{missing[0]}', which blocks {list(blocks)} read; have {[*features]}")
    found = [checks.features(features[name], f"features of layer '{name}'") for name in names]
    for name, x in zip(names, found, strict=True):
        if x.shape != found[0].shape:
            raise InputError(
                f"features of layer '{name}' have shape {list(x.shape)}; expected {list(found[0].shape)}, "
                f"as layer '{names[0]}'"
            )
    return found


def _apart(train, validation, n):
    """Training and validation rows, none of them in both."""
    rows = []
    for what, given in (("training", train), ("validation", validation)):
        own = np.asarray(given)
        if own.ndim != 1 or own.dtype.kind not in "iu" or not len(own) or own.min() < 0 or own.max() >= n:
            raise InputError(
                f"{what} rows have shape {list(own.shape)} and dtype {own.dtype}; expected integers 0..{n - 1}"
            )
        rows.append(own)
    if len(both := np.intersect1d(*rows)):
        raise InputError(f"row {both[0]} is in training and in validation; expected each row in one of them")
    return rows
