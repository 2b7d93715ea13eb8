"""Many linear heads at once: the metric of each on some rows, and the head that validation chooses."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.objectives.metrics import METRICS, Metric
from jtransfer.solvers.draws import drawn, labelled


class Chosen(NamedTuple):
    """The head that validation chose, for every draw.

    Attributes:
        l2: `[*draws]`, λ of the head.
        value: `[*draws]`, the metric of the head on the validation rows.
        kernel: `[*draws, d, classes]`.
        bias: `[*draws, classes]`.
    """

    l2: jax.Array
    value: jax.Array
    kernel: jax.Array
    bias: jax.Array


def values(
    kernels: Any,
    biases: Any,
    features: Any,
    labels: Any,
    *,
    rows: Any = None,
    weights: Any = None,
    metric: Metric = METRICS["accuracy"],
) -> jax.Array:
    """A metric of many linear heads, by default their accuracy.

    Args:
        kernels: `[..., d, classes]`.
        biases: `[..., classes]`.
        features: `[n, d]`.
        labels: `[n]`.
        rows: Draws of rows `[*draws, m]`, on each of which the heads `[*draws, ...]` of that draw are measured; None to
            measure every head on all rows.
        weights: 1 for a row of a draw and 0 for padding, `[*draws, m]`; None for no padding.
        metric: A metric of one class a row.

    Returns:
        The metric of each head, `[...]`.

    Raises:
        InputError: features, labels or draws that cannot be used, or that do not belong to the heads.
    """
    kernels, biases = jnp.asarray(kernels), jnp.asarray(biases)
    features, labels, _ = labelled(features, labels, kernels.shape[-1], alike=True)
    if features.shape[1] != kernels.shape[-2]:
        raise InputError(f"features have {features.shape[1]} columns; the heads expect {kernels.shape[-2]}")
    rows, weights = drawn(rows, weights, len(features))
    if rows is not None and rows.shape[:-1] != kernels.shape[: rows.ndim - 1]:
        raise InputError(
            f"rows have shape {list(rows.shape)}; expected one draw for each of the heads {list(kernels.shape)}"
        )
    return _values(kernels, biases, features, labels, rows, weights, metric)


def choose(
    kernels: Any,
    biases: Any,
    l2: Any,
    features: Any,
    labels: Any,
    *,
    rows: Any = None,
    weights: Any = None,
    metric: Metric = METRICS["accuracy"],
) -> Chosen:
    """For every draw the λ with the best metric on validation rows, the larger λ among equals.

    Args:
        kernels: `[*draws, k, d, classes]`, as `ridge_path` gives them.
        biases: `[*draws, k, classes]`.
        l2: λ `[k]`.
        features: `[n, d]`, from which the validation rows come.
        labels: `[n]`.
        rows: Validation rows of each draw `[*draws, m]`, none of which the draw was fitted on; None for all rows.
        weights: 1 for a row of a draw and 0 for padding, `[*draws, m]`; None for no padding.
        metric: A metric of one class a row; by default accuracy.

    Raises:
        InputError: as `values` raises, or a number of heads that differs from the number of λ.
    """
    kernels, biases, l2 = jnp.asarray(kernels), jnp.asarray(biases), jnp.asarray(l2)
    if kernels.shape[-3:-2] != l2.shape:
        raise InputError(f"l2 has shape {list(l2.shape)}; expected one for each of the heads {list(kernels.shape)}")
    reached = values(kernels, biases, features, labels, rows=rows, weights=weights, metric=metric)
    largest_first = jnp.argsort(-l2)
    best = largest_first[jnp.argmax(metric.score(reached)[..., largest_first], axis=-1)]

    def of_best(x, trailing):
        place = jnp.expand_dims(best, range(best.ndim, best.ndim + 1 + trailing))
        return jnp.take_along_axis(x, place, axis=best.ndim).squeeze(best.ndim)

    return Chosen(l2[best], of_best(reached, 0), of_best(kernels, 2), of_best(biases, 1))


@partial(jax.jit, static_argnames="metric")
@jax.default_matmul_precision("highest")
def _values(kernels, biases, features, labels, rows, weights, metric):
    def of_heads(x, y, weights, kernels, biases):
        def one(head):
            return metric(x @ head[0] + head[1], y, weights)

        flat = kernels.reshape(-1, *kernels.shape[-2:]), biases.reshape(-1, biases.shape[-1])
        return jax.lax.map(one, flat).reshape(kernels.shape[:-2])

    if rows is None:
        return of_heads(features, labels, jnp.ones(len(features), features.dtype), kernels, biases)
    shape = rows.shape[:-1]
    draws = [x.reshape(-1, *x.shape[len(shape) :]) for x in (rows, weights, kernels, biases)]
    reached = jax.lax.map(lambda d: of_heads(features[d[0]], labels[d[0]], *d[1:]), draws)
    return reached.reshape(kernels.shape[:-2])
