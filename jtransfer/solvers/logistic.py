"""Logistic regression at its optimum, for a whole path of penalties.

Features are centred and rotated once into the eigenbasis of their covariance. There the Hessian is close to diagonal
for every class and every penalty, and its diagonal preconditions L-BFGS, which advances several penalties as one matrix
product. Optima are smooth in log(l2): the path is followed from strong to weak penalties a decade at a time, each
optimum extrapolated to the next, and the gaps are filled by interpolation, after which two or three passes over the
rows suffice. With fewer rows than features the basis is that of the rows, so nothing is ever `[d, d]`.
"""

import itertools
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, check
from jtransfer.solvers import checks, lbfgs
from jtransfer.solvers.draws import drawn

NEIGHBOURS = 4
"""Number of solved penalties that a start is interpolated from; it is extrapolated from two."""
CHUNK = 8192
"""Rows that the host holds in float64 at once."""


def logistic_path(
    features: Any,
    labels: Any,
    l2: Any,
    *,
    classes: int | None = None,
    weights: Any = None,
    tolerance: float | None = None,
    iterations: int = 10_000,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the mean logistic loss plus `l2/2 |W|²` for every `l2`; the intercept bears no penalty.

    With labels `[n]` the loss is the softmax cross-entropy, also of two classes; with targets `[n, c]` of 0 and 1 each
    column is a logistic regression of its own. scikit-learn's C is `1 / (n l2)`, or, as it gives two classes one
    column, `2 / (n l2)` for these. The arithmetic is float64 where features are and JAX has it enabled, else float32.

    Args:
        features: `[n, d]`, in memory or mapped from a file.
        labels: `[n]` integers, or `[n, c]` of 0 and 1.
        l2: Penalties `[k]`, above 0, in any order.
        classes: Number of classes; None for as many as the largest label says.
        weights: `[n]`, not negative: how much each row counts; None for 1 each. Only their ratios count.
        tolerance: A penalty is done when a further step is expected to lower its objective by less than this share;
            None for 1e-8, or 1e-10 in float64.
        iterations: The most evaluations of the loss for each group of penalties. A `RuntimeWarning` names penalties for
            which they are too few.

    Returns:
        Kernels `[k, d, c]` and biases `[k, c]`, on the features as given.

    Raises:
        InputError: features, labels, penalties, weights or a tolerance that cannot be used.
    """
    x, targets, classes = _checked(features, labels, classes)
    l2, place = _penalties(l2)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(x),) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.sum() > 0:
        raise InputError(f"weights have shape {list(weights.shape)}; expected [{len(x)}], none below 0, some above")
    dtype = _dtype(x)
    basis, rows = _prepared(x, targets, weights / weights.sum(), dtype)
    points, done = _solve(rows, *_plan(l2, classes, dtype), _tolerance(tolerance, dtype), classes, iterations)
    _warn(l2, done, iterations)
    return tuple(part[place] for part in _unrotated(points, basis, dtype))


def few_shot_paths(
    features: Any,
    labels: Any,
    l2: Any,
    *,
    rows: Any,
    weights: Any = None,
    classes: int | None = None,
    tolerance: float | None = None,
    iterations: int = 10_000,
) -> tuple[np.ndarray, np.ndarray]:
    """`logistic_path` on many draws of few rows, side by side in one program.

    Args:
        features: `[n, d]`.
        labels: `[n]` integers, or `[n, c]` of 0 and 1.
        l2: Penalties `[k]`.
        rows: Draws `[*draws, m]`, as `draws.draws` gives them.
        weights: 1 for a row of a draw and 0 for padding, `[*draws, m]`; None for no padding.
        classes: Number of classes, as in `logistic_path`.
        tolerance: When a problem is done, as in `logistic_path`.
        iterations: The most evaluations of the loss, as in `logistic_path`.

    Returns:
        Kernels `[*draws, k, d, c]` and biases `[*draws, k, c]`, on the features as given.

    Raises:
        InputError: as `logistic_path` raises, or draws that cannot be used.
    """
    x, targets, classes = _checked(features, labels, classes)
    l2, place = _penalties(l2)
    rows, weights = drawn(rows, weights, len(x))
    shape, dtype = rows.shape[:-1], _dtype(x)
    fits = []
    for own, weight in zip(rows.reshape(-1, rows.shape[-1]), weights.reshape(-1, rows.shape[-1]), strict=True):
        fits.append(_prepared(np.asarray(x[own]), targets[own], weight / weight.sum(dtype=np.float64), dtype))
    bases, own = zip(*fits, strict=True)
    own = jax.tree.map(lambda *parts: np.stack(parts), *own)
    points, done = _solve_each(own, *_plan(l2, classes, dtype), _tolerance(tolerance, dtype), classes, iterations)
    _warn(l2, np.all(done, axis=0), iterations)
    heads = [_unrotated(point, basis, dtype) for point, basis in zip(np.asarray(points), bases, strict=True)]
    kernels, biases = (np.stack(parts)[:, place] for parts in zip(*heads, strict=True))
    return kernels.reshape(*shape, *kernels.shape[1:]), biases.reshape(*shape, *biases.shape[1:])


def objectives(features: Any, labels: Any, l2: Any, kernels: Any, biases: Any) -> np.ndarray:
    """The value `[k]` that `logistic_path` minimises without weights, for each penalty, in float64 NumPy.

    Args:
        features: `[n, d]`.
        labels: `[n]` integers, or `[n, c]` of 0 and 1.
        l2: Penalties `[k]`.
        kernels: `[k, d, c]`.
        biases: `[k, c]`.

    Raises:
        InputError: features, labels or penalties that cannot be used.
    """
    x, y, _ = _checked(features, labels, np.shape(kernels)[-1])
    x, found = np.asarray(x, np.float64), []
    for penalty, kernel, bias in zip(checks.penalties(l2), kernels, biases, strict=True):
        logits = x @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        if y.ndim == 2:
            loss = np.logaddexp(0, (1 - 2 * y) * logits).sum(1)
        else:
            true = np.arange(len(y)), y
            logits -= logits[true][:, None]
            top = logits.max(1)
            others = np.exp(logits - top[:, None])
            others[true] = np.expm1(-top)  # in place of exp(-top), so that a loss close to 0 keeps its digits
            loss = top + np.log1p(others.sum(1))
        found.append(loss.mean() + penalty / 2 * np.sum(np.asarray(kernel, np.float64) ** 2))
    return np.array(found)


class _Basis(NamedTuple):
    """The mean of the features `[d]`, and orthonormal directions `[d, r]` that hold all of their variation."""

    mean: np.ndarray
    directions: np.ndarray


class _Rows(NamedTuple):
    """Rotated features `[..., n, r + 1]` with a constant behind them, labels or targets, and weights `[..., n]`."""

    features: Any
    targets: Any
    weights: Any


def _checked(features, labels, classes):
    x = checks.features(features)
    if np.ndim(labels) == 2:
        targets = checks.targets(labels, len(x))
        if classes not in (None, targets.shape[1]):
            raise InputError(f"classes is {classes}, but labels have {targets.shape[1]} columns")
        return x, targets, targets.shape[1]
    y = checks.labels(labels, len(x), classes)
    return x, y, classes or int(y.max()) + 1


def _penalties(l2):
    """Ascending, each once, and where each of those given stands among them."""
    return np.unique(checks.penalties(l2), return_inverse=True)


def _dtype(x):
    return np.dtype(np.float64 if x.dtype == np.float64 and jax.config.jax_enable_x64 else np.float32)


def _tolerance(tolerance, dtype):
    check(0 if tolerance is None else tolerance, NOT_NEGATIVE, "tolerance")
    return (1e-8 if dtype == np.float32 else 1e-10) if tolerance is None else tolerance


def _warn(l2, done, iterations):
    if not np.all(done):
        left = ", ".join(f"{value:g}" for value in l2[~np.asarray(done)])
        warnings.warn(f"{iterations} passes over the rows are too few for l2 = {left}", RuntimeWarning, stacklevel=3)


def _prepared(x, targets, weights, dtype) -> tuple[_Basis, _Rows]:
    """The basis, and the rows in it as blocks `[blocks, size, ...]`, filled up with rows of no weight."""
    basis, n = _basis(x, weights), len(x)
    count = -(-n // (512 if jax.default_backend() == "cpu" else 16384))  # a block and its logits stay in the cache
    size = -(-n // count)
    features = np.ones((count * size, basis.directions.shape[1] + 1), dtype)
    for start in range(0, n, CHUNK):
        features[start : min(start + CHUNK, n), :-1] = (_chunk(x, start) - basis.mean) @ basis.directions
    features[n:] = 0

    def blocks(a):
        return np.pad(a, [(0, count * size - len(a)), *[(0, 0)] * (a.ndim - 1)]).reshape(count, size, *a.shape[1:])

    return basis, jax.tree.map(blocks, _Rows(features, targets, weights.astype(dtype)))


def _basis(x, weights) -> _Basis:
    """In float64: the covariance of ill-conditioned features does not survive float32."""
    parts = [(start, weights[start : start + CHUNK, None]) for start in range(0, len(x), CHUNK)]
    mean = sum((w * _chunk(x, start)).sum(0) for start, w in parts)
    if len(x) < x.shape[1]:
        span, rows = np.linalg.qr((np.sqrt(weights)[:, None] * (np.asarray(x, np.float64) - mean)).T)
        return _Basis(mean, span @ np.linalg.eigh(rows @ rows.T)[1])
    centred = ((_chunk(x, start) - mean, w) for start, w in parts)
    return _Basis(mean, np.linalg.eigh(sum((w * part).T @ part for part, w in centred))[1])


def _chunk(x, start):
    return np.asarray(x[start : start + CHUNK], np.float64)


def _unrotated(points, basis, dtype):
    """From `[k, c, r + 1]` to kernels and biases on the features as given."""
    points = np.asarray(points, np.float64)
    kernels = (points[..., :-1] @ basis.directions.T).astype(dtype)
    return kernels.swapaxes(1, 2), (points[..., -1] - kernels.astype(np.float64) @ basis.mean).astype(dtype)


def _plan(l2, classes, dtype):
    """What is solved after what: the penalties, groups of them `[groups, group]`, and factors `[groups, group, k]`.

    A group starts at what its factors make of the points that are solved: Lagrange's polynomial in log(l2) through the
    nearest, and zero for the first. Groups are as large as a matrix product wants them, and no larger, as each waits
    for its slowest member.
    """
    x, count = np.log(l2), len(l2)
    columns = 48 if jax.default_backend() == "cpu" else 1024
    size = min(count, 12, max(1, columns // classes))
    decade = max(1, round((count - 1) / max(1, (x[-1] - x[0]) / np.log(10))))
    places = [*range(count - 1, 0, -decade), 0]
    while len(places) < count:
        known = sorted(places, reverse=True)
        places += [(i + j) // 2 for i, j in itertools.pairwise(known) if i - j > 1]
    places += places[-1:] * (-len(places) % size)
    groups = np.reshape(places, (-1, size))
    factors = np.zeros((*groups.shape, count), dtype)
    for turn, group in enumerate(groups[1:], 1):
        solved = np.unique(groups[:turn])
        for slot, place in enumerate(group):
            near = solved[np.argsort(np.abs(x[solved] - x[place]), kind="stable")]
            near = near[: NEIGHBOURS if solved[0] < place < solved[-1] else 2]
            for i in near:
                others = near[near != i]
                factors[turn, slot, i] = np.prod((x[place] - x[others]) / (x[i] - x[others]))
    return l2.astype(dtype), groups, factors


def _softmax(logits, labels):
    """Losses `[1, group, n]` and their gradients `[c, group, n]` in the logits, exact where a loss is close to zero."""
    true = jnp.arange(len(logits))[:, None, None] == labels
    logits = logits - jnp.where(true, logits, 0).sum(0, keepdims=True)
    top = jnp.maximum(logits.max(0, keepdims=True), 0)
    others = jnp.where(true, 0, jnp.exp(logits - top))
    odds = others.sum(0, keepdims=True)
    total = odds + jnp.exp(-top)
    return top + jnp.log1p(odds + jnp.expm1(-top)), jnp.where(true, -odds, others) / total


def _sigmoids(logits, targets):
    """Losses and gradients `[c, group, n]`, each column for itself."""
    sign = 2 * targets.T[:, None] - 1
    return jax.nn.softplus(-sign * logits), -sign * jax.nn.sigmoid(-sign * logits)


@partial(jax.jit, static_argnames=("classes", "iterations"))
def _solve_each(rows, l2, groups, factors, tolerance, classes, iterations):
    def solve(own):
        return _solve(own, l2, groups, factors, tolerance, classes, iterations)

    width = rows.features.shape[-1]
    each = rows.features[0].size + 2 * lbfgs.MEMORY * classes * groups.shape[1] * width
    return jax.lax.map(solve, rows, batch_size=max(1, 2**26 // each))  # of 256 MiB in float32


@partial(jax.jit, static_argnames=("classes", "iterations"))
@jax.default_matmul_precision("highest")
def _solve(rows, l2, groups, factors, tolerance, classes, iterations):
    """Points `[k, c, r + 1]` that minimise the objectives, group after group, and whether they do `[k]`."""

    def step(solved, plan):
        group, factor = plan
        points, done = solved
        start = jnp.einsum("bk,kcr->cbr", factor, points)
        end = _minimise(rows, start, l2[group][:, None], tolerance, iterations)
        return (points.at[group].set(end.point.swapaxes(0, 1)), done.at[group].set(end.done.all((0, 2)))), None

    first = jnp.zeros((len(l2), classes, rows.features.shape[-1]), rows.features.dtype), jnp.zeros(len(l2), bool)
    return jax.lax.scan(step, first, (groups, factors))[0]


def _minimise(rows, start, l2, tolerance, iterations) -> lbfgs.State:
    """From `[c, group, r + 1]`; a problem is a penalty or, of several labels, a penalty and a column."""
    several = rows.targets.ndim == 3
    link, axes = (_sigmoids, (-1,)) if several else (_softmax, (0, -1))
    penalty = l2 * jnp.ones(start.shape[-1], start.dtype).at[-1].set(0)

    def over_blocks(find, zero):
        def add(sums, block):
            return jax.tree.map(jnp.add, sums, find(block)), None

        return jax.lax.scan(add, zero, rows)[0]

    def linked(point, block):
        return link(jnp.einsum("cbr,nr->cbn", point, block.features), block.targets)

    def evaluate(point):
        def find(block):
            losses, residuals = linked(point, block)
            return jnp.sum(losses * block.weights, -1, keepdims=True), residuals * block.weights @ block.features

        norms = jnp.sum(penalty * point**2, axes, keepdims=True)
        value, gradient = over_blocks(find, (jnp.zeros_like(norms), jnp.zeros_like(point)))
        return value + norms / 2, gradient + penalty * point

    def measure(point):
        def find(block):
            p = jnp.abs(linked(point, block)[1])  # p (1 - p) is the same of the true class and of the others
            return p * (1 - p) * block.weights @ block.features**2

        return over_blocks(find, jnp.zeros_like(point)) + penalty + jnp.finfo(start.dtype).tiny

    def project(direction):  # equal logits for all classes change nothing
        return direction if several else direction - direction.mean(0)

    return lbfgs.minimise(evaluate, measure, start, axes, tolerance=tolerance, iterations=iterations, project=project)
