"""Batches for training, by the number of the step: a run that starts again at step n sees what it would have seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jtransfer.data import sources
from jtransfer.data.subsets import epochs
from jtransfer.errors import InputError, nearest

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Stream:
    """A source of training batches and the examples held out from it.

    Attributes:
        name: As the config writes it.
        classes: One name per class.
        input_shape: `[height, width, channels]` of one input.
        batches: From a step on, the batches `{"inputs": [n, ...], "labels": [n]}` of this process: its share of each.
        held_out: What evaluation is called in the metrics, and its inputs and labels.
        fingerprint: Of the data.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    batches: Callable[[int], Iterator[Batch]]
    held_out: tuple[str, np.ndarray, np.ndarray]
    fingerprint: str


def open_stream(name: str, batch: int, seed: int, process: int = 0, processes: int = 1) -> Stream:
    """Open a source of batches of `batch` examples, of which process `process` gets every `processes`-th part.

    The examples of a batch do not depend on the number of processes.

    Raises:
        InputError: an unknown name, or a batch that the processes do not divide.
    """
    if batch % processes:
        raise InputError(f"config.batch {batch} is not a multiple of the {processes} processes")
    share = slice(process * batch // processes, (process + 1) * batch // processes)
    if name in SOURCES:
        return SOURCES[name](name, batch, share, seed)
    try:
        dataset = sources.load(name)
    except InputError:
        if ":" in name or name in sources.EMBEDDED:
            raise
        raise InputError(
            f"dataset '{name}' is unknown; {nearest(name, [*SOURCES, *sources.EMBEDDED, 'npz:FILE'])}"
        ) from None

    def from_step(step):
        for rows in epochs(dataset.pool, batch, seed, step):
            yield {"inputs": dataset.images[rows[share]], "labels": dataset.labels[rows[share]]}

    held_out = ("test", dataset.images[dataset.test], dataset.labels[dataset.test])
    fingerprint = sources.fingerprint(dataset)
    return Stream(name, dataset.classes, dataset.images.shape[1:], from_step, held_out, fingerprint)


def _glyphs(name: str, batch: int, share: slice, seed: int) -> Stream:
    import hashlib

    import jax

    from jtransfer.data import glyphs

    train, validation = glyphs.bases("train"), glyphs.bases("validation")
    images, labels = glyphs.examples(validation, jax.random.key(0), np.arange(2048))

    def from_step(step):
        bases = jax.device_put(train)
        while True:
            images, labels = glyphs.examples(bases, jax.random.key(seed), np.arange(batch)[share] + step * batch)
            yield {"inputs": images, "labels": labels}
            step += 1

    held_out = ("validation", np.asarray(images), np.asarray(labels))
    fingerprint = hashlib.sha256(np.asarray(train)).hexdigest()[:16]
    return Stream(name, glyphs.CLASSES, images.shape[1:], from_step, held_out, fingerprint)


SOURCES = {"glyphs": _glyphs}
