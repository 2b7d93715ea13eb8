"""Texts with labels of their parts, as two formats have them: `conll:PATH` and `squad:PATH`.

A path is a file, or a directory with a file for training and one for testing.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jtransfer.data import marks
from jtransfer.data.dataset import Context, Dataset, Lazy
from jtransfer.data.downloads import TEST, TRAIN, beginning
from jtransfer.data.splits import hold_out_a_fifth
from jtransfer.errors import InputError

DOCUMENT = "-DOCSTART-"
"""The word on the line with which a document begins in CoNLL-2003."""


class MarkedRow(NamedTuple):
    """A text, or a pair of texts, and the marks in the last of them."""

    inputs: str | tuple[str, str]
    marks: Sequence[Sequence[int]]


def conll(path: str, context: Context) -> Dataset:
    """Words with a tag each, as of CoNLL-2003: a word on every line and its tag in the last column, a blank line after
    each sentence.

        Anna      NNP  B-NP  B-PER
        visits    VBZ  B-VP  O
        Kyoto     NNP  B-NP  B-LOC

    Columns are apart by blanks or tabs. Words become texts with blanks between them. The classes are the tags of all
    files, in their alphabetical order.

    Args:
        path: Of a UTF-8 file or directory. A directory has a file whose name begins with `train`, and one that begins
            with `test` (or `dev`, or `valid`); of a file a fifth of the sentences is held out.
        context: Its `name` becomes that of the dataset.

    Raises:
        InputError: no such file, one that cannot be read, a word without a tag, a single tag, or no sentence.
    """
    tags: dict[str, int] = {}

    def rows(file, text):
        words, own = [], []
        for number, line in enumerate([*text.split("\n"), ""], 1):
            columns = re.split(r"[ \t]+", line.strip(" \t\r"))
            if columns[0] in ("", DOCUMENT):
                if words:
                    yield MarkedRow(*marks.joined(words, own))
                words, own = [], []
                continue
            if len(columns) < 2:
                raise InputError(
                    f"{file}: line {number} is {line[:40]!r}; expected a word and its tag, or a blank line"
                )
            words.append(columns[0])
            own.append(tags.setdefault(columns[-1], len(tags)))

    parts = _read(path, rows, "sentences")
    if len(tags) < 2:
        raise InputError(f"{path}: every word has the tag {next(iter(tags))!r}; expected two tags at least")
    names = sorted(tags)
    number = np.array([names.index(tag) for tag in tags])
    for part in parts:
        for _, own in part:
            own[:] = [(start, end, int(number[tag])) for start, end, tag in own]
    return _dataset(path, context, parts, 3, tuple(names))


def squad(path: str, context: Context) -> Dataset:
    """Questions about passages and where their answers lie, in the JSON of SQuAD 1.1 and 2.0.

        {"data": [{"paragraphs": [{"context": "Kyoto lies in Japan.", "qas": [
            {"id": "1", "question": "Where is Kyoto?", "answers": [{"text": "Japan", "answer_start": 14}]}]}]}]}

    Inputs are pairs of a question and its passage. Training learns the first answer; a prediction is right that equals
    any. Questions without an answer are kept (Rajpurkar et al. 2018, arXiv:1806.03822).

    Args:
        path: Of a UTF-8 file or directory. A directory has a file whose name begins with `train`, and one that begins
            with `test` (or `dev`, or `valid`); of a file a fifth of the questions is held out.
        context: Its `name` becomes that of the dataset.

    Raises:
        InputError: no such file, one that cannot be read or is no such JSON, an answer that does not stand where it is
            said to, or no question.
    """
    return _dataset(path, context, _read(path, _questions, "questions"), 2, ())


def _questions(file: str, text: str) -> Iterator[MarkedRow]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: no JSON ({error})") from None
    for article in _list(file, found, "data"):
        for paragraph in _list(file, article, "paragraphs"):
            passage = _text(file, paragraph, "context")
            for asked in _list(file, paragraph, "qas"):
                yield _question(file, passage, asked)


def _question(file: str, passage: str, asked: Mapping) -> MarkedRow:
    question = _text(file, asked, "question")
    places, where = [], f"{file}: question {str(asked.get('id', question))[:60]!r}"
    for answer in _list(where, asked, "answers"):
        text, start = _text(where, answer, "text"), answer.get("answer_start")
        if type(start) is not int:
            raise InputError(f"{where} has an answer without a number 'answer_start'; expected its first character")
        if not text.strip() or start < 0 or passage[start : start + len(text)] != text:
            nearest = passage.find(text) if text.strip() else -1
            there = f"it stands at {nearest}" if nearest >= 0 else "its passage does not have it"
            raise InputError(
                f"{where} has the answer {text[:40]!r} at {start}, where the passage has "
                f"{passage[max(start, 0) :][: len(text)][:40]!r}; {there}"
            )
        start += len(text) - len(text.lstrip())
        places.append((start, start + len(text.strip())))
    return MarkedRow((question, passage), list(dict.fromkeys(places)))


def _list(where: str, found: Any, key: str) -> list[Mapping]:
    own = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(own, list) or not all(isinstance(one, Mapping) for one in own):
        raise InputError(f"{where}: no list '{key}' of objects, as SQuAD has it")
    return own


def _text(where: str, found: Mapping, key: str) -> str:
    if not isinstance(own := found.get(key), str):
        raise InputError(f"{where}: '{key}' is {type(own).__name__}; expected a text, as SQuAD has it")
    return own


def _read(path: str, rows, what: str) -> list[list[MarkedRow]]:
    """The rows of the file, or of the files for training and testing."""
    place = epath.Path(path)
    files = [place] if not place.is_dir() else [_of_directory(place, names) for names in (TRAIN, TEST)]
    parts = []
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            raise InputError(f"{file}: no such file or directory") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: byte {error.start} is no UTF-8; expected text") from None
        parts.append(list(rows(str(file), text)))
        if not parts[-1]:
            raise InputError(f"{file}: there are no {what} in it")
    return parts


def _of_directory(directory: epath.Path, names: Sequence[str]) -> epath.Path:
    found = beginning(directory, names)
    if len(found) != 1:
        inside = sorted(file for file in directory.iterdir() if not file.name.startswith("."))
        there = ", ".join(file.name for file in (found or inside)[:5]) or "nothing"
        raise InputError(
            f"{directory}: expected one file whose name begins with '{names[0]}'; there is {there}; or name a file"
        )
    return found[0]


def _dataset(
    path: str, context: Context, parts: list[list[MarkedRow]], width: int, classes: tuple[str, ...]
) -> Dataset:
    rows = [row for part in parts for row in part]
    inputs, labels = [row.inputs for row in rows], marks.array([row.marks for row in rows], width)
    if len(parts) > 1:
        pool, test = np.split(np.arange(len(rows)), [len(parts[0])])
    else:
        pool, test = hold_out_a_fifth(labels, path, "a directory with a file for testing")
    identity = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    lazy = Lazy(len(rows), lambda some: [inputs[row] for row in some], identity)
    return Dataset(context.name, lazy, labels, classes, pool, test, "text")
