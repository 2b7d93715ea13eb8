"""Labels as people keep them, numbers of a catalogue or names, become classes: 0..k-1, each with a name.

Or they are numbers to predict, and stay what they are.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jtransfer.data.marks import LEFT_OUT
from jtransfer.errors import InputError, nearest

log = logging.getLogger("jtransfer")

KEYS = ("labels", "test_labels")

MOST_CELLS = 1 << 28
"""The most rows times classes, if a row has several classes: 1 GiB of int32."""

Classes = tuple[tuple[str, ...], list[np.ndarray]]
"""Names of classes or values, and the labels of each split: int32, or float32 for values."""


def distinct(
    where: str,
    names: Sequence[str],
    splits: Sequence[np.ndarray],
    keys: Sequence[str] = KEYS,
    damaged: dict[int, str] | None = None,
) -> Classes:
    """One class for every row.

    Labels are indices into `names`, or such names. If `names` is empty, each distinct value in the first split becomes
    a class with this value as its name, in ascending order; so 0..k-1 stay as they are.

    Args:
        where: The file, for errors.
        names: Of the classes; may be empty.
        splits: Labels [n] for training and perhaps for testing, integers of any size or texts.
        keys: What the labels of each split are called, for errors.
        damaged: Where rows of the first split are put whose label is none of the classes, instead of an error: by row,
            what is wrong. Their label becomes `LEFT_OUT`. None for an error.

    Returns:
        The names of the classes, and the labels of each split [n] int32, indices into the names.

    Raises:
        InputError: integers in one split and texts in the other; a label that is none of the classes, blank, or
            negative (but where the classes are -1 and 1); or a single class.
    """
    if len({own.dtype.kind in "US" for own in splits}) > 1:
        raise InputError(
            f"{where}: {keys[0]!r} has dtype {splits[0].dtype} and {keys[1]!r} {splits[1].dtype}; expected integers in "
            f"both, or names in both"
        )
    by_name, found = splits[0].dtype.kind in "US", [np.unique(own, return_inverse=True) for own in splits]
    values = [texts(where, key, own) if by_name else own.tolist() for key, (own, _) in zip(keys, found, strict=False)]
    choices: Iterable = values[0] if not names else names if by_name else range(len(names))
    place = {choice: i for i, choice in enumerate(choices)}
    if damaged is not None and not names:
        place = {choice: i for i, choice in enumerate(own for own in values[0] if not _nothing(own, place))}
    labels, spared = [], damaged
    for key, own, (_, inverse) in zip(keys, values, found, strict=False):
        codes = [LEFT_OUT if value not in place or _nothing(value, place) else place[value] for value in own]
        for i in (i for i, code in enumerate(codes) if code == LEFT_OUT):
            said = f"is {(own[i][:80] if by_name else own[i])!r}; {_expected(own[i], own, names, place)}"
            rows = np.flatnonzero(inverse == i).tolist()
            if spared is None:
                raise InputError(f"{where}: {key!r} row {rows[0]} {said}")
            spared |= {row: f"{where}: {key!r} row {row} {said}" for row in rows}
        labels.append(np.array(codes, np.int32)[inverse])
        spared = None  # what is tested on is never left out
    if len(place) < 2:
        raise InputError(f"{where}: {keys[0]!r} hold only class {values[0][0]}; at least two classes are expected")
    return tuple(names) or tuple(map(str, place)), labels


def columns(where: str, names: Sequence[str], splits: Sequence[np.ndarray]) -> Classes:
    """Several classes for every row: a column for each, of 0 and 1.

    Args:
        where: The file, for errors.
        names: Of the classes; if empty, they are numbered from 0.
        splits: Labels [n, classes], integers.

    Returns:
        The names of the classes, and the labels of each split [n, classes] int32.

    Raises:
        InputError: another number of names than of columns, or a label other than 0 and 1.
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


