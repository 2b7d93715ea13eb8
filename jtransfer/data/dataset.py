"""A labelled dataset as every reader gives it, and the fingerprint that tells one from another."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jtransfer.errors import InputError


@dataclass(frozen=True, eq=False)
class Lazy:
    """Inputs that are read and decoded when their rows are asked for, and not before.

    Attributes:
        count: Number of rows.
        read: From row numbers `[n]` to a list of n inputs: uint8 images `[height, width, channels]` of any sizes,
            texts, or pairs of texts.
        identity: What stands for all the bytes in a fingerprint.
        contents: Digest of all the bytes where `identity` does not change with each of them; "" where it does.
        damaged: From row numbers to what is wrong with those rows that cannot be read, found without decoding them.
    """

    count: int
    read: Callable[[np.ndarray], list]
    identity: str
    contents: str = ""
    damaged: Callable[[np.ndarray], list[str]] = lambda rows: []

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


def refused(call: Callable, *items: Iterable) -> list[str]:
    """What a call says of those items that it refuses; it has `each` apply it to all."""

    def said(*own):
        try:
            call(*own)
        except InputError as error:
            return str(error)

    return list(filter(None, each(said, *items)))


def check_whole(dataset: Dataset, rows: np.ndarray) -> None:
    """Refuse damaged rows before a run starts, which would meet them in its middle.

    Raises:
        InputError: the first of them, how many there are, and the names of some.
    """
    found = damaged(dataset.inputs, rows)
    if len(found) > 1:
        others = "; ".join(found[1 : 1 + SHOWN])
        found[0] += f"; in all {len(found)} of the {len(rows)} rows of {dataset.name} cannot be read: {others}"
        found[0] += ", ..." if len(found) > 1 + SHOWN else ""
    if found:
        raise InputError(found[0])


def damaged(inputs: Any, rows: np.ndarray) -> list[str]:
    """What is wrong with those rows of inputs that cannot be read; nothing is wrong with arrays."""
    return inputs.damaged(rows) if isinstance(inputs, Lazy) else []


SHOWN = 3
"""Damaged rows that an error lists beside the first."""


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over arrays, dtypes, shapes, classes and splits; the name does not count.

    Of `Lazy` inputs it covers their `identity`; after a dot follow their `contents`, if they have any. Versions that
    knew no contents wrote what stands before the dot, see `workdir.same`.
    """
    digest = hashlib.sha256(repr(dataset.classes).encode())
    lazy = isinstance(dataset.inputs, Lazy)
    if lazy:
        digest.update(dataset.inputs.identity.encode("utf-8", "surrogateescape"))
    for array in (*(() if lazy else (dataset.inputs,)), dataset.labels, dataset.pool, dataset.test):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    contents = dataset.inputs.contents if lazy else ""
    return ".".join(filter(None, (digest.hexdigest()[:16], contents)))
