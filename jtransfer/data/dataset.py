"""A labelled dataset as every reader gives it, and the fingerprint that tells one from another."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Lazy:
    """Inputs that are read and decoded when their rows are asked for, and not before.

    Attributes:
        count: Number of rows.
        read: From row numbers `[n]` to a list of n inputs: uint8 images `[height, width, channels]` of any sizes,
            texts, or pairs of texts.
        identity: What stands for all the bytes in a fingerprint.
        of_inputs: What stands for them where labels do not matter; empty for `identity`.
    """

    count: int
    read: Callable[[np.ndarray], list]
    identity: str
    of_inputs: str = ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> list:
        return self.read(np.atleast_1d(np.arange(self.count)[rows]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images or texts, and the two sets of rows they are split into.

    Attributes:
        name: The name that `sources.load` was given.
        inputs: Indexed by an array of rows: images [n, height, width, channels] float32, 0 (background) to 1, or
            `Lazy` ones.
        labels: [n] int32, an index into `classes`; or [n, classes] of 0 and 1, several labels a row.
        classes: One name per class.
        pool: [p] row numbers that training and validation may use.
        test: [t] row numbers for the final report only.
        kind: "image" or "text".
        note: What a report must say of it, in sentences; may be empty.
        captions: Of each row a list of texts, by rows as `inputs`; None where there are none.
    """

    name: str
    inputs: np.ndarray | Lazy
    labels: np.ndarray
    classes: tuple[str, ...]
    pool: np.ndarray
    test: np.ndarray
    kind: str = "image"
    note: str = ""
    captions: Lazy | None = None


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="jtransfer-each")


def each(call: Callable, *items: Iterable) -> list:
    """`list(map(call, *items))` by as many threads as there are cores: PIL decodes and resizes without Python's lock.

    The call must not use `each` itself.
    """
    return list(_threads().map(call, *items))


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over arrays, dtypes, shapes, classes and splits; the name does not count.

    Of `Lazy` inputs it covers their `identity` alone, and not every byte.
    """
    digest = hashlib.sha256(repr(dataset.classes).encode())
    lazy = isinstance(dataset.inputs, Lazy)
    if lazy:
        digest.update(dataset.inputs.identity.encode())
    for array in (*(() if lazy else (dataset.inputs,)), dataset.labels, dataset.pool, dataset.test):
        _update(digest, array)
    return digest.hexdigest()[:16]


def fingerprint_of_inputs(dataset: Dataset) -> str:
    """16 hex digits over the inputs alone, whatever their labels, classes and splits: what features depend on."""
    inputs, digest = dataset.inputs, hashlib.sha256()
    if isinstance(inputs, Lazy):
        digest.update(f"{inputs.count}\n{inputs.of_inputs or inputs.identity}".encode())
    else:
        _update(digest, inputs)
    return digest.hexdigest()[:16]


def _update(digest, array):
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array))
