"""A reader of the user's: what it returns is checked at once, and what its code raises later is one line too."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from jtransfer import expressions, imports, kinds
from jtransfer.data.dataset import Context, Dataset, Lazy, wrong_labels
from jtransfer.data.pairs import Crops, HeldOut, PairStream
from jtransfer.data.streams import Cursor, HostBatch, Rows, Stream, checked
from jtransfer.errors import InputError

Data = Dataset | Stream | PairStream
INNER = {Rows: ("inputs",), Crops: ("images",), HeldOut: ("images",)}
"""Of types that hold inputs by rows, the attributes that do."""


def read(text: str, rest: str, module: str, context: Context) -> Data:
    """What the reader of a text returns.

    Args:
        text: As the config writes it, with its options.
        rest: What follows the colon.
        module: That the text names.
        context: See `Context`.

    Raises:
        InputError: a reader that is not there, that raises, or that returns what docs/data.md does not allow.
    """
    made = expressions.call(expressions.parse(text, "reader"), text, "reader", {}, given=2, kind=Data)
    found = made(rest, context)
    label = f"reader {kinds.shown(text)}"
    blaming = partial(imports.blaming, f"{label}: file", imports.files(module, label))
    with blaming():
        wrong = WRONG[type(found)](found)
    if wrong:
        raise InputError(f"{label} returned a {type(found).__name__} {wrong}")
    if isinstance(found, Dataset):
        return _blamed(found, blaming, ("inputs", "captions"))

    def after(cursor: Cursor) -> Iterator[Any]:
        with blaming():
            items = iter(found.batches(cursor))
        while True:
            with blaming():
                item = next(items, after)
            if item is after:
                return
            yield _blamed(item, blaming)

    def at(step: int) -> HostBatch:
        item = _blamed(_within(blaming, found.at, step), blaming)
        return checked(found, item, len(np.arange(context.batch)[context.share]), f"config.data: {found.name}")

    parts = ("images", "held_out") if isinstance(found, PairStream) else ("inputs", "held_out", "pool")
    return replace(_blamed(found, blaming, parts), batches=after, at=at if found.at else None)


def _blamed(value: Any, blaming: Callable, names: Sequence[str] = ()) -> Any:
    """A value in which rows are read as `blaming` says, wherever it holds any, among others in these attributes."""
    if isinstance(value, Lazy):
        calls = {name: call for name in ("read", "damaged", "files") if (call := getattr(value, name))}
        return replace(value, **{name: partial(_within, blaming, call) for name, call in calls.items()})
    if type(value) is tuple:
        return tuple(_blamed(one, blaming) for one in value)
    if type(value) is dict:
        return {name: _blamed(one, blaming) for name, one in value.items()}
    names = names or INNER.get(type(value), ())
    return replace(value, **{name: _blamed(getattr(value, name), blaming) for name in names}) if names else value


def _within(blaming: Callable, call: Callable, *args: Any) -> Any:
    with blaming():
        return call(*args)


def _dataset(dataset: Dataset) -> str:
    """What does not fit in a dataset, in words; empty where all does. Of a stream `_stream` and `_pairs` tell it."""
    if wrong := _examples("", dataset.inputs, dataset.labels, dataset.classes) or _kind(dataset):
        return wrong
    rows, both = len(dataset.inputs), [np.asarray(part) for part in (dataset.pool, dataset.test)]
    if any(part.ndim != 1 or part.dtype.kind not in "iu" for part in both) or not len(both[0]):
        return "with a pool or test that is no array of row numbers; expected some in the pool"
    if outside := [int(row) for part in both for row in part[(part < 0) | (part >= rows)]]:
        return f"with row {outside[0]} in its pool or test; expected 0..{rows - 1}"
    if len(shared := np.intersect1d(*both)):
        return f"with row {shared[0]} in both pool and test; what is tested on is never trained on"
    return ""


def _stream(stream: Stream) -> str:
    held_out, pool = stream.held_out, ("", *(stream.pool or ())) if isinstance(stream.pool, tuple) else stream.pool
    for name, part, form in (("held_out", held_out, "name, inputs"), ("pool", pool, "inputs")):
        if part is None and name == "pool":
            continue
        if not (isinstance(part, tuple) and len(part) == 3 and isinstance(part[0], str)):
            return f"whose {name} is no tuple ({form}, array of labels)"
        if wrong := _examples(name, *part[1:], stream.classes):
            return wrong
    return _kind(stream) or _known("inputs", stream)


def _pairs(stream: PairStream) -> str:
    own = stream.held_out
    if not isinstance(own, HeldOut):
        return f"whose held_out is {kinds.shown(own)}; expected a HeldOut"
    if len(own.names) < 2 or not all(isinstance(text, str) for text in own.names):
        return f"whose held_out has the names {kinds.shown(own.names)}; expected two texts at least"
    if not own.templates or not all(isinstance(text, str) and "{}" in text for text in own.templates):
        return f"whose held_out has the templates {kinds.shown(own.templates)}; expected texts with {{}} for a name"
    return _examples("held_out", own.images, own.labels, own.names) or _known("images", stream)


def _examples(where: str, inputs: Any, labels: Any, classes: Sequence[str]) -> str:
    """Of inputs with their labels, in a part of a stream or, with no name, in a dataset."""
    wrong = _rows(inputs) or wrong_labels(labels, len(inputs), classes)
    return (f"whose {where} has {wrong}" if where else f"with {wrong}") if wrong else ""


def _kind(found: Dataset | Stream) -> str:
    known = found.kind in ("image", "text")
    return "" if known else f"with the kind {kinds.shown(found.kind)}; expected 'image' or 'text'"


def _known(what: str, stream: Stream | PairStream) -> str:
    """Of the inputs that are known beforehand, which tell the form of all."""
    if not isinstance(stream.fingerprint, str):
        return f"with the fingerprint {kinds.shown(stream.fingerprint)}; expected a text"
    wrong = _rows(stream.inputs) or ("" if len(stream.inputs) else "none; expected one, to tell their form")
    return f"whose {what} are {wrong}" if wrong else ""


def _rows(inputs: Any) -> str:
    if isinstance(inputs, str | list | tuple | dict) or not hasattr(inputs, "__getitem__"):
        return f"{kinds.shown(inputs)}; expected an array or a Lazy, of which some rows can be asked for"
    return ""


WRONG: dict[type, Callable[[Any], str]] = {Dataset: _dataset, Stream: _stream, PairStream: _pairs}
