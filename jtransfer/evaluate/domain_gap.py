"""How far apart are source and target? Three readings of one gap, from features of both `[n, d]` and `[m, d]`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.evaluate.similarity import u_centre
from jtransfer.solvers import checks
from jtransfer.solvers.logistic import logistic_path

L2 = tuple(10.0**power for power in range(-4, 2))
"""Penalties of the domain classifier, on the mean loss of standardised features."""


class MMD(NamedTuple):
    """Maximum mean discrepancy of two samples.

    Attributes:
        squared: Unbiased estimate of MMD², about 0 (and as often below) where the two come from one distribution.
        p_value: Chance of as much or more when rows are dealt to the two samples at random.
        bandwidth: σ of the kernel exp(-|x - y|² / 2σ²).
    """

    squared: float
    p_value: float
    bandwidth: float


def mmd(x, y, permutations: int = 1000, bandwidth: float | None = None, most: int = 2000, seed: int = 0) -> MMD:
    """Maximum mean discrepancy with a Gaussian kernel, and its permutation test (Gretton et al. 2012, JMLR 13).

    All permutations share one Gram matrix and are one matrix product; p = (1 + those that reach the observed value) /
    (1 + permutations), so it is never below 1 / (1 + permutations).

    Args:
        x: Features of the source `[n, d]`.
        y: Features of the target `[m, d]`.
        permutations: Random splits to compare with.
        bandwidth: σ; None for the median distance between two different rows of both. Give the same to compare gaps.
        most: Rows used of each, drawn at random where there are more: memory is 4 (2 most)² bytes a matrix.
        seed: The seed of the draws.

    Raises:
        InputError: features that cannot be used, of different width, or a number out of range.
    """
    x, y = _pair(x, y)
    if permutations < 1 or most < 2 or (bandwidth is not None and not 0 < bandwidth < np.inf):
        raise InputError(
            f"mmd: permutations={permutations}, most={most}, bandwidth={bandwidth};"
            " expected at least 1, at least 2, and a positive number"
        )
    rng = np.random.default_rng(seed)
    x, y = _draw(rng, x, most), _draw(rng, y, most)
    n, m = len(x), len(y)
    distances = _distances(np.concatenate([x, y]))
    if bandwidth is None:
        off_diagonal = np.asarray(distances)[~np.eye(n + m, dtype=bool)]  # on the host: XLA sorts slowly on CPUs
        bandwidth = float(np.sqrt(np.median(off_diagonal) or off_diagonal.mean()))
    members = np.arange(n + m) < n
    shuffled = rng.permuted(np.broadcast_to(members, (permutations, n + m)), axis=1)
    forms = np.asarray(_quadratic_forms(distances, bandwidth, np.vstack([members, shuffled])), np.float64)
    reached = forms[1:] >= forms[0] - 1e-5 * abs(forms[0])  # the same split again, up to rounding
    return MMD(
        squared=float(forms[0]) * (1 / (n * (n - 1)) + 1 / (m * (m - 1)) + 2 / (n * m)),
        p_value=float((1 + reached.sum()) / (1 + permutations)),
        bandwidth=bandwidth,
    )


def frechet(x, y) -> float:
    """Squared Fréchet distance of the Gaussians with the two means and covariances, as FID reports it (Heusel et al.
    2017, arXiv:1706.08500): |μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^½), covariances over n - 1.

    The last trace is the sum of the singular values of A B', for any A and B with Σ_x = A'A and Σ_y = B'B. So no root
    of a matrix is taken, and fewer rows than features do no harm to the numbers; but they bias the distance upwards
    (compare at equal n). What is below about 1e-6 of the total variance is rounding in float32.

    Args:
        x: Features of the source `[n, d]`.
        y: Features of the target `[m, d]`.

    Raises:
        InputError: features that cannot be used, or of different width.
    """
    return float(_frechet(*map(checks.floats, _pair(x, y))))


class DomainClassifier(NamedTuple):
    """How well a linear classifier tells source from target.

    Attributes:
        error: Share of held-out rows taken for the other domain, 0..1; 0.5 is chance.
        a_distance: Proxy A-distance 2 (1 - 2 error): 2 where they are apart, about 0 where they cannot be told.
    """

    error: float
    a_distance: float


def domain_classifier(x, y, folds: int = 5, most: int = 2000, seed: int = 0) -> DomainClassifier:
    """Cross-validated error of logistic regression from source to target (Ben-David et al. 2010, Machine Learning 79).

    As many rows of each are used, so chance is one half. For each fold that is tested, the next one chooses the penalty
    among `L2` by its error (the largest among equals), and the others train: nothing is chosen on what is reported.

    Args:
        x: Features of the source `[n, d]`.
        y: Features of the target `[m, d]`.
        folds: At least 3.
        most: Rows used of each, drawn at random where there are more.
        seed: The seed of the draws and folds.

    Raises:
        InputError: features that cannot be used, of different width, or fewer rows than folds.
    """
    x, y = _pair(x, y)
    size = min(len(x), len(y), most) // folds * folds if folds >= 3 else 0
    if not size:
        raise InputError(
            f"domain classifier: folds={folds} with {len(x)} and {len(y)} rows, at most {most} of each;"
            " expected at least 3 folds and a row of each domain in every fold"
        )
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(_draw(rng, z, size)) for z in (x, y)])  # [2, size, d]
    rows = rows.reshape(2, folds, -1, x.shape[1]).swapaxes(0, 1).reshape(folds, -1, x.shape[1])
    labels = np.repeat(np.arange(2), size // folds)  # of every fold
    errors = []
    for fold in range(folds):
        test, validation, *training = np.roll(rows, -fold, axis=0)
        training = np.concatenate(training)
        mean, std = training.mean(axis=0), training.std(axis=0)
        test, validation, training = ((z - mean) / np.where(std > 0, std, 1) for z in (test, validation, training))
        kernels, biases = logistic_path(training, np.tile(labels, folds - 2), L2)
        wrong = [(z @ kernels + biases[:, None]).argmax(axis=2) != labels for z in (validation, test)]
        best = len(L2) - 1 - wrong[0].mean(axis=1)[::-1].argmin()
        errors.append(wrong[1][best].mean())
    error = float(np.mean(errors))
    return DomainClassifier(error, 2 * (1 - 2 * error))


def _pair(x, y):
    x, y = checks.features(x, "source features"), checks.features(y, "target features")
    checks.same_width(x, y, ("source features", "target features"))
    for z, what in ((x, "source"), (y, "target")):
        if len(z) < 2:
            raise InputError(f"{what} features have {len(z)} row; expected at least 2")
    return x, y


def _draw(rng, x, most) -> np.ndarray:
    """At most so many rows, on the host, in the order in which they stand."""
    rows = np.sort(rng.choice(len(x), most, replace=False)) if len(x) > most else slice(None)
    return np.asarray(checks.floats(x[rows]))


@jax.jit
@jax.default_matmul_precision("highest")
def _distances(x):
    """Squared distances `[n, n]`."""
    x = x - x.mean(axis=0)  # they are differences of squares: keep these small
    squares = jnp.sum(x**2, axis=1)
    return jnp.maximum(squares[:, None] + squares - 2 * x @ x.T, 0) * (1 - jnp.eye(len(x), dtype=x.dtype))


@jax.jit
@jax.default_matmul_precision("highest")
def _quadratic_forms(distances, bandwidth, members):
    """s'Ks for each row s of `members`. MMD² is a multiple of it: once K is centred so that the rows of its
    off-diagonal sum to zero, which MMD² does not see, s'Ks is the sum within one sample, within the other, and minus
    that between them.
    """
    kernel = u_centre(jnp.exp(-distances / (2 * bandwidth**2)))
    members = members.astype(kernel.dtype)
    return jnp.sum(members @ kernel * members, axis=1)


@jax.jit
@jax.default_matmul_precision("highest")
def _frechet(x, y):
    means = [z.mean(axis=0) for z in (x, y)]
    a, b = ((z - mean) / np.sqrt(len(z) - 1) for z, mean in zip((x, y), means, strict=True))
    small = [jnp.linalg.qr(z, mode="r") for z in (a, b)]  # at most [d, d], with the same covariance
    roots = jnp.linalg.svd(small[0] @ small[1].T, compute_uv=False)
    distance = jnp.sum((means[0] - means[1]) ** 2) + jnp.sum(a**2) + jnp.sum(b**2) - 2 * roots.sum()
    return jnp.maximum(distance, 0)
