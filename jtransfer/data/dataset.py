"""A dataset as every reader gives it, what readers are told, and the fingerprint that tells one from another."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from jtransfer.errors import InputError
from jtransfer.storage.arrays import NpzRows

CLASSES = ("classes", "labels")
"""What most callers take: one class a row, or several."""

BLOCK = 1 << 20
"""Values of an array that are looked at at once, so that none is ever copied or converted as a whole."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a reader may need beside the rest of a name, which follows the colon.

    Attributes:
        name: All of the name, as the config writes it: what a dataset is called, and what errors begin with.
        reads: What is asked of the data, any of: "classes" (one a row), "labels" (several classes a row), "values"
            (numbers), "texts" (whatever their labels) or "pairs" (images and captions, whatever their labels).
        data_dir: Where prepared datasets lie; empty for nowhere in particular.
        batch: Examples of a training step, over all processes.
        seed: Of their order, and of what is drawn.
        share: Positions in each batch that this process reads; what stands at a position does not depend on who reads
            it.
        templates: Texts with `{}` for the caption; empty for the source's own.
        crop: The least and the largest share of an image's area that is cut out; empty for whole images.
    """

    name: str
    reads: tuple[str, ...] = CLASSES
    data_dir: str = ""
    batch: int = 1
    seed: int = 0
    share: np.ndarray | slice = field(default_factory=lambda: slice(None))
    templates: tuple[str, ...] = ()
    crop: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Images:
    """Images that lie in memory or in a file as they were written, and become floats where rows are asked for.

    Indexed as an array `[n, height, width, channels]` float32 is, of which `shape` and `dtype` tell. A gigabyte of
    bytes takes a gigabyte at most, and each batch its own floats.

    Attributes:
        parts: Arrays `[rows, height, width, channels]`, the one after the other: uint8, which is scaled by 1/255, or
            floats of 0 to 1.
    """

    parts: tuple[np.ndarray | NpzRows, ...]

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
        contents: Digest of all the bytes where `identity` does not change with each of them; "" where it does.
        damaged: From row numbers to what is wrong with those rows that cannot be read, found without decoding them.
        of_inputs: What stands for the bytes where labels do not matter; "" for `identity` and `contents`.
    """

    count: int
    read: Callable[[np.ndarray], list]
    identity: str
    contents: str = ""
    damaged: Callable[[np.ndarray], list[str]] = lambda rows: []
    of_inputs: str = ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> list:
        return self.read(np.atleast_1d(np.arange(self.count)[rows]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images or texts with their labels, if they have any, and the two sets of rows they are split into.

    Attributes:
        name: The name that `sources.load` was given.
        inputs: Indexed by an array of rows: images [n, height, width, channels] float32, 0 (background) to 1, as an
            array or as `Images`; or `Lazy` ones.
        labels: [n] int32, an index into `classes`; or [n, classes] of 0 and 1, several classes a row; or [n] or
            [n, values] float32, numbers to predict; or [n, 0], where there are none.
        classes: One name per class, or per value if these have names; else empty.
        pool: [p] row numbers that training and validation may use.
        test: [t] row numbers for the final report only.
        kind: "image" or "text".
        note: What a report must say of it, in sentences; may be empty.
        captions: Of each row a list of texts, by rows as `inputs`; None where there are none.
        metric: The metric that results on these data are published in, where it is not accuracy; else "".
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
    metric: str = ""

    @property
    def targets(self) -> str:
        """What the labels are: see `targets`."""
        return targets(self.labels)

    @property
    def outputs(self) -> int:
        """How many numbers predict the labels of a row: see `outputs`."""
        return outputs(self.labels, self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """See the function of this name."""
        digest = hashlib.sha256(repr(self.classes).encode())
        lazy = isinstance(self.inputs, Lazy)
        if lazy:
            digest.update(self.inputs.identity.encode("utf-8", "surrogateescape"))
        for array in (*(() if lazy else (self.inputs,)), self.labels, self.pool, self.test):
            _update(digest, array)
        contents = self.inputs.contents if lazy else ""
        return ".".join(filter(None, (digest.hexdigest()[:16], contents)))

    @cached_property
    def fingerprint_of_inputs(self) -> str:
        """See the function of this name."""
        inputs, digest = self.inputs, hashlib.sha256()
        if isinstance(inputs, Lazy):
            own = inputs.of_inputs or f"{inputs.identity}\n{inputs.contents}"
            digest.update(f"{inputs.count}\n{own}".encode("utf-8", "surrogateescape"))
        else:
            _update(digest, inputs)
        return digest.hexdigest()[:16]


def targets(labels: np.ndarray) -> str:
    """What labels are: "classes" (one a row), "labels" (several a row), "values" (numbers), or "" for none.

    Args:
        labels: As those of a `Dataset`.
    """
    if labels.dtype.kind == "f":
        return "values"
    return "classes" if labels.ndim == 1 else "labels" if labels.shape[1] else ""


def outputs(labels: np.ndarray, classes: Sequence[str]) -> int:
    """How many numbers predict the labels of a row: one for each class or value, 0 where there are no labels."""
    return len(classes) or (1 if labels.ndim == 1 else labels.shape[1])


FOUND = {
    "classes": "one class a row",
    "labels": "several labels a row",
    "values": "numbers as labels",
    "texts": "texts",
    "pairs": "images with captions",
    "tags": "a class for every token",
    "spans": "answers in texts",
    "": "no labels",
}
"""What data may have, in words."""


def check_targets(data: Any, reads: Sequence[str]) -> None:
    """Refuse data that do not have what is asked of them.

    Args:
        data: A `Dataset` or a `Stream`: whatever has `name`, `kind` and `targets`.
        reads: As in `Context`.

    Raises:
        InputError: what they have, and what is expected.
    """
    if data.targets in reads or (data.kind == "text" and "texts" in reads):
        return
    held = "images and " if "texts" in reads else ""
    expected = " or ".join(FOUND.get(own, own) for own in reads)
    raise InputError(f"config.data: {data.name} has {held}{FOUND[data.targets]}; expected {expected}")


def _update(digest, array):
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    for block in blocks(array):
        digest.update(block)


THREADS = "jtransfer-each"
"""What the names of threads begin with that `each` has."""


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=THREADS)


def each(call: Callable, *items: Iterable) -> list:
    """`list(map(call, *items))` by as many threads as there are cores: PIL decodes without Python's lock."""
    if threading.current_thread().name.startswith(THREADS):  # a call of `each` itself, which would wait for its own end
        return list(map(call, *items))
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


def blocks(array: Any) -> Iterator[np.ndarray]:
    """All rows of an array or of `Images`, some at a time, as contiguous arrays."""
    step = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step])


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over arrays, dtypes, shapes, classes and splits; the name does not count.

    Of `Lazy` inputs it covers their `identity`; after a dot follow their `contents`, if they have any. Versions that
    knew no contents wrote what stands before the dot, see `workdir.same_data`.
    """
    return dataset.fingerprint


def fingerprint_of_inputs(dataset: Dataset) -> str:
    """16 hex digits over the inputs alone, whatever their labels, classes and splits: what features depend on."""
    return dataset.fingerprint_of_inputs
