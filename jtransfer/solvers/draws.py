"""Few-shot draws of rows, padded to one length, so that one program fits all of them.

Functions take draws as `rows [*draws, m]` and `weights [*draws, m]`, 1 for a row and 0 for padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import check, whole
from jtransfer.solvers import checks

SHOTS = (1, 5, 10, 25)
"""Examples of each class in big_vision's protocol."""
SEEDS = (0, 1, 2)
"""Seeds of the draws in big_vision's protocol."""


def draws(
    labels: Any, shots: Sequence[int] = SHOTS, seeds: Sequence[int] = SEEDS, *, classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that big_vision draws for every number of shots and every seed.

    One `numpy.random.default_rng(seed)` shuffles the rows of class after class; a draw takes the first rows of each. So
    the draws of one seed are nested. Short draws are padded at the end by row 0 with weight 0.

    Args:
        labels: `[n]` integers.
        shots: Numbers of examples of each class.
        seeds: Seeds, each of which gives one draw for each number of shots.
        classes: Number of classes; None for as many as the largest label says.

    Returns:
        Rows `[shots, seeds, m]` and weights `[shots, seeds, m]`, with m = classes * the most shots.

    Raises:
        InputError: labels that cannot be used, a class with fewer examples than the most shots, no shots or a number
            of shots below 1, or a seed that is no whole number of at least 0.
    """
    labels = checks.labels(labels, len(labels), classes)
    classes = classes or int(labels.max()) + 1
    if not len(shots) or min(shots) < 1:
        raise InputError(f"shots are {list(shots)}; expected numbers of at least 1")
    for seed in seeds:
        check(seed, whole(0), "seed")
    checks.shots(labels, max(shots), "labels", classes)
    rows = np.zeros((len(shots), len(seeds), classes * max(shots)), np.int32)
    of_each = checks.members(labels, classes)
    for j, seed in enumerate(seeds):
        generator = np.random.default_rng(seed)
        shuffled = [generator.permutation(own) for own in of_each]
        for i, count in enumerate(shots):
            rows[i, j, : classes * count] = np.concatenate([own[:count] for own in shuffled])
    weights = np.arange(rows.shape[-1]) < classes * np.array(shots)[:, None, None]
    return rows, np.broadcast_to(weights, rows.shape).astype(np.float32)


def labelled(
    features: Any, labels: Any, classes: int | None, *, alike: bool = False
) -> tuple[jax.Array, np.ndarray, int]:
    """Checked features `[n, d]` of at least float32, checked labels `[n]`, and the number of classes.

    Raises:
        InputError: features or labels that `checks` refuses.
    """
    features = checks.floats(checks.features(features, alike=alike))
    labels = checks.labels(labels, len(features), classes, alike=alike)
    return features, labels, classes or int(labels.max()) + 1


def drawn(rows: Any, weights: Any, n: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Checked draws of n rows `[*draws, m]`, and their weights `[*draws, m]`; None for both without draws.

    Args:
        rows: Draws; None for none.
        weights: 1 for a row of a draw and 0 for padding; None for no padding.
        n: Number of rows that there are.

    Raises:
        InputError: rows that are no integers 0..n-1; or weights without rows, of another shape, that are not 0 or 1, or
            that leave a draw empty.
    """
    if rows is None:
        if weights is not None:
            raise InputError("weights are given without rows; expected both, or rows alone")
        return None, None
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iu" or not rows.ndim or not rows.size or rows.min() < 0 or rows.max() >= n:
        raise InputError(f"rows have shape {list(rows.shape)} and dtype {rows.dtype}; expected integers 0..{n - 1}")
    weights = np.ones(rows.shape, np.float32) if weights is None else np.asarray(weights)
    if weights.shape != rows.shape or not np.isin(weights, (0, 1)).all() or not weights.any(axis=-1).all():
        raise InputError(
            f"weights have shape {list(weights.shape)}; expected {list(rows.shape)}, 0 or 1, some 1 in every draw"
        )
    return rows.astype(np.int32), weights.astype(np.float32)


def each_draw(solve: Callable, rows: jax.Array, weights: jax.Array, width: int) -> Any:
    """`solve(rows [m], weights [m])` for every draw: as many draws side by side as 256 MiB hold features of.

    Args:
        solve: From the rows and weights of a draw to a tree of arrays.
        rows: `[*draws, m]`.
        weights: `[*draws, m]`.
        width: Number of features of a row.

    Returns:
        The tree, each array with `[*draws]` before its own axes.
    """
    *shape, m = rows.shape
    size = max(1, 2**26 // (m * width))
    solved = jax.lax.map(lambda draw: solve(*draw), (rows.reshape(-1, m), weights.reshape(-1, m)), batch_size=size)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), solved)
