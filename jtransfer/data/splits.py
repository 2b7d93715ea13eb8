"""Which rows are for testing: a fifth where a dataset has no test rows of its own, or fewer than it has."""

import numpy as np

from jtransfer.errors import InputError


def hold_out_a_fifth(labels: np.ndarray, where: str, without: str) -> tuple[np.ndarray, np.ndarray]:
    """Pool and test rows: a fifth of each class (rounded down, one at least) is test, the same rows every time.

    Args:
        labels: [n] integers; or [n, classes], several labels a row, and then a fifth of all rows is test.
        where: The file they are from, for the error.
        without: What would make it unnecessary, for the error.

    Raises:
        InputError: a class with a single row.
    """
    test = []
    labels = labels if labels.ndim == 1 else np.zeros(len(labels), int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise InputError(
                f"{where}: class {label} has a single row ({rows[0]}); without {without} every class needs two, one of "
                f"them for testing"
            )
        test.append(np.random.default_rng([0, label]).permutation(rows)[: max(1, len(rows) // 5)])
    test = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test), test


def hold_out_the_last(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pool and test rows of examples without classes: the last hundredth is test, from 50 (or a fifth) to 5000 rows."""
    last = min(5000, max(count // 100, min(50, count // 5), 2))
    return np.arange(count - last), np.arange(count - last, count)


def stratified(labels: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of some rows, each class in its proportion, the same every time; fewer are a subset of more.

    Each class is shuffled; its k-th row then stands at the quantile (k + 1/2) / (rows of the class), and the rows at
    the lowest quantiles are taken.

    Args:
        labels: [n] integers, all rows of the dataset.
        rows: [r] row numbers.
        count: At most r.

    Returns:
        [count] row numbers, ascending.
    """
    quantiles = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        places = np.random.default_rng([0, label]).permutation(np.flatnonzero(labels[rows] == label))
        quantiles[places] = (np.arange(len(places)) + 0.5) / len(places)
    return np.sort(rows[np.argsort(quantiles, kind="stable")[:count]])
