"""Damaged rows: found before a run starts, left out of what is trained on up to a share, and never of what is tested.

They are found by the one pass over all files that a run makes before its first step. What is left out is out of the
epochs: no row takes its place, and batches depend neither on processes and threads nor on where a run goes on.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jtransfer.data.dataset import Dataset, Lazy
from jtransfer.errors import InputError

log = logging.getLogger("jtransfer")

SHOWN = 3
"""Damaged rows that an error lists beside the first."""


def check_whole(dataset: Dataset, rows: np.ndarray) -> None:
    """Refuse damaged rows before a run starts, instead of in the middle of it.

    Args:
        dataset: Its inputs and captions are checked where they are `Lazy`.
        rows: [r] row numbers.

    Raises:
        InputError: the error names the first damaged row, how many there are, and up to `SHOWN` of the others.
    """
    if found := _of(dataset, rows):
        raise InputError(_said(found, len(rows), dataset))


def left_out(
    dataset: Dataset, share: float, others: Callable[[np.ndarray], dict[int, str]] = lambda rows: {}
) -> tuple[Dataset, int]:
    """A dataset whose pool has no damaged rows, and how many these were.

    Args:
        dataset: Its inputs and captions are checked where they are `Lazy`.
        share: The largest share of the pool that may be damaged; 0 for none.
        others: From row numbers that can be read to what else is wrong with them, by row, in a line each.

    Raises:
        InputError: more of the pool is damaged, or any test row. It names the first of these rows, how many there are,
            and up to `SHOWN` of the others.
    """
    pool = dataset.pool
    check_whole(dataset, dataset.test if share else np.concatenate([pool, dataset.test]))
    found = _of(dataset, pool) | dict(dataset.damaged) if share else {}
    found |= others(_without(pool, found))
    if len(found) > share * len(pool):
        allowed = f"={share:g} allows {int(share * len(pool))}" if share else " leaves out a share"
        raise InputError(f"{_said(found, len(pool), dataset)}; config.damaged{allowed}")
    if found:
        log.warning("%s; left out of training", _said(found, len(pool), dataset))
        dataset = replace(dataset, pool=_without(pool, found))
    return dataset, len(found)


def damaged(inputs: Any, rows: np.ndarray) -> dict[int, str]:
    """By row, one error line for each of some rows that cannot be read; none for inputs that are not `Lazy`."""
    return inputs.damaged(rows) if isinstance(inputs, Lazy) else {}


def _without(rows, found):
    return rows[~np.isin(rows, list(found))] if found else rows


def _of(dataset, rows):
    return damaged(dataset.inputs, rows) | damaged(dataset.captions, rows)


def _said(found: Mapping[int, str], count: int, dataset: Dataset) -> str:
    first, *others = found.values()
    if others:
        first += f"; in all {len(found)} of the {count} rows of {dataset.name} cannot be read: "
        first += "; ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    return first
