"""Batches for training, by the number of the step: a run that starts again at step n sees what it would have seen."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data import sources
from jtransfer.data.dataset import check_whole
from jtransfer.data.subsets import epochs
from jtransfer.errors import InputError, nearest

Batch = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """A source of training batches and the examples held out from it.

    Attributes:
        name: As the config writes it.
        classes: One name per class.
        kind: Of the inputs, "image" or "text".
        inputs: Those that are known beforehand, by rows as in `sources.Dataset`: what the model is fitted to.
        batches: From a step on, the batches `{"inputs": n of them, by rows, "labels": [n]}` of this process: its share
            of each.
        held_out: What evaluation is called in the metrics, and its inputs (by rows) and labels.
        fingerprint: Of the data.
    """

    name: str
    classes: tuple[str, ...]
    kind: str
    inputs: Any
    batches: Callable[[int], Iterator[Batch]]
    held_out: tuple[str, Any, np.ndarray]
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of inputs, numbered anew; none is read before it is asked for."""

    inputs: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.inputs[self.rows[index]]


def ahead(items: Iterator, count: int = 2) -> Iterator:
    """The same items in the same order, of which a thread makes the next `count` while one is in use."""
    end, pool = object(), ThreadPoolExecutor(1)
    try:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def open_stream(
    name: str, batch: int, seed: int, share: np.ndarray | slice = slice(None), data_dir: str = ""
) -> Stream:
    """Open a source of batches of `batch` examples.

    Args:
        name: A key of `SOURCES`, or of a dataset as `sources.load` takes it.
        batch: Examples of a step, over all processes.
        seed: Of their order, and of what is drawn.
        share: Positions in each batch that this process reads, as `sharding.rows` has them; what stands at a position
            does not depend on who reads it.
        data_dir: As for `sources.load`.

    Raises:
        InputError: an unknown name, several labels a row, or damaged rows.
    """
    if name in SOURCES:
        return SOURCES[name](name, batch, share, seed)
    try:
        dataset = sources.load(name, data_dir)
    except InputError:
        if ":" in name or name in sources.EMBEDDED:
            raise
        raise InputError(
            f"dataset '{name}' is unknown; {nearest(name, [*SOURCES, *sources.EMBEDDED, *sources.forms()])}"
        ) from None
    if dataset.labels.ndim > 1:
        raise InputError(f"dataset {name} has several labels a row; expected one")
    check_whole(dataset, np.concatenate([dataset.pool, dataset.test]))

    def from_step(step):
        for rows in epochs(dataset.pool, batch, seed, step):
            yield {"inputs": Rows(dataset.inputs, rows[share]), "labels": dataset.labels[rows[share]]}

    held_out = ("test", Rows(dataset.inputs, dataset.test), dataset.labels[dataset.test])
    fingerprint = sources.fingerprint(dataset)
    return Stream(name, dataset.classes, dataset.kind, dataset.inputs, from_step, held_out, fingerprint)


def _glyphs(name: str, batch: int, share: np.ndarray | slice, seed: int, first: int = 0) -> Stream:
    """Warped characters of fonts, of the classes from `first` on."""
    import hashlib

    import jax

    from jtransfer.data import glyphs

    train, validation = glyphs.bases("train"), glyphs.bases("validation")
    classes = np.arange(first, len(glyphs.CLASSES))
    images, labels = glyphs.examples(validation, jax.random.key(0), np.arange(2048), classes)

    def from_step(step):
        bases = jax.device_put(train)
        while True:
            rows = np.arange(batch)[share] + step * batch
            images, labels = glyphs.examples(bases, jax.random.key(seed), rows, classes)
            yield {"inputs": np.asarray(images), "labels": labels - first}
            step += 1

    images = np.asarray(images)
    held_out = ("validation", images, np.asarray(labels) - first)
    fingerprint = hashlib.sha256(np.ascontiguousarray(train[:, first:])).hexdigest()[:16]
    return Stream(name, glyphs.CLASSES[first:], "image", images, from_step, held_out, fingerprint)


SOURCES = {"glyphs": _glyphs, "letters": partial(_glyphs, first=10)}
