"""Batches for training, each with a cursor: a run that starts again at one sees what it would have seen after it."""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from jtransfer import kinds
from jtransfer.data.damage import left_out
from jtransfer.data.dataset import (
    FOUND,
    Context,
    Dataset,
    Lazy,
    fingerprint,
    outputs,
    targets,
    wrong_labels,
)
from jtransfer.data.mixtures import order
from jtransfer.errors import InputError

HostBatch = dict[str, Any]

Cursor = Any
"""A place between two batches, the same for all processes: a few numbers and texts as JSON has them. 0 is the start."""

At = Callable[[int], HostBatch]
"""From the number of a step, counted from 0, to its batch."""

LONGEST_CURSOR = 10_000
"""Characters of a cursor as JSON: it is kept in every checkpoint."""


@dataclass(frozen=True)
class Stream:
    """A source of training batches and the examples held out from it; docs/data.md says what it promises.

    Attributes:
        name: As the config writes it.
        classes: One name per class, or per value if the values have names; else empty.
        kind: Of the inputs, "image" or "text".
        inputs: Inputs that are known beforehand, indexed by row numbers as in `Dataset`; the model's image size and the
            longest text are taken from these.
        batches: From a cursor to the batches that come after it, each with the cursor after it: `{"inputs": n inputs
            indexed by rows, "labels": [n] or as in Dataset}`, this process's share of each.
        held_out: The prefix of the metrics of evaluation, as "test", with its inputs (indexed by rows) and labels.
        fingerprint: Digest of the data.
        metric: The metric in which results on these data are published, if it is not accuracy; else "".
        pool: Inputs (indexed by rows) and labels of all examples that are trained on, for methods that are solved on
            all of them; None if the examples have no end.
        rows: Those rows of `inputs` that batches are made of: their inputs are then `Rows` of `inputs`, and the same
            whenever a row comes. None if inputs are made anew.
        at: From the number of a step, counted from 0, to its batch, where the cursor is that number. Worker processes
            call copies of it, so that it computes nothing by JAX. None if batches are made in their order alone.
        damaged: How many rows were left out, as they are damaged.
        vocabulary: A `words.Vocabulary` that was made of these data; None where the backbone has its own.
    """

    parts: ClassVar[tuple[str, ...]] = ("inputs", "labels")

    name: str
    classes: tuple[str, ...]
    kind: str
    inputs: Any
    batches: Callable[[Cursor], Iterator[tuple[HostBatch, Cursor]]]
    held_out: tuple[str, Any, np.ndarray]
    fingerprint: str
    metric: str = ""
    pool: tuple[Any, np.ndarray] | None = None
    rows: np.ndarray | None = None
    at: At | None = None
    damaged: int = 0
    vocabulary: Any = None

    @property
    def targets(self) -> str:
        """What the labels are, as `dataset.targets` says it."""
        return targets(self.held_out[2])

    @property
    def outputs(self) -> int:
        """How many numbers predict the labels of a row, as `dataset.outputs` counts them."""
        return outputs(self.held_out[2], self.classes)

    def wrong(self, batch: HostBatch) -> str:
        """What the labels of a batch are that those held out are not, in words; empty where they fit."""
        labels = np.asarray(batch["labels"])
        if wrong := wrong_labels(labels, len(labels), self.classes):
            return wrong
        if (found := targets(labels)) != self.targets or labels.shape[1:] != self.held_out[2].shape[1:]:
            return f"{FOUND[found]} {list(labels.shape)}; expected {FOUND[self.targets]} as in what it holds out"
        return ""


