"""How good predictions are: plain numbers from logits, probabilities or scores, computed in float64 NumPy.

Predictions are `[n, classes]` logits, of which the first of the largest counts, or `[n]` the predicted classes
themselves. Every function raises InputError for rows that do not match, no rows, NaN, or labels that are no classes.
Those of `objectives.metrics` are computed on the device, in float32, with weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers.checks import one_after_another


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose predicted class is the label: `predicted` `[n, classes]` or `[n]`, `labels` `[n]`."""
    return float(hits(predicted, labels).mean())


def hits(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the predicted class of each row is its label, `[n]`; arguments as of `accuracy`."""
    predicted, labels = _predictions(predicted, labels)
    return predicted == labels


def top(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose label is among the k classes of the largest logits; ties go to the first class.

    So `top(logits, labels, 1)` is the accuracy, and equal logits are no hit for every class.

    Args:
        logits: `[n, classes]`.
        labels: `[n]`.
        k: At least 1; with as many as there are classes every row is a hit.
    """
    if k < 1:
        raise InputError(f"top-k with k={k}; expected at least 1")
    return float((_before(*_logits(logits, labels)) < k).mean())


def per_class(predicted: np.ndarray, labels: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Accuracy on the rows of each class `[classes]`, NaN for a class without rows.

    The mean per class over those that are there is its `np.nanmean`.

    Args:
        predicted: `[n, classes]` or `[n]`.
        labels: `[n]`.
        classes: How many there are; None for as many as there are logits, or as the largest class says.
    """
    outputs = np.shape(predicted)[1] if np.ndim(predicted) == 2 else 0
    predicted, labels = _predictions(predicted, labels)
    classes = classes or outputs or _largest(predicted, labels)
    if labels.max() >= classes:
        raise InputError(f"labels: row {labels.argmax()} is {labels.max()}; expected 0..{classes - 1}")
    counts, right = (np.bincount(rows, minlength=classes) for rows in (labels, labels[predicted == labels]))
    return _ratio(right, counts)


def auroc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the receiver operating characteristic of each label `[c]`: how often a positive row's score is above
    that of a negative one, equal scores counting half. NaN for a label that all rows have, or none.

    Args:
        scores: `[n, c]`.
        targets: `[n, c]` of 0 and 1.
    """
    scores, targets = _scores(scores, "scores"), np.asarray(targets)
    if targets.shape != scores.shape or not np.isin(targets, (0, 1)).all():
        raise InputError(f"targets have shape {list(targets.shape)}; expected {list(scores.shape)} of 0 and 1")
    curves = [_curve(*column) for column in zip(scores.T, targets.T, strict=True)]
    return np.array([_ratio(_area(*curve), curve[0][-1] * curve[1][-1]) for curve in curves])


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): `Σ_m |B_m|/n |accuracy(B_m) - confidence(B_m)|`.

    A row's confidence is its largest probability, and B_m are the rows whose confidence is in ((m-1)/bins, m/bins].

    Args:
        probabilities: `[n, classes]`, rows that sum to 1.
        labels: `[n]`.
        bins: Number of bins, all of one width.
    """
    if bins < 1:
        raise InputError(f"expected calibration error with bins={bins}; expected at least 1")
    probabilities, labels = _logits(probabilities, labels, "probabilities")
    off = (np.abs(probabilities.sum(1) - 1) > 1e-2) | (probabilities.min(1) < 0)
    if off.any():
        row = int(off.argmax())
        raise InputError(
            f"probabilities: row {row} sums to {probabilities[row].sum():.4g}, expected 1; logits need softmax"
        )
    return _calibration(probabilities.max(1), probabilities.argmax(1) == labels, bins)


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels `[n]` under the softmax of `logits` `[n, classes]`, in nats."""
    logits, labels = _logits(logits, labels)
    return float(-np.take_along_axis(log_softmax(logits), labels[:, None], axis=1).mean())


class Judged(NamedTuple):
    """Predictions of many rows for many classes, told row by row, so that not all logits are held at once.

    Attributes:
        predicted: Class of the largest logit `[n]`.
        before: How many classes come before the label `[n]`; see `top`.
        confidence: The largest probability under softmax `[n]`.
        likelihood: Logarithm of the label's probability `[n]`.
        classes: How many there are.
    """

    predicted: np.ndarray
    before: np.ndarray
    confidence: np.ndarray
    likelihood: np.ndarray
    classes: int

    def top(self, k: int) -> float:
        """As the function `top`."""
        return float((self.before < k).mean())

    def ece(self, labels: np.ndarray, bins: int = 15) -> float:
        """As the function `ece` of the softmax."""
        return _calibration(self.confidence, self.predicted == labels, bins)


BLOCK = 2**25
"""Logits that are judged at once."""


def judge(call: Callable[[slice], np.ndarray], labels: np.ndarray, rows: int, classes: int) -> Judged:
    """Judge the logits of many rows, a block of rows at a time.

    Args:
        call: From a slice of rows to their logits `[rows, classes]`.
        labels: `[n]`.
        rows: n.
        classes: How many there are.
    """
    labels, parts = _integers(labels, "labels", rows), []
    size = max(1, BLOCK // classes)
    for start in range(0, len(labels), size):
        logits, own = _logits(call(slice(start, start + size)), labels[start : start + size])
        logs = log_softmax(logits)
        likelihood = np.take_along_axis(logs, own[:, None], axis=1)[:, 0]
        parts.append((logits.argmax(1), _before(logits, own), np.exp(logs).max(1), likelihood))
    return Judged(*map(np.concatenate, zip(*parts, strict=True)), classes)


def _before(logits, labels):
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return (logits > own).sum(1) + ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(1)


def _calibration(confidence, correct, bins):
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    return float(np.abs(np.bincount(bin_of, weights=correct - confidence)).sum() / len(correct))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities `[n, classes]` that logits stand for; `np.exp` gives the probabilities."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _predictions(predicted, labels):
    """Predicted classes and labels, both `[n]` integers."""
    if np.ndim(predicted) == 2:
        logits, labels = _logits(predicted, labels)
        return logits.argmax(1), labels
    labels = _integers(labels, "labels")
    return _integers(predicted, "predictions", len(labels)), labels


def _largest(predicted, labels):
    """As many classes as the largest of both says."""
    count = int(max(predicted.max(), labels.max())) + 1
    one_after_another(count, len(labels), "labels")
    return count


def _logits(logits, labels, what="logits"):
    """Logits `[n, classes]` float64 and labels `[n]`, each one of the classes."""
    logits, labels = _scores(logits, what), _integers(labels, "labels", len(logits))
    if labels.max() >= logits.shape[1]:
        raise InputError(f"labels: row {labels.argmax()} is {labels.max()}; expected 0..{logits.shape[1] - 1}")
    return logits, labels


def _scores(x, what):
    x = np.asarray(x)
    if x.ndim != 2 or not all(x.shape):
        raise InputError(f"{what} have shape {list(x.shape)}; expected [n, classes] with at least one row")
    x = np.asarray(x, np.float64)
    missing = np.isnan(x).any(1)
    if missing.any():
        raise InputError(f"{what}: row {missing.argmax()} holds NaN")
    return x


def _integers(x, what, rows=None):
    x = np.asarray(x)
    if x.ndim != 1 or x.dtype.kind not in "iub" or not len(x):
        raise InputError(f"{what} have shape {list(x.shape)} and dtype {x.dtype}; expected [n] integers, one at least")
    if rows is not None and len(x) != rows:
        raise InputError(f"{what}: {len(x)} where {rows} are expected, one a row")
    if x.min() < 0:
        raise InputError(f"{what}: row {x.argmin()} is {x.min()}; expected classes from 0")
    return x.astype(np.int64)


def _area(true, false):
    return (np.diff(false, prepend=0) * (true + np.append(0, true[:-1]))).sum() / 2


def _curve(scores, targets):
    """True and false positives above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(order) - 1)  # of each run of equal scores
    true = np.cumsum(targets[order], dtype=np.float64)[last]
    return true, last + 1 - true


def _ratio(part, whole):
    """`part / whole`, NaN where the whole is 0."""
    return np.where(whole, part / np.maximum(whole, 1), np.nan)
