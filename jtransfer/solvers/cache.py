"""Tip-Adapter's cache (Zhang et al. 2022, arXiv:2207.09519): labelled examples vote by their likeness, untrained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.models.heads import votes
from jtransfer.objectives.metrics import Metric

LEAVES = ("keys", "values", "alpha", "beta")
"""What a cache adds to the leaves of a head."""


@partial(jax.jit, static_argnames=("classes", "metric"))
@jax.default_matmul_precision("highest")
def caches(
    features: jax.Array,
    keys: jax.Array,
    labels: jax.Array,
    classes: int,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    named: tuple[np.ndarray, np.ndarray],
    alphas: np.ndarray,
    betas: np.ndarray,
    metric: Metric,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The cache of every draw, with the alpha and beta that are best on its validation rows.

    Among equal metrics the lower cross-entropy decides: few validation rows leave many pairs equal.

    Args:
        features: `[n, d]` embeddings of length 1.
        keys: `[n, d]` embeddings of any lengths, of which keys are made: means over views of an image.
        labels: `[n]`.
        classes: Number of classes.
        train: Draws of rows that become keys, `(rows [s, m], weights [s, m])`; a row of weight 0 has no vote.
        validation: Draws of rows on which alpha and beta are chosen, likewise.
        named: Kernel `[d, classes]` and bias `[classes]` of the head beside which the cache stands.
        alphas: What the votes are multiplied by, to choose from.
        betas: How fast votes fall with distance, to choose from.
        metric: Of one class a row.

    Returns:
        `keys [s, m, d]`, of length 1, `values [s, m, classes]`, `alpha [s]` and `beta [s]`; and the metric `[s]`.
    """
    kernel, bias = named
    pairs = jnp.stack(jnp.meshgrid(jnp.asarray(alphas), jnp.asarray(betas), indexing="ij"), -1).reshape(-1, 2)

    def of_draw(draw):
        (rows, weights), (asked, counts) = draw
        own = keys[rows] / jnp.linalg.norm(keys[rows], axis=-1, keepdims=True)
        values = jax.nn.one_hot(labels[rows], classes) * weights[:, None]
        x, y = features[asked], labels[asked]

        def reached(pair):
            logits = x @ kernel + bias + votes(x, own, values, *pair)
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], -1)[:, 0]
            found = metric(logits, y, counts)
            return metric.score(found), found, (losses * counts).sum()

        scores, found, losses = jax.lax.map(reached, pairs)
        best = jnp.where(scores == scores.max(), losses, jnp.inf).argmin()
        leaves = own, values, *pairs[best]
        return dict(zip(LEAVES, leaves, strict=True)), found[best]

    return jax.lax.map(of_draw, (train, validation))
