"""How good predictions of a whole set are, by name: functions of arrays that run compiled, vmapped and on padded rows.

A metric is called with predictions, targets and a weight for each row; a row of weight 0 is padding and changes
nothing, and a row of weight 2 counts as two. Four kinds of targets are told apart, see `KINDS`. Two classes are one
label, whose logit is the difference of the two, so that F1 and the areas under curves are the same function of both.

Where a metric is undefined, it is what scikit-learn (and so GLUE) makes of it, except for the areas:

    F1 of a class or label that no row has, nor is predicted to have    0
    Matthews' correlation where one side has a single class             0
    a correlation with constant predictions or targets                  NaN
    classes without a row, in the mean per class                        left out; NaN where none has one
    labels without a positive row (or a negative one), in areas         left out; NaN where all are

All are NaN where a prediction or target that counts is NaN, or where no row counts.
To add one, write it and name it in `METRICS`; a user's own is a dotted name, see `parse`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jtransfer import expressions, imports
from jtransfer.errors import InputError, nearest
from jtransfer.objectives import parts

KINDS = {
    "classes": "logits [n, c] and one class a row [n]",
    "binary": "logits [n, 2] and one class a row [n]",
    "labels": "logits [n, c] and 0 or 1 for each [n, c]",
    "values": "predicted and true values, both [n] or [n, k]",
}
"""What a metric may be of, and the arrays that it then takes. What has two classes is of both the first kinds."""

PERPLEXITY = "perplexity"
"""The metric that is told by the losses of examples, where the rows have no labels."""


@dataclass(frozen=True)
class Metric:
    """A metric, called as `metric(predictions, targets, weights)` with arrays of one of `KINDS` and weights `[n]`.

    Attributes:
        call: The formula. Rows that do not count reach it as zeros; predictions and weights are float32.
        of: Kinds of targets, names in `KINDS`.
        words: What it is, for a line about a protocol.
        higher: Whether more is better.
        share: Whether it is shown times 100, as shares are and, in GLUE, correlations; else as it is.

    Raises:
        InputError: `of` names no kind of targets.
    """

    call: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    of: tuple[str, ...]
    words: str
    higher: bool = True
    share: bool = True

    def __post_init__(self):
        kinds = (self.of,) if isinstance(self.of, str) else tuple(self.of)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise InputError(f"a metric is of '{unknown[0]}', no kind of targets; {nearest(unknown[0], KINDS)}")
        object.__setattr__(self, "of", kinds)

    def __call__(self, predictions: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """The metric of a set, a float32 scalar.

        Raises:
            InputError: shapes of none of the metric's kinds, or a user's formula that returns no scalar.
        """
        predictions, targets, weights = map(jnp.asarray, (predictions, targets, weights))
        rows = predictions.ndim > 0 and weights.shape == predictions.shape[:1]
        if not rows or not any(_is(kind, predictions, targets) for kind in self.of):
            shapes = ", ".join(str(list(x.shape)) for x in (predictions, targets, weights))
            expected = ", or ".join(KINDS[kind] for kind in self.of)
            raise InputError(f"{self.words}: shapes are {shapes}; expected {expected}; and weights [n]")
        counts, weights = weights > 0, weights.astype(jnp.float32)
        predictions, targets = _where(counts, predictions.astype(jnp.float32)), _where(counts, targets)
        if "values" in self.of and _one_a_row(predictions, targets):  # [n, 1] and [n] would broadcast to [n, n]
            predictions, targets = predictions.ravel(), targets.ravel()
        value = jnp.asarray(self.call(predictions, targets, weights))
        if value.shape:
            raise InputError(f"{self.words}: what it returned has shape {list(value.shape)}; expected a scalar")
        defined = counts.any() & ~jnp.isnan(predictions).any() & ~jnp.isnan(targets).any()
        return jnp.where(defined, value, jnp.nan).astype(jnp.float32)

    def score(self, value: jax.Array) -> jax.Array:
        """A value of the metric, with its sign changed where less is better; minus infinity for NaN."""
        return jnp.where(jnp.isnan(value), -jnp.inf, value if self.higher else -value)


def _is(kind, predictions, targets):
    """Whether two arrays have the shapes of a kind."""
    if kind == "values":
        return predictions.shape == targets.shape or _one_a_row(predictions, targets)
    if predictions.ndim != 2 or (kind == "binary" and predictions.shape[1] != 2):
        return False
    return targets.shape == (predictions.shape if kind == "labels" else predictions.shape[:1])


def _one_a_row(*arrays):
    return all(x.shape in ((len(arrays[0]),), (len(arrays[0]), 1)) for x in arrays)


def _accuracy(logits, classes, weights):
    return _mean(logits.argmax(1) == classes, weights)


def _top(k, logits, classes, weights):
    """Share of rows with at most k - 1 classes before their own; of equal logits the first class goes before."""
    own = jnp.take_along_axis(logits, classes[:, None], axis=1)
    ties = (logits == own) & (jnp.arange(logits.shape[1]) < classes[:, None])
    return _mean(((logits > own) | ties).sum(1) < k, weights)


def _mean_per_class(logits, classes, weights):
    right, _, there = _counts(logits, classes, weights)
    return _mean(_ratio(right, there), there > 0)


def _matthews(logits, classes, weights):
    """Gorodkin 2004, with c of n rows right and t_k labelled, p_k predicted as class k:

    `(c n - Σ t_k p_k) / √((n² - Σ p_k²) (n² - Σ t_k²))`; 0 / 0 is 0. So that float32 holds it where a class has nearly
    all rows, the sums are those of TP_k TN_k - FP_k FN_k, p_k (n - p_k) and t_k (n - t_k), as shares of n.
    """
    n, (right, found, there) = weights.sum(), _counts(logits, classes, weights)

    def total(a, b):
        return jnp.sum(a / n * (b / n))

    above = total(right, n - found - there + right) - total(found - right, there - right)
    return _ratio(above, jnp.sqrt(total(found, n - found) * total(there, n - there)))


def _f1(logits, targets, weights):
    right, found, there = _counts(*_labels(logits, targets), weights)
    return _ratio(2 * right.sum(), (found + there).sum())


def _f1_macro(logits, targets, weights):
    """The mean over labels, or over classes that are labelled or predicted, of 2 TP / (2 TP + FP + FN)."""
    right, found, there = _counts(logits, targets, weights)
    return _mean(_ratio(2 * right, found + there), (found + there > 0) | (targets.ndim == 2))


def _mean_area(area, logits, targets, weights):
    """The mean over labels of `area(scores [n], positive [n], negative [n])`, of the weights that are either."""
    scores, targets = _labels(logits, targets)
    positive, negative = weights[:, None] * targets, weights[:, None] * (1 - targets)
    areas = jax.vmap(area, in_axes=1)(scores, positive, negative)
    return _mean(areas, ~jnp.isnan(areas))


def _auroc(scores, positive, negative):
    """How often a positive row's score is above that of a negative one, equal scores counting half."""
    return _ratio(jnp.sum(positive * _ranks(scores, negative)), positive.sum() * negative.sum(), jnp.nan)