@dataclass(frozen=True)
class Joined:
    """The streams of several tasks as one: each batch has one of each task, and the cursor is theirs by name.

        {"digits/inputs": ..., "digits/labels": ..., "fonts/inputs": ..., "fonts/labels": ...}

    Attributes:
        streams: By the name of the task; all of one kind.
        count: Examples of each batch of each task that this process reads.
    """

    streams: Mapping[str, Stream]
    count: int = 0

    @property
    def name(self) -> str:
        """The names of all streams."""
        return " + ".join(stream.name for stream in self.streams.values())

    @property
    def kind(self) -> str:
        """Of the inputs of all streams, "image" or "text"."""
        return next(iter(self.streams.values())).kind

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all streams."""
        return " + ".join(stream.fingerprint for stream in self.streams.values())

    @property
    def at(self) -> At | None:
        """The batch of a step, as of a `Stream`; None where a stream has none."""
        each = {name: stream.at for name, stream in self.streams.items()}
        return partial(_joined, each) if all(each.values()) else None

    @property
    def damaged(self) -> int:
        """How many rows of all streams were left out."""
        return sum(stream.damaged for stream in self.streams.values())

    def batches(self, cursor: Cursor) -> Iterator[tuple[HostBatch, Cursor]]:
        """The batches after a cursor, as of a `Stream`, each checked as `taken` does.

        Raises:
            InputError: as `taken`, naming the data of the task.
        """
        starts = cursor or dict.fromkeys(self.streams, 0)
        each = {
            name: taken(stream, self.count, starts[name], f"config.tasks.{name}.data")
            for name, stream in self.streams.items()
        }
        for items in zip(*each.values(), strict=False):
            found = dict(zip(each, items, strict=True))
            batch = _named({name: own for name, (own, _) in found.items()})
            yield batch, {name: after for name, (_, after) in found.items()}


def _joined(each, step):
    return _named({name: at(step) for name, at in each.items()})


def _named(batches):
    return {f"{name}/{key}": x for name, own in batches.items() for key, x in own.items()}


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of inputs, numbered from 0; a row is read when it is asked for.

    Attributes:
        inputs: Indexed by row numbers.
        rows: [r] row numbers in `inputs`.
    """

    inputs: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.inputs[self.rows[index]]

    def files(self, index: Any) -> list[tuple[bytes, str]] | None:
        """Image files of some rows, as of a `Lazy`; None where the inputs are no image files."""
        own = getattr(self.inputs, "files", None)
        return own(np.atleast_1d(self.rows[index])) if own else None


def ahead(items: Iterator, count: int = 2) -> Iterator:
    """Yield items in their order, while a thread makes the next `count` of them; a generator of items is closed too."""
    end, pool = object(), ThreadPoolExecutor(1)
    try:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()


def of_dataset(dataset: Dataset, context: Context) -> Stream:
    """The pool of a dataset in shuffled epochs, and its test rows. The cursor is the number of the step.

    Raises:
        InputError: more damaged rows than may be left out, or texts that are to be augmented.
    """
    dataset, lost = left_out(dataset, context.damaged)
    if context.augment and dataset.kind != "image":
        raise InputError(f"config.augment is of images, {dataset.name} holds {dataset.kind}s; leave it out")
    at = partial(_batch, dataset.inputs, dataset.labels, order(dataset, context.batch, context.seed), context)

    held_out = ("test", Rows(dataset.inputs, dataset.test), dataset.labels[dataset.test])
    about = {"fingerprint": fingerprint(dataset), "metric": dataset.metric}
    about |= {"rows": None if context.augment else dataset.pool, "damaged": lost}
    about |= {"pool": (Rows(dataset.inputs, dataset.pool), dataset.labels[dataset.pool])}
    about |= {"at": at}
    return Stream(dataset.name, dataset.classes, dataset.kind, dataset.inputs, partial(counted, at), held_out, **about)


def _batch(inputs, labels, rows, context, step):
    """The share of the batch of a step; `rows` gives the rows of a step."""
    own = rows(step)[context.share]
    found: Any = Rows(inputs, own)
    if context.augment:
        from jtransfer.data.augment import Augmented

        positions = step * context.batch + np.arange(context.batch)[context.share]
        found = Augmented(found, context.augment, context.seed, positions)
    return {"inputs": found, "labels": labels[own]}


def counted(at: At, step: int) -> Iterator[tuple[HostBatch, int]]:
    """The batches of a step and of those after it, each with the number of the step that follows."""
    while True:
        yield at(step), (step := step + 1)


def rearranged(
    stream: Stream,
    at: At,
    held_out: tuple[str, Any, np.ndarray],
    pool: tuple[Any, np.ndarray] | None = None,
) -> Stream:
    """A stream of the same examples whose batches are put together otherwise, by the number of the step.

    Args:
        stream: The examples.
        at: Gives the batch of a step.
        held_out: As of `Stream`.
        pool: As of `Stream`.
    """
    return replace(stream, batches=partial(counted, at), at=at, held_out=held_out, rows=None, pool=pool)


class Ended(InputError):
    """A stream has no more batches. The text names the key of the config and the data."""


