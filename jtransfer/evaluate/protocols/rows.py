"""Rows of results: what a protocol measured, and how. A row is a dict of plain values:

protocol, layer     as the config writes them
metrics             numbers by name, the first of them the one that is shown largest; shares are 0..1; None for what
                    the rows do not tell
chosen              hyper-parameters, and how they did on the validation rows
how                 the protocol in a sentence: features, normalisation, the split that chose
series              what is worth drawing, by title: {"x": [...], "y": [...], "xlabel": ..., "ylabel": ...}
matrix              maps by title: {"rows": names, "columns": names, "values": [[...]]}
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jtransfer.errors import InputError
from jtransfer.evaluate.task import TargetTask
from jtransfer.storage.cells import ResultRow

ProtocolRun = Callable[[], list[ResultRow]]


def row(
    layer: str, measured: Mapping[str, Any], how: str, chosen: Mapping[str, Any] | None = None, **more
) -> ResultRow:
    """One row of results, of which the protocol's name is still missing; see the top of this file."""
    numbers = {name: float(value) for name, value in measured.items()}
    numbers = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"layer": layer, "metrics": numbers, "chosen": dict(chosen or {}), "how": how, **more}


def each_layer(task: TargetTask, evaluate: Callable[[np.ndarray, str], ResultRow]) -> ProtocolRun:
    """Evaluate the features `[rows, width]` of each of the task's layers by themselves."""
    return lambda: [evaluate(task.features(layer)[0], layer) for layer in task.layers]


def labelled(task: TargetTask) -> np.ndarray:
    """Training and validation rows together, for a refit on both."""
    return np.sort(np.concatenate([task.train, task.validation]))


def single(task: TargetTask, protocol: str) -> None:
    """Refuse a task whose rows have several labels.

    Raises:
        InputError: it is one.
    """
    if task.dataset.labels.ndim > 1:
        raise InputError(f"{protocol}: {task.dataset.name} has several labels a row; probe takes such data")
