"""A column of labels becomes classes, several classes a row, or numbers, as its values and what is asked for tell."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jtransfer import kinds
from jtransfer.data.dataset import CLASSES, Context, unlabelled
from jtransfer.data.joined import Tables
from jtransfer.data.labels import distinct, numbers, several
from jtransfer.errors import InputError

WHOLE, NUMBER = re.compile(r"0|-?[1-9]\d{0,17}"), re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
"""Texts that stand for whole numbers, and for any: `007` is a name, and so is what has too many digits for 64 bits."""


def first_labelled(label: str, ways: Sequence[str], splits: Mapping) -> tuple[str, Tables | None]:
    """The first of some splits whose labels are not hidden (-1 in every row, as in GLUE), or the last; "" for none.

    Args:
        label: The column; "" for none.
        ways: Names of splits.
        splits: By name, what opens the tables of a split.
    """
    tested, rows = "", None
    for tested in ways:
        rows = Tables(splits[tested]())
        has_names = label in rows.tables[0].classes and label in rows.tables[0].sample
        if not (has_names and all(value in (-1, None, [-1]) for value in rows.read(label, np.arange(rows.count)))):
            break
    return tested, rows


def labelled(
    context: Context, label: str, parts: Sequence[Tables], keys: Sequence[str], damaged: dict[int, str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of classes, and the labels of all rows as a `Dataset` has them.

    Rows with lists have several labels: floats, as many in each row, are numbers to predict; others are classes, of
    which a row with an empty list has none.

    Args:
        context: With what is asked of the data.
        label: The column; "" for none.
        parts: The rows for training, and perhaps those for testing.
        keys: What the labels of each part are called, for errors.
        damaged: As `labels.distinct` takes it.

    Raises:
        InputError: a label is missing, or is none of the classes or no number.
    """
    count, where = sum(part.count for part in parts), parts[0].tables[0].where
    if not label:
        pairs = "pairs" in context.reads
        return (("",), np.zeros(count, np.int8)) if pairs else ((), unlabelled(count))
    names, found = parts[0].tables[0].classes.get(label, ()), [own.read(label, np.arange(own.count)) for own in parts]
    asked = "values" in context.reads and not {*CLASSES} & {*context.reads}
    if isinstance(found[0][0], list):
        _check_lists(label, parts, found)
        if asked or any(isinstance(one, float) for own in found for row in own for one in row):
            width = len(found[0][0])
            splits = [_vectors(label, part, own, width) for part, own in zip(parts, found, strict=True)]
            classes, labels = numbers(where, (), splits, keys)
        else:
            classes, labels = several(where, names, found, keys, damaged)
        return classes, np.concatenate(labels)
    splits = _values(label, parts, found)
    if asked or any(own.dtype.kind == "f" for own in splits):
        if any(own.dtype.kind == "U" for own in splits):
            raise InputError(f"{where}: '{label}' holds {kinds.shown(splits[0][0])}; expected numbers")
        classes, labels = numbers(where, (), [own.astype(np.float32) for own in splits], keys)
    else:
        classes, labels = distinct(where, names, splits, keys, damaged)
    return classes, np.concatenate(labels)


def _check_lists(label: str, parts: Sequence[Tables], found: list[list]) -> None:
    """Refuse a row whose labels are not a list of whole numbers, floats or texts."""
    for part, own in zip(parts, found, strict=True):
        for row, value in enumerate(own):
            if not isinstance(value, list):
                raise InputError(
                    f"{part.at(row)}: '{label}' is {kinds.shown(value)}; expected a list, empty for a row of no class"
                )
            if wrong := [one for one in value if not isinstance(one, str | int | float)]:
                raise InputError(
                    f"{part.at(row)}: '{label}' holds {kinds.shown(wrong[0])}; expected classes or numbers"
                )


def _vectors(label: str, part: Tables, found: list[list], width: int) -> np.ndarray:
    """Numbers [n, width] float32."""
    for row, own in enumerate(found):
        if len(own) != width or any(isinstance(one, str) for one in own):
            raise InputError(f"{part.at(row)}: '{label}' is {kinds.shown(own)}; expected {width} numbers in each row")
    return np.array(found, np.float32)


def _values(label: str, parts: Sequence[Tables], found: list[list]) -> list[np.ndarray]:
    """The values of a column, one array for each part: whole numbers, floats or texts, of one kind in all parts."""
    for part, own in zip(parts, found, strict=True):
        for row, value in enumerate(own):
            if value is None or (isinstance(value, str) and not value.strip()):
                raise InputError(f"{part.at(row)}: '{label}' is blank; leave out rows without a label")
            if not isinstance(value, str | int | float):
                raise InputError(f"{part.at(row)}: '{label}' is {kinds.shown(value)}; expected a class or a number")
            if isinstance(value, str) != isinstance(found[0][0], str):
                expected = "a text" if isinstance(found[0][0], str) else "a number"
                raise InputError(f"{part.at(row)}: '{label}' is {kinds.shown(value)}; expected {expected} as before")
    if not isinstance(found[0][0], str):
        return [np.array(own) for own in found]
    texts = [value for own in found for value in own]
    if all(map(WHOLE.fullmatch, texts)):
        return [np.array([int(value) for value in own]) for own in found]
    if all(map(NUMBER.fullmatch, texts)) and re.search("[.eE]", " ".join(texts)):
        return [np.array([float(value) for value in own]) for own in found]
    return [np.array(own) for own in found]
