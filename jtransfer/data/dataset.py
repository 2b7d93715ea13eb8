"""`Dataset`, which readers return; `Context`, which they are given; and fingerprints, by which data are told apart."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from jtransfer import kinds
from jtransfer.data import marks
from jtransfer.errors import InputError
from jtransfer.storage.arrays import NpzRows

CLASSES = ("classes", "labels")
"""The default of `reads`: one class a row, or several."""
LABELS = (*CLASSES, "values")
"""What a row as a whole may be labelled with."""

BLOCK = 1 << 20
"""Values of an array that are read at a time, so that no array is copied or converted as a whole."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a reader is given beside the part of the name that follows the colon.

    Attributes:
        name: The whole name, as the config writes it: the dataset's own, with which errors begin.
        reads: What is asked of the data, any of: "classes" (one a row), "labels" (several classes a row), "values"
            (numbers), "tags" (a class for every word of a text), "spans" (answers in texts), "texts" (whatever their
            labels) or "pairs" (images and captions, whatever their labels).
        data_dir: Where prepared datasets lie; empty for the environment's `TFDS_DATA_DIR`, or TFDS's own directory.
        batch: Examples of a training step, over all processes.
        seed: Of the order of the examples, and of random draws.
        share: Positions in each batch that this process reads; the example at a position does not depend on the
            process that reads it.
        templates: Texts with `{}` for the caption; empty for the source's own.
        crop: The least and the largest share of an image's area that is cut out; empty for whole images.
        augment: What is done to images at random, as `augment.parse` gives it; empty for images as they are.
        damaged: The largest share of the pool that may be damaged. Above 0 a reader may give such rows in
            `Dataset.damaged`, where it would refuse the data.
    """

    name: str
    reads: tuple[str, ...] = CLASSES
    data_dir: str = ""
    batch: int = 1
    seed: int = 0
    share: np.ndarray | slice = field(default_factory=lambda: slice(None))
    templates: tuple[str, ...] = ()
    crop: tuple[float, ...] = ()
    augment: tuple[Callable, ...] = ()
    damaged: float = 0.0


@dataclass(frozen=True, eq=False)
class Images:
    """Images kept as they were written, in memory or in a file, whose rows become floats when they are indexed.

    They are indexed like an array `[n, height, width, channels]` float32, which `shape` and `dtype` describe. A
    gigabyte of uint8 images takes at most a gigabyte, and each batch its own floats.

    Attributes:
        parts: Arrays `[rows, height, width, channels]` whose rows follow each other: uint8, which is scaled by 1/255,
            or floats from 0 to 1.
    """

    parts: tuple[np.ndarray | NpzRows, ...]

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, channels)`, n over all parts."""
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
    """An array as float32: uint8 is scaled by 1/255, floats keep their values."""
    return np.divide(part, np.float32(255)) if part.dtype == np.uint8 else part.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Lazy:
    """Inputs that are read and decoded when their rows are asked for, and not before.

    Attributes:
        count: Number of rows.
        read: From row numbers `[n]` to a list of n inputs: uint8 images `[height, width, channels]` of any sizes,
            texts, pairs of texts, or lists of captions.
        identity: A text that is hashed into fingerprints in place of the inputs.
        contents: Digest of every byte of the inputs, if `identity` does not change with each of them; else "".
        damaged: From row numbers to one error line, by row, for each of these rows that cannot be read.
        of_inputs: A text that is hashed into `fingerprint_of_inputs` in place of the inputs; "" for `identity` and
            `contents`.
        files: From row numbers to the bytes of each row's image file and its name, as `pictures.part` takes them; None
            if the inputs are no image files.
    """

    count: int
    read: Callable[[np.ndarray], list]
    identity: str
    contents: str = ""
    damaged: Callable[[np.ndarray], dict[int, str]] = lambda rows: {}
    of_inputs: str = ""
    files: Callable[[np.ndarray], list[tuple[bytes, str]]] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> list:
        if not (
            isinstance(rows, np.ndarray) and rows.dtype.kind == "i" and rows.ndim == 1 and _within(rows, self.count)
        ):
            rows = np.atleast_1d(np.arange(self.count)[rows])
        return self.read(rows)


