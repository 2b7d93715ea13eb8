"""How often words stand together, for GloVe: counted in one pass over a corpus."""

from typing import NamedTuple

import numpy as np

from jtransfer.data.words import Corpus

CHUNK = 1 << 17
"""Words whose pairs are in memory at once, beside the counts themselves."""


class Counts(NamedTuple):
    """Pairs of words that stand together, each once, in ascending order.

    Attributes:
        words: `[cells, 2]` int32, the ids of the two words.
        x: `[cells]` float32, the sum of 1/distance over all places where the second word is near the first.
    """

    words: np.ndarray
    x: np.ndarray


def count(corpus: Corpus, window: int, vocabulary: int) -> Counts:
    """How often words stand together, on both sides of each other and within their texts.

    Memory grows with the number of different pairs, and by those of `CHUNK` words.

    Args:
        corpus: The words.
        window: The largest distance that counts; neighbours have distance 1.
        vocabulary: Number of ids.
    """
    keys, sums = np.zeros(0, np.int64), np.zeros(0)
    for start in range(0, len(corpus), CHUNK):
        end = min(start + CHUNK, len(corpus))
        found, weights = [keys], [sums]
        for distance in range(1, window + 1):
            here = np.arange(start, min(end, len(corpus) - distance))
            here = here[corpus.texts[here] == corpus.texts[here + distance]]
            one, other = (corpus.ids[here + off].astype(np.int64) for off in (0, distance))
            found += [one * vocabulary + other, other * vocabulary + one]
            weights += [np.full(2 * len(here), 1 / distance)]
        keys, places = np.unique(np.concatenate(found), return_inverse=True)
        sums = np.bincount(places, np.concatenate(weights), len(keys))
    return Counts(np.stack([keys // vocabulary, keys % vocabulary], axis=1).astype(np.int32), sums.astype(np.float32))
