"""Classifiers that are closed forms of class means: each is a linear head, fitted without a single step.

`cosine` and `euclidean` take the nearest class mean; both can shrink the means towards the grand mean by pseudo-counts.
`shrunken` takes the nearest of means shrunk under a Laplacian prior, feature by feature, and `lda` the nearest in the
metric of the covariance within the classes. Logits are `features @ kernel + bias`, up to a term that all classes share
and, for the cosine, up to the length of the features: neither changes which class is nearest.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.solvers.draws import drawn, each_draw, labelled


def prototypes(
    features: Any,
    labels: Any,
    kind: str = "cosine",
    *,
    classes: int | None = None,
    rows: Any = None,
    weights: Any = None,
    **options: float,
) -> tuple[jax.Array, jax.Array]:
    """The linear head of a kind of prototypes, fitted on all rows or on every draw.

    Args:
        features: `[n, d]`.
        labels: `[n]`.
        kind: One of `KINDS`.
        classes: Number of classes; None for as many as the largest label says.
        rows: Draws of rows `[*draws, m]`, as `draws.draws` gives them, fitted one by one; None to fit all rows once.
        weights: 1 for a row of a draw and 0 for padding, `[*draws, m]`; None for no padding.
        **options: Options of the kind: `pseudo_count` (`cosine`, `euclidean`), `threshold` (`shrunken`), `shrinkage`
            (`lda`). Choose them on validation rows.

    Returns:
        Kernel `[*draws, d, classes]` and bias `[*draws, classes]`.

    Raises:
        InputError: features, labels, draws or options that cannot be used, a class without examples, or, where the
            spread within classes counts, no class with two examples or too few rows for no shrinkage.
    """
    options = checked_options(kind, KINDS, options)
    features, labels, classes = labelled(features, labels, classes)
    rows, weights = drawn(rows, weights, len(features))
    check_spread(kind, options, *_examples(labels, classes, rows, weights, kind), features.shape[1] + classes)
    return _fits(features, labels, rows, weights, options, KINDS[kind], classes)


def cosine(x, labels, weights, classes: int, *, pseudo_count=0.0):
    """The class whose mean direction is nearest: features of length 1, their class means, again of length 1.

    SimpleShot's centred form (Wang et al. 2019, arXiv:1911.04623) is this of features from which the mean of the base
    classes has been subtracted.
    """
    _, offsets, _, grand = _means(unit(x), labels, weights, classes, pseudo_count)
    means = unit(offsets + grand)
    return means.T, jnp.zeros(classes, x.dtype)


def euclidean(x, labels, weights, classes: int, *, pseudo_count=0.0):
    """The class whose mean is nearest; the softmax of the logits is that of the negative squared distances, as in
    prototypical networks (Snell et al. 2017, arXiv:1703.05175).

    A pseudo-count a shrinks each mean to `(n mean + a grand mean) / (n + a)`, as Laplace's additive smoothing does with
    frequencies: the posterior mean under a Gaussian prior whose variance is that within classes divided by a.
    """
    _, offsets, _, grand = _means(x, labels, weights, classes, pseudo_count)
    return _head(2 * offsets, offsets, grand)


def shrunken(x, labels, weights, classes: int, *, threshold=0.5):
    """Nearest shrunken centroids (Tibshirani et al. 2002, doi:10.1073/pnas.082099299).

    The offset of a class mean from the grand mean, in units of its standard error, is moved towards zero by `threshold`
    and no further. That is the most probable offset under a Laplacian prior, and features in which no class stands out
    drop out. Distances are in units of the spread within classes; logits are logarithms of posteriors.
    """
    x, offsets, counts, grand = _means(x, labels, weights, classes)
    total = counts.sum()
    within = weights @ (x - offsets[labels]) ** 2
    spread = jnp.sqrt(within / (total - classes))
    spread = spread + jnp.median(spread)
    scale = jnp.where(spread > 0, 1 / spread, 0)
    errors = jnp.sqrt(1 / counts - 1 / total)[:, None] * spread
    offsets = jnp.sign(offsets) * jnp.maximum(jnp.abs(offsets) - threshold * errors, 0)
    return _head(offsets * scale**2, offsets, grand, jnp.log(counts / total))


def lda(x, labels, weights, classes: int, *, shrinkage=None):
    """Linear discriminant analysis with one covariance for all classes, `(1 - s) S + s tr(S)/d I`.

    S is the covariance of the rows about their class means, and logits are logarithms of posteriors. The shrinkage s is
    0 to 1; None is what Ledoit and Wolf (2004, doi:10.1016/S0047-259X(03)00096-4) estimate. (scikit-learn's `auto`
    estimates a shrinkage for each class alone, for which few shots do not suffice; at a given s the two agree.)
    """
    x, offsets, counts, grand = _means(x, labels, weights, classes)
    total, d = counts.sum(), x.shape[1]
    rows = weights[:, None] * (x - offsets[labels])
    dual = len(rows) < d
    gram = rows @ rows.T if dual else rows.T @ rows
    variance = jnp.trace(gram) / (total * d)
    variance = jnp.where(variance > 0, variance, 1)  # of repeated examples: then the nearest mean
    if shrinkage is None:
        squares = jnp.sum(gram**2) / total**2  # tr S², from either side
        noise = (jnp.sum(jnp.sum(rows**2, axis=1) ** 2) / total - squares) / total
        distance = squares - d * variance**2
        shrinkage = jnp.where(distance > 0, jnp.clip(noise / distance, 0, 1), 1)
    a, b = shrinkage * variance, (1 - shrinkage) / total
    if dual:  # (a + b RᵀR)⁻¹ = (1 - b Rᵀ (a + b RRᵀ)⁻¹ R) / a
        inner = jax.scipy.linalg.solve(a * jnp.eye(len(rows)) + b * gram, rows @ offsets.T, assume_a="pos")
        kernel = (offsets.T - b * rows.T @ inner) / a
    else:
        kernel = jax.scipy.linalg.solve(a * jnp.eye(d) + b * gram, offsets.T, assume_a="pos")
    return _head(kernel.T, offsets, grand, jnp.log(counts / total))


KINDS = {"cosine": cosine, "euclidean": euclidean, "shrunken": shrunken, "lda": lda}
"""By name, from rows `[n, d]`, labels `[n]`, weights `[n]` and the number of classes to a kernel and a bias."""

LIMITS = {"pseudo_count": np.inf, "threshold": np.inf, "shrinkage": 1.0, "strength": np.inf, "neighbours": np.inf}
"""The largest value of each option, here and in `evaluate.episodes`; the smallest is 0."""


def unit(x: jax.Array) -> jax.Array:
    """Rows `[..., d]` scaled to length 1; a row of zeros stays."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(length, 1e-12)


