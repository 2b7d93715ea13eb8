"""Columns of tables become a dataset: which are the inputs, the labels and the captions, and what may stand in them."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jtransfer import kinds
from jtransfer.data import encoded
from jtransfer.data.dataset import Context, Dataset, Lazy, each, refused, unlabelled
from jtransfer.data.downloads import inside, shown
from jtransfer.data.joined import Table, Tables
from jtransfer.data.labelled import NUMBER, first_labelled, labelled
from jtransfer.data.marked import tagged
from jtransfer.data.splits import hold_out
from jtransfer.errors import InputError, nearest

OPTIONS = ("input", "label", "caption", "train", "test")

LABELS = ("label", "labels", "class", "target", "cls")
CAPTIONS = ("txt", "caption", "captions", "text")
TEXTS = ("text", "content", "review", "document")
IMAGES = ("image", "img", "image_path", "file_name")
"""Names of columns that are taken without being asked for, the first that is there. What `IMAGES` names is an image."""

TESTS = ("test", "validation", "valid", "val", "dev")
"""Names of splits that test rows are taken from without being asked for, the first that is there."""


def dataset(
    context: Context, options: Mapping[str, str], splits: Mapping[str, Callable[[], list[Table]]], without: str
) -> Dataset:
    """The dataset in some tables.

    Args:
        context: With the name of the dataset, and what is asked of it.
        options: As `sources.load` describes them, `OPTIONS` or fewer.
        splits: By name, what opens the tables of a split, whose rows follow each other.
        without: What would give test rows, for errors.

    Raises:
        InputError: no such split or column; a table without rows; columns that do not agree from one table to another;
            a label that is missing or no class, or a single class; or an image that is not there.
    """
    name = context.name
    train = _chosen(name, "train", options.get("train") or ("train" if "train" in splits else ""), splits)
    pool = Tables(splits[train]())
    label = _label(name, pool.tables[0], options, context.reads)
    inputs = inputs_of(name, pool.tables[0], options, label)
    captions = _caption(name, pool.tables[0], options, inputs) if _described(options, context) else ()
    used = (*inputs, *captions, *filter(None, [label]))
    asked = _chosen(name, "test", options["test"], splits) if "test" in options else ""
    if asked == train:
        raise InputError(f"{name}: '{train}' is both train and test; what is tested on is never trained on")
    ways = [asked] if asked else [split for split in TESTS if split in splits and split != train]
    tested, held_out = first_labelled(label, ways, splits)
    rows = Tables([*pool.tables, *(held_out.tables if held_out else ())])
    if held_out and {table.digest for table in pool.tables} & {table.digest for table in held_out.tables}:
        raise InputError(f"{name}: '{train}' and '{tested}' share rows; what is tested on is never trained on")
    _check_columns(rows.tables, used)
    found = [part for part in (pool, held_out) if part is not None]
    wrong: dict[int, str] = {}
    spared = wrong if context.damaged else None
    words = kind_of(inputs[0], pool.tables[0].sample[inputs[0]]) == "texts"
    if words:
        lazy, classes, labels = tagged(found, inputs[0], label)
    else:
        classes, labels = labelled(context, label, found, [f"{label}", f"{label} of {tested}"], spared)
    if held_out is not None:
        parts = np.split(np.arange(rows.count), [pool.count])
    else:
        *parts, tested = hold_out(labels if label else unlabelled(rows.count), name, without)
        parts = [np.union1d(parts[0], [*wrong]).astype(int), np.setdiff1d(parts[1], [*wrong])] if wrong else parts
    if ways and tested != ways[0]:
        tested += f" (the labels of {ways[0]} are hidden)"
    kind = "image" if kind_of(inputs[0], pool.tables[0].sample[inputs[0]]) in ("image", "path") else "text"
    note = (
        f"{name}: inputs are {' + '.join(inputs)}, labels {label or 'none'}; few-shot sets are drawn from {train}, the "
        f"test rows are {tested}."
    )
    if not words:
        lazy = images(rows, inputs[0]) if kind == "image" else texts(rows, inputs)
    said = _captions(rows, captions, lazy.identity) if captions else None
    return Dataset(name, lazy, labels, classes, *parts, kind, note, said, damaged=wrong)


def _chosen(name: str, what: str, split: str, splits: Mapping) -> str:
    """A split that there is; the only one where none is asked for."""
    if not split and len(splits) == 1:
        return next(iter(splits))
    if split not in splits:
        raise InputError(
            f"{name}: there is no split '{split or what}'; choose with ?{what}=SPLIT; {nearest(split or what, splits)}"
        )
    return split


def kind_of(name: str, value: Any) -> str:
    """What a column holds: "number", "text", "texts", "path" or "image", or else the name of a type."""
    if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
        value = value["bytes"] if value["bytes"] is not None else str(value["path"])
        return "image" if isinstance(value, bytes) else "path"
    if isinstance(value, bytes):
        return "image"
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, str):
        is_path = name in IMAGES or value.lower().endswith(encoded.SUFFIXES)
        return "path" if is_path else "number" if NUMBER.fullmatch(value) else "text"
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return "texts"
    return type(value).__name__


def _kinds(table: Table) -> dict[str, str]:
    return {name: kind_of(name, value) for name, value in table.sample.items() if name}


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in [*found.items()][:20]) or "none"


def check_there(name: str, table: Table, columns: Sequence[str]) -> None:
    """Refuse columns that a table has not.

    Raises:
        InputError: it begins with `name`, and has the nearest column.
    """
    if unknown := [column for column in columns if column not in table.sample]:
        raise InputError(
            f"{name}: there is no column '{unknown[0]}' in {table.where}; {nearest(unknown[0], table.sample)}"
        )


def _check_columns(tables: Sequence[Table], used: Sequence[str]) -> None:
    """Refuse tables whose columns are not those of the first."""
    first, *others = tables
    for table in others:
        check_there(table.where, table, used)
        for column in used:
            one, other = (kind_of(column, own.sample[column]) for own in (first, table))
            if one != other and not {one, other} <= {"number", "text", "texts", "list"}:
                raise InputError(f"{table.where}: '{column}' holds {other}; expected {one}, as in {first.where}")


def _label(name: str, table: Table, options: Mapping[str, str], reads: Sequence[str]) -> str:
    """The column of labels; "" for none."""
    if "label" in options:
        check_there(name, table, [options["label"]] if options["label"] else [])
        return options["label"]
    if "pairs" in reads:
        return ""
    found = next((column for column in LABELS if column in table.sample), "")
    if not found and "texts" not in reads:
        raise InputError(
            f"{name}: expected a column of labels called {' or '.join(LABELS)}, there are {_listed(_kinds(table))}; "
            f"choose with ?label=COLUMN"
        )
    return found


def inputs_of(name: str, table: Table, options: Mapping[str, str], label: str) -> tuple[str, ...]:
    """The columns that are the inputs: one image, one text or two."""
    found = _kinds(table)
    if "input" in options:
        inputs = tuple(options["input"].split("+"))
        check_there(name, table, inputs)
    else:
        left = [column for column in found if column not in (label, *options.get("caption", "").split("+"))]
        images = [column for column in left if found[column] == "image"]
        images = images or [column for column in left if found[column] == "path"]
        texts = [column for column in left if found[column] == "text"]
        inputs = tuple(images or next(([column] for column in TEXTS if column in texts), texts))
    is_text = [isinstance(table.sample.get(column), str) and found[column] != "path" for column in inputs]
    alone = ("image", "path", "texts") if label else ("image", "path")  # lists of words have a tag for each
    if not (is_text in ([True], [True, True]) or (len(inputs) == 1 and found[inputs[0]] in alone)):
        raise InputError(
            f"{name}: expected one image, one text or two texts as input, there are {_listed(found)}; choose with "
            f"?input=COLUMN or ?input=COLUMN+COLUMN"
        )
    return inputs


def _described(options: Mapping[str, str], context: Context) -> bool:
    return "caption" in options or "pairs" in context.reads


def _caption(name: str, table: Table, options: Mapping[str, str], inputs: Sequence[str]) -> tuple[str, ...]:
    """The columns of texts that describe an image."""
    found = _kinds(table)
    if found[inputs[0]] not in ("image", "path"):
        raise InputError(f"{name}: captions describe images, and the input is '{inputs[0]}' ({found[inputs[0]]})")
    choice = next((column for column in CAPTIONS if column in found), "")
    columns = tuple(filter(None, options.get("caption", choice).split("+")))
    check_there(name, table, columns)
    texts = [isinstance(table.sample[column], str) or found[column] == "texts" for column in columns]
    if not columns or not all(texts):
        raise InputError(
            f"{name}: expected texts that describe the images, there are {_listed(found)}; choose with ?caption=COLUMN"
        )
    return columns


def _identity(rows: Tables, inputs: Sequence[str]) -> str:
    return "\n".join((*inputs, *(table.digest for table in rows.tables)))


def images(rows: Tables, name: str) -> Lazy:
    """Images in a column: their bytes, or paths to their files, which are all looked at for the fingerprint."""

    def content(row: int) -> bytes:
        (value,) = rows.read(name, np.array([row]))
        value = value["bytes"] if isinstance(value, Mapping) else value
        if not isinstance(value, bytes):
            raise InputError(f"{rows.at(row)}: '{name}' is {kinds.shown(value)}; expected the bytes of an image")
        return value

    table = rows.tables[0]
    if kind_of(name, table.sample[name]) == "image":
        return encoded.lazy(rows.count, content, lambda row: f"'{name}' of {rows.at(row)}", _identity(rows, [name]))

    def path(row: int, value: Any) -> str:
        value = value["path"] if isinstance(value, Mapping) else value
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{rows.at(row)}: '{name}' is {kinds.shown(value)}; expected the path of an image")
        root = rows.root(row)
        if "://" in value or ("://" in root and (value.startswith("/") or ".." in value.split("/"))):
            raise InputError(f"{rows.at(row)}: '{name}' is {shown(value)}; expected a path below {shown(root)}")
        whole = os.path.join(root, value)
        try:
            return whole if "://" in root else inside(whole, root)
        except InputError as error:
            raise InputError(f"{rows.at(row)}: '{name}': {error}") from None

    paths = each(path, range(rows.count), rows.read(name, np.arange(rows.count)))
    try:
        _, contents = encoded.identified(paths, table.root)
    except InputError as error:
        raise InputError(f"{table.where}: '{name}': {error}") from None

    def what(row: int) -> str:
        return f"{shown(paths[row])} ({rows.at(row)})"

    return encoded.lazy(rows.count, lambda row: encoded.content(paths[row]), what, _identity(rows, [name]), contents)


def texts(rows: Tables, inputs: Sequence[str]) -> Lazy:
    """Texts in a column, or pairs of texts in two."""

    def text(row: int, *own: Any) -> Any:
        for name, value in zip(inputs, own, strict=True):
            if not isinstance(value, str):
                raise InputError(f"{rows.at(row)}: '{name}' is {kinds.shown(value)}; expected a text")
        return own if len(own) > 1 else own[0]

    def columns(asked: np.ndarray) -> list[list]:
        return [rows.read(name, asked) for name in inputs]

    return Lazy(
        rows.count,
        lambda asked: list(map(text, asked.tolist(), *columns(asked))),
        _identity(rows, inputs),
        damaged=lambda asked: refused(text, asked.tolist(), *columns(asked)),
    )


def _captions(rows: Tables, columns: Sequence[str], identity: str) -> Lazy:
    """A list of texts for each row; a row without any has an empty one."""

    def texts(row: int, *own: Any) -> list[str]:
        found = [one for value in own for one in (value if isinstance(value, list) else [value])]
        if wrong := [one for one in found if one is not None and not isinstance(one, str)]:
            raise InputError(f"{rows.at(row)}: '{columns[0]}' is {kinds.shown(wrong[0])}; expected texts")
        return [one or "" for one in found] or [""]

    def read(asked: np.ndarray) -> list[list]:
        return [rows.read(name, asked) for name in columns]

    return Lazy(
        rows.count,
        lambda asked: list(map(texts, asked.tolist(), *read(asked))),
        f"{identity}\n{' + '.join(columns)}",
        damaged=lambda asked: refused(texts, asked.tolist(), *read(asked)),
    )
