"""What word vectors know of words: analogies, how alike two words are, and a word's nearest neighbours."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtransfer.errors import InputError, nearest

BLOCK = 256
"""Questions whose scores on all words are in memory at once."""
EPSILON = 1e-6


class Marked(NamedTuple):
    """What became of questions.

    Attributes:
        right: `[n]` whether each was answered rightly; False where it was not asked.
        asked: `[n]` whether all four words are known.
    """

    right: np.ndarray
    asked: np.ndarray


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1; those of length 0 stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def analogies(
    words: Sequence[str],
    vectors: np.ndarray,
    questions: Sequence[tuple[str, str, str, str]],
    method: str = "3CosAdd",
    restrict: int = 0,
) -> Marked:
    """Answer `a is to b as c is to d` by the word that is nearest to what it asks, but for a, b and c themselves.

    3CosAdd takes the largest `cos(x, b) - cos(x, a) + cos(x, c)` (Mikolov et al. 2013, NAACL), 3CosMul the largest
    `cos(x, b) cos(x, c) / (cos(x, a) + 1e-6)` with cosines shifted to 0..1 (Levy & Goldberg 2014,
    doi:10.3115/v1/W14-1618, equation 5). Large and small letters are one, and of words that are then equal the first
    stands for all, as in gensim's `evaluate_word_analogies`.

    Args:
        words: The most frequent first.
        vectors: `[words, width]`.
        questions: Four words each.
        method: "3CosAdd" or "3CosMul".
        restrict: Only the first so many words ask and answer; 0 for all.
    """
    count = restrict or len(words)
    x, number = unit(np.asarray(vectors[:count], np.float32)), numbers(words[:count])
    same = np.array([number[word.upper()] for word in words[:count]])
    ids = np.array([[number.get(word.upper(), -1) for word in four] for four in questions]).reshape(-1, 4)
    asked, right = (ids >= 0).all(1), np.zeros(len(ids), bool)
    rows = np.flatnonzero(asked)
    for start in range(0, len(rows), BLOCK):
        own = rows[start : start + BLOCK]
        a, b, c, d = ids[own].T
        if method == "3CosAdd":
            scores = (x[b] - x[a] + x[c]) @ x.T
        else:
            to_a, to_b, to_c = ((1 + x[which] @ x.T) / 2 for which in (a, b, c))
            scores = to_b * to_c / (to_a + EPSILON)
        for which in (a, b, c):
            scores[same[None] == which[:, None]] = -np.inf
        right[own] = same[scores.argmax(1)] == d
    return Marked(right, asked)


def numbers(words: Sequence[str]) -> dict[str, int]:
    """The number of each word in capital letters; of words that are then equal the first."""
    found: dict[str, int] = {}
    for i, word in enumerate(words):
        found.setdefault(word.upper(), i)
    return found


def cosines(words: Sequence[str], vectors: np.ndarray, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The cosine of the two words of each pair, `[n]`; NaN where one is not known."""
    number, x = numbers(words), unit(np.asarray(vectors, np.float32))
    ids = np.array([[number.get(word.upper(), -1) for word in pair] for pair in pairs])
    found = (x[ids[:, 0]] * x[ids[:, 1]]).sum(1)
    return np.where((ids >= 0).all(1), found, np.nan)


def neighbours(
    words: Sequence[str], vectors: np.ndarray, plus: Sequence[str], minus: Sequence[str] = (), count: int = 10
) -> list[tuple[str, float]]:
    """The words nearest to a sum, and their cosines, as gensim's `most_similar`.

    Args:
        words: Of the vectors.
        vectors: `[words, width]`.
        plus: Words whose unit vectors are added.
        minus: Words whose unit vectors are taken away.
        count: Number of neighbours; none of the words themselves is one.

    Raises:
        InputError: a word that is not known, with the nearest that is.
    """
    number: Mapping[str, int] = {word: i for i, word in enumerate(words)}
    if unknown := [word for word in (*plus, *minus) if word not in number]:
        raise InputError(f"the word '{unknown[0]}' is not in the vocabulary; {nearest(unknown[0], words)}")
    x = unit(np.asarray(vectors, np.float32))
    own = [number[word] for word in (*plus, *minus)]
    signs = np.array([1.0] * len(plus) + [-1.0] * len(minus), np.float32)
    scores = x @ unit((signs[:, None] * x[own]).mean(0, keepdims=True))[0]
    scores[own] = -np.inf
    best = np.argsort(-scores, kind="stable")[:count]
    return [(words[i], float(scores[i])) for i in best if np.isfinite(scores[i])]
