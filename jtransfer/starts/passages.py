"""Passages that are longer than a model reads, in windows that overlap: each with the question before it.

    [CLS] question [SEP] tokens 0 to 99 of the passage [SEP]
    [CLS] question [SEP] tokens 64 to 163 [SEP]                  with a stride of 64

As BERT does it for SQuAD (Devlin et al. 2019, arXiv:1810.04805): a question has 64 tokens at most, and an answer is
looked for where its first token has the most of the passage around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data.marks import LEFT_OUT, NONE, check, spans_of_tokens
from jtransfer.data.streams import Rows, Stream, rearranged
from jtransfer.data.subsets import epochs
from jtransfer.errors import InputError
from jtransfer.objectives.answers import LONGEST, N_BEST, Span, Window, best_spans
from jtransfer.starts.inputs import BLOCK, Arrays, Texts
from jtransfer.starts.lengths import Ready

QUESTION = 64
"""Tokens of a question, at most."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Questions and windows of their passages, indexed by windows as a model's inputs.

    Attributes:
        tokenizer: That made the tokens.
        length: That windows are padded to, in tokens.
        rows: Tokens of each window, as `Tokenizer.rows` gives them.
        places: Of each window the characters of its tokens, `[tokens, 2]`; see `objectives.answers.Window`.
        own: Of each window which tokens no other window has more around, `[tokens]`.
        of: `[windows]`, the number of the question, ascending.
        passages: Of each question.
        cut: How many passages are read in part, as there is no stride.
        marks: `[questions, answers, 2]`, the characters of true answers, where these are known; see `data.marks`.
    """

    tokenizer: Any
    length: int
    rows: Sequence
    places: Sequence[np.ndarray]
    own: Sequence[np.ndarray]
    of: np.ndarray
    passages: Sequence[str]
    cut: int = 0
    marks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Arrays:
        """The inputs `[n, length]` of some windows, by the names of the model."""
        return self.tokenizer.padded([self.rows[row] for row in np.arange(len(self))[rows].tolist()], self.length)

    def first(self, row: int) -> int:
        """The place of a window's first token in its padded row."""
        return self.length - len(self.rows[row][0]) if self.tokenizer.side == "left" else 0

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """The first token of each answer in each window, and the one after its last, `[windows, answers, 2]` int32.

        A window that has no whole answer is one of a question without an answer: the answer is its first token. `NONE`
        fills up a row.

        Args:
            labels: `[questions, answers, 2]`; see `data.marks`.
        """
        found = np.full((len(self), *labels.shape[1:]), NONE, np.int32)
        for row, question in enumerate(self.of.tolist()):
            own = spans_of_tokens(self.places[row][None], labels[question][None])[0]
            own = own[(own != LEFT_OUT).all(1)]
            found[row, : max(len(own), 1)] = (own if len(own) else 0) + self.first(row) + np.array([0, 1])
        return found

    def answered(
        self, starts: np.ndarray, ends: np.ndarray, count: int = N_BEST, longest: int = LONGEST, since: int = 0
    ) -> list[tuple[list[Span], float]]:
        """The best answers to some questions, and the score of none of each: see `answers.best_spans`.

        Args:
            starts: Logits `[windows, length]` of these questions' windows, which follow each other.
            ends: Logits `[windows, length]`.
            count: As of `best_spans`.
            longest: As of `best_spans`.
            since: The number of the first of these windows.
        """
        of, found = self.of[since : since + len(starts)], []
        for first, last in zip(*_runs(of), strict=True):
            windows = []
            for row in range(first, last):
                at, places = self.first(since + row), self.places[since + row]
                logits = (x[row, at : at + len(places)] for x in (starts, ends))
                windows.append(Window(*logits, places, self.own[since + row]))
            found.append(best_spans(windows, count, longest))
        return found

    def text(self, question: int, spans: Sequence[Span]) -> str:
        """The text of the best of some answers to a question; "" where there is none."""
        return self.passages[question][spans[0].start : spans[0].end] if spans else ""


