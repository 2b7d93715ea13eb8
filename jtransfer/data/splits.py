"""Which rows are for testing: a part of a dataset without test rows of its own, or fewer test rows than there are."""

import logging
from collections.abc import Iterator

import numpy as np

from jtransfer.data.dataset import targets
from jtransfer.data.marks import LEFT_OUT
from jtransfer.errors import InputError

log = logging.getLogger("jtransfer")


def by_class(labels: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each class of some rows, ascending, with its rows in their order; one sort, whatever the number of classes.

    Args:
        labels: [n] integers, all rows of the dataset.
        rows: [r] row numbers.
    """
    order = np.argsort(labels[rows], kind="stable")
    classes, starts = np.unique(labels[rows][order], return_index=True)
    for label, places in zip(classes.tolist(), np.split(order, starts[1:]), strict=False):
        yield label, rows[places]


def hold_out_a_fifth(labels: np.ndarray, where: str, without: str) -> tuple[np.ndarray, np.ndarray]:
    """Pool and test rows: a fifth of each class (rounded down, one at least) is test, the same rows every time.

    A class with a single row keeps it in the pool, which is logged: it is trained on, and not tested.

    Args:
        labels: [n] integers; for several labels or values a row, a fifth of all rows is test.
        where: The data, for messages.
        without: What would give test rows, for messages.

    Returns:
        [p] and [t] row numbers, ascending.

    Raises:
        InputError: no class has two rows.
    """
    test, single = [], []
    labels = labels if targets(labels) == "classes" else np.zeros(len(labels), int)
    for label, rows in by_class(labels, np.arange(len(labels))):
        if label == LEFT_OUT:  # which is in the pool until it is left out of that
            continue
        if len(rows) < 2:
            single.append(rows[0])
            continue
        test.append(np.random.default_rng([0, label]).permutation(rows)[: max(1, len(rows) // 5)])
    if not test:
        raise InputError(
            f"{where}: no class has two rows; without {without} a class needs two, one of them for testing"
        )
    if single:
        log.warning(
            "%s: classes with a single row: %d (as of row %d), which are trained on and not tested; %s would test them",
            *(where, len(single), single[0], without),
        )
    test = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test), test


def hold_out_the_last(count: int, where: str, what: str = "rows") -> tuple[np.ndarray, np.ndarray]:
    """Pool and test rows of examples without labels: the last hundredth is test.

    The test rows are at least 50, or a fifth of fewer than 250 rows, but never fewer than 2; they are at most 5000.

    Args:
        count: Of all rows.
        where: The data, for errors.
        what: What a row is, in the plural, for errors.

    Returns:
        [p] and [t] row numbers, ascending.

    Raises:
        InputError: fewer than three rows.
    """
    if count < 3:
        raise InputError(f"{where}: {count} {what}; expected three at least, of which two are held out")
    last = min(5000, max(count // 100, min(50, count // 5), 2))
    return np.arange(count - last), np.arange(count - last, count)


def hold_out(labels: np.ndarray, where: str, without: str, what: str = "rows") -> tuple[np.ndarray, np.ndarray, str]:
    """Pool and test rows of all that there is: a fifth, or where rows have no labels the last hundredth.

    Args:
        labels: Of all rows, as a `Dataset` has them.
        where: The data, for messages.
        without: What would give test rows, for messages.
        what: What a row is, in the plural, for errors.

    Returns:
        [p] and [t] row numbers, ascending, and which the test rows are in words.

    Raises:
        InputError: as `hold_out_a_fifth` and `hold_out_the_last`.
    """
    if not targets(labels):
        pool, test = hold_out_the_last(len(labels), where, what)
        return pool, test, f"the last {len(test)}"
    part = "a fifth of each class" if targets(labels) == "classes" else "a fifth"
    return *hold_out_a_fifth(labels, where, without), part


def stratified(labels: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of some rows, each class in its proportion, the same every time; a smaller draw is part of a larger one.

    Each class is shuffled; its k-th row, from 0, then stands at the quantile (k + 1/2) / (rows of the class), and the
    rows at the lowest quantiles are taken. Without one class a row, all rows are shuffled together.

    Args:
        labels: Of all rows of the dataset, as a `Dataset` has them.
        rows: [r] row numbers.
        count: At most r.

    Returns:
        [count] row numbers, ascending.
    """
    if targets(labels) != "classes":
        return np.sort(np.random.default_rng(0).permutation(rows)[:count])
    quantiles = np.empty(len(rows))
    for label, own in by_class(labels[rows], np.arange(len(rows))):
        places = np.random.default_rng([0, label]).permutation(own)
        quantiles[places] = (np.arange(len(places)) + 0.5) / len(places)
    return np.sort(rows[np.argsort(quantiles, kind="stable")[:count]])
