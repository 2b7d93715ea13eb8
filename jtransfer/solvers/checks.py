"""Checks of features, labels and names: an input that cannot be used is one line of error before any compile."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError


def features(x: Any, what: str = "features", *, alike: bool = False) -> Any:
    """Check that features are `[n, d]` finite floats whose rows are not all equal, and give them back unchanged.

    Args:
        x: An array of NumPy or JAX, or a value that `np.asarray` takes.
        what: Name of the features, for the error.
        alike: Whether all rows may be equal, as those of queries may.

    Raises:
        InputError: another shape or type, no row, NaN or infinity, rows that are all alike, or numbers so large that
            their squares overflow.
    """
    x = x if hasattr(x, "dtype") and hasattr(x, "shape") else np.asarray(x)
    if x.ndim != 2 or not all(x.shape):
        raise InputError(f"{what} have shape {list(x.shape)}; expected [n, d] with at least one row and one column")
    if x.dtype.kind not in "f" and str(x.dtype) != "bfloat16":
        raise InputError(f"{what} have dtype {x.dtype}; expected floats")
    first, spread = np.asarray(x[:1], np.float32), 0.0
    for start in range(0, len(x), 8192):  # of a mapped file never the whole
        block = np.asarray(x[start : start + 8192], np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise InputError(f"{what}: row {start + int((~finite).argmax())} holds NaN or infinite values")
        spread = max(spread, float(np.abs(block - first).max()))
        largest = np.abs(block).max(axis=1)
        if largest.max() > LARGE:
            row = int(largest.argmax())
            raise InputError(f"{what}: row {start + row} holds {largest[row]:.3g}; above {LARGE:g} squares overflow")
    if len(x) > 1 and not spread and not alike:
        raise InputError(f"{what} are constant: all {len(x)} rows are the same, so they tell no class from another")
    return x


LARGE = 1e16
"""The largest feature whose squares float32 can sum."""


def same_width(x: Any, y: Any, what: tuple[str, str]) -> None:
    """Refuse to compare features `[n, d]` of different widths.

    Args:
        x: Features.
        y: Other features.
        what: Names of both, for the error.

    Raises:
        InputError: the widths differ; the error names both.
    """
    if x.shape[1] != y.shape[1]:
        raise InputError(f"{what[0]} have width {x.shape[1]}, {what[1]} {y.shape[1]}; expected the same")


def floats(x: Any) -> jax.Array:
    """Features on the device, in float32 or in their own wider type."""
    return jnp.asarray(x, jnp.result_type(x, jnp.float32))


CLASSES = 2**16
"""The most classes that a largest label may stand for, however few rows there are."""


def labels(y: Any, rows: int, classes: int | None = None, what: str = "labels", *, alike: bool = False) -> np.ndarray:
    """Labels `[n]` as int32, if each is the number of a class and at least two classes are there.

    Args:
        y: Integers `[n]`.
        rows: The n that is expected.
        classes: Number of classes; None for as many as the largest label says.
        what: Name of the labels, for the error.
        alike: Whether all labels may be of one class, as those of queries may.

    Raises:
        InputError: a number of classes that is no whole number above 0, strings or floats, another number of labels, a
            label out of range, a single class, or numbers that do not count classes from 0, as catalogue numbers.
    """
    if classes is not None and not (isinstance(classes, int | np.integer) and 1 <= classes < 2**31):
        raise InputError(f"{what}: classes is {classes!r}; expected a whole number above 0")
    y = np.asarray(y)
    if y.dtype.kind in "OSU":
        raise InputError(
            f"{what} are strings, as {str(y.reshape(-1)[0])!r}; expected integers: np.unique(..., return_inverse=True)"
        )
    if y.ndim != 1 or y.dtype.kind not in "iub":
        raise InputError(f"{what} have shape {list(y.shape)} and dtype {y.dtype}; expected [n] integers")
    if len(y) != rows:
        raise InputError(f"{what}: {len(y)} for {rows} rows of features; expected as many")
    count = classes if classes is not None else int(y.max()) + 1 if len(y) else 0
    outside = (y < 0) | (y >= count)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(f"{what}: row {row} is {y[row]}; expected 0..{count - 1} ({count} classes)")
    if classes is None:
        one_after_another(count, len(y), what)
    if not alike and len(np.unique(y)) < 2:
        raise InputError(f"{what} hold only class {y[0] if len(y) else 'none'}; at least two classes are expected")
    return y.astype(np.int32)


def one_after_another(count: int, rows: int, what: str) -> None:
    """Refuse labels whose largest number makes far more classes than there are rows, as catalogue numbers do.

    Args:
        count: The largest label and 1.
        rows: Number of labels.
        what: Name of the labels, for the error.

    Raises:
        InputError: more than `CLASSES` classes and more classes than rows; the error says how to make labels.
    """
    if count > max(CLASSES, rows):
        raise InputError(
            f"{what}: the largest is {count - 1}, of {rows} rows; expected 0..classes-1: np.unique(..., "
            "return_inverse=True)"
        )


def members(y: np.ndarray, classes: int) -> list[np.ndarray]:
    """The rows of each class, ascending, in time that does not grow with rows times classes."""
    order = np.argsort(y, kind="stable")
    return np.split(order, np.cumsum(np.bincount(y, minlength=classes))[:-1])


NUMBERS = 2**30
"""The most numbers that one array may hold: 4 GiB in float32."""


def fits(count: int, what: str, instead: str) -> None:
    """Refuse to hold more than `NUMBERS` numbers at once.

    Args:
        count: How many numbers.
        what: What the numbers are, for the error.
        instead: What can be done instead, for the error.

    Raises:
        InputError: there are more.
    """
    if count > NUMBERS:
        raise InputError(f"{what} are {count:,} numbers, at most {NUMBERS:,} are held at once; {instead}")


def penalties(values: Any, what: str = "l2 is") -> np.ndarray:
    """Penalties `[k]` in float64, if each is finite and above 0; `what` begins the error.

    Raises:
        InputError: a penalty that is not finite or not above 0, or no penalty at all.
    """
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 1 or not len(found) or not (np.isfinite(found) & (found > 0)).all():
        shown = values.tolist() if isinstance(values, np.ndarray) else values if np.isscalar(values) else list(values)
        raise InputError(f"{what} {shown!r}; expected a list of positive numbers")
    return found


def targets(y: Any, rows: int, what: str = "labels") -> np.ndarray:
    """Multi-label targets `[n, c]` of 0 and 1 as float32, each column with both.

    Raises:
        InputError: another shape, other values than 0 and 1, or a label that every row has or that no row has.
    """
    y = np.asarray(y)
    if y.ndim != 2 or len(y) != rows or y.dtype.kind not in "iubf":
        raise InputError(
            f"{what} have shape {list(y.shape)} and dtype {y.dtype}; expected [{rows}, classes] of 0 and 1"
        )
    other = ~np.isin(y, (0, 1))
    if other.any():
        row, column = (int(i) for i in np.argwhere(other)[0])
        raise InputError(f"{what}: row {row}, column {column} is {y[row, column]}; expected 0 or 1")
    same = y.min(axis=0) == y.max(axis=0)
    if same.any():
        column = int(same.argmax())
        raise InputError(f"{what}: column {column} is {y[0, column]} in every row; expected rows of both")
    return y.astype(np.float32)


def attributes(matrix: Any) -> np.ndarray:
    """An attribute matrix `[classes, m]`, if it holds numbers.

    Raises:
        InputError: another shape or type, NaN or infinity.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or not all(matrix.shape) or matrix.dtype.kind not in "iubf":
        raise InputError(
            f"attributes have shape {list(matrix.shape)} and dtype {matrix.dtype}; expected [classes, m] numbers"
        )
    if (broken := ~np.isfinite(matrix)).any():
        row, column = np.argwhere(broken)[0]
        raise InputError(f"attributes: row {row}, column {column} is {matrix[row, column]}; expected a number")
    return matrix


def names(values: Sequence[str], what: str = "class names") -> tuple[str, ...]:
    """Names of classes, if each is a text of its own.

    Raises:
        InputError: no names, a value that is no text, an empty name, or a name that stands twice.
    """
    values = tuple(values)
    if not values:
        raise InputError(f"{what} are empty; expected at least one")
    for i, name in enumerate(values):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{what}: number {i} is {name!r}; expected a text")
    twice, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise InputError(f"{what}: {twice!r} stands {count} times; expected each name once")
    return values


def shots(y: np.ndarray, needed: int, what: str, classes: int) -> None:
    """Refuse to draw `needed` examples of a class that has fewer.

    Args:
        y: Labels `[n]`.
        needed: Examples of each class that are drawn.
        what: Name of the labels, for the error.
        classes: Number of classes.

    Raises:
        InputError: a class has too few examples; the error names the class with the fewest.
    """
    counts = np.bincount(y, minlength=classes)
    if counts.min() < needed:
        raise InputError(f"{what}: class {counts.argmin()} has {counts.min()} examples, {needed} are needed")