def taken(stream: Any, count: int, cursor: Cursor, key: str = "config.data") -> Iterator[tuple[HostBatch, Cursor]]:
    """The batches of a stream after a cursor, each with the cursor after it and checked for what a stream promises.

    Args:
        stream: A `Stream`, a `PairStream` or `Joined` ones.
        count: Examples of each batch that this process reads.
        cursor: 0, or a cursor that the stream gave.
        key: That names the data, for errors.

    Raises:
        Ended: there are no more.
        InputError: the stream gave something else than a batch and a cursor, a batch of another length or form, or a
            cursor that JSON does not give back as it is or that has more than `LONGEST_CURSOR` characters.
    """
    if isinstance(stream, Joined):  # which takes each of its own
        yield from stream.batches(cursor)
        return
    where = f"{key}: {stream.name}"
    for item in stream.batches(cursor):
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping)):
            what = type(item).__name__
            raise InputError(f"{where} gave a {what}; expected pairs of a batch (by name) and the cursor after it")
        batch, after = item
        batch = checked(stream, batch, count, where)
        try:
            same = json.loads(written := json.dumps(after, allow_nan=False)) == after and len(written) <= LONGEST_CURSOR
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise InputError(
                f"{where} gave the cursor {kinds.shown(after)}; expected a few numbers and texts, in lists and in "
                "dicts by texts, as JSON has them"
            )
        yield batch, after
    raise Ended(where)


def checked(stream: Any, batch: Any, count: int, where: str) -> HostBatch:
    """A batch of a stream, whose inputs are by rows where they came in a list.

    Args:
        stream: A `Stream` or a `PairStream`.
        batch: What it gave.
        count: Examples of each batch that this process reads.
        where: The data, for errors.

    Raises:
        InputError: it is no batch, or of another length or form than the stream promises.
    """
    if not isinstance(batch, Mapping) or not batch.keys() >= set(stream.parts):
        found = (", ".join(map(kinds.shown, batch)) or "nothing") if isinstance(batch, Mapping) else kinds.shown(batch)
        raise InputError(f"{where} gave a batch of {found}; expected {' and '.join(map(repr, stream.parts))}")
    for name, values in batch.items():
        if len(values) != count:
            raise InputError(f"{where} gave a batch with {len(values)} {name}; expected {count} in every batch")
    if wrong := stream.wrong(batch):
        raise InputError(f"{where} gave a batch with {wrong}")
    inputs = stream.parts[0]
    if isinstance(batch[inputs], list | tuple):
        return {**batch, inputs: Lazy(count, partial(_some, batch[inputs]), "")}
    return dict(batch)


def _some(values, rows):
    return [values[row] for row in rows]


def ended(error: Ended, steps: int, of: int) -> str:
    """The error for a stream that ends after `steps` of the `of` batches that a run takes, up to the last semicolon."""
    way = f"set config.steps to {steps}, or let it begin again" if steps else "expected one at least"
    return f"{error} ended after {steps} of {of} batches; {way}; "


def glyphs(rest: str, context: Context, first: int = 0) -> Stream:
    """Warped characters of fonts, of the classes from `first` on; the cursor is the number of the step.

    Held out are 2048 characters of the validation fonts.

    Args:
        rest: Not read.
        context: With batch, seed and share.
        first: The first class, an index into `glyphs.CLASSES`; it has the label 0.
    """
    import hashlib

    import jax

    from jtransfer.data import glyphs

    if context.augment:
        raise InputError(f"config.augment: {context.name} warps each character anew by itself; leave it out")
    train, validation = glyphs.bases("train"), glyphs.bases("validation")
    classes = np.arange(first, len(glyphs.CLASSES))
    images, labels = glyphs.examples(validation, jax.random.key(0), np.arange(2048), classes)

    def after(step):
        bases = jax.device_put(train)
        while True:
            rows = np.arange(context.batch)[context.share] + step * context.batch
            images, labels = glyphs.examples(bases, jax.random.key(context.seed), rows, classes)
            step += 1
            yield {"inputs": np.asarray(images), "labels": labels - first}, step

    images = np.asarray(images)
    held_out = ("validation", images, np.asarray(labels) - first)
    fingerprint = hashlib.sha256(np.ascontiguousarray(train[:, first:])).hexdigest()[:16]
    return Stream(context.name, glyphs.CLASSES[first:], "image", images, after, held_out, fingerprint)
