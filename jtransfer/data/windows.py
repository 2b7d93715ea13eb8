"""Rows of a corpus for word2vec: words, the words near each, and negative words, all told by the number of a row.

An epoch leaves frequent words out at random, joins what is left, and cuts it into rows. The parts of the corpus come in
a random order, and the rows of each part in a random order too. Two parts are in memory, so that the corpus may have
any size.
"""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from jtransfer.data.words import PART, Corpus

WINDOWS, WORDS, LEFT, PARTS = 0, 1, 2, 3
"""What is drawn from one seed: the parts of its `default_rng`."""


@dataclass(frozen=True, eq=False)
class Walk:
    """The rows of a corpus, epoch after epoch; copies give equal rows.

    Attributes:
        corpus: The words.
        windows: An `objectives.word_vectors.NearWords`.
        counts: `[vocabulary]`, how often each word is there in the corpus that is trained on.
        batch: Rows of a step, over all processes.
        seed: Of everything that is drawn.
        part: Words of a part of the corpus. No window goes beyond a part.
    """

    corpus: Corpus
    windows: Any
    counts: np.ndarray
    batch: int
    seed: int
    part: int = PART
    _ends: list[int] = field(default_factory=list, init=False)

    def __post_init__(self):
        object.__setattr__(self, "_part", lru_cache(2)(self._left))
        object.__setattr__(self, "_noise", alias(self.counts.astype(float) ** 0.75))

    def __reduce__(self):  # workers make their own caches
        return Walk, (self.corpus, self.windows, self.counts, self.batch, self.seed, self.part)

    def __call__(self, step: int, share: Any = slice(None)) -> dict[str, np.ndarray]:
        """The inputs of the rows of a step, counted from 0, or of a share of them."""
        w = self.windows
        numbers = np.arange(step * self.batch, (step + 1) * self.batch)
        near = np.random.default_rng([self.seed, WINDOWS, step]).integers(1, w.window + 1, (self.batch, w.block))
        draw = np.random.default_rng([self.seed, WORDS, step])
        negative = self._noise(draw, (self.batch, w.shared))
        ids, texts = (x[share] for x in self._rows(numbers))
        own = near[share]
        windows = bounds(texts, own, w.window)
        centres = ids[:, w.window : w.window + w.block]
        return {
            "input_ids": ids,
            "output_ids": np.concatenate([centres, negative[share]], axis=1),
            "windows": windows,
        }

    def rows_of(self, epoch: int) -> int:
        """Number of rows of an epoch; the corpus is read for it once."""
        first, last = epoch * self._parts, (epoch + 1) * self._parts
        while len(self._ends) < last:
            self._read_on()
        return self._ends[last - 1] - (self._ends[first - 1] if first else 0)

    @property
    def _parts(self):
        return max(1, -(-len(self.corpus) // self.part))

    def _read_on(self):
        """Count the rows of the next part, over all epochs."""
        before = self._ends[-1] if self._ends else 0
        self._ends.append(before + len(self._part(len(self._ends))[2]))

    def _rows(self, numbers):
        """The ids and the texts `[n, block + 2 window]` of rows by their number in all epochs; beyond the ends, -1."""
        size, around = self.windows.block, self.windows.window
        shape = len(numbers), size + 2 * around
        ids, texts = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        while not self._ends or self._ends[-1] <= numbers[-1]:
            self._read_on()
        for number in range(bisect(self._ends, numbers[0]), bisect(self._ends, numbers[-1]) + 1):
            first, last = (self._ends[number - 1] if number else 0), self._ends[number]
            if own := np.flatnonzero((first <= numbers) & (numbers < last)).tolist():
                words, of, order = self._part(number)
                starts = order[numbers[own] - first] * size - around
                places = starts[:, None] + np.arange(shape[1])
                there = (places >= 0) & (places < len(words))
                places = np.clip(places, 0, max(len(words) - 1, 0))
                if len(words):
                    ids[own], texts[own] = np.where(there, words[places], 0), np.where(there, of[places], -1)
        return ids, texts

    def _left(self, number):
        """The words that are left of a part, counted over all epochs, the text of each, and its rows in their order."""
        epoch, place = divmod(number, self._parts)
        part = np.random.default_rng([self.seed, PARTS, epoch]).permutation(self._parts)[place]
        ids, texts = self.corpus[part * self.part : (part + 1) * self.part]
        draw = np.random.default_rng([self.seed, LEFT, epoch, part])
        left = draw.random(len(ids), np.float32) < kept(self.counts, self.windows.subsample)[ids]
        words, texts = ids[left], texts[left]
        return words, texts, draw.permutation(max(1, -(-len(words) // self.windows.block)))


def kept(counts: np.ndarray, share: float) -> np.ndarray:
    """The chance of each word to stay, as in word2vec's C code and gensim's `sample`: `(sqrt(f/t) + 1) t/f`, at most 1.

    Args:
        counts: `[vocabulary]`, of which f is the share of all.
        share: t; 0 leaves none out.
    """
    if not share:
        return np.ones(len(counts), np.float32)
    ratio = share * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(ratio) + ratio).astype(np.float32)


def bounds(texts: np.ndarray, near: np.ndarray, window: int) -> np.ndarray:
    """The first and the last place near each centre word, `[n, block, 2]` int32; the last is before the first for none.

    Args:
        texts: `[n, block + 2 window]`, the text that each word is of, -1 for no word.
        near: `[n, block]`, how far each centre word looks.
        window: How far it looks at most.
    """
    place = np.arange(texts.shape[1])
    begins = np.diff(texts, axis=1, prepend=-2) != 0
    ends = np.diff(texts, axis=1, append=-2) != 0
    first = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, place, len(place))[:, ::-1], axis=1)[:, ::-1]
    centre = slice(window, window + near.shape[1])
    at = place[centre]
    sides = np.stack([np.maximum(at - near, first[:, centre]), np.minimum(at + near, last[:, centre])], axis=-1)
    return np.where((texts[:, centre] >= 0)[..., None], sides, (1, 0)).astype(np.int32)


def alias(weights: np.ndarray) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """What draws numbers in proportion to their weights, at two lookups each (Walker 1977, doi:10.1145/355744.355749).

    Args:
        weights: `[n]`, not all 0.

    Returns:
        From a generator and a shape to int32 numbers of that shape.
    """
    count = len(weights)
    chance, other = weights * (count / weights.sum()), np.arange(count)
    small, large = (list(np.flatnonzero(which)) for which in (chance < 1, chance >= 1))
    while small and large:
        low, high = small.pop(), large[-1]
        other[low] = high
        chance[high] -= 1 - chance[low]
        if chance[high] < 1:
            small.append(large.pop())
    chance[[*small, *large]] = 1  # what rounding has left
    chance, other = chance.astype(np.float32), other.astype(np.int32)

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        found = generator.integers(0, count, shape, dtype=np.int32)
        return np.where(generator.random(shape, np.float32) < chance[found], found, other[found])

    return draw