def _within(rows, count):
    """Whether row numbers can be taken as they are, without a number for every row there is."""
    return not len(rows) or 0 <= rows.min() <= rows.max() < count


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images or texts with their labels, if they have any, and their split into two sets of rows.

    Attributes:
        name: The name that `sources.load` was given.
        inputs: Indexed by row numbers: images [n, height, width, channels] float32, 0 (background) to 1, as an array or
            as `Images`; or images of any sizes or texts as `Lazy`.
        labels: [n] int32, an index into `classes`; or [n, classes] of 0 and 1, several classes a row; or [n] or
            [n, values] float32, numbers to predict; or [n, words, 3] or [n, answers, 2] int32, of parts of texts: see
            `data.marks`; or [n, 0], no labels.
        classes: One name per class, or per value if the values have names; else empty.
        pool: [p] row numbers that training and validation may use.
        test: [t] row numbers for the final report only.
        kind: "image" or "text".
        note: Sentences that a report must repeat, as on where the test rows come from; may be empty.
        captions: A list of texts for each row, indexed like `inputs`; None if the rows have no captions.
        metric: The metric in which results on these data are published, if it is not accuracy; else "".
        damaged: By row of the pool, what is wrong with its label, in a line; the label is `marks.LEFT_OUT`.
        parts: Of a mixture, for each dataset in it its weight and the row after its last one; else empty.
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
    damaged: Mapping[int, str] = field(default_factory=dict)
    parts: tuple[tuple[float, int], ...] = ()

    @property
    def targets(self) -> str:
        """What the labels are, as the function `targets` says it."""
        return targets(self.labels)

    @property
    def outputs(self) -> int:
        """How many numbers predict the labels of a row, as the function `outputs` counts them."""
        return outputs(self.labels, self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """The digest that the function `fingerprint` returns, computed once."""
        digest = hashlib.sha256(repr(self.classes).encode())
        lazy = isinstance(self.inputs, Lazy)
        if lazy:
            digest.update(self.inputs.identity.encode("utf-8", "surrogateescape"))
        for array in (*(() if lazy else (self.inputs,)), self.labels, self.pool, self.test):
            _update(digest, array)
        if self.parts:
            digest.update(repr(self.parts).encode())
        contents = self.inputs.contents if lazy else ""
        return ".".join(filter(None, (digest.hexdigest()[:16], contents)))

    @cached_property
    def fingerprint_of_inputs(self) -> str:
        """The digest that the function `fingerprint_of_inputs` returns, computed once."""
        inputs, digest = self.inputs, hashlib.sha256()
        if isinstance(inputs, Lazy):
            own = inputs.of_inputs or f"{inputs.identity}\n{inputs.contents}"
            digest.update(f"{inputs.count}\n{own}".encode("utf-8", "surrogateescape"))
        else:
            _update(digest, inputs)
        return digest.hexdigest()[:16]


def unlabelled(count: int) -> np.ndarray:
    """The labels of `count` inputs that have none, `[count, 0]`."""
    return np.zeros((count, 0), np.int8)


def targets(labels: np.ndarray) -> str:
    """What labels are: one of the names in `FOUND`, or "" for none.

    Args:
        labels: As those of a `Dataset`.
    """
    if labels.dtype.kind == "f":
        return "values"
    if labels.ndim == 3:
        return "spans" if labels.shape[2] == 2 else "tags"
    return "classes" if labels.ndim == 1 else "labels" if labels.shape[1] else ""


def outputs(labels: np.ndarray, classes: Sequence[str]) -> int:
    """How many numbers predict the labels of a row, or of a token: one for each class or value; 0 without labels."""
    return len(classes) or (1 if labels.ndim == 1 else labels.shape[1])


def wrong_labels(labels: Any, rows: int, classes: Sequence[str]) -> str:
    """What does not fit in the labels of so many rows, in words; empty where all does.

    Args:
        labels: As those of a `Dataset`, or whatever a user gives in their place.
        rows: How many inputs there are.
        classes: One name per class.
    """
    if not isinstance(labels, np.ndarray) or labels.ndim not in (1, 2, 3) or labels.dtype.kind not in "iuf":
        return f"labels {kinds.shown(labels)}; expected an array [n] or [n, k] of whole numbers or floats"
    if len(labels) != rows:
        return f"{rows} inputs and {len(labels)} labels; expected as many"
    if targets(labels) == "classes" and rows and not 0 <= labels.min() <= labels.max() < len(classes):
        return f"labels from {labels.min()} to {labels.max()}; expected 0..{len(classes) - 1}, of its classes"
    return marks.wrong(labels, classes) if labels.ndim == 3 else ""


FOUND = {
    "classes": "one class a row",
    "labels": "several labels a row",
    "values": "numbers as labels",
    "texts": "texts",
    "pairs": "images with captions",
    "tags": "a class for every word",
    "spans": "answers in texts",
    "": "no labels",
}
"""In words, what `targets` gives and what `reads` may ask for."""


def check_targets(data: Any, reads: Sequence[str]) -> None:
    """Refuse data that have nothing of what `reads` asks for.

    Args:
        data: A `Dataset`, a `Stream`, or anything else with `name`, `kind` and `targets`.
        reads: As in `Context`.

    Raises:
        InputError: the error names what the data have and what is expected.
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
"""How the names of the threads begin in which `each` calls."""


@cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix=THREADS)


def each(call: Callable, *items: Iterable) -> list:
    """`list(map(call, *items))` in as many threads as this process has cores; decoding and resizing release the GIL.

    Within such a call, and on a single core, `each` works in the thread that it is called in.
    """
    # A call of `each` itself would wait for its own end; threads on one core only take it from each other.
    if threading.current_thread().name.startswith(THREADS) or _cores() == 1:
        return list(map(call, *items))
    return list(_threads().map(call, *items))


def refused(call: Callable, rows: Iterable[int], *items: Iterable) -> dict[int, str]:
    """By row, the message of the `InputError` that a call raises for it; `each` makes the calls.

    Args:
        call: Takes a row and what each of `items` has for it.
        rows: Row numbers.
        *items: As long as `rows`.
    """

    def said(*own):
        try:
            call(*own)
        except InputError as error:
            return str(error)

    rows = [int(row) for row in rows]
    return {row: line for row, line in zip(rows, each(said, rows, *items), strict=True) if line}


def blocks(array: Any) -> Iterator[np.ndarray]:
    """All rows of an array or of `Images`, in contiguous arrays of at most `BLOCK` values, or of one larger row."""
    step = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step])


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over arrays, dtypes, shapes, classes and splits; names and captions do not count.

    Of `Lazy` inputs it covers the `identity`; their `contents` follow after a dot, if there are any. Earlier versions
    wrote the part before the dot alone: see `workdir.same_data`.
    """
    return dataset.fingerprint


def fingerprint_of_inputs(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over the inputs alone, on which features depend: labels and splits do not count."""
    return dataset.fingerprint_of_inputs
