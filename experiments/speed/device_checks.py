"""What `device.py` checks of the forms that an accelerator computes in: attention, bfloat16 and a resumed run."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import steps  # before JAX: leaves PyTorch its part of the GPU

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.models import layers
from jtransfer.models.transformer import causal_mask, padding_mask
from jtransfer.objectives import classification, make_loss
from jtransfer.tree import merge

Row = dict[str, Any]
"""What a case came to: `figures`, numbers by name; `ok`, None where nothing is checked; and `said`, in words."""
Cases = Iterator[tuple[str, Callable[[], Row]]]

ATTENTION = {"float32": 5e-3, "bfloat16": 2e-2}
"""Largest relative error of attention and its gradients, by dtype; a GPU's float32 products are TF32."""
HALF = 5e-3, 1e-2
"""Of bfloat16 against float32, at most: the relative difference of a loss, and 1 less the cosine of the gradients."""
MIDDLE = steps.SMALL | {"depth": 6}


def row(figures: dict[str, float], ok: bool | None = None, said: str = "") -> Row:
    """See `Row`."""
    plain = {name: float(value) for name, value in figures.items()}
    return {"figures": plain, "ok": None if ok is None else bool(ok), "said": said}


def attention(tiny: bool) -> Cases:
    """`layers.attend` in the form that this platform chooses, against float64."""
    for queries, tokens, width, masked in (
        *((197, 197, 64, ""), (577, 577, 64, ""), (256, 256, 32, ""), (64, 64, 80, ""), (196, 196, 64, "")),
        *((1, 196, 64, ""), (128, 128, 64, "padding"), (77, 77, 64, "padding"), (64, 64, 128, "padding")),
        *((128, 128, 64, "causal"), (77, 77, 64, "causal"), (128, 128, 64, "causal padding")),
    ):
        for dtype in ATTENTION:
            name = f"{queries} x {tokens} tokens, heads of {width}, {masked or 'no'} mask, {dtype}"
            yield name, partial(attended, queries, tokens, width, masked, dtype)


def attended(queries: int, tokens: int, width: int, masked: str, dtype: str) -> Row:
    """The relative errors of the output and of the three gradients, of two examples and four heads."""
    draw, sides = np.random.default_rng(0), (queries, tokens, tokens, queries)
    parts = [jnp.asarray(draw.normal(size=(2, side, 4, width)), dtype) for side in sides]
    there = np.arange(tokens) < np.array([[tokens], [tokens // 2]]) if "padding" in masked else None
    mask = causal_mask(tokens, there) if "causal" in masked else padding_mask(there)

    @jax.jit
    def call(query, key, value, d_out):
        out, backward = jax.vjp(lambda *of: layers.attend(*of, mask), query, key, value)
        return out, *backward(d_out)

    names, found = ("output", "query", "key", "value"), call(*parts)
    errors = {
        name: np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)
        for name, x, y in zip(names, found, exact(*parts, mask), strict=True)
    }
    chosen = layers.kernel(*parts[:2], mask, None) or "XLA"
    return row(errors, np.max([*errors.values()]) <= ATTENTION[dtype], f"{chosen}, at most {ATTENTION[dtype]}")


def exact(query, key, value, d_out, mask) -> list[np.ndarray]:
    """Attention of `[batch, tokens, heads, width]` and the gradients of query, key and value, in float64 NumPy."""
    query, key, value, d_out = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (query, key, value, d_out))
    scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1])
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    slope = d_out @ value.swapaxes(2, 3)
    slope = weights * (slope - (slope * weights).sum(-1, keepdims=True)) / np.sqrt(query.shape[-1])
    found = weights @ value, slope @ key, slope.swapaxes(2, 3) @ query, weights.swapaxes(2, 3) @ d_out
    return [x.swapaxes(1, 2) for x in found]


def bfloat16(tiny: bool) -> Cases:
    """Five steps that compute in bfloat16, against the steps in float32."""
    for name in ("finetune", "lora"):
        yield name, partial(halved, name, *((steps.TINY, 32) if tiny else (steps.SMALL, 224)))


def halved(name: str, shape: dict, image: int) -> Row:
    """The largest relative difference of a loss, and the angle of the gradients before the first step."""
    losses, gradients, batch = {}, {}, steps.random_batch(16, image)
    for dtype in ("float32", "bfloat16"):
        adapted, _, step, state, frozen = steps.started(name, shape, dtype, image)
        draw = np.random.default_rng(0)  # away from zero, where heads and LoRA start, so that every gradient counts
        moved = {path: x + 0.02 * draw.normal(size=x.shape).astype("f") for path, x in state.trainable.items()}
        state = state.replace(trainable=moved)
        loss = make_loss(adapted.model, classification())
        gradient = jax.jit(jax.grad(lambda x, f, b, loss=loss: loss(merge(x, f), {}, b, jax.random.key(0))[0]))
        leaves = jax.device_get(gradient(moved, frozen, batch))
        gradients[dtype] = np.concatenate([x.ravel() for x in leaves.values()]).astype(np.float64)
        losses[dtype] = []
        for _ in range(5):
            state, metrics = step(state, frozen, batch)
            losses[dtype].append(float(metrics["loss"]))
    apart = np.abs(np.divide(losses["bfloat16"], losses["float32"]) - 1).max()
    cosine = np.dot(*gradients.values()) / np.prod([np.linalg.norm(x) for x in gradients.values()])
    figures = {"losses apart": apart, "1 - cosine": 1 - cosine}
    return row(figures, apart <= HALF[0] and 1 - cosine <= HALF[1], f"at most {HALF[0]} and {HALF[1]}")


def resume(tiny: bool) -> Cases:
    """Three steps, a checkpoint, and three more: from the checkpoint, without it, and without it again."""
    for name in ("finetune", "lora"):
        yield f"{name}, bfloat16", partial(resumed, name, *((steps.TINY, 32) if tiny else (MIDDLE, 224)))


def resumed(name: str, shape: dict, image: int) -> Row:
    """The largest difference of a leaf of the state: as restored, after three steps more, and of two runs alike."""
    from jtransfer.checkpoints.store import Store

    _, _, step, state, frozen = steps.started(name, shape, "bfloat16", image)
    batch = steps.random_batch(16, image)

    def on(state):
        state = jax.tree.map(jnp.copy, state)  # which the step donates
        for _ in range(3):
            state, _ = step(state, frozen, batch)
        return state

    def apart(one, other):
        pairs = zip(*(jax.tree.leaves(x.replace(key=jax.random.key_data(x.key))) for x in (one, other)), strict=True)
        return np.max([np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max() for x, y in pairs])

    state = on(state)
    with tempfile.TemporaryDirectory() as directory:
        with Store(directory) as store:
            store.save(3, state)
        with Store(directory, reading=True) as store:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            restored, _ = store.restore(3, like)
    kept, after, noise = apart(restored, state), apart(on(restored), on(state)), apart(on(state), on(state))
    said = "" if noise == 0 else "without a stop the steps are not the same to the bit either"
    figures = {"restored": kept, "three steps later": after, "two runs without a stop": noise}
    return row(figures, kept == 0 and (after == 0 or noise > 0), said)
