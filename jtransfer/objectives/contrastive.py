"""Contrastive losses of images and texts over the global batch: CLIP and SigLIP, exact, on any number of devices.

The similarities `[N, N]` of a batch are never held. Each device keeps the rows of its images, and texts go round the
ring of devices (as in SigLIP, arXiv:2303.15343, section 3.3); a block of similarities is made when it is needed, once
forward and once backward. Memory is that of a block, whatever the number of devices.

With logits `l = scale * images @ texts.T + bias`, both losses are a sum over all pairs less that over the true ones:

    CLIP    (sum_i logsumexp_j l_ij + sum_j logsumexp_i l_ij) / 2N - sum_i l_ii / N      (arXiv:2103.00020, figure 3)
    SigLIP  sum_ij softplus(l_ij) / N - sum_i l_ii / N                              (arXiv:2303.15343, algorithm 1)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jtransfer.devices.tactics import batch_axes, batch_parts
from jtransfer.errors import InputError, nearest
from jtransfer.objectives.objective import Objective, forward

CHUNK = 1024
"""Columns of a block of similarities, at most."""


class PairLoss(NamedTuple):
    """What one of the losses does with a block of logits `[n, m]`.

    Attributes:
        start: What gathering along rows and columns starts from.
        gather: From a block to what its rows `[n]` and its columns `[m]` add.
        join: Two of these to one.
        weights: From a block, and what was gathered along all of its rows and columns, to the derivative of half of
            all that was gathered with respect to each logit.
    """

    start: float
    gather: Callable
    join: Callable
    weights: Callable


def _log_sums(logits):
    return jax.nn.logsumexp(logits, 1), jax.nn.logsumexp(logits, 0)


def _softmaxes(logits, rows, columns):
    return (jnp.exp(logits - rows[:, None]) + jnp.exp(logits - columns)) / 2


def _softplus_sums(logits):
    losses = jax.nn.softplus(logits)
    return losses.sum(1), losses.sum(0)


def _product(x, y):
    """`x @ y` in float32 on every platform.

    TPUs would round to bfloat16 and GPUs to TF32, and at a scale of 100 the softmax of a row would no longer sum to 1.
    """
    return jnp.matmul(x, y, precision="highest")


CLIP = PairLoss(-jnp.inf, _log_sums, jnp.logaddexp, _softmaxes)
SIGLIP = PairLoss(0.0, _softplus_sums, jnp.add, lambda logits, rows, columns: jax.nn.sigmoid(logits))
LOSSES = {"clip": CLIP, "siglip": SIGLIP}


def pair_loss(
    name: str,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float = 0.0,
    *,
    mesh: Mesh | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """The loss of a global batch of pairs; row i of `images` belongs to row i of `texts`, and to no other.

    Args:
        name: "clip" or "siglip".
        images: Embeddings `[N, d]`, of length 1.
        texts: Embeddings `[N, d]`, of length 1.
        scale: What cosines are multiplied by (not its logarithm).
        bias: What is then added.
        mesh: Over whose `batch_axes` the rows are split; None for one device.
        chunk: Columns of a block of similarities, at most.

    Raises:
        InputError: an unknown loss, embeddings of different shapes, or rows that the devices do not divide.
    """
    if name not in LOSSES:
        raise InputError(f"contrastive: unknown loss '{name}'; {nearest(name, LOSSES)}")
    if images.shape != texts.shape:
        raise InputError(f"contrastive: image embeddings {list(images.shape)}, text embeddings {list(texts.shape)}")
    if mesh is not None and len(images) % batch_parts(mesh):
        raise InputError(f"contrastive: {len(images)} pairs on {batch_parts(mesh)} devices")
    dtype = jnp.result_type(images, jnp.float32)
    scale, bias = (jnp.asarray(x, dtype) for x in (scale, bias))
    return _pair_loss(name, mesh, chunk, images.astype(dtype), texts.astype(dtype), scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _pair_loss(name, mesh, chunk, images, texts, scale, bias):
    return _forward(name, mesh, chunk, images, texts, scale, bias)[0]


def _forward(name, mesh, chunk, images, texts, scale, bias):
    loss = LOSSES[name]

    def visit(rows, away, images):
        texts, columns = away
        of_rows, of_columns = loss.gather(scale * _product(images, texts.T) + bias)
        return loss.join(rows, of_rows), (texts, loss.join(columns, of_columns))

    def on_device(ring, images, texts):
        start = jnp.full(len(images), loss.start, images.dtype)
        rows, (_, columns) = ring.around(partial(visit, images=images), start, (texts, start))
        true = scale * (images * texts).sum(1) + bias
        # Taken off row by row: the sums would lose the digits of a small loss.
        return ring.sum(((rows + columns) / 2 - true).sum()) / len(images) / ring.size, rows, columns

    split = ("pairs", "pairs")
    value, rows, columns = _on_devices(on_device, mesh, chunk, split, ("whole", *split))(images, texts)
    return value, (images, texts, scale, bias, rows, columns)


def _backward(name, mesh, chunk, kept, slope):
    images, texts, scale, bias, rows, columns = kept
    loss = LOSSES[name]

    def visit(home, away, images, rows):
        of_images, of_scale, of_bias = home
        texts, columns, of_texts = away
        cosines = _product(images, texts.T)
        weights = loss.weights(scale * cosines + bias, rows, columns)
        home = of_images + _product(weights, texts), of_scale + (weights * cosines).sum(), of_bias + weights.sum()
        return home, (texts, columns, of_texts + _product(weights.T, images))

    def on_device(ring, images, texts, rows, columns):
        zero = jnp.zeros((), images.dtype)
        home = -texts, -(images * texts).sum(), zero - len(images)  # of the true pairs
        home, (*_, of_texts) = ring.around(partial(visit, images=images, rows=rows), home, (texts, columns, -images))
        of_images, of_scale, of_bias = home
        return of_images, of_texts, ring.sum(of_scale), ring.sum(of_bias)

    split = ("pairs", "pairs")
    call = _on_devices(on_device, mesh, chunk, split * 2, (*split, "whole", "whole"))
    of_images, of_texts, of_scale, of_bias = call(images, texts, rows, columns)
    each = slope / len(rows)
    return each * scale * of_images, each * scale * of_texts, each * of_scale, each * of_bias


_pair_loss.defvjp(_forward, _backward)


class _Ring(NamedTuple):
    """The devices over which the pairs are split.

    Attributes:
        axes: Of the mesh; None for one device.
        size: How many there are.
        chunk: Columns that are visited at once, at most.
    """

    axes: tuple[str, ...] | None
    size: int
    chunk: int

    def sum(self, x):
        return x if self.axes is None else jax.lax.psum(x, self.axes)

    def around(self, visit, home, away):
        """`visit(home, away) -> (home, away)` with what every device has `away`, in chunks; in the end all are back."""
        n = len(jax.tree.leaves(away)[0])
        count = next(count for count in range(-(-n // self.chunk), n + 1) if n % count == 0)
        away = jax.tree.map(lambda x: x.reshape(count, n // count, *x.shape[1:]), away)

        def step(_, both):
            home, away = jax.lax.scan(visit, *both)
            return home, jax.tree.map(self._on, away)

        home, away = jax.lax.fori_loop(0, self.size, step, (home, away))
        return home, jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), away)

    def _on(self, x):
        if self.axes is None:
            return x
        return jax.lax.ppermute(x, self.axes, [(i, (i + 1) % self.size) for i in range(self.size)])


def _on_devices(call, mesh, chunk, takes, gives):
    """`call(ring, ...)` on every device's part of the pairs."""
    if mesh is None or batch_parts(mesh) == 1:
        return partial(call, _Ring(None, 1, chunk))
    axes = batch_axes(mesh)
    specs = {"pairs": PartitionSpec(axes), "whole": PartitionSpec()}
    ring = _Ring(axes, batch_parts(mesh), chunk)
    into, out = (tuple(specs[kind] for kind in kinds) for kinds in (takes, gives))
    return jax.shard_map(partial(call, ring), mesh=mesh, in_specs=into, out_specs=out, check_vma=False)


