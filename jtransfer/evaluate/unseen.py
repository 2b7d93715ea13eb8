"""How well classes without a single image are recognised, and what scores of them are validated on: held-out classes.

Scores are `[..., n, classes]` as the methods of attributes.py give them, hyper-parameters in front.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers import checks

Compatibility = Callable[[Any, Any, Any, Any], Any]
"""From features and labels of seen classes, attributes of all, and queries, to scores of the queries."""


class Generalised(NamedTuple):
    """Accuracy when the search is over seen and unseen classes together (Xian et al. 2017, arXiv:1707.00600).

    Attributes:
        seen: Mean over the seen classes of the accuracy on the images of each, 0..1.
        unseen: Over the unseen classes.
        harmonic: Mean of the two.
    """

    seen: np.ndarray
    unseen: np.ndarray
    harmonic: np.ndarray


def validate(score: Compatibility, features, labels, attributes, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Accuracy on classes held out from the seen ones, for each hyper-parameter: what to choose them by.

    The seen classes fall into `folds` groups at random. Each group in turn is left out of the fit, and its images are
    classified among its classes. Unseen classes are never looked at.

    Args:
        score: A method with its hyper-parameters, as `partial(bridge, l2=np.logspace(-3, 3, 7))`.
        features: `[n, d]` of images of the seen classes.
        labels: `[n]` integers, rows of `attributes`.
        attributes: `[classes, m]`.
        folds: Number of groups.
        seed: The seed that the groups are drawn with.

    Returns:
        Mean over the seen classes of the accuracy on each, in the shape of the hyper-parameters.

    Raises:
        InputError: fewer than two groups, or too few seen classes for two in each; and what the method refuses.
    """
    labels, total = np.asarray(labels), 0.0
    for group in groups(np.unique(labels), folds, seed):
        out = np.isin(labels, group)
        scores = score(features[~out], labels[~out], attributes, features[out])
        total += len(group) * accuracy(scores, labels[out], group)
    return total / len(np.unique(labels))


def groups(seen: np.ndarray, folds: int, seed: int = 0) -> list[np.ndarray]:
    """The groups that `validate` leaves out in turn.

    Raises:
        InputError: fewer than two groups, or too few seen classes for two in each.
    """
    if not 2 <= folds <= len(seen) // 2:
        raise InputError(
            f"folds is {folds} for {len(seen)} seen classes; expected at least 2, and at least two classes in each fold"
        )
    return np.array_split(np.random.default_rng(seed).permutation(seen), folds)


def accuracy(scores, labels, classes, among=None) -> np.ndarray:
    """Mean over `classes` of the accuracy on the images of each, when the search is among these or more classes.

    So a class counts the same however many images it has (Xian et al. 2017, arXiv:1707.00600).

    Args:
        scores: `[..., n, all classes]`.
        labels: `[n]` integers, each one of `classes`.
        classes: `[c]` those that have images, as the unseen classes.
        among: The candidates, where there are more of them.

    Raises:
        InputError: a label outside `classes`, a class without an image, or NaN.
    """
    return _accuracy(*_scored(scores, labels, classes), classes, classes if among is None else among)


def generalised(scores, labels, seen, unseen, stacking: float | np.ndarray = 0.0, among=None) -> Generalised:
    """Generalised zero-shot accuracy: images of seen and unseen classes, and the search is among all of both.

    Args:
        scores: `[..., n, all classes]`.
        labels: `[n]` integers, each one of `seen` or `unseen`.
        seen: `[s]` classes that were fitted; their images here must be others than those of the fit.
        unseen: `[u]` classes that were not.
        stacking: Subtracted from the scores of the seen classes, whose images the fit has favoured: a number, or an
            array that broadcasts with the leading axes of `scores` (calibrated stacking, Chao et al. 2016,
            arXiv:1605.04253). Choose it on held-out classes.
        among: The candidates, where there are more of them than those that have images.

    Raises:
        InputError: no seen or no unseen class, one that is both, a label outside them, a class without an image, NaN.
    """
    for what, classes in (("seen", seen), ("unseen", unseen)):
        if not len(classes):
            raise InputError(f"no {what} class is given; generalised zero-shot needs both seen and unseen ones")
    if both := set(np.asarray(seen).tolist()) & set(np.asarray(unseen).tolist()):
        raise InputError(f"class {min(both)} is both seen and unseen; expected one of the two")
    everything = np.concatenate([seen, unseen])
    scores, labels = _scored(scores, labels, everything)
    scores = scores - np.asarray(stacking)[..., None, None] * np.isin(np.arange(scores.shape[-1]), seen)
    candidates = everything if among is None else among
    seen, unseen = (_accuracy(scores, labels, classes, candidates) for classes in (seen, unseen))
    return Generalised(seen, unseen, harmonic(seen, unseen))


def harmonic(seen, unseen) -> np.ndarray:
    """Harmonic mean `2 s u / (s + u)` of two accuracies, 0 where either is 0."""
    seen, unseen = np.asarray(seen), np.asarray(unseen)
    return 2 * seen * unseen / np.maximum(seen + unseen, np.finfo(np.float32).tiny)


def ceiling(attributes, classes=None) -> float:
    """The best accuracy (mean over `classes`) that attributes allow: classes with the same row cannot be told apart.

    Of each set of classes that share a row, only one can ever win.

    >>> ceiling([[0, 1], [1, 1], [0, 1]])
    0.666...

    Args:
        attributes: `[classes, m]`.
        classes: The candidates; None for all.

    Raises:
        InputError: attributes that are no matrix of numbers.
    """
    rows = checks.attributes(attributes)
    rows = rows if classes is None else rows[np.asarray(classes)]
    return len(np.unique(rows, axis=0)) / len(rows)


def _scored(scores, labels, classes):
    scores, labels, classes = np.asarray(scores), np.asarray(labels), np.asarray(classes)
    if labels.shape != scores.shape[-2:-1]:
        raise InputError(f"labels have shape {list(labels.shape)}; expected [{scores.shape[-2]}], one a row of scores")
    if np.isnan(scores).any():
        raise InputError(f"scores: row {np.argwhere(np.isnan(scores))[0][-2]} holds NaN")
    if (outside := ~np.isin(labels, classes)).any():
        row = int(outside.argmax())
        raise InputError(f"labels: row {row} is class {labels[row]}, which is none of the candidates")
    if (empty := ~np.isin(classes, labels)).any():
        raise InputError(f"class {classes[empty.argmax()]} has no image; its accuracy cannot be measured")
    return scores, labels


def _accuracy(scores, labels, classes, among):
    """Mean over `classes` of the accuracy on the rows of each, when the search is `among` those."""
    among = np.asarray(among)
    hits = among[scores[..., among].argmax(-1)] == labels
    return np.mean([hits[..., labels == c].mean(-1) for c in classes], axis=0)
