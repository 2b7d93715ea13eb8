"""Metrics by name are those of scikit-learn, SciPy and GLUE, ties included; padding changes nothing."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as peer

from jtransfer import imports
from jtransfer.errors import InputError
from jtransfer.objectives import metrics
from jtransfer.objectives.metrics import METRICS

EXTENSION = Path(__file__).parents[1] / "extension"
N, PADDED = 60, 80


def draw(seed):
    """Predictions and targets of every kind `[60]`, with few distinct scores, of which 0 has either sign.

    Class 4 and label 3 have no positive row, label 3 is not predicted either, label 4 has no negative row.
    """
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, (N, 6)) / 2 * rng.choice([-1, 1], (N, 6))
    classes = np.where(rng.random(N) < 0.5, logits.argmax(1), rng.integers(0, 6, N))
    truths = rng.permuted(np.arange(N)[:, None] < [1, 20, 50, 0, N], axis=0).astype(int)
    scores = rng.integers(0, 12, (N, 2)) / 4
    return {
        "classes": (logits, np.where(classes == 4, 5, classes)),
        "binary": (logits[:, :2], (rng.random(N) < 0.2 + 0.4 * (logits[:, 0] < logits[:, 1])).astype(int)),
        "labels": (np.where(np.arange(5) == 3, -np.abs(logits[:, :5]), logits[:, :5]), truths),
        "values": (scores[:, 0], np.round(scores[:, 0] + rng.normal(size=N), 1)),
        "columns": (scores, np.round(scores @ [[1, 0], [1, -1]] + rng.normal(size=(N, 2)), 1)),
    }


DRAWN = [draw(seed) for seed in range(2)]
KINDS_OF = {"classes": {"classes"}, "binary": {"binary", "classes"}, "labels": {"labels"}}
NAMES = {
    kind: [name for name, metric in METRICS.items() if KINDS_OF.get(kind, {"values"}) & set(metric.of)]
    for kind in DRAWN[0]
}
COUNTED = np.sort(np.random.default_rng(9).permutation(PADDED)[:N])
"""Rows that count; between them stands padding."""
TWICE = np.arange(N) % 3 == 0


def padded(x, filler):
    wide = np.full((PADDED, *x.shape[1:]), filler, x.dtype)
    wide[COUNTED] = x
    return wide


def cases(predictions, targets):
    """By name, predictions, targets and weights of 80 rows."""
    ones, rows = padded(np.ones(N), 0), np.repeat(np.arange(N), 1 + TWICE)
    wide, truths = padded(predictions, np.nan), padded(targets, -1)
    broken = wide.copy()
    broken[COUNTED[7]] = np.nan
    return {
        "weight 2": (wide, truths, padded(1.0 + TWICE, 0)),
        "twice": (predictions[rows], targets[rows], np.ones(PADDED)),
        "constant": (0 * wide + 0.1, truths if truths.dtype.kind == "f" else 0 * truths, ones),
        "a counted prediction is NaN": (broken, truths, ones),
        "no row counts": (wide, truths, 0 * ones),
        "drawn": (wide, truths, ones),
    }


@pytest.fixture(scope="module")
def measured():
    """By kind, case and name the metrics; each kind is compiled once, for all cases side by side."""

    def measure(names, *arrays):
        return {name: METRICS[name](*arrays) for name in names}

    found = {}
    for kind, names in NAMES.items():
        every = cases(*DRAWN[0][kind]) | {"other": cases(*DRAWN[1][kind])["drawn"]}
        values = jax.jit(jax.vmap(partial(measure, names)))(*map(np.stack, zip(*every.values(), strict=True)))
        found[kind] = {case: {name: float(values[name][i]) for name in names} for i, case in enumerate(every)}
    return found


def peers_of_classes(logits, labels):
    predicted = logits.argmax(1)
    own = logits[np.arange(len(labels)), labels][:, None]
    first = np.arange(logits.shape[1]) < labels[:, None]
    likelihoods = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return {
        "accuracy": peer.accuracy_score(labels, predicted),
        "mean_per_class": np.mean([np.mean(predicted[labels == k] == k) for k in np.unique(labels)]),
        "top5": np.mean(((logits > own) | ((logits == own) & first)).sum(1) < 5),
        "matthews": peer.matthews_corrcoef(labels, predicted),
        "f1_macro": peer.f1_score(labels, predicted, average="macro"),
        "perplexity": np.exp(peer.log_loss(labels, np.exp(likelihoods), labels=range(logits.shape[1]))),
        "loss": peer.log_loss(labels, np.exp(likelihoods), labels=range(logits.shape[1])),
    }


def peers_of_labels(logits, targets):
    mixed = (targets.min(0) == 0) & (targets.max(0) == 1)
    positive = targets.max(0) == 1
    return {
        "f1": peer.f1_score(targets, logits > 0, average="micro"),
        "f1_macro": peer.f1_score(targets, logits > 0, average="macro", zero_division=0),
        "auroc": peer.roc_auc_score(targets[:, mixed], logits[:, mixed], average="macro"),
        "map": peer.average_precision_score(targets[:, positive], logits[:, positive], average="macro"),
        "map_11": np.mean([eleven(s, t) for s, t in zip(logits.T, targets.T, strict=True) if t.any()]),
        "loss": np.mean(np.logaddexp(0, np.where(targets == 1, -logits, logits))),
    }


def peers_of_binary(logits, labels):
    margins = logits[:, 1] - logits[:, 0]
    return peers_of_classes(logits, labels) | {
        "f1": peer.f1_score(labels, logits.argmax(1)),
        "auroc": peer.roc_auc_score(labels, margins),
        "map": peer.average_precision_score(labels, margins),
        "map_11": eleven(margins, labels),
    }


def eleven(scores, targets):
    """VOC 2007: the mean over t in 0, 0.1 ... 1 of the largest precision where the recall is at least t."""
    precision, recall, _ = peer.precision_recall_curve(targets, scores)
    return np.mean([precision[:-1][recall[:-1] >= t / 10 - 1e-9].max() for t in range(11)])


def peers_of_values(predictions, targets):
    columns = list(zip(predictions.reshape(N, -1).T, targets.reshape(N, -1).T, strict=True))
    pearson, spearman = (np.mean([of(x, y).statistic for x, y in columns]) for of in (stats.pearsonr, stats.spearmanr))
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
        "mse": peer.mean_squared_error(targets, predictions),
    }


PEERS = {
    "classes": peers_of_classes,
    "binary": peers_of_binary,
    "labels": peers_of_labels,
    "values": peers_of_values,
    "columns": peers_of_values,
}


@pytest.mark.parametrize("kind", PEERS)
def test_every_metric_is_that_of_its_peer_with_ties_and_padding_compiled_and_vmapped(kind, measured):
    for case, drawn in zip(("drawn", "other"), DRAWN, strict=True):
        assert measured[kind][case] == pytest.approx(PEERS[kind](*drawn[kind]), abs=2e-6, rel=2e-6)


@pytest.mark.parametrize("kind", PEERS)
def test_a_weight_of_two_is_the_row_twice(kind, measured):
    assert measured[kind]["weight 2"] == pytest.approx(measured[kind]["twice"], abs=2e-6, rel=2e-6)
    assert measured[kind]["weight 2"] != pytest.approx(measured[kind]["drawn"], abs=2e-6, rel=2e-6)


@pytest.mark.parametrize("kind", PEERS)
def test_a_metric_is_nan_where_a_prediction_that_counts_is_or_no_row_counts(kind, measured):
    for case in ("a counted prediction is NaN", "no row counts"):
        assert all(np.isnan(list(measured[kind][case].values()))), case


def test_undefined_values_are_those_of_scikit_learn_and_scipy_and_nan_for_areas(measured):
    """All predictions are 0.1, and all rows of class 0 and without labels."""
    nan, classes = np.nan, {"accuracy": 1, "mean_per_class": 1, "top5": 1, "matthews": 0, "f1_macro": 1}
    areas, none = {"auroc": nan, "map": nan, "map_11": nan}, {"f1": 0}
    expected = {
        "classes": classes | {"perplexity": 6, "loss": np.log(6)},
        "binary": classes | areas | none | {"perplexity": 2, "loss": np.log(2)},
        "labels": areas | {"f1": 0, "f1_macro": 0, "loss": np.logaddexp(0, 0.1)},
    }
    for kind, values in expected.items():
        assert measured[kind]["constant"] == pytest.approx(values, rel=1e-6, nan_ok=True), kind
    for kind in ("values", "columns"):
        assert [name for name, value in measured[kind]["constant"].items() if np.isnan(value)] == [
            "pearson",
            "spearman",
            "pearson_spearman",
        ]


def test_correlations_hold_where_nearly_all_rows_are_of_one_class():
    labels, predicted = np.zeros(100_000, int), np.zeros(100_000, int)
    labels[:20], predicted[10:30] = 1, 1
    found = METRICS["matthews"](np.eye(2)[predicted], labels, np.ones(len(labels)))
    assert found == pytest.approx(peer.matthews_corrcoef(labels, predicted), rel=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1e25, 0), (1e-25, 0), (1, 1e4)])
def test_pearson_is_that_of_any_unit_and_origin(scale, shift):
    x, y = np.arange(8.0), np.array([0, 2, 1, 5, 3, 4, 7, 6])
    found = METRICS["pearson"](x * scale + shift, y, np.ones(8))
    assert found == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-5)


def test_a_column_of_values_is_the_values():
    x, y = np.arange(4.0), np.array([0.0, 2, 1, 3])
    assert METRICS["mse"](x[:, None], y, np.ones(4)) == METRICS["mse"](x, y, np.ones(4)) == 0.5
    with imports.beside(EXTENSION):
        _, within = metrics.parse("my_metrics.within(error=0.5)")
    assert within(x[:, None], y, np.ones(4)) == within(x, y, np.ones(4)) == 0.5


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        (
            "f1",
            [(4, 3), (4,), (4,)],
            r"F1 .*: shapes are \[4, 3\], \[4\], \[4\]; expected logits \[n, 2\] and one class",
        ),
        (
            "accuracy",
            [(4, 3), (4, 3), (4,)],
            r"accuracy: shapes .*; expected logits \[n, c\] and one class a row \[n\]; and",
        ),
        ("accuracy", [(4, 3), (4,), (5,)], r"\[5\]; expected .* weights \[n\]"),
        (
            "mse",
            [(4,), (4, 2), (4,)],
            r"mean squared error: .* expected predicted and true values, both \[n\] or \[n, k\]",
        ),
        ("mse", [(), (), ()], "mean squared error"),
    ],
)
def test_arrays_of_another_kind_are_refused(name, shapes, message):
    with pytest.raises(InputError, match=message):
        METRICS[name](*(np.zeros(shape, int) for shape in shapes))


def test_a_name_is_of_the_table_or_of_a_function_of_the_user_s_that_returns_a_metric():
    assert metrics.parse(" matthews ") == ("matthews", METRICS["matthews"])
    with imports.beside(EXTENSION):
        name, metric = metrics.parse("my_metrics.within(error=0.5)")
    metrics.check(name, metric, "values", 1)
    assert (name, metric.words) == ("my_metrics.within(error=0.5)", "share of values within 0.5")
    assert metric(np.array([1.0, 2.0, np.nan]), np.array([1.5, 3.0, 0.0]), np.array([3, 1, 0])) == 0.75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matthew", "unknown metric 'matthew'; did you mean 'matthews'"),
        ("f1(positive=2)", "metric 'f1' has no option 'positive'; there is nothing to choose from"),
        ("f1 + map", "metric 'f1 . map' is not of the form name"),
        ("my_metrics.withn", "has no 'withn'; did you mean 'within'"),
        ("my_metrics.number", "metric 'my_metrics.number' returned 0.5; expected a Metric"),
        ("my_metrics.constant", r"does not fit my_metrics.constant\(predictions, targets, weights\)"),
        ("my_metrics.of_ranks", "a metric is of 'value', no kind of targets; did you mean 'values'"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(text, message):
    with imports.beside(EXTENSION), pytest.raises(InputError, match=message):
        metrics.parse(text)


@pytest.mark.parametrize(
    ("text", "kind", "outputs", "message"),
    [
        (
            "f1",
            "classes",
            3,
            r"metric 'f1' needs logits \[n, 2\] .*; the data has 3 classes; choose one of accuracy, f1_macro, ",
        ),
        ("pearson", "labels", 4, "needs predicted and true values.*; the data has 4 labels; choose one of auroc, f1,"),
        ("my_metrics.shaped", "values", 1, r"no scalar: what it returned has shape \[2\]; expected a scalar"),
        ("my_metrics.failing", "values", 1, r"metric 'my_metrics.failing': file '.*my_metrics.py', line 2\d: "),
    ],
)
def test_data_that_a_metric_is_not_of_are_refused_before_anything_is_compiled(text, kind, outputs, message):
    with imports.beside(EXTENSION), pytest.raises(InputError, match=message):
        metrics.check(*metrics.parse(text), kind, outputs)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_every_metric_of_a_kind_passes_its_check(kind):
    for name, metric in METRICS.items():
        if kind in metric.of or (kind == "classes" and "binary" in metric.of):
            metrics.check(name, metric, kind, 2)