def contrastive(name: str, parts: int = 1, mesh: Mesh | None = None, temperature_limit: float = 0.0) -> Objective:
    """The loss of a dual encoder on a batch of pairs, `{"inputs": {"pixel_values", "input_ids", ...}}`.

    The outputs of the model have `image_embeds` and `text_embeds`, and its tree has `logit_scale` and, for "siglip",
    `logit_bias`. The metrics are `temperature` (what cosines are multiplied by) and `duplicates` (the share of texts
    that the batch has already: false negatives), and `cut`, where the batch says which texts were.

    Args:
        name: "clip" or "siglip".
        parts: The batch is embedded in so many equal parts, one after another, which the backward pass embeds again:
            gradient caching (Gao et al. 2021, arXiv:2101.06983). The loss is that of the whole batch, and exact.
        mesh: As for `pair_loss`.
        temperature_limit: The most that cosines are multiplied by; 0 for no limit.
    """

    def score(params, outputs, batch):
        scale = jnp.exp(params["logit_scale"].astype(jnp.float32))
        images, texts = outputs["image_embeds"], outputs["text_embeds"]
        value = pair_loss(name, images, texts, scale, params.get("logit_bias", 0.0), mesh=mesh)
        metrics = {"temperature": scale, "duplicates": duplicates(batch["inputs"]["input_ids"])}
        return value, metrics | ({"cut": jnp.mean(batch["cut"])} if "cut" in batch else {})

    def notice(row):
        if not temperature_limit or row["temperature"] < 0.999 * temperature_limit:
            return ""
        most = f"cosines are multiplied by {temperature_limit:g}"
        return f"step {row['step']}: {most}, the most that config.temperature_limit allows"

    run = partial(in_parts, parts) if parts > 1 else forward
    limits = {"logit_scale": (0.0, math.log(temperature_limit))} if temperature_limit else {}
    return Objective(score, forward=run, reads="pairs", limits=limits, notice=notice)


