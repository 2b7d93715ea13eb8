"""Pipelines of Grain as streams, for a reader of one's own: see docs/data.md.

def pets(directory, context):
    train = grain.MapDataset.source(Files(directory)).shuffle(seed=context.seed).random_map(Blur())
    return grains.stream(context, train, grain.MapDataset.source(Files(f"{directory}/test")), ("cat", "dog"))
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from jtransfer import kinds
from jtransfer.data.augment import Augmented
from jtransfer.data.dataset import Context, Lazy, each
from jtransfer.data.streams import Cursor, HostBatch, Stream, counted
from jtransfer.errors import InputError

SAMPLED = 64
"""Elements, evenly spaced, of which every byte counts in the fingerprint."""


def stream(context: Context, train: Any, test: Any, classes: Sequence[str] = (), identity: str = "") -> Stream:
    """A stream of a pipeline whose elements are `{"inputs": a uint8 image or a text, "labels": as of a row}`.

    Of a `MapDataset` every index is read in turn, and what comes after the last is the next epoch, as Grain has it:
    after `shuffle` in another order. The cursor is the number of the step. Of an `IterDataset` the cursor is the state
    of its iterator, and every process reads all elements and keeps its share.

    Args:
        context: That the reader was given.
        train: A `grain.MapDataset` or a `grain.IterDataset` of single elements, which is not split by process.
        test: A `grain.MapDataset`, held out. Its labels are read here.
        classes: One name per class, or per value if the values have names.
        identity: A text that is hashed into the fingerprint, beside labels, `SAMPLED` elements and their number.

    Raises:
        InputError: no such pipelines or elements, or `config.augment` for texts or an `IterDataset`.
    """
    import grain

    name = context.name
    if not isinstance(train, grain.MapDataset | grain.IterDataset) or not isinstance(test, grain.MapDataset):
        what = f"{type(train).__name__} and {type(test).__name__}"
        raise InputError(
            f"{name}: pipelines are {what}; expected a MapDataset or IterDataset, and a MapDataset to test"
        )
    by_row = isinstance(train, grain.MapDataset)
    kind = "text" if isinstance(_element(name, test, 0)["inputs"], str) else "image"
    if context.augment and not (by_row and kind == "image"):
        raise InputError(f"config.augment is of images by number, which {name} has not; let the pipeline augment")
    labels = _batch(name, _read(name, test, np.arange(len(test))))["labels"]
    inputs = Lazy(len(test), partial(_inputs, name, test), identity)
    digest = hashlib.sha256(repr((tuple(classes), len(test), len(train) if by_row else "", identity)).encode())
    digest.update(np.ascontiguousarray(labels))
    for source in (test, *((train,) if by_row else ())):
        for element in _read(name, source, np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).astype(int)):
            own = element["inputs"]
            digest.update(own.encode() if isinstance(own, str) else np.ascontiguousarray(own))
    at = partial(_at, context, train) if by_row else None
    batches = partial(counted, at) if at else partial(_after, context, train)
    held_out, fingerprint = ("test", inputs, labels), digest.hexdigest()[:16]
    return Stream(name, tuple(classes), kind, inputs, batches, held_out, fingerprint, at=at)


def _at(context: Context, train: Any, step: int) -> HostBatch:
    positions = step * context.batch + np.arange(context.batch)[context.share]
    batch = _batch(context.name, _read(context.name, train, positions))
    if context.augment:
        own = Lazy(len(positions), partial(_some, batch["inputs"]), "")
        batch["inputs"] = Augmented(own, context.augment, context.seed, positions)
    return batch


def _after(context: Context, train: Any, cursor: Cursor) -> Iterator[tuple[HostBatch, Cursor]]:
    items, own = iter(train), np.arange(context.batch)[context.share]
    try:
        if cursor:
            items.set_state(cursor)
        while len(some := list(islice(items, context.batch))) == context.batch:
            yield _batch(context.name, [_checked(context.name, some[i]) for i in own]), items.get_state()
    finally:
        items.close()


def _batch(name: str, elements: list[dict[str, Any]]) -> HostBatch:
    labels = np.array([element["labels"] for element in elements])
    if labels.dtype.kind not in "iuf":
        raise InputError(f"{name}: labels are {kinds.shown(elements[0]['labels'])}; expected numbers")
    labels = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32)
    return {"inputs": [element["inputs"] for element in elements], "labels": labels}


def _read(name: str, source: Any, rows: np.ndarray) -> list[dict[str, Any]]:
    return each(partial(_element, name, source), rows.tolist())


def _inputs(name: str, source: Any, rows: np.ndarray) -> list:
    return [element["inputs"] for element in _read(name, source, rows)]


def _element(name: str, source: Any, index: int) -> dict[str, Any]:
    return _checked(name, source[index], f" {index}")


def _checked(name: str, element: Any, which: str = "") -> dict[str, Any]:
    if not isinstance(element, dict) or not element.keys() >= {"inputs", "labels"}:
        found = ", ".join(map(repr, element)) if isinstance(element, dict) else kinds.shown(element)
        why = ", as filter leaves them: filter the source" if element is None else ""
        raise InputError(f"{name}: element{which} is {found}; expected a dict with 'inputs' and 'labels'{why}")
    own = element["inputs"]
    if not isinstance(own, str) and getattr(own, "dtype", None) != np.uint8:
        raise InputError(f"{name}: element{which} has {kinds.shown(own)} as inputs; expected uint8 pixels or a text")
    return element


def _some(values: list, rows: np.ndarray) -> list:
    return [values[row] for row in rows]
