"""Zero-shot classification by attributes: a class without a single image is recognised by what is said of it.

Each method fits images of the seen classes to the rows of an attribute matrix `[classes, m]`, and scores images against
every row, those of classes without images among them. Hyper-parameters may be arrays: their shape leads that of the
scores, a whole grid is one program, and `validate` of unseen.py says which of it is best on held-out classes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.solvers import checks
from jtransfer.solvers.logistic import logistic_path

DECISIONS = ("cosine", "dot", "euclidean")


def dap(features, labels, attributes, queries, l2: float | np.ndarray = 1e-3) -> jax.Array:
    """Direct attribute prediction: the logarithm of `Π_m p(a_m|x) / p(a_m)` for the attributes of each class.

    `p(a_m|x)` is a logistic regression for each attribute, and `p(a_m)` the share of the seen classes that have it
    (Lampert, Nickisch & Harmeling 2009, doi:10.1109/CVPR.2009.5206594, eq. 2). An attribute that all seen classes
    have, or none, cannot be learned: its factor is left out.

    Args:
        features: `[n, d]` of images of the seen classes.
        labels: `[n]` integers, rows of `attributes`; the classes among them are the seen ones.
        attributes: `[classes, m]` of 0 and 1.
        queries: `[q, d]` features of the images to score.
        l2: Penalty of the logistic regressions' mean loss, as in `logistic_path`, of any shape.

    Returns:
        Scores `[*l2.shape, q, classes]`; the largest among the candidate classes decides.

    Raises:
        InputError: attributes other than 0 and 1, and what `checked` refuses.
    """
    features, labels, attributes, queries = checked(features, labels, attributes, queries)
    check(attributes, np.unique(labels), binary=True)
    prior = attributes[np.unique(labels)].mean(axis=0)
    known = (prior > 0) & (prior < 1)
    # The same number of columns whichever are known, so that no draw of seen classes compiles anew.
    stand_in = np.where(known, np.arange(len(known)), known.argmax())
    # And the same number of rows for draws of about as many: rows of no weight fill up an eighth of an octave.
    spare = -len(features) % 2 ** max(0, len(features).bit_length() - 4)
    rows, targets = (np.pad(x, [(0, spare), (0, 0)]) for x in (features, attributes[labels][:, stand_in]))
    path = logistic_path(rows, targets, np.ravel(l2), weights=np.arange(len(rows)) < len(features))
    kernels, biases = (jnp.asarray(x, features.dtype) for x in path)
    scores = _log_odds(kernels, biases, np.where(known, prior, 0.5), known, attributes, queries)
    return scores.reshape(*np.shape(l2), *scores.shape[1:])


def bridge(features, labels, attributes, queries, l2: float | np.ndarray = 1.0, decision: str = "cosine") -> jax.Array:
    """The least-squares bridge: ridge regression from attributes to class centroids, then the nearest centroid.

    Fitted on the seen classes, one row each, with an intercept that bears no penalty: the centroid of a class with
    attributes a is predicted as `mean(c) + (a - mean(a)) W` with `W = (AᵀA + l2 I)⁻¹ Aᵀ C`, where A and C are the seen
    classes' attributes and centroids less their means. Features enter as they are: centre them for a sharper cosine.

    Args:
        features: `[n, d]` of images of the seen classes.
        labels: `[n]` integers, rows of `attributes`.
        attributes: `[classes, m]` numbers.
        queries: `[q, d]` features of the images to score.
        l2: Penalty on the summed squares, of any shape.
        decision: "cosine", of the query and the predicted centroid, each scaled to length 1; "dot", their unnormalised
            product, to which a long centroid is near to everything; or "euclidean", minus the squared distance.

    Returns:
        Scores `[*l2.shape, q, classes]`.

    Raises:
        InputError: a decision that is none of these, a penalty that is not above 0, and what `checked` refuses.
    """
    if decision not in DECISIONS:
        raise InputError(f"decision '{decision}' is unknown; {nearest(str(decision), DECISIONS)}")
    features, labels, attributes, queries = checked(features, labels, attributes, queries)
    l2 = _positive(l2, "l2", features.dtype)
    centroids = _bridge(*_sums(features, labels, len(attributes)), attributes, l2)
    return _near(queries, centroids, decision)


def eszsl(
    features, labels, attributes, queries, gamma: float | np.ndarray = 1.0, penalty: float | np.ndarray = 1.0
) -> jax.Array:
    """ESZSL: `xᵀ V s` with `V = (XXᵀ + γI)⁻¹ X Y Sᵀ (SSᵀ + λI)⁻¹` (Romera-Paredes & Torr 2015, PMLR 37, eq. 5).

    X `[d, n]` are the features, S `[m, seen]` the attributes of the seen classes, and Y `[n, seen]` is 1 for an image's
    class and -1 for the others. One decomposition of each Gram matrix serves every γ and λ. There is no intercept:
    centre the features.

    Args:
        features: `[n, d]` of images of the seen classes.
        labels: `[n]` integers, rows of `attributes`.
        attributes: `[classes, m]` numbers.
        queries: `[q, d]` features of the images to score.
        gamma: γ, of any shape.
        penalty: λ, of a shape that broadcasts with it.

    Returns:
        Scores `[*broadcast shape, q, classes]`.

    Raises:
        InputError: a penalty that is not above 0, and what `checked` refuses.
    """
    features, labels, attributes, queries = checked(features, labels, attributes, queries)
    gamma, penalty = _positive(gamma, "gamma", features.dtype), _positive(penalty, "penalty", features.dtype)
    gamma, penalty = jnp.broadcast_arrays(gamma, penalty)
    kernels = _eszsl(_gram(features), *_sums(features, labels, len(attributes)), attributes, gamma, penalty)
    return _dot(queries, kernels)


def checked(features, labels, attributes, queries):
    """What every method needs, or one line that says what is wrong, before any compile.

    Raises:
        InputError: NaN, constant features or attributes, labels that are no rows of `attributes`, fewer than two seen
            classes, seen classes of which all have the same attributes, or queries of another width.
    """
    if not len(features):
        raise InputError(f"no seen class: features are empty, shape {list(np.shape(features))}")
    features, queries = checks.features(features), checks.features(queries, "queries", alike=True)
    checks.same_width(queries, features, ("queries", "features"))
    attributes = checks.attributes(attributes)
    _varied(attributes)
    count = int(np.max(labels)) + 1 if np.size(labels) and np.asarray(labels).dtype.kind in "iu" else 0
    if count > len(attributes):
        raise InputError(
            f"attributes have {len(attributes)} rows, but labels name class {count - 1}; expected a row each"
        )
    labels = checks.labels(labels, len(features), len(attributes))
    check(attributes, np.unique(labels))
    features = checks.floats(features)
    return features, labels, attributes.astype(features.dtype), jnp.asarray(queries, features.dtype)


def check(attributes: np.ndarray, seen: np.ndarray, binary: bool = False) -> None:
    """Refuse an attribute matrix from which nothing can be learned.

    Args:
        attributes: `[classes, m]` numbers.
        seen: Classes that have images to fit on.
        binary: Whether it must hold 0 and 1, as for `dap`.

    Raises:
        InputError: an attribute that all classes share, seen classes that are all alike, or other numbers than 0 and 1.
    """
    _varied(attributes)
    if not np.ptp(attributes[seen], axis=0).any():
        raise InputError(f"the {len(seen)} seen classes all have the same attributes; nothing can be learned from them")
    if binary and (other := ~np.isin(attributes, (0, 1))).any():
        row, column = np.argwhere(other)[0]
        raise InputError(f"attributes: row {row}, column {column} is {attributes[row, column]:g}; dap expects 0 or 1")


def _varied(attributes):
    if (same := attributes.min(axis=0) == attributes.max(axis=0)).any():
        column = int(same.argmax())
        raise InputError(f"attributes: column {column} is {attributes[0, column]:g} for every class; leave it out")


def _positive(x, what, dtype):
    x = jnp.asarray(x, dtype)
    if not (np.isfinite(x) & (np.asarray(x) > 0)).all():
        raise InputError(f"{what} is {np.asarray(x).tolist()}; expected above 0, and finite")
    return x


_dot = partial(jnp.matmul, precision="highest")


@jax.jit
def _log_odds(kernels, biases, prior, known, attributes, queries):
    logits = _dot(queries, kernels) + biases[:, None]
    there = known * (jax.nn.log_sigmoid(logits) - jnp.log(prior))
    absent = known * (jax.nn.log_sigmoid(-logits) - jnp.log1p(-prior))
    return _dot(there, attributes.T) + _dot(absent, 1 - attributes.T)


@jax.jit
def _gram(features):
    return _dot(features.T, features)


@partial(jax.jit, static_argnums=2)
def _sums(features, labels, classes):
    """Sums of the features of each class [classes, d], and how many there are [classes]."""
    sums = jax.ops.segment_sum(features, labels, classes)
    return sums, jax.ops.segment_sum(jnp.ones(len(labels), features.dtype), labels, classes)


@jax.jit
def _bridge(sums, counts, attributes, l2):
    """Predicted centroids [*l2.shape, classes, d]. Unseen classes are rows of zeros: one shape for every draw."""
    seen = (counts > 0)[:, None]
    centroids = sums / jnp.maximum(counts, 1)[:, None]
    middle, origin = (jnp.sum(seen * x, axis=0) / seen.sum() for x in (attributes, centroids))
    u, s, vt = jnp.linalg.svd(seen * (attributes - middle), full_matrices=False)
    across = _dot(u.T, seen * (centroids - origin))
    shrunk = (s / (s**2 + l2[..., None]))[..., None] * across
    return origin + _dot(_dot(attributes - middle, vt.T), shrunk)


@jax.jit
def _eszsl(gram, sums, counts, attributes, gamma, penalty):
    """V S of all classes [*shape of the penalties, d, classes]."""
    seen = (counts > 0)[:, None] * attributes
    e, u = jnp.linalg.eigh(gram)
    s, v = jnp.linalg.eigh(_dot(seen.T, seen))
    signed = 2 * sums - sums.sum(0)  # (X Y)ᵀ, which `seen` cuts down to the seen classes
    across = _dot(_dot(u.T, signed.T), _dot(seen, v))
    # Rounding may leave what should be zero a little below it.
    shrunk = across / (jnp.maximum(e, 0)[:, None] + gamma[..., None, None])
    shrunk = shrunk / (jnp.maximum(s, 0) + penalty[..., None, None])
    return _dot(_dot(u, shrunk), _dot(v.T, attributes.T))


@partial(jax.jit, static_argnums=2)
def _near(queries, centroids, decision):
    dots = _dot(queries, jnp.swapaxes(centroids, -1, -2))
    squares = jnp.sum(centroids**2, axis=-1)[..., None, :]
    if decision == "dot":
        return dots
    if decision == "euclidean":
        return 2 * dots - squares - jnp.sum(queries**2, axis=-1, keepdims=True)
    lengths = jnp.sqrt(squares) * jnp.linalg.norm(queries, axis=-1, keepdims=True)
    return dots / jnp.maximum(lengths, jnp.finfo(lengths.dtype).tiny)
