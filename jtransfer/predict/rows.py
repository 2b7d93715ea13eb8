"""The rows of a file that predictions are asked for: a table, questions in SQuAD's JSON, or images themselves."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jtransfer import files
from jtransfer.data import columns, encoded, marked, options, tables
from jtransfer.data.damage import damaged
from jtransfer.data.dataset import Lazy
from jtransfer.data.downloads import shown as printable
from jtransfer.data.joined import Tables
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Endings of tables, which what is written has too."""

LARGEST = 1 << 30
"""Bytes of a file of questions, at most."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is given of each row, as `starts.inputs.prepare_for` takes data.

    Attributes:
        name: The file and the columns, for errors.
        kind: "text" or "image".
        inputs: Texts, pairs of texts or images, by rows.
    """

    name: str
    kind: str
    inputs: Lazy


@dataclass(frozen=True, eq=False)
class RowsOfFile:
    """The rows of a file, in its order.

    Attributes:
        path: Of the file, the directory, or the pattern.
        count: Number of rows.
        columns: Names of all columns, in their order.
        read: From row numbers `[n]` to n values by column.
        used: The columns that the model is given.
        inputs: What it is given, from the names of columns.
        answers: The true answers to each question in SQuAD's JSON, where all have them; else None.
    """

    path: str
    count: int
    columns: tuple[str, ...]
    read: Callable[[np.ndarray], list[dict[str, Any]]]
    used: tuple[str, ...]
    inputs: Callable[[Sequence[str]], Inputs]
    answers: Sequence[Sequence[str]] | None = None

    def blocks(self, size: int = 4096) -> Iterator[dict[str, Any]]:
        """All rows, one after the other."""
        for start in range(0, self.count, size):
            yield from self.read(np.arange(start, min(start + size, self.count)))


def opened(words: str, used: str = "", label: str = "", texts: int = 0) -> RowsOfFile:
    """The rows that a command names.

    Args:
        words: A table (`FILE`, `FILE?input=COLUMN` or `FILE?input=COLUMN+COLUMN`), a `.json` file of SQuAD's form, a
            directory of images, or a pattern of image files with `*`.
        used: The columns that the model was trained on, joined by `+`, which are taken where they are there and `words`
            name none; "" where nothing is known.
        label: The column of labels that the model was trained on, which is no input.
        texts: How many texts a row had then; 0 where nothing is known, or of images.

    Raises:
        InputError: no such file, one of another kind, a damaged row, no rows, no column that can be an input, or
            another number of texts.
    """
    where, _, query = words.partition("?")
    path = files.path(where.removeprefix("table:").removeprefix("squad:"), "FILE")
    asked = options.parse(words, query, ("input",))
    if "*" in where or files.is_directory(path):
        return _images(str(path), asked)
    ending = os.path.splitext(path.name)[1].lower()
    if where.startswith("squad:") or ending == ".json":
        return _questions(path, asked)
    if ending not in TABLES:
        known = (*TABLES, ".json")
        raise InputError(
            f"{path}: expected a table, which ends in {', '.join(TABLES)}, questions in .json, or a directory of "
            f"images; {nearest(ending, known)}"
        )
    return _table(tables.open_table(path, words), words, asked, used, label, texts)


def _table(table, words, asked, used, label, texts):
    rows = Tables([table])
    names = tuple(table.sample)
    said = asked.get("input") or (used if used and {*used.split("+")} <= {*names} else "")
    if said:
        columns.check_there(words, table, found := tuple(said.split("+")))
    else:
        label = next((name for name in (label, *columns.LABELS) if name in names), "")
        found = columns.inputs_of(words, table, {}, label)
    if texts and len(found) != texts:
        raise InputError(
            f"{words}: the model was trained on {texts} text{'s' * (texts > 1)} a row, and the inputs are "
            f"{' + '.join(found)}; choose with ?input=COLUMN{'+COLUMN' * (texts > 1)}"
        )

    def read(some):
        values = {name: table.read(name, some) for name in names}
        return [dict(zip(values, own, strict=True)) for own in zip(*values.values(), strict=True)]

    def inputs(own: Sequence[str]) -> Inputs:
        kind = columns.kind_of(own[0], table.sample[own[0]])
        if kind in ("image", "path") and len(own) == 1:
            lazy = columns.images(rows, own[0])
        else:
            lazy = _words(rows, own[0]) if kind == "texts" else columns.texts(rows, own)
        return _whole(
            Inputs(f"{table.where} ({' + '.join(own)})", "image" if kind in ("image", "path") else "text", lazy)
        )

    return RowsOfFile(table.where, rows.count, names, read, found, inputs)


def _words(rows: Tables, name: str) -> Lazy:
    """Lists of words as texts."""

    def text(row: int, value: Any) -> str:
        if not isinstance(value, list) or not all(isinstance(word, str) and word.split() == [word] for word in value):
            raise InputError(f"{rows.at(row)}: '{name}' is {shown(value)}; expected a list of words without blanks")
        return " ".join(value)

    return Lazy(rows.count, lambda some: list(map(text, some.tolist(), rows.read(name, some))), name)


def _questions(path, asked):
    if asked:
        raise InputError(f"{path}: option 'input' is of tables; questions are read with their passages")
    try:
        text = files.read(path, LARGEST).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    found = list(marked.questions(str(path), text))
    if not found:
        raise InputError(f"{path}: there are no questions in it")
    names = ("id", "question", "context")

    def read(some):
        return [dict(zip(names, (own.id, own.text, own.passage), strict=True)) for own in (found[i] for i in some)]

    lazy = Lazy(len(found), lambda some: [(found[i].text, found[i].passage) for i in some], str(path))
    true = (
        None
        if any(own.answers is None for own in found)
        else [[str(a.get("text", "")) for a in own.answers] for own in found]
    )
    inputs = Inputs(str(path), "text", lazy)
    return RowsOfFile(str(path), len(found), names, read, names[1:], lambda own: inputs, true)


def _images(where, asked):
    if asked:
        raise InputError(f"{where}: option 'input' is of tables; images are read from their files")
    pattern = where if "*" in where else os.path.join(glob.escape(where), "**", "*")
    paths = [path for path in sorted(glob.glob(pattern, recursive=True)) if path.lower().endswith(encoded.SUFFIXES)]
    if not paths:
        raise InputError(f"{where}: there are no images; expected files ending in {', '.join(encoded.SUFFIXES)}")
    lazy = encoded.lazy(
        len(paths), lambda row: encoded.content(paths[row]), lambda row: printable(paths[row]), "\n".join(paths)
    )
    made: list[Inputs] = []

    def inputs(own):
        return made[0] if made else made.append(_whole(Inputs(where, "image", lazy))) or made[0]

    def read(some):
        return [{"file": paths[i]} for i in some]

    return RowsOfFile(where, len(paths), ("file",), read, ("file",), inputs)


def _whole(inputs: Inputs) -> Inputs:
    """Refuse a row that cannot be read before anything is compiled."""
    if found := damaged(inputs.inputs, np.arange(len(inputs.inputs))):
        more = f"; in all {len(found)} of the {len(inputs.inputs)} rows cannot be read" if len(found) > 1 else ""
        raise InputError(next(iter(found.values())) + more)
    return inputs
