"""Labels as people keep them, numbers of a catalogue or names, become classes: 0..k-1, each with a name.

Or they are numbers to predict, and stay what they are.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jtransfer.errors import InputError, nearest

log = logging.getLogger("jtransfer")

KEYS = ("labels", "test_labels")

Classes = tuple[tuple[str, ...], list[np.ndarray]]
"""Names of classes, and of each split the labels by them, int32."""


def distinct(where: str, names: Sequence[str], splits: Sequence[np.ndarray]) -> Classes:
    """One class for every row.

    Labels are indices into the names that are given, or such names. Where none are given, each distinct value that the
    first split has becomes a class that is named by it, in ascending order; so 0..k-1 stay what they are.

    Args:
        where: The file, for errors.
        names: Of the classes; may be empty.
        splits: Labels [n] for training and perhaps for testing, integers of any size or texts.

    Raises:
        InputError: a label that is none of the classes, a blank or a negative one, or a single class.
    """
    if len({own.dtype.kind in "US" for own in splits}) > 1:
        raise InputError(
            f"{where}: 'labels' has dtype {splits[0].dtype} and 'test_labels' {splits[1].dtype}; expected integers in "
            f"both, or names in both"
        )
    by_name, found = splits[0].dtype.kind in "US", [np.unique(own, return_inverse=True) for own in splits]
    values = [texts(where, key, own) if by_name else own.tolist() for key, (own, _) in zip(KEYS, found, strict=False)]
    choices: Iterable = values[0] if not names else names if by_name else range(len(names))
    place = {choice: i for i, choice in enumerate(choices)}
    labels = []
    for key, own, (_, inverse) in zip(KEYS, values, found, strict=False):
        for i, value in enumerate(own):
            if value in place and not _nothing(value, place):
                continue
            row = int((inverse == i).argmax())
            said = repr(value[:80] if by_name else value)
            raise InputError(f"{where}: {key!r} row {row} is {said}; {_expected(value, own, names, place)}")
        labels.append(np.array([place[value] for value in own], np.int32)[inverse])
    if len(values[0]) < 2:
        raise InputError(f"{where}: 'labels' hold only class {values[0][0]}; at least two classes are expected")
    return tuple(names) or tuple(map(str, values[0])), labels


def columns(where: str, names: Sequence[str], splits: Sequence[np.ndarray]) -> Classes:
    """Several classes for every row: a column for each, of 0 and 1.

    Args:
        where: The file, for errors.
        names: Of the classes; numbers where it is empty.
        splits: Labels [n, classes].

    Raises:
        InputError: another number of names, or another value.
    """
    count = splits[0].shape[1]
    if names and len(names) != count:
        raise InputError(f"{where}: 'classes' has {len(names)} names for the {count} columns of 'labels'")
    for key, own in zip(KEYS, splits, strict=False):
        if (outside := (own < 0) | (own > 1)).any():
            row, value = np.argwhere(outside)[0][0], own[outside][0]
            raise InputError(f"{where}: {key!r} row {row} holds {value}; expected 0 or 1 in each column")
    if all((own.sum(axis=1) == 1).all() for own in splits):
        log.warning(
            "%s: 'labels' are read as several a row, and every row has one: for one class a row, save labels.argmax(1)",
            where,
        )
    return tuple(names) or tuple(map(str, range(count))), [own.astype(np.int32) for own in splits]


def numbers(where: str, names: Sequence[str], splits: Sequence[np.ndarray]) -> Classes:
    """Numbers that are to be predicted, one or several for every row; as many names, or none.

    Args:
        where: The file, for errors.
        names: Of the values; may be empty.
        splits: Labels [n] or [n, values], float32.

    Raises:
        InputError: another number of names, or a value that is not finite.
    """
    count = splits[0].shape[1] if splits[0].ndim > 1 else 1
    if names and len(names) != count:
        raise InputError(f"{where}: 'classes' has {len(names)} names for the {count} values of a row of 'labels'")
    for key, own in zip(KEYS, splits, strict=False):
        if not (finite := np.isfinite(own)).all():
            row = int(np.argwhere(~finite)[0][0])
            raise InputError(f"{where}: {key!r} row {row} holds NaN or infinite values; expected finite ones")
    return tuple(names), list(splits)


def texts(where: str, key: str, values: np.ndarray) -> tuple[str, ...]:
    """Strings or bytes as texts.

    Raises:
        InputError: bytes that are no UTF-8, or strings that can be none.
    """
    try:
        found = tuple(value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist())
        "".join(found).encode()
        return found
    except UnicodeError as error:
        held = error.object[max(0, error.start - 20) :][:40]
        raise InputError(f"{where}: {key!r} holds {held!r}, which is no UTF-8; expected texts") from None


def _nothing(value: str | int, place: Mapping) -> bool:
    """Whether a label says that a row has none: a blank, or a number below 0 unless the two classes are -1 and 1."""
    return not value.strip() if isinstance(value, str) else value < 0 and [*place] != [-1, 1]


def _expected(value: str | int, values: Sequence, names: Sequence[str], place: Mapping) -> str:
    if _nothing(value, place) and not (names and isinstance(value, int)):
        return "leave out rows without a label"
    if isinstance(value, str):
        return f"{'expected one of the classes' if names else 'no row of the others is'}; {nearest(value, place)}"
    if not names:
        return "expected a class that 'labels' have as well"
    hint = ""
    if (values[0], values[-1]) == (1, len(names)):
        hint = ": they count from 1, save labels - 1"
    elif values[0] > 0:
        hint = ": without 'classes' the numbers become the names"
    return f"expected 0..{len(names) - 1} ({len(names)} classes){hint}"
