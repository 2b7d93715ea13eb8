"""Is the match among the first? Recall at k between images and texts, and mean average precision by class.

Similarity is the cosine. Scores are computed a block of queries at a time, so that never all of them are in memory.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers import checks

SCORES = 2**22
"""Scores a block may hold (16 MiB in float32); a block is of one query at least."""


class Recall(NamedTuple):
    """How early the first match comes.

    Attributes:
        at: Share of queries with a match among the first k, 0..1, by k.
        median_rank: Rank of the first match in the median query; 1 is best.
    """

    at: dict[int, float]
    median_rank: float


class Retrieval(NamedTuple):
    """Recall in both directions, each named after what is asked and what is found."""

    image_to_text: Recall
    text_to_image: Recall


def retrieval(
    image_embeds, text_embeds, image_of_text, at: tuple[int, ...] = (1, 5, 10), silent: bool = False
) -> Retrieval:
    """Recall of images and their captions, as the CLIP papers and CLIP_benchmark count it.

    An image is a hit at k if *any* of its captions is among the first k; a caption is if its image is. See `ranks` for
    ties.

    Args:
        image_embeds: `[n, d]`.
        text_embeds: `[m, d]`.
        image_of_text: Row of the image that each text describes, `[m]`.
        at: Ranks to report.
        silent: Whether there may be images without a text. They have nothing to find and ask nothing, but can be found
            in place of another.

    Raises:
        InputError: embeddings that cannot be used or of different width, or an image without a text.
    """
    images = checks.features(image_embeds, "image embeddings", alike=True)
    texts = checks.features(text_embeds, "text embeddings", alike=True)
    owners = checks.labels(image_of_text, len(texts), len(images), "image_of_text", alike=True)
    own, asking = np.arange(len(images)), np.unique(owners)
    if not silent and len(mute := np.setdiff1d(own, owners)):
        raise InputError(f"image_of_text: image {mute[0]} has no text, so it has nothing to find")
    if min(at, default=0) < 1:
        raise InputError(f"recall at {list(at)}; expected ranks of at least 1")
    found = ranks(images[asking], asking, texts, owners), ranks(texts, owners, images, own)
    return Retrieval(*(Recall({k: float((r <= k).mean()) for k in at}, float(np.median(r))) for r in found))


def ranks(queries, query_labels, keys, key_labels) -> np.ndarray:
    """Rank `[n]`, from 1, of the first key with each query's own label.

    Keys of another label that score as high come before: ties are never to the query's advantage, so that embeddings
    which are all alike find nothing.

    Args:
        queries: `[n, d]`.
        query_labels: `[n]` integers.
        keys: `[m, d]`.
        key_labels: `[m]` integers.

    Raises:
        InputError: embeddings that cannot be used or of different width, or a query whose label no key has.
    """
    asked = np.asarray(query_labels)
    queries, query_labels, keys, key_labels, lonely = _checked(queries, query_labels, keys, key_labels)
    if lonely.any():
        raise _lonely(lonely, asked)
    block = max(1, min(len(queries), SCORES // len(keys)))
    return np.asarray(_ranks(queries, query_labels, keys, key_labels, block))


def mean_average_precision(queries, query_labels, keys, key_labels, exclude_self: bool = False) -> float:
    """Mean of `average_precisions`, each of whose queries must have something to find.

    Args:
        queries: `[n, d]`.
        query_labels: `[n]` integers.
        keys: `[m, d]`.
        key_labels: `[m]` integers.
        exclude_self: Whether queries and keys are the same rows, and a row does not find itself.

    Raises:
        InputError: as `average_precisions` raises, or a query that has nothing to find.
    """
    found = average_precisions(queries, query_labels, keys, key_labels, exclude_self)
    if (lonely := np.isnan(found)).any():
        raise _lonely(lonely, np.asarray(query_labels), exclude_self)
    return float(np.mean(found))


def average_precisions(queries, query_labels, keys, key_labels, exclude_self: bool = False) -> np.ndarray:
    """Average precision of each query `[n]`, 0..1, where the keys of the query's class are what is to be found.

    Precision at a key counts all keys that score as high as it, as scikit-learn's `average_precision_score`. It is NaN
    for a query that has nothing to find.

    Args:
        queries: `[n, d]`.
        query_labels: `[n]` integers.
        keys: `[m, d]`.
        key_labels: `[m]` integers.
        exclude_self: Whether queries and keys are the same rows, and a row does not find itself.

    Raises:
        InputError: embeddings that cannot be used or of different width, or labels that are no integers.
    """
    queries, query_labels, keys, key_labels, _ = _checked(queries, query_labels, keys, key_labels, exclude_self)
    block = max(1, SCORES // len(keys))
    precisions = []
    for start in range(0, len(queries), block):
        scores = np.array(_scores(queries[start : start + block], keys))
        for row, (score, label) in enumerate(zip(scores, query_labels[start : start + block], strict=True), start):
            relevant = key_labels == label
            if exclude_self:
                score[row], relevant[row] = -np.inf, False
            precisions.append(_average_precision(score, relevant))
    return np.array(precisions)


def _average_precision(scores, relevant) -> float:
    """Of one query, NaN where nothing is relevant; sorted on the host, where NumPy is many times faster than XLA."""
    if not relevant.any():
        return np.nan
    every, found = np.sort(scores), np.sort(scores[relevant])
    above = (len(x) - np.searchsorted(x, found) for x in (found, every))
    return float(np.mean(np.divide(*above)))


def _checked(queries, query_labels, keys, key_labels, exclude_self=False):
    queries, keys = (checks.features(x, what, alike=True) for x, what in ((queries, "queries"), (keys, "keys")))
    checks.same_width(queries, keys, ("queries", "keys"))
    query_labels = _integers(query_labels, len(queries), "query labels")
    key_labels = _integers(key_labels, len(keys), "key labels")
    if exclude_self and not np.array_equal(query_labels, key_labels):
        raise InputError("exclude_self needs queries and keys to be the same rows; their labels differ")
    there, of_key, counts = np.unique(key_labels, return_inverse=True, return_counts=True)
    # On the device an integer has 32 bits: labels of any size are numbered by the place of their equal among the keys'.
    place = np.minimum(np.searchsorted(there, query_labels), len(there) - 1)
    of_query = np.where(there[place] == query_labels, place, len(there)).astype(np.int32)
    lonely = np.append(counts, 0)[of_query] <= exclude_self
    return _normalised(queries), of_query, _normalised(keys), of_key.astype(np.int32), lonely


def _integers(labels, rows, what):
    labels = np.asarray(labels)
    if labels.shape != (rows,) or labels.dtype.kind not in "iub":
        raise InputError(
            f"{what} have shape {list(labels.shape)} and dtype {labels.dtype}; expected [{rows}] integers, one a row"
        )
    return labels


def _lonely(lonely, labels, exclude_self=False):
    row = int(lonely.argmax())
    return InputError(f"query {row} has label {labels[row]}, which no {'other ' * exclude_self}key has")


def _normalised(x) -> jax.Array:
    x = checks.floats(x)
    norms = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(norms > 0, norms, 1)


_scores = jax.jit(lambda queries, keys: jnp.matmul(queries, keys.T, precision="highest"))


@partial(jax.jit, static_argnames="block")
def _ranks(queries, query_labels, keys, key_labels, block):
    def rank(query):
        embedding, label = query
        scores, relevant = _scores(embedding, keys), key_labels == label
        best = jnp.where(relevant, scores, -jnp.inf).max()
        return 1 + jnp.sum(jnp.where(relevant, -jnp.inf, scores) >= best)

    return jax.lax.map(rank, (queries, query_labels), batch_size=block)
