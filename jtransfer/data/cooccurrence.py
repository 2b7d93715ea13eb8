"""How often words stand together, for GloVe: counted in one pass over a corpus."""

from typing import NamedTuple

import numpy as np

from jtransfer.data.words import Corpus

CHUNK = 1 << 17
"""Words whose pairs are counted at once; more where the counts themselves take more memory than these pairs."""


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

    Memory grows with the number of different pairs, not with the corpus.

    Args:
        corpus: The words.
        window: The largest distance that counts; neighbours have distance 1.
        vocabulary: Number of ids.
    """
    keys, sums, end = np.zeros(0, np.int64), np.zeros(0), 0
    while end < len(corpus):
        start, end = end, end + max(CHUNK, len(keys) // (4 * window))
        ids, texts = corpus[start : end + window]
        found, weights = [keys], [sums]
        for distance in range(1, window + 1):
            here = np.arange(min(end - start, len(ids) - distance))
            here = here[texts[here] == texts[here + distance]]
            one, other = (ids[here + off].astype(np.int64) for off in (0, distance))
            found += [one * vocabulary + other, other * vocabulary + one]
            weights += [np.full(2 * len(here), 1 / distance)]
        keys, places = np.unique(np.concatenate(found), return_inverse=True)
        sums = np.bincount(places, np.concatenate(weights), len(keys))
    return Counts(np.stack([keys // vocabulary, keys % vocabulary], axis=1).astype(np.int32), sums.astype(np.float32))
