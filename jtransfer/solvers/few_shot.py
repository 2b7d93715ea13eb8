"""Linear heads that need no training loop, fitted on many few-shot draws at once.

A fit is `fit(features [n, d], labels [n], classes, train, validation, metric)`, with draws of rows for training and
validation as `(rows [s, m], weights [s, m])`, weights 0 where a draw is padded. It gives a head for every draw; the
metric on validation rows chooses its hyper-parameters. As padding is free, one program serves every number of shots.

A fit that reads names works on a dual encoder's embeddings of images, of length 1, and is given `named` as well: kernel
`[d, classes]` and bias `[classes]` of the head that the text tower makes of the classes' names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import numpy as np

from jtransfer import expressions
from jtransfer.kinds import POSITIVES, checked
from jtransfer.objectives.metrics import METRICS
from jtransfer.solvers import heads
from jtransfer.solvers import logistic as logistics
from jtransfer.solvers import prototypes as means
from jtransfer.solvers import ridge as ridges

RIDGE = tuple(2.0**power for power in range(-10, 21, 2))
"""The λ that `ridge` searches, on the sum of squares over rows."""
LOGISTIC = tuple(np.logspace(-6, 2, 17).tolist())
"""The λ that `logistic` searches, on the mean loss over rows."""

Draws = tuple[np.ndarray, np.ndarray]
"""Rows `[s, m]` of s draws, and weights `[s, m]`: 1 for a row and 0 for padding."""


class FewShotHeads(NamedTuple):
    """A head for every draw.

    Attributes:
        kernels: `[s, d, classes]`.
        biases: `[s, classes]`.
        values: `[s]`, the metric of each head on the validation rows of its draw.
        chosen: The hyper-parameters of each head, by name; empty where none are chosen.
    """

    kernels: jax.Array
    biases: jax.Array
    values: np.ndarray
    chosen: list[dict[str, float]]


@dataclass(frozen=True)
class Fit:
    """A way to fit heads.

    Attributes:
        call: Fits the heads; its arguments are at the top of this file.
        how: How heads are fitted, in words for a report.
        least: The fewest examples of each class that a fit needs; 0 if it looks at none.
        names: Whether it reads the names of the classes.
    """

    call: Callable[..., FewShotHeads]
    how: str
    least: int = 1
    names: bool = False


@checked
def ridge(l2: Annotated[tuple, POSITIVES] = RIDGE) -> Fit:
    """Ridge regression as big_vision fits it; validation chooses λ, on the sum over rows, from `l2`.

    Raises:
        InputError: `l2` is no list of positive numbers.
    """
    how = f"whitened features, targets 1 and -1, λ on the sum of {len(l2)} from {min(l2):g} to {max(l2):g}"
    return Fit(_path(ridges.ridge_path, l2), how)


@checked
def logistic(l2: Annotated[tuple, POSITIVES] = LOGISTIC) -> Fit:
    """L2-regularised logistic regression at its optimum; validation chooses λ, on the mean loss, from `l2`.

    Raises:
        InputError: `l2` is no list of positive numbers.
    """
    how = f"cross-entropy, λ on the mean of {len(l2)} from {min(l2):g} to {max(l2):g}"
    return Fit(_path(logistics.few_shot_paths, l2), how)


def prototypes(kind: str = "cosine") -> Fit:
    """The nearest class mean: "cosine", "euclidean", "shrunken" or "lda", without a hyper-parameter to choose.

    Raises:
        InputError: an unknown kind.
    """
    means.checked_options(kind, means.KINDS, {})

    def fit(features, labels, classes, train, validation, metric=METRICS["accuracy"]):
        rows, weights = train
        kernels, biases = means.prototypes(features, labels, kind, classes=classes, rows=rows, weights=weights)
        rows, weights = validation
        values = heads.values(kernels, biases, features, labels, rows=rows, weights=weights, metric=metric)
        return FewShotHeads(kernels, biases, np.asarray(values), [{} for _ in rows])

    return Fit(fit, "a closed form in which nothing is chosen", 2 if kind in ("shrunken", "lda") else 1)


def zero_shot() -> Fit:
    """The head that a text tower makes of the classes' names (CLIP, Radford et al. 2021, arXiv:2103.00020).

    With `image_embeds` of length 1, its logits are those of zero-shot classification: the scale of similarities is in
    the kernel (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, section 3).
    """

    def fit(features, labels, classes, train, validation, metric=METRICS["accuracy"], *, named):
        draws = len(train[0])
        kernels, biases = (np.broadcast_to(x, (draws, *x.shape)) for x in named)
        return FewShotHeads(kernels, biases, np.full(draws, np.nan), [{}] * draws)

    return Fit(fit, "the classes' names, as the text tower reads them", least=0, names=True)


FITS: dict[str, Callable[..., Fit]] = {
    "ridge": ridge,
    "logistic": logistic,
    "prototypes": prototypes,
    "zero_shot": zero_shot,
}
"""Every fit by the name that a config calls."""


def parse(text: str) -> Fit:
    """A fit as a config writes it: `ridge`, `prototypes('lda')`.

    Raises:
        InputError: an unknown fit or option, with the nearest that exists.
    """
    return expressions.call(expressions.parse(text, "method"), text, "method", FITS)()


def _path(solve, l2):
    def fit(features, labels, classes, train, validation, metric=METRICS["accuracy"]):
        rows, weights = train
        kernels, biases = solve(features, labels, np.array(l2), classes=classes, rows=rows, weights=weights)
        rows, weights = validation
        found = kernels, biases, np.array(l2), features, labels
        best = heads.choose(*found, rows=rows, weights=weights, metric=metric)
        return FewShotHeads(best.kernel, best.bias, np.asarray(best.value), [{"l2": float(x)} for x in best.l2])

    return fit
