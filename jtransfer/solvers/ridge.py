"""Few-shot ridge by big_vision's protocol (`evaluators/fewshot_lsr.py`): one closed form for every λ and every draw.

Features are whitened by the mean and the standard deviation of the rows that are fitted, a large constant feature takes
the place of an intercept, and targets are 1 for the class and -1 for the others. One eigendecomposition then serves
every λ, and one compiled program every draw of rows. The results are linear heads on the features as given: logits are
`features @ kernel + bias`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.kinds import NOT_NEGATIVE, check
from jtransfer.solvers import checks
from jtransfer.solvers.draws import drawn, each_draw, labelled

BIAS = 100.0
"""The constant feature of big_vision's protocol."""


def ridge_path(
    features: Any,
    labels: Any,
    l2: Any,
    *,
    classes: int | None = None,
    rows: Any = None,
    weights: Any = None,
    bias: float = BIAS,
) -> tuple[jax.Array, jax.Array]:
    """Ridge regression on targets 1 and -1, `min_W |X W - Y|² + λ |W|²` with X whitened, for every draw and λ.

    Args:
        features: `[n, d]`.
        labels: `[n]`.
        l2: λ `[k]`, on the sum over rows; the protocol's is 1024.
        classes: Number of classes; None for as many as the largest label says.
        rows: Draws of rows `[*draws, m]`, as `draws.draws` gives them, fitted one by one; None to fit all rows once.
        weights: 1 for a row of a draw and 0 for padding, `[*draws, m]`; None for no padding.
        bias: The constant feature. Its weight is penalised too, but hardly: the larger the feature, the freer the
            intercept.

    Returns:
        Kernels `[*draws, k, d, classes]` and biases `[*draws, k, classes]` on the features as given.

    Raises:
        InputError: features, labels, draws, λ or a bias that cannot be used, or arrays too large to hold.
    """
    features, labels, classes = labelled(features, labels, classes)
    l2 = checks.penalties(np.atleast_1d(np.asarray(l2)))
    check(bias, NOT_NEGATIVE, "bias")
    rows, weights = drawn(rows, weights, len(features))
    fitted = len(features) if rows is None else rows.shape[-1]
    checks.fits(fitted * classes, f"targets of {fitted} rows and {classes} classes", "use prototypes or fewer rows")
    checks.fits(len(l2) * features.shape[1] * classes, f"heads of {classes} classes", "give fewer l2")
    return _ridge_paths(features, labels, rows, weights, l2.astype(features.dtype), bias, classes)


@partial(jax.jit, static_argnames="classes")
@jax.default_matmul_precision("highest")
def _ridge_paths(features, labels, rows, weights, l2, bias, classes):
    def solve(rows, weights):
        return _ridge_path(features[rows], labels[rows], weights.astype(features.dtype), l2, bias, classes)

    if rows is None:
        return _ridge_path(features, labels, jnp.ones(len(features), features.dtype), l2, bias, classes)
    return each_draw(solve, rows, weights, features.shape[1])


def _ridge_path(x, labels, weights, l2, bias, classes):
    total = weights.sum()
    mean = weights @ x / total
    mean = mean + weights @ (x - mean) / total  # once more: no rounding is left that tiny deviations would magnify
    x = weights[:, None] * (x - mean)
    std = jnp.sqrt(jnp.sum(x**2, axis=0) / total)
    scale = jnp.where(std > 0, 1 / (std + 1e-5), 0)
    x = x * scale
    y = 2 * jax.nn.one_hot(labels, classes, dtype=x.dtype) - 1
    sums = weights @ y
    # Whitened features have mean zero, so the constant one is orthogonal to them and is solved for on its own. That
    # keeps its eigenvalue, 1e4 n, away from theirs, which float32 could not hold beside it.
    intercepts = bias**2 * sums / (bias**2 * total + l2[:, None])
    y = weights[:, None] * (y - sums / total)
    # With A = Q diag(e) Qᵀ, (A + λ)⁻¹ is Q diag(1 / (e + λ)) Qᵀ for every λ. A is XᵀX or XXᵀ, whichever is smaller:
    # (XᵀX + λ)⁻¹ Xᵀ = Xᵀ (XXᵀ + λ)⁻¹.
    if x.shape[0] >= x.shape[1]:
        e, q = jnp.linalg.eigh(x.T @ x)
        left, right = q, q.T @ (x.T @ y)
    else:
        e, q = jnp.linalg.eigh(x @ x.T)
        left, right = x.T @ q, q.T @ y
    scaled = right / (jnp.maximum(e, 0)[:, None] + l2[:, None, None])
    kernels = jnp.einsum("de,kec->kdc", left, scaled) * scale[:, None]
    return kernels, intercepts - mean @ kernels
