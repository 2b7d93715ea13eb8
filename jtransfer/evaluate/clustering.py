"""Do the classes lie apart without labels? k-means on features, and how well its clusters agree with the classes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers import checks

FLOATS = 2**26
"""Numbers that the distances of the restarts which run side by side may take (256 MiB in float32)."""


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        centres: `[k, d]`.
        labels: Nearest centre of each row, `[n]`.
        inertia: Sum over rows of the squared distance to that centre.
    """

    centres: jax.Array
    labels: jax.Array
    inertia: jax.Array


def kmeans(key: jax.Array, features, k: int, restarts: int = 10, iterations: int = 300) -> Clusters:
    """The best of several runs of k-means, each from its own k-means++ seeds (Arthur & Vassilvitskii 2007).

    Runs go side by side in one program, as many at a time as `FLOATS` allows.

    Args:
        key: The key that seeds are drawn with.
        features: `[n, d]`.
        k: Clusters, 1..n.
        restarts: Runs, of which the one with the least inertia is returned.
        iterations: The most iterations of Lloyd's algorithm; a run ends when no row changes its cluster.

    Raises:
        InputError: features that cannot be used, or a number out of range.
    """
    x = checks.features(features)
    check(len(x), k, restarts)
    side_by_side = max(1, min(restarts, FLOATS // (len(x) * k)))
    return _best(jax.random.split(key, restarts), checks.floats(x), k, iterations, side_by_side)


def check(rows: int, k: int, restarts: int, what: str = "rows") -> None:
    """Refuse numbers of which no clusters can be made.

    Raises:
        InputError: as `kmeans` raises; the error calls the rows `what`.
    """
    if not isinstance(k, int | np.integer) or not 1 <= k <= rows:
        raise InputError(f"k is {k}; expected 1..{rows}, as there are {rows} {what}")
    if restarts < 1:
        raise InputError(f"restarts is {restarts}; expected at least 1")
    checks.fits(rows * k, f"distances of {rows} rows and {k} centres", "use fewer rows")


def lloyd(features, centres, iterations: int = 300) -> Clusters:
    """k-means from given centres (Lloyd 1982).

    An empty cluster is moved onto the row that lies farthest from its centre, one cluster an iteration.

    Args:
        features: `[n, d]`.
        centres: `[k, d]`.
        iterations: At most; it ends when no row changes its cluster.

    Raises:
        InputError: features or centres that cannot be used.
    """
    x, centres = checks.features(features), np.asarray(centres)
    if centres.ndim != 2 or not len(centres) or centres.shape[1] != x.shape[1]:
        raise InputError(f"centres have shape {list(centres.shape)}; expected [k, {x.shape[1]}]")
    return _lloyd(checks.floats(x), checks.floats(centres), iterations)


def nmi(a, b) -> float:
    """Normalised mutual information of two labelings, 0..1: I(a; b) over the mean of H(a) and H(b), as scikit-learn's.

    Args:
        a: Labels `[n]` of any kind, say clusters.
        b: Labels `[n]`, say classes. Two labelings of a single label each agree: 1.

    Raises:
        InputError: labelings of different length, or empty ones.
    """
    joint = contingency(a, b) / len(a)
    rows, columns = joint.sum(1), joint.sum(0)
    information = -sum(float(np.sum(p[p > 0] * np.log(p[p > 0]))) for p in (rows, columns))
    shared = joint[joint > 0] * np.log((joint / np.outer(rows, columns))[joint > 0])
    return max(0.0, 2 * float(shared.sum()) / information) if information else 1.0


def ari(a, b) -> float:
    """Rand index of two labelings `[n]`, adjusted for chance (Hubert & Arabie 1985): 1 is agreement, 0 chance.

    Raises:
        InputError: labelings of different length, or empty ones.
    """
    table = contingency(a, b).astype(float)
    pairs, rows, columns = (float(np.sum(c * (c - 1)) / 2) for c in (table, table.sum(1), table.sum(0)))
    chance, most = rows * columns / max(1.0, len(a) * (len(a) - 1) / 2), (rows + columns) / 2
    return (pairs - chance) / (most - chance) if most != chance else 1.0


def hungarian_accuracy(clusters, labels) -> float:
    """Share of rows in the right class when every cluster stands for at most one class, and matched as well as can be.

    Rows of clusters that are left over, where there are more clusters than classes, count as wrong.

    Raises:
        InputError: labelings of different length, or empty ones.
    """
    from scipy.optimize import linear_sum_assignment

    table = contingency(clusters, labels)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def contingency(a, b) -> np.ndarray:
    """How many rows carry each label of one kind with each of the other, `[labels of a, labels of b]` in sorted order.

    Raises:
        InputError: labelings of different length, or empty ones.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise InputError(
            f"labelings have shapes {list(a.shape)} and {list(b.shape)}; expected [n] twice, of the same rows"
        )
    (left, a), (right, b) = (np.unique(x, return_inverse=True) for x in (a, b))
    checks.fits(len(left) * len(right), f"counts of {len(left)} labels with {len(right)}", "group them first")
    return np.bincount(a * len(right) + b, minlength=len(left) * len(right)).reshape(len(left), len(right))


@partial(jax.jit, static_argnames=("k", "side_by_side"))
def _best(keys, x, k, iterations, side_by_side) -> Clusters:
    runs = jax.lax.map(lambda key: _lloyd(x, _seeds(key, x, k), iterations), keys, batch_size=side_by_side)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(runs.inertia)], runs)


def _seeds(key, x, k) -> jax.Array:
    """Rows `[k, d]`, each drawn with a chance in proportion to its squared distance from those before it."""

    def draw(nearest, key):
        centre = x[jax.random.choice(key, len(x), p=nearest)]
        return jnp.minimum(nearest, jnp.sum((x - centre) ** 2, axis=1)), centre

    first, *_ = keys = jax.random.split(key, k)
    centre = x[jax.random.randint(first, (), 0, len(x))]
    _, centres = jax.lax.scan(draw, jnp.sum((x - centre) ** 2, axis=1), keys[1:])
    return jnp.concatenate([centre[None], centres])


@jax.jit
@jax.default_matmul_precision("highest")
def _lloyd(x, centres, iterations) -> Clusters:
    middle = x.mean(axis=0)  # distances are differences of squares: keep these small
    x, centres = x - middle, centres - middle
    norms = jnp.sum(x**2, axis=1)

    def assign(centres):
        scores = jnp.sum(centres**2, axis=1) - 2 * x @ centres.T
        return jnp.argmin(scores, axis=1), norms + jnp.min(scores, axis=1)

    def move(centres, labels, distances):
        member = jax.nn.one_hot(labels, len(centres), dtype=x.dtype)
        counts = member.sum(axis=0)
        means = jnp.where(counts[:, None] > 0, member.T @ x / jnp.maximum(counts, 1)[:, None], centres)
        empty = jnp.argmin(counts)
        return means.at[empty].set(jnp.where(counts[empty] > 0, means[empty], x[jnp.argmax(distances)]))

    def step(state):
        centres, labels, distances, _, i = state
        centres = move(centres, labels, distances)
        new, distances = assign(centres)
        return centres, new, distances, jnp.any(new != labels), i + 1

    state = centres, *assign(centres), jnp.bool(True), 0
    centres, labels, *_ = jax.lax.while_loop(lambda state: state[3] & (state[4] < iterations), step, state)
    return Clusters(centres + middle, labels, jnp.sum((x - centres[labels]) ** 2))
