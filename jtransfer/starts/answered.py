"""Texts of a stream as prompts with answers: the tokens of the answers, and of their ends, are what is learned."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data import answers as of_texts
from jtransfer.data.answers import Answers, Template
from jtransfer.data.dataset import FOUND
from jtransfer.data.streams import Stream
from jtransfer.errors import InputError
from jtransfer.models import Architecture
from jtransfer.starts.inputs import BLOCK, TOKENS, Texts, columns_of

log = logging.getLogger("jtransfer")


@dataclass(frozen=True)
class Asking:
    """Makes prompts and answers of texts and classes.

    Attributes:
        template: Of both.
        words: One for each class.
        tokenizer: Of the model.
        most: Tokens that are kept of a text.
    """

    template: Template
    words: tuple[str, ...]
    tokenizer: Any
    most: int

    def prompts(self, inputs: list) -> tuple[list[str], np.ndarray]:
        """The prompts of n texts or pairs of texts, and which of these were cut, `[n]` bool."""
        columns = [of_texts.shortened(self.tokenizer, texts, self.most) for texts in columns_of(inputs) if texts]
        rows = zip(*(texts for texts, _ in columns), strict=True)
        prompts = [self.template.prompt(row) for row in rows]
        return prompts, np.any([cut for _, cut in columns], axis=0)

    def answers(self, labels: np.ndarray) -> list[str]:
        """The answers of n classes."""
        return [self.template.answer(self.words[label]) for label in labels]


@dataclass(frozen=True, eq=False)
class AskedRows:
    """Texts by rows as pairs of a prompt and its answer.

    Attributes:
        inputs: Texts or pairs of texts, indexed by rows.
        labels: `[n]`, the class of each.
        asking: Makes prompts and answers of them.
    """

    inputs: Any
    labels: np.ndarray
    asking: Asking

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> list[tuple[str, str]]:
        """The prompts and answers of some rows."""
        prompts, _ = self.asking.prompts(self.inputs[rows])
        return list(zip(prompts, self.asking.answers(self.labels[rows]), strict=True))


def arranged(
    stream: Stream,
    texts: Texts,
    answers: Answers,
    objective: str,
    model: Architecture,
    tokens: int,
    packed: bool = False,
) -> tuple[Stream, Texts]:
    """A stream whose inputs are prompts and answers, and what makes the model's inputs of them.

    Too long a text of a classification is cut off before it is put into the template. What is cut off of rows that are
    prompts and answers already is the end of the answer. How many are cut is logged.

    Args:
        stream: Of texts.
        texts: Makes the model's inputs of texts.
        answers: What is learned of a row.
        objective: As the config writes it, for errors.
        model: Its config.
        tokens: That rows are padded or cut to; 0 for those of the longest row, or all that the model takes.
        packed: Whether `tokens` is the length of rows of several prompts: each is cut to so many, and padded no more
            than the longest.

    Raises:
        InputError: rows that are no prompts and answers, a template or words that do not fit the data, or a template
            that leaves no token for a text.
    """
    where, limit = f"objective '{objective}'", tokens or texts.tokenizer.limit
    if stream.kind != "text":
        raise InputError(f"config.{where} is of texts, {stream.name} holds {stream.kind}s")
    one = stream.inputs[np.arange(1)][0]
    end = model.eos_tokens[:1] if model.generates else ()
    tokenizer = of_texts.answering(texts.tokenizer, end)
    if answers.template:
        if stream.targets != "classes":
            raise InputError(f"config.{where} learns words for classes; {stream.name} has {FOUND[stream.targets]}")
        asking = asking_of(texts.tokenizer, answers, one, stream.classes, limit - len(end), where)
        stream = _asked(stream, asking)
    elif isinstance(one, str):
        raise InputError(
            f"config.{where} learns answers to prompts; {stream.name} has one text a row; expected two, as "
            "table:FILE?input=prompt+answer"
        )
    longest, texts_cut, cut, count = 1, 0, 0, 0
    every = (stream.held_out[1], *(stream.pool or ())[:1])
    for inputs in every:
        for start in range(0, len(inputs), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(inputs)))
            if isinstance(inputs, AskedRows):
                texts_cut += int(inputs.asking.prompts(inputs.inputs[rows])[1].sum())
            found = tokenizer.rows(*columns_of(inputs[rows]), of_texts.ALL)
            lengths = np.array([len(ids) for ids, _, _ in found])
            longest, count = max(longest, lengths.max()), count + len(rows)
            cut += int((lengths > limit).sum())
    if texts_cut:
        log.warning(
            "%s: %d of %d texts are cut, so that the template fits %d tokens", stream.name, texts_cut, count, limit
        )
    if cut:
        log.warning("%s: %d of %d answers are cut off at %d tokens", stream.name, cut, count, limit)
    if (packed or not tokens) and stream.pool is not None:
        limit = min(-(-int(longest) // TOKENS) * TOKENS, limit)
    return stream, Texts(tokenizer, limit, answers=True)


def asking_of(
    tokenizer: Any, answers: Answers, one: str | tuple[str, str], classes: Sequence[str], limit: int, where: str
) -> Asking:
    """What makes prompts and answers of rows like one row.

    Args:
        tokenizer: Of the model.
        answers: What is learned of a row, with a template.
        one: Any row: a text, or a pair of texts.
        classes: Names of the classes.
        limit: The most tokens of a prompt with its answer.
        where: The objective, for errors.

    Raises:
        InputError: a template or words that do not fit the rows, or a template that leaves no token for a text.
    """
    template = of_texts.template(answers.template, one, f"{where}: template")
    words = of_texts.checked_words(answers.words, classes, where)
    empty = template.prompt("" if isinstance(one, str) else ("", ""))
    own = max(map(len, of_texts.tokens_of(tokenizer, [empty + template.answer(word) for word in words])))
    most = (limit - own) // (1 if isinstance(one, str) else 2)
    if most < 1:
        raise InputError(f"{where}: the template and a word take {own} tokens of {limit}, and leave none for a text")
    return Asking(template, words, tokenizer, most)


def _asked(stream: Stream, asking: Asking) -> Stream:
    """A stream of classified texts as one of prompts and answers, whose labels stay those of the texts."""
    name, inputs, labels = stream.held_out
    return replace(
        stream,
        batches=partial(_each, stream.batches, asking),
        at=stream.at and partial(_at, stream.at, asking),
        held_out=(name, AskedRows(inputs, labels, asking), labels),
        pool=stream.pool and (AskedRows(*stream.pool, asking), stream.pool[1]),
        rows=None,
    )


def _of_batch(batch, asking):
    inputs = batch["inputs"]
    inputs = np.array(inputs, object) if isinstance(inputs, list | tuple) else inputs
    return batch | {"inputs": AskedRows(inputs, np.asarray(batch["labels"]), asking)}


def _at(at, asking, step):
    return _of_batch(at(step), asking)


def _each(batches, asking, cursor) -> Iterator:
    for batch, after in batches(cursor):
        yield _of_batch(batch, asking), after
