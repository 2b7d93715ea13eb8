"""A labelled dataset as every reader gives it, and the fingerprint that tells one from another."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

BLOCK = 1 << 20
"""Values of an array that are looked at at once, so that none is ever copied or converted as a whole."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images that lie in memory as their file has them, and become floats where rows are asked for.

    Indexed as an array `[n, height, width, channels]` float32 is, of which `shape` and `dtype` tell. A gigabyte of
    bytes takes a gigabyte, and each batch its own floats.

    Attributes:
        parts: Arrays `[rows, height, width, channels]`, the one after the other: uint8, which is scaled by 1/255, or
            floats of 0 to 1.
    """

    parts: tuple[np.ndarray, ...]

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(map(len, self.parts)), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, *others = index if isinstance(index, tuple) else (index,)
        if rows is Ellipsis:
            return np.asarray(self)[index]
        rows = np.arange(len(self))[rows]
        flat, start = rows.reshape(-1), 0
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for part in self.parts:
            mine = (start <= flat) & (flat < start + len(part))
            if mine.all():
                found = floats(part[flat - start])
            elif mine.any():
                found[mine] = floats(part[flat[mine] - start])
            start += len(part)
        found = found.reshape(*rows.shape, *self.shape[1:])
        return found[(slice(None),) * rows.ndim + tuple(others)] if others else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def floats(part: np.ndarray) -> np.ndarray:
    """Bytes as float32 of 0 to 1, and floats as float32."""
    return np.divide(part, np.float32(255)) if part.dtype == np.uint8 else part.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Lazy:
    """Inputs that are read and decoded when their rows are asked for, and not before.

    Attributes:
        count: Number of rows.
        read: From row numbers `[n]` to a list of n inputs: uint8 images `[height, width, channels]` of any sizes,
            texts, or pairs of texts.
        identity: What stands for all the bytes in a fingerprint.
    """

    count: int
    read: Callable[[np.ndarray], list]
    identity: str

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> list:
        return self.read(np.atleast_1d(np.arange(self.count)[rows]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images or texts, and the two sets of rows they are split into.

    Attributes:
        name: The name that `sources.load` was given.
        inputs: Indexed by an array of rows: images [n, height, width, channels] float32, 0 (background) to 1, as an
            array or as `Images`; or `Lazy` ones.
        labels: [n] int32, an index into `classes`; or [n, classes] of 0 and 1, several labels a row.
        classes: One name per class.
        pool: [p] row numbers that training and validation may use.
        test: [t] row numbers for the final report only.
        kind: "image" or "text".
        note: What a report must say of it, in sentences; may be empty.
        captions: Of each row a list of texts, by rows as `inputs`; None where there are none.
    """

    name: str
    inputs: np.ndarray | Images | Lazy
    labels: np.ndarray
    classes: tuple[str, ...]
    pool: np.ndarray
    test: np.ndarray
    kind: str = "image"
    note: str = ""
    captions: Lazy | None = None

    @cached_property
    def fingerprint(self) -> str:
        """See the function of this name."""
        digest = hashlib.sha256(repr(self.classes).encode())
        lazy = isinstance(self.inputs, Lazy)
        if lazy:
            digest.update(self.inputs.identity.encode())
        for array in (*(() if lazy else (self.inputs,)), self.labels, self.pool, self.test):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            for block in blocks(array):
                digest.update(block)
        return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="jtransfer-each")


def each(call: Callable, *items: Iterable) -> list:
    """`list(map(call, *items))` by as many threads as there are cores: PIL decodes and resizes without Python's lock.

    The call must not use `each` itself.
    """
    return list(_threads().map(call, *items))


def blocks(array: Any) -> Iterator[np.ndarray]:
    """All rows of an array or of `Images`, some at a time, as contiguous arrays."""
    step = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step])


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over arrays, dtypes, shapes, classes and splits; the name does not count.

    Of `Lazy` inputs it covers their `identity` alone, and not every byte.
    """
    return dataset.fingerprint
