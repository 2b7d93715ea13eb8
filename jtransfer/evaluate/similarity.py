"""How alike are two representations of the same examples? Linear centred kernel alignment (CKA).

Kornblith et al. 2019 (arXiv:1905.00414). The debiased form divides unbiased estimates of HSIC (Song et al. 2012, as
Nguyen et al. 2021, arXiv:2010.15327, use them): with few examples for many features the plain one finds any two
representations alike.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers import checks

LEAST = 4
"""Rows that the debiased form needs."""


def cka(x, y, debiased: bool = True) -> float:
    """Linear CKA of two representations: 1 if they are equal up to rotation and scale, about 0 if they share nothing.

    Args:
        x: Features `[n, d1]`.
        y: Features `[n, d2]` of the same examples in the same order.
        debiased: Whether the bias that few examples bring is taken out; the value may then be below 0. It is NaN in
            the rare case that a representation holds one outlier and nothing else.

    Raises:
        InputError: features that cannot be used, other numbers of rows, or fewer than 4 of them.
    """
    return float(cka_matrix([x], [y], debiased)[0, 0])


def cka_matrix(xs: Sequence, ys: Sequence | None = None, debiased: bool = True) -> np.ndarray:
    """Linear CKA `[len(xs), len(ys)]` of each representation with each, as layer by layer of two models.

    Only one pair at a time is on the device, and nothing `[n, n]` is formed unless it is smaller than the features.

    Args:
        xs: Features `[n, d]`, whose widths may differ.
        ys: Features of the same examples; None for `xs` among themselves.
        debiased: Whether the bias that few examples bring is taken out, as in `cka`.

    Raises:
        InputError: features that cannot be used, other numbers of rows, or fewer than 4 of them.
    """
    sides = {"x": xs} if ys is None else {"x": xs, "y": ys}
    checked = {
        side: [checks.features(z, f"features {side}[{i}]") for i, z in enumerate(zs)] for side, zs in sides.items()
    }
    xs, ys = checked["x"], checked.get("y")
    rows = [len(z) for zs in checked.values() for z in zs]
    if not xs or (ys is not None and not ys):
        raise InputError("there are no features to compare; expected at least one representation a side")
    if len(set(rows)) > 1:
        raise InputError(f"features have {', '.join(map(str, rows))} rows; expected the same examples in each")
    if rows[0] < LEAST:
        raise InputError(f"features have {rows[0]} rows; CKA needs at least {LEAST}")

    norms = [np.array([_norm(z, debiased) for z in zs]) for zs in checked.values()]
    if ys is None:
        cross = np.diag(norms[0] ** 2)
        for i, j in zip(*np.triu_indices(len(xs), 1), strict=True):
            cross[i, j] = cross[j, i] = _hsic(xs[i], xs[j], debiased)
    else:
        cross = np.array([[_hsic(x, y, debiased) for y in ys] for x in xs])
    return cross / np.outer(norms[0], norms[-1])


def alignment(images, texts) -> float:
    """Mean squared distance of embeddings of length 1 that belong together (Wang & Isola 2020, arXiv:2005.10242).

    Args:
        images: `[n, d]`.
        texts: `[n, d]`, one for each image.

    Raises:
        InputError: embeddings that cannot be used, or of different shape.
    """
    images, texts = (checks.features(x, what, alike=True) for x, what in ((images, "images"), (texts, "texts")))
    if images.shape != texts.shape:
        raise InputError(
            f"images have shape {list(np.shape(images))}, texts {list(np.shape(texts))}; expected the same"
        )
    return float(np.mean(np.sum((np.asarray(images) - np.asarray(texts)) ** 2, -1, dtype=np.float64)))


def uniformity(embeds, rows: int = 2048) -> float:
    """Logarithm of the mean of exp(-2 d²) over pairs of different rows (Wang & Isola 2020): lower is more even.

    Args:
        embeds: `[n, d]`, of length 1.
        rows: At most so many are used, evenly spread.

    Raises:
        InputError: embeddings that cannot be used.
    """
    embeds = checks.features(embeds, "embeddings", alike=True)
    embeds = np.asarray(embeds)[np.linspace(0, len(embeds) - 1, min(rows, len(embeds))).astype(int)]
    squared = 2 - 2 * (embeds @ embeds.T)[~np.eye(len(embeds), dtype=bool)]
    return float(np.log(np.mean(np.exp(-2 * squared, dtype=np.float64)))) if len(embeds) > 1 else 0.0


def u_centre(gram: jax.Array) -> jax.Array:
    """A Gram matrix `[n, n]` with zeros on the diagonal, whose rows and columns sum to zero (Szekely & Rizzo 2014).

    It is what is left of the off-diagonal when a term of the row and one of the column are taken out; U-statistics such
    as HSIC and MMD do not see these terms. The sum of the product of two such matrices over n (n - 3) is the unbiased
    HSIC.
    """
    n = len(gram)
    gram = jnp.where(jnp.eye(n, dtype=bool), 0, gram)
    rows = gram.sum(axis=1) / (n - 2)
    centred = gram - rows[:, None] - rows + rows.sum() / (n - 1)
    return jnp.where(jnp.eye(n, dtype=bool), 0, centred)


@partial(jax.jit, static_argnames="debiased")
def _norm(x, debiased):
    """Root of the HSIC of x with itself, which is never negative; NaN where all but rounding was bias."""
    value, plain = _hsic(x, x, debiased), _hsic(x, x, False)
    return jnp.sqrt(jnp.where(value > len(x) * jnp.finfo(value.dtype).eps * plain, value, jnp.nan))


@partial(jax.jit, static_argnames="debiased")
@jax.default_matmul_precision("highest")
def _hsic(x, y, debiased):
    """HSIC up to a factor that cancels in CKA."""
    n, widths = len(x), (x.shape[1], y.shape[1])
    x, y = (z - z.mean(axis=0) for z in map(checks.floats, (x, y)))
    x, y = (z / jnp.abs(z).max() for z in (x, y))
    if n * sum(widths) < widths[0] * widths[1]:  # so n < d: the Gram matrices are the smaller ones
        grams = x @ x.T, y @ y.T
        return jnp.sum(jnp.multiply(*(map(u_centre, grams) if debiased else grams)))
    # Rows of the centred K sum to zero, so of Song's formula there remain tr(KL) = |X'Y|^2 and the diagonals a and b,
    # which his K and L lack: tr(KL) - ab + sum(a) sum(b) / ((n - 1)(n - 2)) - 2 ab / (n - 2).
    plain = jnp.sum((x.T @ y) ** 2)
    a, b = jnp.sum(x**2, axis=1), jnp.sum(y**2, axis=1)
    return plain - n / (n - 2) * a @ b + a.sum() * b.sum() / ((n - 1) * (n - 2)) if debiased else plain
