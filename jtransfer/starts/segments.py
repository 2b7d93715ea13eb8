"""Texts in rows of two segments, of which the second follows the first or is of another text: BERT's second objective.

A row is a window of a text, as long as the model reads (Devlin et al. 2019, arXiv:1810.04805, appendix A.2). It is cut
at a token that is drawn at random, not at the end of a sentence; half of the rows get another window's tokens as their
second segment. Each time that a row comes it is cut anew.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data.streams import HostBatch, Rows, Stream, rearranged
from jtransfer.data.subsets import epochs
from jtransfer.errors import InputError
from jtransfer.starts.inputs import Arrays, Texts
from jtransfer.starts.lengths import Ready, rows_of, tokens_of

log = logging.getLogger("jtransfer")

SPECIAL = 3
"""The tokens around and between two segments."""
LEAST = 2
"""Tokens of a window at least: one for each segment."""
FOLLOWS, OTHER = 0, 1
"""The labels, as BertForPreTraining has them."""


@dataclass(frozen=True, eq=False)
class TextWindows:
    """Texts cut into windows, without special tokens.

    Attributes:
        ids: Tokens of all windows, `[all tokens]` int32.
        starts: `[windows + 1]`, the place of the first token of each, and the end of all.
        of: `[windows]`, the text of each.
        ends: The tokens before, between and behind two segments.
        texts: Makes the inputs of the model.
    """

    ids: np.ndarray
    starts: np.ndarray
    of: np.ndarray
    ends: tuple[int, int, int]
    texts: Texts

    def __len__(self) -> int:
        return len(self.of)

    def pair(self, row: int, draws: np.random.Generator) -> tuple[list[int], list[int], int]:
        """The tokens of a row with their types, and whether its second segment follows the first."""
        window = self._window(row)
        cut, follows = int(draws.integers(1, len(window))), bool(draws.integers(2))
        first, second = window[:cut], window[cut:]
        if not follows:
            other = self._window(self._other(row, draws))
            size = min(len(second), len(other))
            begin = int(draws.integers(len(other) - size + 1))
            second = other[begin : begin + size]
        before, between, behind = self.ends
        ids = [before, *first, between, *second, behind]
        return ids, [0] * (len(first) + 2) + [1] * (len(second) + 1), FOLLOWS if follows else OTHER

    def _window(self, row):
        return self.ids[self.starts[row] : self.starts[row + 1]].tolist()

    def _other(self, row, draws):
        """A window of another text; those of one text stand together."""
        begin, end = np.searchsorted(self.of, [self.of[row], self.of[row] + 1])
        drawn = int(draws.integers(len(self) - (end - begin)))
        return drawn if drawn < begin else drawn + (end - begin)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some rows of windows, each cut by draws of its own.

    Attributes:
        windows: The windows.
        rows: `[n]` their numbers.
        seeds: `[n, numbers]`, of the draws of each.
    """

    windows: TextWindows
    rows: np.ndarray
    seeds: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Arrays:
        """The inputs `[n, tokens]` of some rows, by the names of the model."""
        tokenizer, size = self.windows.texts.tokenizer, self.windows.texts.tokens
        return tokenizer.padded([(ids, types, False) for ids, types, _ in self._pairs(index)], size, "right")

    def labels(self) -> np.ndarray:
        """`[n]` int32, `FOLLOWS` or `OTHER`."""
        return np.array([label for _, _, label in self._pairs(slice(None))], np.int32)

    def _pairs(self, index):
        each = zip(self.rows[index].tolist(), self.seeds[index].tolist(), strict=True)
        return [self.windows.pair(row, np.random.default_rng(seed)) for row, seed in each]


def segments(stream: Stream, texts: Texts, batch: int, seed: int, share: np.ndarray) -> tuple[Stream, Ready]:
    """A stream whose rows are two segments each, with labels `[n]` of whether the second follows the first.

    Rows come in shuffled epochs. What a row is follows from the seed, the step and its place in the batch. The held-out
    texts are cut in one way at all evaluations.

    Args:
        stream: Of texts, with rows.
        texts: Makes the inputs of the model.
        batch: Rows of a batch, over all devices.
        seed: Of the shuffling and of the draws.
        share: Positions in a batch that this process reads.

    Returns:
        The stream, and what takes its inputs.

    Raises:
        InputError: the stream draws its inputs anew, it has no two texts of two tokens, or the tokenizer does not put
            three tokens around two texts and tell them apart.
    """
    where = f"config.packing 'segments': {stream.name}"
    rows, ends = rows_of(stream, "config.packing 'segments'"), _ends(texts)
    name, inputs, _ = stream.held_out
    pool = _windows(Rows(stream.inputs, rows), texts, ends, where)
    held_out = _windows(inputs, texts, ends, f"{where}, held out")
    at = partial(_at, pool, epochs(np.arange(len(pool)), batch, seed), seed, share)
    fixed = np.arange(len(held_out))
    measured = Pairs(held_out, fixed, np.stack([fixed, fixed], 1))
    arranged = rearranged(stream, at, (name, measured, measured.labels()))
    return replace(arranged, classes=("follows", "other")), Ready(texts.tokenizer, texts.tokens)


def _at(pool: TextWindows, order, seed: int, share: np.ndarray, step: int) -> HostBatch:
    places = np.asarray(share)
    seeds = np.stack([np.full(len(places), seed), np.full(len(places), step), places], 1)
    found = Pairs(pool, order(step)[share], seeds)
    return {"inputs": found, "labels": found.labels()}


def _ends(texts: Texts) -> tuple[int, int, int]:
    ((ids, types, _),) = texts.tokenizer.rows([""], [""])
    if len(ids) != SPECIAL or types != [0, 0, 1]:
        raise InputError(
            f"{texts.tokenizer.where}: config.packing 'segments' needs a tokenizer that puts three tokens around two "
            f"texts and tells them apart, as BERT's [CLS] and [SEP]; it puts {len(ids)}"
        )
    return tuple(ids)


def _windows(inputs: Sequence[str], texts: Texts, ends: tuple[int, int, int], where: str) -> TextWindows:
    size, special = texts.tokens - SPECIAL, set(ends)
    found, of, short = [], [], 0
    for number, ids in enumerate(tokens_of(inputs, texts)):
        own = [token for token in ids if token not in special]
        cut = [own[start : start + size] for start in range(0, len(own), max(size, 1))]
        kept = [window for window in cut if len(window) >= LEAST]
        found += kept
        short += len(cut) - len(kept)
        of += [number] * len(kept)
    if size < LEAST or len(set(of)) < 2:
        raise InputError(
            f"{where} has {len(set(of))} texts of {LEAST} tokens or more in rows of {texts.tokens}; expected two at "
            "least, as half of the segments are of another text"
        )
    if short:
        every = short + len(found)
        log.info("%s: %d of %d windows have 1 token, which no cut divides, and are left out", where, short, every)
    starts = np.cumsum([0, *map(len, found)])
    return TextWindows(np.concatenate([np.array(x, np.int32) for x in found]), starts, np.array(of), ends, texts)