def _average_precision(scores, positive, negative):
    """`Σ (R_k - R_{k-1}) P_k` over the distinct scores from the highest down: the mean precision of positive rows."""
    _, precision = _found(scores, positive, negative)
    return _ratio(jnp.sum(positive * precision), positive.sum(), jnp.nan)


def _average_precision_11(scores, positive, negative):
    """The mean over recalls 0, 0.1 ... 1 of the largest precision at that recall or a higher one.

    As PASCAL VOC had it until 2009 (Everingham et al. 2010, IJCV 88, section 4.2), at distinct scores.
    """
    true, precision = _found(scores, positive, negative)
    reached = 10 * true[:, None] >= jnp.arange(11) * positive.sum()
    best = jnp.max(jnp.where(reached, precision[:, None], 0), axis=0)
    return jnp.where(positive.sum() > 0, best.mean(), jnp.nan)


def _found(scores, positive, negative):
    """True positives, and precision, where every row counts as found whose score is not below this row's: `[n]`."""
    true, all_found = (_up_to(-scores, weights, "right") for weights in (positive, positive + negative))
    return true, _ratio(true, all_found)


def _correlation(of, predictions, targets, weights):
    """The mean over columns of Pearson's correlation of what `of(column, weights)` makes of both sides."""

    def pearson(x, y):
        x, y = (_standard(of(side, weights), weights) for side in (x, y))
        return jnp.clip(jnp.sum(weights * x * y), -1, 1)

    return jax.vmap(pearson, in_axes=1)(*_columns(predictions, targets)).mean()