def several(
    where: str,
    names: Sequence[str],
    splits: Sequence[Sequence[list]],
    keys: Sequence[str] = KEYS,
    damaged: dict[int, str] | None = None,
) -> Classes:
    """Several classes for every row, in a list: indices into `names`, or names.

    If `names` is empty, each distinct value in the first split becomes a class, in ascending order.

    Args:
        where: The file, for errors.
        names: Of the classes; may be empty.
        splits: A list for each row, for training and perhaps for testing, of integers or of texts.
        keys: What the labels of each split are called, for errors.
        damaged: As `distinct` takes it; the rows have no class then.

    Returns:
        The names of the classes, and the labels of each split [n, classes] int32, of 0 and 1.

    Raises:
        InputError: integers and texts; a label that is none of the classes, blank or negative, or twice in a row; no
            class at all; or more rows times classes than `MOST_CELLS`.
    """
    found = [{value for row in own for value in row} for own in splits]
    if len({isinstance(value, str) for own in found for value in own}) > 1:
        raise InputError(f"{where}: {keys[0]!r} holds numbers and texts; expected numbers of classes, or names")
    by_name = any(isinstance(value, str) for own in found for value in own)
    place = {own: i for i, own in enumerate(names if by_name else range(len(names)))}
    place = place or {own: i for i, own in enumerate(sorted(own for own in found[0] if not _nothing(own, {})))}
    rows, spared, labels = sum(map(len, splits)), damaged, []
    if not place:
        raise InputError(f"{where}: {keys[0]!r} holds no class; expected one at least")
    check_cells(where, keys[0], rows, len(place))
    for key, own, values in zip(keys, splits, found, strict=False):
        cells = np.zeros((len(own), len(place)), np.int32)
        for row, listed in enumerate(own):
            said = ""
            if wrong := [value for value in listed if value not in place]:
                said = f"holds {wrong[0]!r:.82}; {_expected(wrong[0], sorted(values), names, place)}"
            elif len({*listed}) < len(listed):
                said = f"is {listed!r:.82}; expected each class once at most"
            if said and spared is None:
                raise InputError(f"{where}: {key!r} row {row} {said}")
            if said:
                spared[row] = f"{where}: {key!r} row {row} {said}"
            else:
                cells[row, [place[value] for value in listed]] = 1
        labels.append(cells)
        spared = None  # what is tested on is never left out
    return tuple(names) or tuple(map(str, place)), labels


def check_cells(where: str, key: str, rows: int, classes: int) -> None:
    """Refuse more rows times classes than `MOST_CELLS`.

    Args:
        where: The data, for errors.
        key: What the labels are called, for errors.
        rows: How many rows there are.
        classes: How many classes there are.

    Raises:
        InputError: there are more.
    """
    if rows * classes > MOST_CELLS:
        raise InputError(
            f"{where}: '{key}' has {classes:,} classes in {rows:,} rows; at most {MOST_CELLS:,} pairs of a row and a "
            f"class are kept"
        )


def numbers(where: str, names: Sequence[str], splits: Sequence[np.ndarray], keys: Sequence[str] = KEYS) -> Classes:
    """Numbers to predict, one or several for every row.

    Args:
        where: The file, for errors.
        names: Of the values; may be empty.
        splits: Labels [n] or [n, values], float32.
        keys: What the labels of each split are called, for errors.

    Returns:
        The names, and the labels of each split as they are.

    Raises:
        InputError: another number of names than of values in a row, or a value that is not finite.
    """
    count = splits[0].shape[1] if splits[0].ndim > 1 else 1
    if names and len(names) != count:
        raise InputError(f"{where}: 'classes' has {len(names)} names for the {count} values of a row of 'labels'")
    for key, own in zip(keys, splits, strict=False):
        if not (finite := np.isfinite(own)).all():
            row = int(np.argwhere(~finite)[0][0])
            raise InputError(f"{where}: {key!r} row {row} holds NaN or infinite values; expected finite ones")
    return tuple(names), list(splits)


def texts(where: str, key: str, values: np.ndarray) -> tuple[str, ...]:
    """An array of strings or bytes as texts.

    Args:
        where: The file, for errors.
        key: The array in it, for errors.
        values: [n], of dtype U or S.

    Raises:
        InputError: bytes that are not UTF-8, or strings that cannot be encoded as UTF-8.
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
