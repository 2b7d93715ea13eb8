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
from jtransfer.data.joined import Tables
from jtransfer.data.splits import hold_out_a_fifth
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown

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


def tagged(parts: Sequence[Tables], words: str, tags: str) -> tuple[Lazy, tuple[str, ...], np.ndarray]:
    """Lists of words and of their tags, in two columns of some tables; words become texts with blanks between them.

        {"words": ["Anna", "visits", "Kyoto"], "tags": ["B-PER", "O", "B-LOC"]}

    Args:
        parts: Tables for training, and perhaps for testing.
        words: Name of the column of words.
        tags: Name of the column of tags: texts, or numbers of the classes that the table names.

    Returns:
        The texts of all rows, the names of the classes, and labels `[n, words, 3]`; see `data.marks`.

    Raises:
        InputError: a row without words, with another number of tags than of words, or with a word that is blank or has
            blanks; a tag that is no class; or a single tag.
    """
    rows, names = [], parts[0].tables[0].classes.get(tags, ())
    for part in parts:
        columns = (part.read(column, np.arange(part.count)) for column in (words, tags))
        for row, (own, said) in enumerate(zip(*columns, strict=True)):
            if not isinstance(own, list) or not own or not all(isinstance(x, str) and x.split() == [x] for x in own):
                raise InputError(f"{part.at(row)}: '{words}' is {shown(own)}; expected a list of words without blanks")
            if not isinstance(said, list) or len(said) != len(own):
                raise InputError(
                    f"{part.at(row)}: '{tags}' is {shown(said)}; expected a tag for each of {len(own)} words"
                )
            if wrong := [x for x in said if not (isinstance(x, str) or (type(x) is int and 0 <= x < len(names)))]:
                raise InputError(f"{part.at(row)}: '{tags}' holds {shown(wrong[0])}; expected the name of a class")
            rows.append((own, [x if isinstance(x, str) else names[x] for x in said]))
    classes = names or tuple(sorted({tag for _, said in rows for tag in said}))
    if len(classes) < 2:
        raise InputError(
            f"{parts[0].tables[0].where}: every word has the tag {classes[0]!r}; expected two tags at least"
        )
    place = {tag: i for i, tag in enumerate(classes)}
    if unknown := next((tag for _, said in rows for tag in said if tag not in place), None):
        raise InputError(f"{parts[0].tables[0].where}: '{tags}' holds {unknown!r}; {nearest(unknown, classes)}")
    found = [marks.joined(own, [place[tag] for tag in said]) for own, said in rows]
    texts = [text for text, _ in found]
    identity = "\n".join((words, tags, *(table.digest for part in parts for table in part.tables)))
    return (
        Lazy(len(texts), lambda some: [texts[i] for i in some], identity),
        classes,
        marks.array([x for _, x in found], 3),
    )


def squad(path: str, context: Context) -> Dataset:
    """Questions about passages and where their answers lie, in the JSON of SQuAD 1.1 and 2.0.

        {"data": [{"paragraphs": [{"context": "Kyoto lies in Japan.", "qas": [
            {"id": "1", "question": "Where is Kyoto?", "answers": [{"text": "Japan", "answer_start": 14}]}]}]}]}

    Inputs are pairs of a question and its passage. Training learns the first answer; a prediction is right that equals
    any. Questions without an answer are kept (Rajpurkar et al. 2018, arXiv:1806.03822). A question of the training
    file whose answer does not stand where it is said to counts as damaged: see `Context.damaged`.

    Args:
        path: Of a UTF-8 file or directory. A directory has a file whose name begins with `train`, and one that begins
            with `test` (or `dev`, or `valid`); of a file a fifth of the questions is held out.
        context: Its `name` becomes that of the dataset.

    Raises:
        InputError: no such file, one that cannot be read or is no such JSON, an answer that does not stand where it is
            said to, or no question.
    """
    wrong: dict[int, str] = {}
    spared: list[dict[int, str] | None] = [wrong if context.damaged else None, None]  # what is tested on is never

    def rows(file: str, text: str) -> Iterator[MarkedRow]:
        own = spared.pop(0)
        for row, question in enumerate(questions(file, text)):
            try:
                yield MarkedRow((question.text, question.passage), _places(question))
            except InputError as error:
                if own is None:
                    raise
                own[row] = str(error)
                yield MarkedRow((question.text, question.passage), [])

    return _dataset(path, context, _read(path, rows, "questions"), 2, (), wrong)


class Question(NamedTuple):
    """A question about a passage.

    Attributes:
        id: Its name in the file; the question itself where it has none.
        text: The question.
        passage: In which the answers stand.
        answers: Those of the file, each with `text` and `answer_start`; None where it has no list of answers.
        where: File and question, for errors.
    """

    id: str
    text: str
    passage: str
    answers: Sequence[Mapping] | None
    where: str


def questions(file: str, text: str) -> Iterator[Question]:
    """The questions in the JSON of SQuAD, in their order; with answers or without.

    Args:
        file: Its name, for errors.
        text: What it holds.

    Raises:
        InputError: it is no such JSON.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: no JSON ({error})") from None
    for article in _list(file, found, "data"):
        for paragraph in _list(file, article, "paragraphs"):
            passage = _text(file, paragraph, "context")
            for asked in _list(file, paragraph, "qas"):
                question = _text(file, asked, "question")
                name = str(asked.get("id", question))
                where = f"{file}: question {name[:60]!r}"
                answers = _list(where, asked, "answers") if "answers" in asked else None
                yield Question(name, question, passage, answers, where)


def _places(asked: Question) -> list[tuple[int, int]]:
    """The characters of the answers to a question in its passage.

    Raises:
        InputError: an answer that does not stand there, or no list of answers.
    """
    if asked.answers is None:
        raise InputError(f"{asked.where}: no list 'answers' of objects, as SQuAD has it")
    places, where, passage = [], asked.where, asked.passage
    for answer in asked.answers:
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
    return list(dict.fromkeys(places))


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
    path: str,
    context: Context,
    parts: list[list[MarkedRow]],
    width: int,
    classes: tuple[str, ...],
    wrong: Mapping[int, str] | None = None,
) -> Dataset:
    rows = [row for part in parts for row in part]
    inputs, labels = [row.inputs for row in rows], marks.array([row.marks for row in rows], width)
    if len(parts) > 1:
        pool, test = np.split(np.arange(len(rows)), [len(parts[0])])
    else:
        pool, test = hold_out_a_fifth(labels, path, "a directory with a file for testing")
    if wrong:
        pool, test = np.union1d(pool, [*wrong]).astype(int), np.setdiff1d(test, [*wrong])
    identity = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    lazy = Lazy(len(rows), lambda some: [inputs[row] for row in some], identity)
    return Dataset(context.name, lazy, labels, classes, pool, test, "text", damaged=wrong or {})