def windows(tokenizer: Any, pairs: Sequence[tuple[str, str]], length: int, stride: int = 0) -> Windows:
    """Questions with their passages in windows.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        pairs: A question and its passage.
        length: Tokens of a window, with those of the question and the special ones.
        stride: Tokens of the passage from one window to the next; 0 reads the first window alone.

    Raises:
        InputError: inputs that are no pairs, a tokenizer that does not tell of which characters its tokens are, or a
            `length` that has no place for the passage beside a question.
    """
    rows, places, own, of, cut = [], [], [], [], 0
    if len(pairs) and isinstance(pairs[0], str):
        raise InputError("answers are looked for in passages; expected pairs of a question and a passage")
    for start in range(0, len(pairs), BLOCK):
        some = [pairs[i] for i in range(start, min(start + BLOCK, len(pairs)))]
        questions = tokenizer.located([question for question, _ in some])
        asked = [
            text[: at[QUESTION - 1][1]] if len(at) > QUESTION else text
            for (text, _), (_, at) in zip(some, ((row, _of_text(place)) for row, place in questions), strict=True)
        ]
        for number, ((ids, types, _), at) in enumerate(tokenizer.located(asked, [text for _, text in some]), start):
            inside = np.flatnonzero(at[:, 0] >= 0)
            first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(ids), len(ids))
            room = length - (len(ids) - (last - first))
            if room < 1:
                raise InputError(
                    f"config.load.tokens: {length} tokens have no place for a passage beside the question "
                    f"{pairs[number][0][:60]!r}; expected {length + 1 - room} at least"
                )
            begins = _begins(last - first, room, stride)
            cut += begins[-1] + room < last - first
            for begin in begins:
                keep = np.r_[:first, first + begin : min(first + begin + room, last), last : len(ids)]
                kept_types = types if isinstance(types, int) else np.array(types, np.int32)[keep].tolist()
                rows.append((np.array(ids, np.int32)[keep].tolist(), kept_types, False))
                places.append(at[keep])
                around = _most_around(begins, room, last - first, begin)
                own.append(np.pad(around, (first, len(keep) - first - len(around))))
                of.append(number)
    passages = [passage for _, passage in pairs]
    return Windows(tokenizer, length, rows, places, own, np.array(of, np.int64), passages, cut)


def windowed(
    stream: Stream, texts: Texts, stride: int, batch: int, seed: int, share: np.ndarray
) -> tuple[Stream, Ready]:
    """A stream whose rows are windows of the passages of another, in shuffled epochs.

    Args:
        stream: Of questions and passages, with rows.
        texts: Makes the inputs of the model, of windows of `texts.tokens`.
        stride: Tokens from one window to the next.
        batch: Windows of a batch, over all devices.
        seed: Of the shuffling.
        share: Positions in a batch that this process reads.

    Raises:
        InputError: a stream of other data, or as `windows`.
    """
    if stream.targets != "spans" or stream.pool is None:
        raise InputError(f"config.stride is of questions about passages, as 'squad:FILE' has; {stream.name} has none")

    def made(inputs, labels):
        pairs = [pair for at in range(0, len(inputs), BLOCK) for pair in inputs[np.arange(len(inputs))[at:][:BLOCK]]]
        check(stream.name, [passage for _, passage in pairs], labels)
        return replace(windows(texts.tokenizer, pairs, texts.tokens, stride), marks=labels)

    (name, inputs, marks), (pool_inputs, pool_marks) = stream.held_out, stream.pool
    pool, held_out = made(pool_inputs, pool_marks), made(inputs, marks)
    labels = pool.labels(pool_marks)
    at = partial(_of_windows, pool, labels, epochs(np.arange(len(pool)), batch, seed), share)
    arranged = rearranged(stream, at, (name, held_out, held_out.labels(marks)), (pool, labels))
    return arranged, Ready(texts.tokenizer, texts.tokens, labelled=True)


def _of_windows(pool, labels, order, share, step):
    rows = order(step)[share]
    return {"inputs": Rows(pool, rows), "labels": labels[rows]}


def true_answers(passages: Sequence[str], labels: np.ndarray) -> list[list[str]]:
    """The texts of the answers that lie at some characters of passages, `[n, answers, 2]`; empty for none."""
    return [
        [passage[start:end] for start, end in own.tolist() if start != NONE]
        for passage, own in zip(passages, labels, strict=True)
    ]


def _of_text(places: np.ndarray) -> np.ndarray:
    return places[places[:, 0] >= 0]


def _begins(tokens: int, room: int, stride: int) -> list[int]:
    """Where windows begin: the last is the first that reaches the end."""
    if tokens <= room or not stride:
        return [0]
    step = min(stride, room)
    return [*range(0, tokens - room, step), -(-(tokens - room) // step) * step]


def _most_around(begins: Sequence[int], room: int, tokens: int, own: int) -> np.ndarray:
    """Which tokens of the window at `own` have the most of the passage around them there, of equal windows the first.

    What counts is the less of what stands before and behind, and a hundredth of the window's length.
    """
    ends = [min(begin + room, tokens) for begin in begins]
    at = np.arange(own, min(own + room, tokens))
    around = np.array(
        [
            np.where((begin <= at) & (at < end), np.minimum(at - begin, end - 1 - at) + 0.01 * (end - begin), -1.0)
            for begin, end in zip(begins, ends, strict=True)
        ]
    )
    return np.array(begins)[around.argmax(0)] == own if len(at) else np.zeros(0, bool)


def _runs(numbers: np.ndarray) -> tuple[list[int], list[int]]:
    """Where each run of equal numbers begins and ends."""
    edges = np.flatnonzero(np.diff(numbers)) + 1
    return [0, *edges.tolist()], [*edges.tolist(), len(numbers)]
