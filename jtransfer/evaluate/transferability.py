"""Will it transfer? Scores of a source model on labelled target data, before any training; larger is better.

LEEP and NCE read what the source head predicts. H-score and LogME read features, and need no more of them than one
decomposition: the singular values, and for each class the sum of its rows of left singular vectors. Give them the
target's training split, never its test data. Classes that no row has do not count.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.evaluate.clustering import contingency
from jtransfer.solvers import checks

SHRINKAGES = (None, "ledoit_wolf")

ROUNDING = 32
"""Singular values below so many roundings of the largest are none. Where the true ones are zero, 10 were seen at most,
for up to 200,000 rows and 512 features, and features 100 times as large as their spread."""


def leep(source_probabilities, labels) -> float:
    """Log expected empirical prediction, in nats (Nguyen et al. 2020, arXiv:2002.12462): mean of log Σ_z P(y|z) θ(x)_z.

    P(y|z) comes from the empirical joint of labels and predictions. A source class without any mass is left out.

    Args:
        source_probabilities: θ, what the source head predicts on the target's rows, `[n, z]`; rows sum to 1.
        labels: The target's classes, `[n]`.

    Raises:
        InputError: probabilities that are none, or labels that cannot be used.
    """
    theta = checks.features(source_probabilities, "source probabilities")
    sums = np.asarray(theta, np.float32).sum(axis=1)
    wrong = (np.abs(sums - 1) > 1e-2) | (np.asarray(theta).min(axis=1) < 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"source probabilities: row {row} sums to {sums[row]:.4g}, its least is {float(theta[row].min()):.4g};"
            " expected probabilities, as softmax gives"
        )
    y, classes = _present(labels, len(theta))
    return float(_leep(checks.floats(theta), y, classes))


def nce(source_labels, labels) -> float:
    """Negative conditional entropy -H(Y|Z), in nats (Tran et al. 2019, arXiv:1908.08142).

    Args:
        source_labels: Z, the class that the source head prefers on each of the target's rows, `[n]`; it may always be
            the same one, and the score is then -H(Y).
        labels: Y, the target's classes, `[n]`.

    Raises:
        InputError: labels that cannot be used.
    """
    y = checks.labels(labels, np.size(labels))
    joint = contingency(source_labels, y) / len(y)
    mass = np.broadcast_to(joint.sum(axis=1, keepdims=True), joint.shape)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(joint[seen] / mass[seen])))


def h_score(features, labels, shrinkage: str | None = None) -> float:
    """H-score tr(cov(f)⁺ cov(E[f|y])), 0..classes-1 (Bao et al. 2019, doi:10.1109/ICIP.2019.8803726).

    Directions in which the features vary no more than rounding (see `ROUNDING`) are left out. With n < d the plain
    score says little, as it is near its bound for any features: shrink.

    Args:
        features: `[n, d]`.
        labels: `[n]`.
        shrinkage: "ledoit_wolf" shrinks cov(f) by Ledoit & Wolf's α, and the numerator by 1 - α (Ibrahim et al. 2021,
            arXiv:2110.06893). Both covariances divide by n; where the second divides by n - 1 instead, as in TLLib,
            the score is n/(n - 1) of ours.

    Raises:
        InputError: features or labels that cannot be used, or an unknown shrinkage.
    """
    if shrinkage not in SHRINKAGES:
        raise InputError(f"shrinkage {shrinkage!r} is unknown; {nearest(str(shrinkage), map(str, SHRINKAGES))}")
    x = checks.features(features)
    return float(_h_score(checks.floats(x), *_present(labels, len(x)), shrinkage is not None))


def logme(features, labels) -> float:
    """Log of the maximum evidence, in nats a row (You et al. 2021, arXiv:2102.11005), averaged over classes.

    Each class's indicator y is modelled as F w + noise, with w ~ N(0, 1/α) and noise ~ N(0, 1/β); α and β are the best
    ones: their fixed point, from the best of a grid of starts. Features are taken as they are, neither centred nor
    normalised, and only their common scale does not matter. Where they explain a class up to rounding, noise is held
    at the precision of the floats: the true evidence has no bound there.

    With n < d the published code of arXiv:2110.10545 omits (d - n)/2 log α of the determinant; this does not.

    Args:
        features: `[n, d]`.
        labels: `[n]`.

    Raises:
        InputError: features or labels that cannot be used.
    """
    x = checks.features(features)
    return float(_logme(checks.floats(x), *_present(labels, len(x))))


def _present(labels, rows: int) -> tuple[np.ndarray, int]:
    """Labels renumbered so that there are none without a row, and their number."""
    found, y = np.unique(checks.labels(labels, rows), return_inverse=True)
    checks.fits(len(found) * rows, f"targets of {rows} rows and {len(found)} classes", "use fewer rows")
    return y.astype(np.int32), len(found)


@partial(jax.jit, static_argnames="classes")
@jax.default_matmul_precision("highest")
def _leep(theta, y, classes):
    joint = jax.nn.one_hot(y, classes, dtype=theta.dtype).T @ theta  # [classes, z]
    mass = joint.sum(axis=0)
    conditional = joint / jnp.where(mass > 0, mass, 1)
    return jnp.mean(jnp.log(jnp.sum(conditional[y] * theta, axis=1)))


class _Spectrum(NamedTuple):
    """Of x = U S V': S `[k]`, the sums over each class's rows of U `[classes, k]`, and rows a class `[classes]`."""

    values: jax.Array
    sums: jax.Array
    counts: jax.Array


@jax.default_matmul_precision("highest")
def _spectrum(x, y, classes) -> _Spectrum:
    """Directions below the rank are zeros. U is orthonormal to rounding, so that no inverse is ever taken."""
    q, r = jnp.linalg.qr(x)  # first, so that the SVD is of a small matrix
    u, values, _ = jnp.linalg.svd(r, full_matrices=False)
    member = jax.nn.one_hot(y, classes, dtype=x.dtype)
    kept = values > ROUNDING * jnp.finfo(x.dtype).eps * values[0]
    return _Spectrum(jnp.where(kept, values, 0), jnp.where(kept, member.T @ q @ u, 0), member.sum(axis=0))


@partial(jax.jit, static_argnames=("classes", "shrink"))
def _h_score(x, y, classes, shrink):
    n, d = x.shape
    x = x - x.mean(axis=0)
    x = x - x.mean(axis=0)  # again: what rounding left of a large mean would count as a direction
    x = x / jnp.abs(x).max()  # the score has no scale, but fourth powers have
    values, sums, counts = _spectrum(x, y, classes)
    # cov(f) = V S² V'/n, and the class means are P x with P the projector on the classes: so the score is the trace
    # of U'PU, whose diagonal says which share of each direction the classes explain.
    explained = jnp.sum(sums**2 / counts[:, None], axis=0)
    if not shrink:
        return explained.sum()
    variances = values**2 / n
    mean, square = variances.sum() / d, jnp.sum(variances**2)
    spread = square - d * mean**2  # how far cov(f) is from a multiple of the identity
    noise = (jnp.mean(jnp.sum(x**2, axis=1) ** 2) - square) / n
    alpha = jnp.where(spread > 8 * jnp.finfo(x.dtype).eps * square, jnp.clip(noise / spread, 0, 1), 0)
    shrunk = (1 - alpha) * variances + alpha * mean
    return jnp.sum((1 - alpha) * variances * explained / jnp.where(shrunk > 0, shrunk, 1))


@partial(jax.jit, static_argnames="classes")
def _logme(x, y, classes):
    n, eps = len(x), jnp.finfo(x.dtype).eps
    values, sums, counts = _spectrum(x / jnp.abs(x).max(), y, classes)
    sigma, z = (values / values[0]) ** 2, sums**2  # of F F', [k], and of each class along its axes, [classes, k]
    outside = jnp.maximum(counts - z.sum(axis=1), eps * counts)  # of |y|², what no direction explains

    def fit(t):
        """At α/β = t, `[classes]`: what of each direction is not explained, and |w|² and residual of the posterior."""
        shrink = t[:, None] / (sigma + t[:, None])
        weight = jnp.sum(sigma * z / (sigma + t[:, None]) ** 2, axis=1)
        return shrink, weight, outside + jnp.sum(z * shrink**2, axis=1)

    def evidence(t):
        _, weight, residual = fit(t)
        beta = n / (residual + t * weight)  # the best for this t
        return (jnp.log(beta / (2 * jnp.pi)) - 1 - jnp.sum(jnp.log1p(sigma / t[:, None]), axis=1) / n) / 2

    def step(state):
        t, _, i = state
        shrink, weight, residual = fit(t)
        effective = jnp.sum(sigma / (sigma + t[:, None]), axis=1)  # γ
        free = n - len(sigma) + jnp.sum(shrink, axis=1)  # n - γ
        new = effective / jnp.maximum(weight, jnp.finfo(x.dtype).tiny) * residual / free
        new = jnp.clip(new, eps**2, 1 / eps**2)
        return new, jnp.abs(jnp.log(new / t)).max(), i + 1

    # The evidence may have a second maximum at t = ∞, features that are not used: start where it is highest.
    grid = jnp.logspace(2 * jnp.log10(eps), -jnp.log10(eps), 61, dtype=x.dtype)
    start = grid[jnp.argmax(jax.lax.map(lambda t: evidence(jnp.full(classes, t)), grid), axis=0)]
    state = start, jnp.array(jnp.inf, x.dtype), 0
    t, *_ = jax.lax.while_loop(lambda state: (state[1] > eps**0.5) & (state[2] < 1000), step, state)
    return jnp.mean(jnp.maximum(evidence(t), evidence(start)))
