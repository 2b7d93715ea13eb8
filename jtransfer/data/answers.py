"""Prompts and answers: what a template makes of a row and its class, and which tokens are the answer's.

    "{text}\\nTopic: {label}\\n\\n"    of "Oil is up" and "Business"    ->    "Oil is up\\nTopic:", " Business"

A prompt and its answer are tokenized as one text. The answer's tokens are those after the tokens that this text shares
with the prompt alone: a token in which both meet is the answer's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data.text import ALL
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import TEXT, Kind, several

TEMPLATE = "{text}\nAnswer: {label}\n\n"

LINES = Kind(
    "a text, of whose control characters newlines and tabs alone",
    lambda x: isinstance(x, str) and TEXT.takes(x.translate({9: " ", 10: " "})),
)
"""What a template may be."""
WORDS = several(TEXT)

PLACES = re.compile(r"\{(\w+)\}")

RowOfTexts = str | Sequence[str]
"""A text, or a pair of texts."""


@dataclass(frozen=True)
class Template:
    """A text with places for the text(s) of a row and for its label.

    Attributes:
        before: What stands before the label, without the blanks at its end.
        blanks: These, which are tokenized with the label, as byte-pair vocabularies have them.
        after: What stands after the label, between one example of a prompt and the next.
    """

    before: str
    blanks: str
    after: str

    def prompt(self, row: RowOfTexts) -> str:
        """What is asked of a row."""
        texts = dict(zip(("text", "pair"), (row,) if isinstance(row, str) else row, strict=False))
        return PLACES.sub(lambda place: texts[place[1]], self.before)

    def answer(self, word: str) -> str:
        """A label as it follows the prompt."""
        return self.blanks + word

    def example(self, row: RowOfTexts, word: str) -> str:
        """A row with its label, as it stands before others."""
        return self.prompt(row) + self.answer(word) + self.after


def template(text: str, row: RowOfTexts, where: str) -> Template:
    """The template that a text says, for rows like one row.

    Args:
        text: With `{text}`, and `{pair}` for the second text of a row that has two, before the one `{label}`.
        row: Any row of the data.
        where: Its name, for errors.

    Raises:
        InputError: a place that is unknown, missing, or out of this order.
    """
    needed = ("text",) if isinstance(row, str) else ("text", "pair")
    found = [(place[1], place.span()) for place in PLACES.finditer(text)]
    names = [name for name, _ in found]
    if unknown := [name for name in names if name not in (*needed, "label")]:
        has = "one text" if len(needed) == 1 else "two texts"
        raise InputError(f"{where}: unknown place {{{unknown[0]}}}; a row has {has}; {nearest(unknown[0], needed)}")
    if names.count("label") != 1 or names[-1] != "label" or {*needed, "label"} - {*names}:
        order = ", ".join(f"{{{name}}}" for name in needed)
        raise InputError(f"{where}: expected {order} and then one {{label}}, found {text!r}")
    start, end = found[-1][1]
    before = text[:start].rstrip(" ")
    return Template(before, text[len(before) : start], text[end:])


def checked_words(words: Sequence[str], classes: Sequence[str], where: str) -> tuple[str, ...]:
    """The word of each class: those that are given, or the names of the classes.

    Raises:
        InputError: another number of words, an empty one, or one that stands for two classes.
    """
    words = tuple(words or classes)
    if len(words) != len(classes):
        raise InputError(f"{where}: there are {len(words)} words for {len(classes)} classes; expected one a class")
    if empty := [name for word, name in zip(words, classes, strict=True) if not word.strip()]:
        raise InputError(f"{where}: the word of class '{empty[0]}' is empty; give words=(...), one a class")
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"{where}: the word '{twice[0]}' stands for two classes; give words=(...), one a class")
    return words


@dataclass(frozen=True)
class Answers:
    """What an objective on prompts and answers learns of a row.

    Attributes:
        template: Makes a prompt of the texts of a row and an answer of the word of its class; empty where a row is a
            prompt and an answer already.
        words: One for each class; empty for the names of the classes.
    """

    template: str = ""
    words: tuple[str, ...] = ()


def tokens_of(tokenizer: Any, texts: Sequence[str], first: int = 0) -> list[list[int]]:
    """The tokens of some texts, none cut off, without special tokens at their ends.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        texts: Of any lengths, none where there are none.
        first: The number of the first text, for errors.

    Raises:
        InputError: texts that cannot be tokenized, or a token that the model has no row for.
    """
    found = [list(ids) for ids, _, _ in tokenizer.rows(list(texts), None, ALL, "", first)] if len(texts) else []
    special = frozenset(tokenizer.special)
    for ids in found:
        while ids and ids[-1] in special:
            ids.pop()
    return found


def shared(*rows: Sequence[int]) -> int:
    """How many tokens all of some rows begin with."""
    for count, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return count
    return min(map(len, rows))


def answered(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[list[int], int]]:
    """The tokens of prompts with their answers, and how many of each are the prompt's.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        prompts: `n` texts.
        answers: `n` texts.

    Raises:
        InputError: as `tokens_of`.
    """
    every = tokens_of(tokenizer, [*prompts, *map(str.__add__, prompts, answers)])
    alone, whole = every[: len(prompts)], every[len(prompts) :]
    return [(ids, shared(ids, own)) for own, ids in zip(alone, whole, strict=True)]


def shortened(tokenizer: Any, texts: Sequence[str], most: int) -> tuple[list[str], np.ndarray]:
    """Texts of at most so many tokens, cut off at their ends, and which were cut, `[n]` bool.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        texts: Of any lengths.
        most: Tokens that are kept of each.

    Raises:
        InputError: as `tokens_of`, or a tokenizer that does not tell of which characters its tokens are.
    """
    found, long = list(texts), np.zeros(len(texts), bool)
    doubtful = [row for row, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > most]
    long[doubtful] = [len(ids) > most for ids in tokens_of(tokenizer, [texts[row] for row in doubtful])]
    if rows := np.flatnonzero(long).tolist():
        # Special tokens at the start would count as the text's, so that as many more are read.
        beginning = tokenizer.rows([""], None, ALL, "")[0][0]
        places = tokenizer.places([texts[row] for row in rows], length=most + len(beginning))
        for row, own in zip(rows, places, strict=True):
            ends = own[own[:, 1] > 0, 1][:most]
            found[row] = texts[row][: ends.max(initial=0)]
    return found, long


def answering(tokenizer: Any, end: Sequence[int]) -> Any:
    """A tokenizer that takes prompts as texts and answers as their pairs; the tokens of an answer have the type 1.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        end: Tokens that end an answer, and have its type.
    """
    own = partial(_encode, tokenizer, tuple(end))
    return replace(tokenizer, encode=own, identity=f"{tokenizer.identity} answers {list(end)}")


def _encode(tokenizer, end, prompts, answers, limit):
    found = []
    for ids, count in answered(tokenizer, prompts, answers):
        whole = [*ids, *end]
        types = [0] * count + [1] * (len(whole) - count)
        found.append((whole[:limit], types[:limit], len(whole) > limit))
    return found
