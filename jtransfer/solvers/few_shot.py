"""Linear heads that need no training loop, fitted on many few-shot draws at once.

A fit is `fit(features [n, d], labels [n], classes, train, validation, metric)`, with draws of rows for training and
validation as `(rows [s, m], weights [s, m])`, weights 0 where a draw is padded. It gives a head for every draw; the
metric on validation rows chooses its hyper-parameters. As padding is free, one program serves every number of shots.

A fit that reads names works on a dual encoder's embeddings of images, of length 1, and is given `named` as well: kernel
`[d, classes]` and bias `[classes]` of the head that the text tower makes of the classes' names. One that asks for views
is given `keys [n, d]`, the mean of the embeddings of random views of each image that may be trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax
import numpy as np

from jtransfer import expressions
from jtransfer.kinds import POSITIVES, checked, whole
from jtransfer.objectives.metrics import METRICS
from jtransfer.solvers import cache, heads
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
        more: More leaves of each head by name, `[s, ...]`; empty for linear heads.
    """

    kernels: jax.Array
    biases: jax.Array
    values: np.ndarray
    chosen: list[dict[str, float]]
    more: Mapping[str, jax.Array] = MappingProxyType({})

    @property
    def leaves(self) -> dict[str, jax.Array]:
        """All leaves of each head by path, `[s, ...]`."""
        return {
            f"head/{name}": x for name, x in ({"kernel": self.kernels, "bias": self.biases} | {**self.more}).items()
        }


@dataclass(frozen=True)
class Fit:
    """A way to fit heads.

    Attributes:
        call: Fits the heads; its arguments are at the top of this file.
        how: How heads are fitted, in words for a report.
        least: The fewest examples of each class that a fit needs; 0 if it looks at none.
        names: Whether it reads the names of the classes.
        leaves: Names of the leaves of the head that it finds.
        views: Number of views of an image that it asks for, of `data.views.view`; 0 for the image as it is.
        flip: Whether views may be mirrored.
    """

    call: Callable[..., FewShotHeads]
    how: str
    least: int = 1
    names: bool = False
    leaves: tuple[str, ...] = ("kernel", "bias")
    views: int = 0
    flip: bool = False


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


ALPHAS, BETAS = (tuple(2.0**power for power in powers) for powers in (range(-3, 5), range(-2, 6)))
"""What `tip_adapter` chooses from."""


@checked
def tip_adapter(
    alphas: Annotated[tuple, POSITIVES] = ALPHAS,
    betas: Annotated[tuple, POSITIVES] = BETAS,
    views: Annotated[int, whole(0, 1000)] = 10,
    flip: bool = False,
) -> Fit:
    """The head of the classes' names beside a cache of the labelled images, which vote for their classes (Tip-Adapter).

    Logits are `x W + b + alpha exp(-beta (1 - x K^T)) V` (Zhang et al. 2022, arXiv:2207.09519), with W the zero-shot
    head, K the embeddings of the images and V their classes. Nothing is trained; `tip_adapter >> rules('head/keys')`
    trains K from there (Tip-Adapter-F). Validation chooses alpha and beta, and training keeps them.

    Args:
        alphas: Weights of the votes to choose from.
        betas: How fast votes fall with distance, to choose from.
        views: A key is the mean over this many random views of its image; 0 for the image itself.
        flip: Whether views may be mirrored, as the authors' are; of characters they must not.

    Raises:
        InputError: `alphas` or `betas` is no list of positive numbers, or `views` no whole number from 0.
    """

    def fit(features, labels, classes, train, validation, metric=METRICS["accuracy"], *, named, keys=None):
        given = features, features if keys is None else keys, np.asarray(labels)
        grid = np.array(alphas, np.float32), np.array(betas, np.float32)
        leaves, values = cache.caches(*map(np.asarray, given), classes, train, validation, named, *grid, metric)
        kernels, biases = (np.broadcast_to(x, (len(train[0]), *x.shape)) for x in named)
        pairs = zip(*(np.asarray(leaves[name]).tolist() for name in ("alpha", "beta")), strict=True)
        chosen = [{"alpha": alpha, "beta": beta} for alpha, beta in pairs]
        return FewShotHeads(kernels, biases, np.asarray(values), chosen, leaves)

    how = f"the names' head and a cache of the images, alpha of {len(alphas)} from {min(alphas):g} to {max(alphas):g}, "
    how += f"beta of {len(betas)} from {min(betas):g} to {max(betas):g}, keys of {views or 'no'} random views"
    return Fit(fit, how, names=True, leaves=("kernel", "bias", *cache.LEAVES), views=views, flip=flip)


FITS: dict[str, Callable[..., Fit]] = {
    "ridge": ridge,
    "logistic": logistic,
    "prototypes": prototypes,
    "zero_shot": zero_shot,
    "tip_adapter": tip_adapter,
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