def clip(parts: int = 1, mesh: Mesh | None = None, temperature_limit: float = 0.0) -> Objective:
    """The loss of CLIP (Radford et al. 2021, arXiv:2103.00020); see `contrastive`."""
    return contrastive("clip", parts, mesh, temperature_limit)


def siglip(parts: int = 1, mesh: Mesh | None = None) -> Objective:
    """The loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343); see `contrastive`."""
    return contrastive("siglip", parts, mesh)


def in_parts(parts, model, params, state, inputs, key):
    """The embeddings of a batch, whose parts are run one after another, and again by the backward pass."""

    def embed(state, part):
        inputs, key = part
        outputs, state = forward(model, params, state, inputs, key)
        return state, {name: outputs[name] for name in ("image_embeds", "text_embeds")}

    # Part i takes every `parts`-th pair: a batch that is split over devices stays where it is.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), inputs)
    embed = jax.checkpoint(embed, prevent_cse=False)
    state, embeds = jax.lax.scan(embed, state, (split, jax.random.split(key, parts)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[-1]), embeds), state


def duplicates(ids: jax.Array) -> jax.Array:
    """The share of rows `[n, tokens]` of whole numbers that stand further up already, told by a 32-bit hash."""
    ids = ids.astype(jnp.uint32)
    hashes = jnp.zeros(len(ids), jnp.uint32)
    for column in range(ids.shape[1]):
        hashes = (hashes ^ ids[:, column]) * jnp.uint32(16777619)  # FNV-1a's prime, a token at a time
    hashes = jnp.sort(hashes)
    return jnp.mean(hashes[1:] == hashes[:-1]) * (len(ids) - 1) / len(ids)
