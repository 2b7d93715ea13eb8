"""Logistic regression at its optimum, for a whole path of penalties.

Features are centred and rotated once into the eigenbasis of their covariance. There the Hessian is close to diagonal,
for every class and every penalty, and its measured diagonal preconditions L-BFGS (Liu & Nocedal 1989,
doi:10.1007/BF01589116), which advances several penalties as one matrix product. Optima are smooth in log(l2): the path
is followed from strong to weak penalties a decade at a time, each optimum extrapolated to the next, and the gaps are
filled by interpolation, after which two or three passes over the rows are left to do. With fewer rows than features the
basis is that of the rows, so nothing is ever `[d, d]`.
"""

import itertools
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.evaluate import checks
from jtransfer.evaluate.draws import drawn

MEMORY = 10
"""Pairs of L-BFGS."""
MEASURE = 10
"""Passes over the rows until the diagonal is measured again."""
NEIGHBOURS = 4
"""Solved penalties that a start is interpolated from; two where it is extrapolated."""
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
        classes: How many there are; None for as many as the largest label says.
        weights: `[n]`, not negative: how much each row counts; None for all alike.
        tolerance: A penalty is done when a further step is expected to lower its objective by less than this share;
            None for 1e-8, or 1e-10 in float64.
        iterations: Passes over the rows, at most, for each group of penalties.

    Returns:
        Kernels `[k, d, c]` and biases `[k, c]`, on the features as given.

    Raises:
        InputError: features, labels, penalties or weights that cannot be used.
    """
    x, targets, classes = _checked(features, labels, classes)
    l2, place = _penalties(l2)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(x),) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.sum() > 0:
        raise InputError(f"weights have shape {list(weights.shape)}; expected [{len(x)}], none below 0, some above")
    weights /= weights.sum()
    basis, dtype = _basis(x, weights), _dtype(x)
    rows = _blocks(_Rows(_rotated(x, basis, dtype), targets, weights.astype(dtype)))
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
    """`logistic_path` of many draws of few rows, side by side in one program.

    Args:
        features: `[n, d]`.
        labels: `[n]` integers, or `[n, c]` of 0 and 1.
        l2: Penalties `[k]`.
        rows: Draws `[*draws, m]`, as `draws.draws` gives them.
        weights: 1 for a row of a draw and 0 for padding, `[*draws, m]`; None for no padding.
        classes: As for `logistic_path`, as are `tolerance` and `iterations`.
        tolerance: See `classes`.
        iterations: See `classes`.

    Returns:
        Kernels `[*draws, k, d, c]` and biases `[*draws, k, c]`.

    Raises:
        InputError: as `logistic_path`, or draws that cannot be used.
    """
    x, targets, classes = _checked(features, labels, classes)
    l2, place = _penalties(l2)
    rows, weights = drawn(rows, weights, len(x))
    shape, dtype = rows.shape[:-1], _dtype(x)
    rows, weights = (a.reshape(-1, a.shape[-1]) for a in (rows, weights.astype(np.float64)))
    weights /= weights.sum(1, keepdims=True)
    own = [np.asarray(x[drawn_rows]) for drawn_rows in rows]
    bases = [_basis(part, weight) for part, weight in zip(own, weights, strict=True)]
    rotated = np.stack([_rotated(part, basis, dtype) for part, basis in zip(own, bases, strict=True)])
    fits = _Rows(rotated[:, None], targets[rows][:, None], weights[:, None].astype(dtype))
    points, done = _solve_each(fits, *_plan(l2, classes, dtype), _tolerance(tolerance, dtype), classes, iterations)
    _warn(l2, done.all(0), iterations)
    solved = [_unrotated(point, basis, dtype) for point, basis in zip(points, bases, strict=True)]
    stacked = [np.stack(parts)[:, place] for parts in zip(*solved, strict=True)]
    return tuple(parts.reshape(*shape, *parts.shape[1:]) for parts in stacked)


def objectives(features: Any, labels: Any, l2: Any, kernels: Any, biases: Any) -> np.ndarray:
    """The value `[k]` that `logistic_path` minimises, for each penalty, in float64 NumPy."""
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    found = []
    for penalty, kernel, bias in zip(np.asarray(l2, np.float64), kernels, biases, strict=True):
        logits = x @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        if y.ndim == 2:
            loss = np.logaddexp(0, (1 - 2 * y) * logits).sum(1)
        else:
            logits -= logits[np.arange(len(y)), y][:, None]  # so that a loss close to 0 keeps its digits
            top = logits.max(1)
            odds = np.exp(logits - top[:, None]).sum(1) - np.exp(-top)
            loss = top + np.log1p(odds + np.expm1(-top))
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


class _State(NamedTuple):
    """L-BFGS of a group of penalties: arrays `[c, group, r + 1]`, and numbers `[1 or c, group, 1]` of each problem."""

    point: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    length: jax.Array
    steps: jax.Array
    changes: jax.Array
    inverse: jax.Array  # of the product of step and change, 0 where there is no pair yet
    diagonal: jax.Array
    done: jax.Array
    passes: jax.Array


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
    l2 = np.asarray(l2, np.float64)
    if l2.ndim != 1 or not len(l2) or not (np.isfinite(l2) & (l2 > 0)).all():
        raise InputError(f"l2 is {l2.tolist()}; expected a list of positive numbers")
    return np.unique(l2, return_inverse=True)


def _dtype(x):
    return np.dtype(np.float64 if x.dtype == np.float64 and jax.config.jax_enable_x64 else np.float32)


def _tolerance(tolerance, dtype):
    return (1e-8 if dtype == np.float32 else 1e-10) if tolerance is None else tolerance


def _warn(l2, done, iterations):
    if not np.all(done):
        left = ", ".join(f"{value:g}" for value in l2[~np.asarray(done)])
        warnings.warn(f"{iterations} passes over the rows are too few for l2 = {left}", RuntimeWarning, stacklevel=3)


def _basis(x, weights) -> _Basis:
    """In float64 and in chunks: the covariance of ill-conditioned features does not survive float32."""
    starts = range(0, len(x), CHUNK)

    def chunk(start):
        return np.asarray(x[start : start + CHUNK], np.float64), weights[start : start + CHUNK, None]

    mean = sum((w * part).sum(0) for part, w in map(chunk, starts))
    few = len(x) < x.shape[1]
    if few:
        span, rows = np.linalg.qr((np.sqrt(weights)[:, None] * (np.asarray(x, np.float64) - mean)).T)
        covariance = rows @ rows.T
    else:
        covariance = sum((w * (part - mean)).T @ (part - mean) for part, w in map(chunk, starts))
    directions = np.linalg.eigh(covariance)[1]
    return _Basis(mean, span @ directions if few else directions)


def _rotated(x, basis, dtype):
    out = np.ones((len(x), basis.directions.shape[1] + 1), dtype)
    for start in range(0, len(x), CHUNK):
        part = np.asarray(x[start : start + CHUNK], np.float64) - basis.mean
        out[start : start + CHUNK, :-1] = part @ basis.directions
    return out


def _unrotated(points, basis, dtype):
    """From `[k, c, r + 1]` to kernels and biases on the features as given."""
    points = np.asarray(points, np.float64)
    kernels = (points[..., :-1] @ basis.directions.T).astype(dtype)
    return kernels.swapaxes(1, 2), (points[..., -1] - kernels.astype(np.float64) @ basis.mean).astype(dtype)


def _blocks(rows):
    """`[n, ...]` as `[blocks, size, ...]`, filled up with rows of no weight."""
    n = len(rows.weights)
    count = -(-n // (512 if jax.default_backend() == "cpu" else 16384))  # what a core's cache holds
    size = -(-n // count)
    missing = count * size - n
    return jax.tree.map(
        lambda a: np.pad(a, [(0, missing), *[(0, 0)] * (a.ndim - 1)]).reshape(count, size, *a.shape[1:]), rows
    )


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
    for number, group in enumerate(groups[1:], 1):
        solved = np.unique(groups[:number])
        for slot, place in enumerate(group):
            near = solved[np.argsort(np.abs(x[solved] - x[place]), kind="stable")]
            near = near[: NEIGHBOURS if solved[0] < place < solved[-1] else 2]
            for i in near:
                others = near[near != i]
                factors[number, slot, i] = np.prod((x[place] - x[others]) / (x[i] - x[others]))
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
    return jax.vmap(lambda own: _solve(own, l2, groups, factors, tolerance, classes, iterations))(rows)


@partial(jax.jit, static_argnames=("classes", "iterations"))
@jax.default_matmul_precision("highest")
def _solve(rows, l2, groups, factors, tolerance, classes, iterations):
    """Points `[k, c, r + 1]` that minimise the objectives, group after group, and whether they do `[k]`."""

    def step(solved, plan):
        group, factor = plan
        points, done = solved
        start = jnp.einsum("bk,kcr->cbr", factor, points)
        end = _minimise(rows, start, l2[group][:, None], tolerance, iterations)
        return (points.at[group].set(end.point.swapaxes(0, 1)), done.at[group].set(end.done.all((0, 2)))), end.passes

    first = jnp.zeros((len(l2), classes, rows.features.shape[-1]), rows.features.dtype), jnp.zeros(len(l2), bool)
    return jax.lax.scan(step, first, (groups, factors))[0]


def _minimise(rows, start, l2, tolerance, iterations):
    """L-BFGS, in which every penalty, and of several labels every column, is a problem with a step of its own."""
    several = rows.targets.ndim == 3
    link, axes = (_sigmoids, (-1,)) if several else (_softmax, (0, -1))
    penalty = l2 * jnp.ones(start.shape[-1], start.dtype).at[-1].set(0)

    def dot(u, v):
        return jnp.sum(u * v, axis=axes, keepdims=True)

    def over_blocks(measure, zero):
        def add(sums, block):
            return jax.tree.map(jnp.add, sums, measure(block)), None

        return jax.lax.scan(add, zero, rows)[0]

    def evaluate(point):
        def measure(block):
            losses, residuals = link(jnp.einsum("cbr,nr->cbn", point, block.features), block.targets)
            return jnp.sum(losses * block.weights, -1, keepdims=True), residuals * block.weights @ block.features

        value, gradient = over_blocks(measure, (jnp.zeros_like(dot(point, point)), jnp.zeros_like(point)))
        return value + dot(penalty * point, point) / 2, gradient + penalty * point

    def curvature(point):
        def measure(block):
            _, residuals = link(jnp.einsum("cbr,nr->cbn", point, block.features), block.targets)
            p = jnp.abs(residuals)  # p (1 - p) is the same of the probability of the true class and of the others
            return p * (1 - p) * block.weights @ block.features**2

        return over_blocks(measure, jnp.zeros_like(point)) + penalty + jnp.finfo(start.dtype).tiny

    def precondition(gradient, diagonal):
        direction = gradient / diagonal
        return direction if several else direction - direction.mean(0)  # equal logits for all classes change nothing

    def direction(gradient, steps, changes, inverse, diagonal):
        def back(q, pair):
            step, change, one = pair
            share = one * dot(step, q)
            return q - share * change, share

        def forth(q, pair):
            step, change, one, share = pair
            return q + (share - one * dot(change, q)) * step, None

        q, shares = jax.lax.scan(back, gradient, (steps, changes, inverse), reverse=True)
        scale = inverse[-1] * dot(changes[-1], precondition(changes[-1], diagonal))
        q = precondition(q, diagonal) / jnp.where(scale > 0, scale, 1)
        return -jax.lax.scan(forth, q, (steps, changes, inverse, shares))[0]

    def advance(s):
        step = s.length * s.direction
        value, gradient = evaluate(s.point + step)
        before, after = dot(s.gradient, s.direction), dot(gradient, s.direction)
        # The objective is convex: beyond its minimum along the line the slope is positive, and half the first too far.
        # Slopes keep digits where differences of values have lost theirs, so values have only a say when they rise.
        ok = ~s.done & (after <= -before / 2) & (value <= s.value * (1 + 20 * jnp.finfo(value.dtype).eps))
        change = gradient - s.gradient
        product = dot(step, change)
        pair = ok & (product > 0)

        def keep(new, old):
            return jnp.where(ok, new, old)

        def push(history, new):
            return jnp.where(pair, jnp.concatenate([history[1:], new[None]]), history)

        history = push(s.steps, step), push(s.changes, change), push(s.inverse, 1 / jnp.where(pair, product, 1))
        gradient, value = keep(gradient, s.gradient), keep(value, s.value)
        towards = direction(gradient, *history, s.diagonal)
        shorter = s.length * jnp.clip(before / (before - after), 0.1, 0.7)
        gain = -dot(towards, gradient) / 2
        return _State(
            *(keep(s.point + step, s.point), value, gradient, keep(towards, s.direction), jnp.where(ok, 1, shorter)),
            *(*history, s.diagonal, s.done | (ok & (gain <= tolerance * value)), s.passes + 1),
        )

    def unfinished(s):
        return ~s.done.all() & (s.passes < iterations)

    def measured(s):
        s = s._replace(diagonal=curvature(s.point))
        last = s.passes + MEASURE
        return jax.lax.while_loop(lambda s: unfinished(s) & (s.passes < last), advance, s)

    zero = jnp.zeros_like(start)
    number = dot(zero, zero)
    history = jnp.zeros((MEMORY, *start.shape), start.dtype)
    # The first step goes nowhere, and its value, gradient and direction are taken.
    state = _State(
        *(start, number + jnp.inf, zero, zero, number + 1, history, history),
        *(jnp.zeros((MEMORY, *number.shape), start.dtype), zero, number > 0, jnp.zeros((), jnp.int32)),
    )
    return jax.lax.while_loop(unfinished, measured, state)