def checked_options(kind: str, kinds: Mapping[str, Callable], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a kind that are not None, checked.

    Args:
        kind: Name of a kind.
        kinds: The function of each kind, whose keyword-only arguments are its options.
        options: Values by name; None leaves an option to its default.

    Raises:
        InputError: an unknown kind, an option of another kind, or a value out of range.
    """
    if kind not in kinds:
        raise InputError(f"'{kind}' is no kind of prototypes; {nearest(kind, kinds)}")
    known = [name for name, p in inspect.signature(kinds[kind]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{kind} has no option '{name}'; {nearest(name, known)}")
        if value is not None and not (np.isfinite(value) and 0 <= value <= LIMITS[name]):
            raise InputError(f"{kind}: {name}={value}; expected 0 to {LIMITS[name]:g}")
    return {name: value for name, value in options.items() if value is not None}


def check_spread(kind: str, options: Mapping[str, Any], rows: int, most: int, needed: int) -> None:
    """Refuse rows from which a kind cannot estimate the spread within classes that it needs.

    Args:
        kind: Name of a kind.
        options: Options of the kind.
        rows: Number of rows that are fitted.
        most: Number of examples of the largest class.
        needed: The fewest rows of which a covariance needs no shrinkage: columns and classes together.

    Raises:
        InputError: classes of one example each, or too few rows for no shrinkage.
    """
    if kind in ("shrunken", "lda") and most < 2:
        raise InputError(f"{kind}: every class has a single example; the spread within classes needs a class with two")
    if options.get("shrinkage") == 0 and rows < needed:
        raise InputError(f"{kind}: shrinkage=0 with {rows} rows; expected at least {needed}, or some shrinkage")


def _means(x, labels, weights, classes, pseudo_count=0.0):
    """Rows and class means less the grand mean, `[n, d]` and `[classes, d]`, examples of a class, and that mean."""
    grand = weights @ x / weights.sum()
    x = x - grand
    counts = jax.ops.segment_sum(weights, labels, classes)
    sums = jax.ops.segment_sum(weights[:, None] * x, labels, classes)
    return x, sums / (counts + pseudo_count)[:, None], counts, grand


def _head(kernel, offsets, grand, priors=0.0):
    """`(x - grand) @ kernel - offsets · kernel / 2 + priors`, with kernel `[classes, d]` transposed, as a head on x."""
    return kernel.T, priors - kernel @ grand - jnp.sum(offsets * kernel, axis=1) / 2


def _examples(labels, classes, rows, weights, what):
    """Rows, and examples of the class with the most, of the draws with the fewest, if every class has one in each."""
    rows, weights = (np.arange(len(labels)), np.ones(len(labels))) if rows is None else (rows, weights)
    rows, weights = (np.reshape(x, (-1, x.shape[-1])) for x in (rows, weights))
    cell = labels[rows] + classes * np.arange(len(rows))[:, None]
    counts = np.bincount(cell.ravel(), weights.ravel(), minlength=classes * len(rows)).reshape(-1, classes)
    if not counts.all():
        draw, label = np.argwhere(counts == 0)[0]
        where = f" in draw {draw}" if len(rows) > 1 else ""
        raise InputError(f"{what}: class {label} has no examples{where}; expected at least one of each class")
    return int(counts.sum(axis=1).min()), int(counts.max(axis=1).min())


@partial(jax.jit, static_argnames=("fit", "classes"))
@jax.default_matmul_precision("highest")
def _fits(features, labels, rows, weights, options, fit, classes):
    def of_draw(rows, weights):
        return fit(features[rows], labels[rows], weights.astype(features.dtype), classes, **options)

    if rows is None:
        return fit(features, labels, jnp.ones(len(features), features.dtype), classes, **options)
    return each_draw(of_draw, rows, weights, features.shape[1])
