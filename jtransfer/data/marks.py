"""Labels of parts of texts: a class for every word, or where answers lie; from characters of a text to its tokens.

    "tags"    labels [n, words, 3]     first character, the one after the last, and class of each word
    "spans"   labels [n, answers, 2]   first character of each answer, and the one after its last

Both are counted in the text, or in the second of a pair. Rows with fewer words or answers are filled up with `NONE`.
"""

from collections.abc import Sequence

import numpy as np

from jtransfer.errors import InputError

NONE = -1
"""In each place of a mark that is none."""

LEFT_OUT = -100
"""The label of a token that does not count, as in PyTorch."""

KINDS = ("tags", "spans")


def array(rows: Sequence[Sequence[Sequence[int]]], width: int) -> np.ndarray:
    """Marks of each row as an array `[n, most marks of a row, width]` int32.

    Args:
        rows: For each row its marks, of `width` numbers each.
        width: 3 for words, 2 for answers.
    """
    found = np.full((len(rows), max(1, *map(len, rows)) if rows else 1, width), NONE, np.int32)
    for row, marks in zip(found, rows, strict=True):
        row[: len(marks)] = np.asarray(marks, np.int32).reshape(-1, width)
    return found


def ends(labels: np.ndarray) -> np.ndarray:
    """The first and the last token of answers, of the first `[..., 0]` and the one after the last `[..., 1]`."""
    return np.where(labels == NONE, LEFT_OUT, labels - np.array([0, 1])).astype(np.int32)


def joined(words: Sequence[str], tags: Sequence[int]) -> tuple[str, list[tuple[int, int, int]]]:
    """Words with spaces between them as a text, and the mark of each.

    Args:
        words: Of the text, none of them empty.
        tags: The class of each.
    """
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return " ".join(words), [
        (end - len(word), end, tag) for word, end, tag in zip(words, ends.tolist(), tags, strict=True)
    ]


def wrong(labels: np.ndarray, classes: Sequence[str]) -> str:
    """What does not fit in marks, in words; empty where all does.

    Args:
        labels: `[n, m, k]`.
        classes: One name per class.
    """
    if labels.shape[2] not in (2, 3) or labels.dtype.kind not in "iu":
        return (
            f"labels {list(labels.shape)} {labels.dtype}; expected whole numbers [n, words, 3] (first character, the "
            "one after the last, class) or [n, answers, 2]"
        )
    there = (labels != NONE).any(2)
    bad = there & ((labels[..., 0] < 0) | (labels[..., 1] <= labels[..., 0]))
    if bad.any():
        row, mark = np.argwhere(bad)[0]
        return f"the mark {labels[row, mark].tolist()} in row {row}; expected its first character before its end"
    if labels.shape[2] == 3 and there.any() and not 0 <= (own := labels[there, 2]).min() <= own.max() < len(classes):
        return f"classes from {own.min()} to {own.max()} of words; expected 0..{len(classes) - 1}, of its classes"
    return ""


def check(where: str, texts: Sequence[str], labels: np.ndarray) -> None:
    """Refuse marks that end outside their text.

    Args:
        where: The data, for errors.
        texts: `n` texts, of pairs the second ones.
        labels: `[n, m, k]`.

    Raises:
        InputError: the error shows the text.
    """
    for text, ends in zip(texts, labels[..., 1].max(1), strict=True):
        if ends > len(text):
            raise InputError(
                f"{where}: a label ends at character {ends} of a text of {len(text)}, {text[:40]!r}; expected "
                f"at most {len(text)}"
            )


def tags_of_tokens(places: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class of each token: that of its word for the first token of the word, as is the custom, else `LEFT_OUT`.

    A word that was cut off, or of which the tokenizer keeps nothing, has no token. (Devlin et al. 2019,
    arXiv:1810.04805, section 5.3.)

    Args:
        places: `[n, tokens, 2]` of `Tokenizer.places`.
        labels: `[n, words, 3]`.

    Returns:
        `[n, tokens]` int32.
    """
    found = np.full(places.shape[:2], LEFT_OUT, np.int32)
    for row, (own, marks) in enumerate(zip(places, labels, strict=True)):
        marks = marks[marks[:, 0] != NONE]
        first, _, there = _tokens(own, marks)
        found[row, first[there]] = marks[there, 2]
    return found


def spans_of_tokens(places: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first and the last token of each answer.

    An answer of which a part was cut off, and what fills up a row, is `LEFT_OUT` at both ends. A row without any answer
    has the first token as its first answer, the `[CLS]` of BERT (Devlin et al. 2019, section 4.3).

    Args:
        places: `[n, tokens, 2]` of `Tokenizer.places`.
        labels: `[n, answers, 2]`.

    Returns:
        `[n, answers, 2]` int32.
    """
    found = np.full(labels.shape, LEFT_OUT, np.int32)
    for row, (own, marks) in enumerate(zip(places, labels, strict=True)):
        real = marks[:, 0] != NONE
        if not real.any():
            found[row, 0] = (own[:, 0] > -2).argmax()  # after the padding, where that is on the left
            continue
        first, last, there = _tokens(own, marks)
        whole = real & there & (own[first, 0] <= marks[:, 0]) & (own[last, 1] >= marks[:, 1])
        found[row, whole] = np.stack([first, last], 1)[whole]
    return found


def _tokens(places, marks):
    """The first and the last token that has a character of each mark, and which marks have any."""
    numbers = np.flatnonzero(places[:, 1] > places[:, 0])  # of text, and not of nothing in it
    if not len(numbers):
        return *np.zeros((2, len(marks)), int), np.zeros(len(marks), bool)
    starts, ends = places[numbers].T
    first = np.minimum(np.searchsorted(ends, marks[:, 0], "right"), len(numbers) - 1)
    last = np.maximum(np.searchsorted(starts, marks[:, 1], "left") - 1, 0)
    there = (starts[first] < marks[:, 1]) & (ends[first] > marks[:, 0]) & (first <= last)
    return numbers[first], numbers[last], there
