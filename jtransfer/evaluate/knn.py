"""Weighted k-nearest neighbours as DINOv2 does (`dinov2/eval/knn.py`), in memory that does not grow with the keys."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers import checks
from jtransfer.solvers.prototypes import unit

K = (10, 20, 100, 200)
TEMPERATURE = 0.07
"""DINOv2's."""

QUERIES = 512
"""Queries whose similarities to a block of keys are in memory together."""


def knn(
    keys: Any,
    labels: Any,
    queries: Any,
    *,
    k: Sequence[int] = K,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
    block: int = 16384,
) -> np.ndarray:
    """Scores of each class by the nearest keys, for several numbers of neighbours at once.

    Keys and queries are brought to length 1. The similarities s of the `max(k)` nearest keys (of equal ones the first)
    weigh `softmax(s / temperature)`; the score of a class is the weight of its keys among the k nearest. So the scores
    of fewer neighbours sum to less than 1, which changes no prediction (`scores.argmax(-1)`).

    Args:
        keys: `[n, d]`, also in a mapped file (`np.memmap`): they are brought to length 1 block by block.
        labels: Labels of the keys, `[n]`.
        queries: `[m, d]`; None for the keys, each of which then is no neighbour of itself (leave one out).
        k: Numbers of neighbours.
        temperature: The temperature of the softmax.
        classes: How many there are; None for as many as the largest label says.
        block: Keys that are compared at a time.

    Returns:
        `[len(k), m, classes]`, 0..1. Nothing else grows with m and classes together; give queries in parts where this
        would be too large.

    Raises:
        InputError: features or labels that cannot be used, or more neighbours than keys.
    """
    keys = checks.features(keys, "keys")
    labels = checks.labels(labels, len(keys), classes)
    classes = classes or int(labels.max()) + 1
    others = len(keys) - (queries is None)
    if np.ndim(k) != 1 or not len(k) or not all(isinstance(n, int | np.integer) and 0 < n <= others for n in k):
        shown = list(k) if np.ndim(k) == 1 else k
        raise InputError(f"k is {shown!r}; expected numbers from 1 to the {others} keys there are")
    if not 0 < temperature < np.inf or block < 1:
        raise InputError(f"temperature={temperature} and block={block}; expected both above 0")
    own = np.arange(len(keys)) if queries is None else np.full(len(queries), -1)
    queries = keys if queries is None else checks.features(queries, "queries", alike=True)
    checks.same_width(queries, keys, ("queries", "keys"))
    similarities, neighbours = _nearest(keys, labels, queries, own, max(k), min(block, len(keys)))
    scores = np.empty((len(k), len(queries), classes), similarities.dtype)
    for i, nearest in enumerate(zip(similarities, neighbours, strict=True)):
        some = scores[:, i * QUERIES : (i + 1) * QUERIES]
        some[:] = _votes(*nearest, temperature, tuple(k), classes)[:, : some.shape[1]]
    return scores


def _nearest(keys, labels, queries, own, most, block):
    """Similarities and labels of the nearest keys, nearest first, `[q, QUERIES, most]`: queries in q rows of blocks."""
    rows = min(QUERIES, len(queries))
    q = -(-len(queries) // rows)
    queries, own = (
        jnp.pad(jnp.asarray(x), ((0, q * rows - len(x)), *((0, 0),) * (x.ndim - 1))) for x in (queries, own)
    )
    queries = unit(queries.astype(jnp.promote_types(queries.dtype, jnp.float32))).reshape(q, rows, -1)
    best = jnp.full((q, rows, most), -jnp.inf, queries.dtype), jnp.zeros((q, rows, most), jnp.int32)
    for start in range(0, len(keys), block):
        first = min(start, len(keys) - block)  # the last block reaches back, so that all are of one shape
        some = slice(first, first + block)
        best = _merged(*best, queries, own.reshape(q, rows), keys[some], labels[some], first, start)
        jax.block_until_ready(best)  # steps that wait would hold their blocks
    return best


@partial(jax.jit, donate_argnums=(0, 1))
@jax.default_matmul_precision("highest")
def _merged(similarities, neighbours, queries, own, keys, labels, first, start):
    """The nearest of those so far and of a block of keys, which begins at number `first` and counts from `start` on."""
    keys = unit(keys.astype(queries.dtype))
    numbers = first + jnp.arange(len(keys))

    def of_some(state):
        similarities, neighbours, queries, own = state
        new = jnp.where((numbers < start) | (numbers == own[:, None]), -jnp.inf, queries @ keys.T)
        # Those so far stand first: top_k then prefers them among equals, and soon finds that most others are smaller.
        best, places = jax.lax.top_k(jnp.concatenate([similarities, new], axis=1), similarities.shape[1])
        old = jnp.take_along_axis(neighbours, jnp.minimum(places, similarities.shape[1] - 1), axis=1)
        return best, jnp.where(places < similarities.shape[1], old, labels[places - similarities.shape[1]])

    return jax.lax.map(of_some, (similarities, neighbours, queries, own))


@partial(jax.jit, static_argnames=("k", "classes"))
@partial(jax.vmap, in_axes=(0, 0, None, None, None), out_axes=1)
def _votes(similarities, neighbours, temperature, k, classes):
    shares = jax.nn.softmax(similarities / temperature)
    return jnp.stack([jnp.zeros(classes, shares.dtype).at[neighbours[:n]].add(shares[:n]) for n in k])