def _standard(x, weights):
    """A column with mean 0 and sum of squares 1; NaN if all rows that count are equal."""
    x = jnp.where(weights > 0, x - x[jnp.argmax(weights > 0)], 0)  # constant columns are 0 exactly
    x = x / jnp.abs(x).max()  # squares of any finite numbers are finite
    x = x - _mean(x, weights)
    return x / jnp.sqrt(jnp.sum(weights * x**2))


def _itself(x, weights):
    return x


def _ranks(scores, weights):
    """Weight of the rows whose score is smaller, and half of that of those whose score is equal: `[n]`.

    With all rows' weights it is the rank (from 1, equal scores sharing theirs) less one half.
    """
    return (_up_to(scores, weights, "left") + _up_to(scores, weights, "right")) / 2


def _up_to(scores, weights, side):
    """Weight of the rows whose score is smaller than this row's ("left"), or not larger ("right"): `[n]`."""
    order = jnp.argsort(scores)
    sums = jnp.pad(jnp.cumsum(weights[order]), (1, 0))
    return sums[jnp.searchsorted(scores[order], scores, side=side)]


def _pearson_spearman(predictions, targets, weights):
    return sum(_correlation(of, predictions, targets, weights) for of in (_itself, _ranks)) / 2


def _mse(predictions, targets, weights):
    predictions, targets = _columns(predictions, targets)
    return _mean(jnp.square(predictions - targets).mean(1), weights)


def _loss(logits, targets, weights):
    if targets.ndim == 2:
        return _mean(optax.sigmoid_binary_cross_entropy(logits, targets).mean(1), weights)
    return _mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets), weights)


def _perplexity(logits, classes, weights):
    return jnp.exp(_loss(logits, classes, weights))


def _counts(logits, targets, weights):
    """Weight of rows that are rightly found, found, and there, of each class or label: `[3, c]`.

    Of labels those are found whose logit is above 0.
    """
    if targets.ndim == 2:
        found, there = logits > 0, targets > 0
        return jnp.stack([jnp.sum(weights[:, None] * x, axis=0) for x in (found & there, found, there)])
    found, none = logits.argmax(1), jnp.zeros(logits.shape[1])
    right = none.at[targets].add(weights * (found == targets))
    return jnp.stack([right, none.at[found].add(weights), none.at[targets].add(weights)])


def _labels(logits, targets):
    """Logits and targets of labels, `[n, c]` both; of two classes those of the second, `[n, 1]`."""
    if targets.ndim == 2:
        return logits, targets
    return logits[:, 1:] - logits[:, :1], targets[:, None]


def _columns(predictions, targets):
    return (x.reshape(len(x), -1) for x in (predictions, targets))


