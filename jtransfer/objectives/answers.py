"""Answers to questions: the best spans of a passage, none at all, and how right they are, as SQuAD's scripts have it.

Exact match and F1 are those of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250) and 2.0 (2018, arXiv:1806.03822).
Spans are chosen as by BERT (Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

N_BEST, LONGEST = 20, 30
"""Starts and ends of each window that are tried together, and the most tokens of an answer, as in BERT's script."""

ARTICLES, PUNCTUATION = re.compile(r"\b(a|an|the)\b"), str.maketrans("", "", string.punctuation)


class Span(NamedTuple):
    """A part of a passage: its first character, the one after its last, and start plus end logit."""

    start: int
    end: int
    score: float


class Scored(NamedTuple):
    """How right one answer to each of some questions is.

    Attributes:
        exact: `[n]`, 1 where an answer equals one of the true ones.
        f1: `[n]`, the best F1 with one of them.
    """

    exact: np.ndarray
    f1: np.ndarray


class Window(NamedTuple):
    """What a model says of a part of a passage, without padding.

    Attributes:
        starts: Logits `[tokens]` of the start of the answer. The first token stands for no answer.
        ends: Logits `[tokens]` of its end.
        places: `[tokens, 2]`, first character of each token in the passage and the one after its last; below 0 for
            tokens that are not of the passage.
        own: `[tokens]` bool, whether no other window has more of the passage around the token.
    """

    starts: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    own: np.ndarray


def normalised(text: str) -> str:
    """A text in small letters, without punctuation (ASCII), articles, and more than one blank in a row."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def overlap(answer: str, true: str) -> float:
    """F1 of the words of two normalised texts, repeated ones counted; of an empty one whether both are."""
    found, there = answer.split(), true.split()
    if not found or not there:
        return float(found == there)
    return 2 * sum((Counter(found) & Counter(there)).values()) / (len(found) + len(there))


def scored(answers: Sequence[str], true: Sequence[Sequence[str]]) -> Scored:
    """Exact match and F1 of answers, each with the true answers to its question.

    Args:
        answers: One a question; "" for none.
        true: The true answers to each. A question without any, or with none but articles and punctuation, has the
            answer "", as in the script of SQuAD 2.0.
    """
    exact, f1 = np.zeros(len(answers)), np.zeros(len(answers))
    for i, (answer, own) in enumerate(zip(answers, true, strict=True)):
        answer, own = normalised(answer), [*filter(None, map(normalised, own))] or [""]
        exact[i], f1[i] = answer in own, max(overlap(answer, one) for one in own)
    return Scored(exact, f1)


def best_threshold(
    scores: np.ndarray, nulls: np.ndarray, answerable: np.ndarray, said: np.ndarray
) -> tuple[float, float]:
    """The mean score at the best threshold above which a question is said to have no answer, and the threshold.

    Thresholds are the `nulls` of the questions, and 0 for the case that none is answered, as in the script of SQuAD
    2.0; of equal means the first one is taken.

    Args:
        scores: `[n]`, exact match or F1 of the answers that are given without any threshold.
        nulls: `[n]`, how much no answer is preferred.
        answerable: `[n]`, whether a question has an answer.
        said: `[n]`, whether an answer is given at all.
    """
    order = np.argsort(nulls, kind="stable")
    gains = np.where(answerable, scores, -1.0 * said)[order]  # of answering one question more
    means = (np.count_nonzero(~answerable) + np.concatenate([[0.0], np.cumsum(gains)])) / len(scores)
    best = int(means.argmax())
    return float(means[best]), float(nulls[order[best - 1]]) if best else 0.0


def best_spans(windows: Sequence[Window], count: int = N_BEST, longest: int = LONGEST) -> tuple[list[Span], float]:
    """The best answers in the windows of one passage, the best first, and the score of no answer.

    Of each window the `count` best starts and the `count` best ends are tried together. An answer stands in the
    passage, begins where its window has the most of the passage around it, and has at most `longest` tokens. The score
    of no answer is the least of any window, start plus end logit of the first token.

    Args:
        windows: Of one passage.
        count: Starts and ends that are tried, and answers that are returned, at most.
        longest: Tokens of an answer, at most.
    """
    found: dict[tuple[int, int], float] = {}
    for starts, ends, places, own in windows:
        first, last = (np.argsort(-logits, kind="stable")[:count] for logits in (starts, ends))
        first = first[(places[first, 0] >= 0) & own[first]]
        last = last[places[last, 0] >= 0]
        there = (first[:, None] <= last) & (last < first[:, None] + longest)
        for i, j in np.argwhere(there).tolist():
            place = int(places[first[i], 0]), int(places[last[j], 1])
            score = float(starts[first[i]]) + float(ends[last[j]])
            found[place] = max(score, found.get(place, -np.inf))
    best = sorted(found.items(), key=lambda item: -item[1])[:count]
    null = min(float(one.starts[0]) + float(one.ends[0]) for one in windows)
    return [Span(*place, score) for place, score in best], null


def shares(scores: Sequence[float]) -> np.ndarray:
    """The softmax of some scores, `[n]`."""
    found = np.exp(np.asarray(scores, float) - max(scores))
    return found / found.sum()