def _where(counts, x):
    return jnp.where(counts.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _mean(x, weights):
    """`Σ w x / Σ w`, leaving out what has no weight."""
    return jnp.sum(jnp.where(weights > 0, weights * x, 0)) / jnp.sum(weights)


def _ratio(part, whole, otherwise=0.0):
    """`part / whole`, and another value where the whole is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), otherwise)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, ("classes",), "accuracy"),
    "mean_per_class": Metric(_mean_per_class, ("classes",), "mean over classes of the accuracy on their rows"),
    "top5": Metric(partial(_top, 5), ("classes",), "top-5 accuracy"),
    "matthews": Metric(_matthews, ("classes",), "Matthews' correlation"),
    "f1": Metric(_f1, ("binary", "labels"), "F1 of class 1, or of all labels together (micro)"),
    "f1_macro": Metric(_f1_macro, ("classes", "labels"), "mean F1 of the classes or labels (macro)"),
    "auroc": Metric(partial(_mean_area, _auroc), ("binary", "labels"), "area under the ROC curve, mean over labels"),
    "map": Metric(partial(_mean_area, _average_precision), ("binary", "labels"), "mean average precision"),
    "map_11": Metric(
        partial(_mean_area, _average_precision_11),
        ("binary", "labels"),
        "mean average precision at 11 recalls (VOC)",
    ),
    "pearson": Metric(partial(_correlation, _itself), ("values",), "Pearson's correlation"),
    "spearman": Metric(partial(_correlation, _ranks), ("values",), "Spearman's rank correlation"),
    "pearson_spearman": Metric(_pearson_spearman, ("values",), "mean of Pearson's and Spearman's correlations"),
    "mse": Metric(_mse, ("values",), "mean squared error", higher=False, share=False),
    "perplexity": Metric(_perplexity, ("classes",), "perplexity", higher=False, share=False),
    "loss": Metric(_loss, ("classes", "labels"), "mean cross-entropy in nats", higher=False, share=False),
}


def parse(text: str) -> tuple[str, Metric]:
    """The name that rows of results have, and the metric: one of `METRICS`, or of a user's function that returns one.

    As in `matthews`, `my_metrics.balanced`, `my_metrics.within(degrees=5)`.

    Raises:
        InputError: an unknown metric, module or option (with the nearest that exists), or a function of the user's that
            fails or returns something else.
    """
    known = {name: _factory(metric) for name, metric in METRICS.items()}
    metric = expressions.call(expressions.parse(text, "metric"), text, "metric", known)()
    return text.strip(), metric


def _factory(metric):
    def known() -> Metric:
        return metric

    return known


def chosen(names: Sequence[str], data: Any, objective: Any) -> dict[str, Metric]:
    """The metrics of a run by name: those of the config, else the data's own, else the objective's.

    Args:
        names: Of the config.
        data: A `Dataset` or a `Stream`.
        objective: What is learned of it.

    Raises:
        InputError: an unknown metric, or one of other data.
    """
    names = names or ((data.metric,) if data.metric else objective.metrics)
    own = parts.OF_PARTS.get(objective.reads, {})
    parts.check(names, objective.reads, data.classes)
    found = dict((name, own[name]) if name in own else parse(name) for name in names)
    for name, metric in found.items():
        if of_whole_set(name, objective.reads):
            check(name, metric, "classes" if objective.reads == "tags" else data.targets, data.outputs)
        elif name not in (*own, PERPLEXITY if objective.reads == "texts" else "", *objective.metrics):
            fits = " or ".join(map(repr, (*(objective.metrics or (PERPLEXITY,)), *own)))
            raise InputError(f"config.metrics: '{name}' is of rows with labels; expected {fits}, or nothing")
    return found


def of_whole_set(name: str, reads: str) -> bool:
    """Whether a metric is computed of the predictions of a whole set, and not from means over examples.

    Args:
        name: Of the metric.
        reads: What the objective reads; of tags the tokens that count are the rows of the set.
    """
    return name not in (PERPLEXITY, *parts.OF_PARTS.get(reads, ())) and reads in (*KINDS, "tags")


def choosing(found: Mapping[str, Metric], data: Any, objective: str) -> tuple[str, Metric]:
    """The name of the metric that chooses, and the metric: the first of those that `chosen` gave.

    Args:
        found: Metrics by name.
        data: A `Dataset` or a `Stream`.
        objective: What is learned, as the config writes it.

    Raises:
        InputError: there is no metric.
    """
    if not found:
        names = ", ".join(repr(name) for name, metric in METRICS.items() if data.targets in metric.of)
        said = f"config.metrics is empty, and objective '{objective}' names no metric"
        raise InputError(f"{said}; expected one that chooses, of {names}")
    return next(iter(found.items()))


def check(name: str, metric: Metric, kind: str, outputs: int) -> None:
    """Refuse a metric for data that it is not of, before anything is compiled.

    Args:
        name: From `parse`.
        metric: From `parse`.
        kind: Of the data's targets: "classes", "labels" or "values".
        outputs: Classes, labels or values of a row.

    Raises:
        InputError: another kind, with the nearest metric of the data's; or a user's formula that fails on it.
    """
    kinds = {kind, "binary"} if (kind, outputs) == ("classes", 2) else {kind}
    if not kinds & set(metric.of):
        there = [other for other, known in METRICS.items() if kinds & set(known.of)]
        needs = ", or ".join(KINDS[one] for one in metric.of)
        raise InputError(f"metric '{name}' needs {needs}; the data has {outputs} {kind}; {nearest(name, there)}")
    predictions, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, outputs), (2,)))
    targets = jax.ShapeDtypeStruct((2,), jnp.int32) if kind == "classes" else predictions
    with imports.calling(f"metric '{name}': file", metric.call):
        jax.eval_shape(metric, predictions, targets, weights)
