"""Metrics are those of scikit-learn and of the papers' formulas, ties and absent classes included."""

import numpy as np
import pytest
from sklearn import metrics as peer

from jtransfer.errors import InputError
from jtransfer.evaluate import metrics

N, CLASSES = 60, 6


@pytest.fixture(scope="module")
def logits():
    """Logits `[60, 6]` of few distinct values, so that many are equal."""
    return np.random.default_rng(0).integers(-3, 4, (N, CLASSES)) / 2


@pytest.fixture(scope="module")
def labels(logits):
    """Labels that are often right; class 4 has none."""
    right, other = logits.argmax(1), np.random.default_rng(1).integers(0, CLASSES, N)
    drawn = np.where(np.random.default_rng(2).random(N) < 0.5, right, other)
    return np.where(drawn == 4, 5, drawn)


def test_accuracy_of_logits_is_that_of_their_first_largest_and_of_scikit_learn(logits, labels):
    expected = peer.accuracy_score(labels, logits.argmax(1))
    assert metrics.accuracy(logits, labels) == metrics.accuracy(logits.argmax(1), labels) == expected


def test_top_k_is_that_of_scikit_learn_where_no_logits_are_equal(labels):
    distinct = np.random.default_rng(3).normal(size=(N, CLASSES))
    for k in range(1, CLASSES):
        expected = peer.top_k_accuracy_score(labels, distinct, k=k, labels=range(CLASSES))
        assert metrics.top(distinct, labels, k) == pytest.approx(expected, abs=1e-15)
    assert metrics.top(distinct, labels, CLASSES) == metrics.top(distinct, labels, CLASSES + 1) == 1


def test_equal_logits_are_ranked_by_their_class_so_that_top_1_is_the_accuracy(logits, labels):
    assert metrics.top(logits, labels, 1) == metrics.accuracy(logits, labels)
    assert metrics.top(np.zeros((4, 4)), np.arange(4), 3) == 0.75


def test_accuracy_per_class_is_the_recall_of_each_and_nan_without_rows(logits, labels):
    found = metrics.per_class(logits, labels)
    expected = peer.recall_score(labels, logits.argmax(1), labels=range(CLASSES), average=None, zero_division=np.nan)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found).tolist() == [False] * 4 + [True, False]
    np.testing.assert_array_equal(metrics.per_class(np.array([0, 1]), np.array([0, 0]), 3), [0.5, np.nan, np.nan])


def test_areas_of_every_label_are_those_of_scikit_learn_with_many_equal_scores(logits):
    targets = np.random.default_rng(4).permuted(np.arange(N)[:, None] < [1, 6, 20, 30, 50, N - 1], axis=0)
    distinct = np.random.default_rng(5).normal(size=logits.shape)
    for scores in (logits, distinct, np.zeros_like(logits)):
        expected = peer.roc_auc_score(targets, scores, average=None)
        np.testing.assert_allclose(metrics.auroc(scores, targets), expected, atol=1e-14)
    infinite = np.where(np.abs(logits) > 1, np.copysign(np.inf, logits), logits)
    clipped = np.clip(infinite, -9, 9)
    np.testing.assert_array_equal(metrics.auroc(infinite, targets), metrics.auroc(clipped, targets))


def test_the_area_of_a_label_without_positives_or_negatives_is_nan():
    scores, targets = np.arange(6.0).reshape(3, 2), np.array([[0, 1]] * 3)
    assert np.isnan(metrics.auroc(scores, targets)).tolist() == [True, True]


def test_calibration_error_is_the_sum_over_bins_of_the_paper(logits, labels):
    probabilities = np.exp(metrics.log_softmax(logits))
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    for bins in (1, 4, 15):
        expected = 0
        for m in range(1, bins + 1):
            rows = (confidence > (m - 1) / bins) & (confidence <= m / bins)
            if rows.any():
                expected += rows.sum() / N * abs(correct[rows].mean() - confidence[rows].mean())
        assert metrics.ece(probabilities, labels, bins) == pytest.approx(expected, abs=1e-14)


def test_a_confidence_on_the_border_of_two_bins_is_in_the_lower_one():
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6]])  # right and wrong: in one bin they would make up for each other
    assert metrics.ece(probabilities, np.array([0, 0]), bins=2) == pytest.approx((0.5 + 0.6) / 2)
    assert metrics.ece(probabilities, np.array([0, 0]), bins=1) == pytest.approx(0.05)


def test_likelihood_is_that_of_scikit_learn_however_large_the_logits(logits, labels):
    expected = peer.log_loss(labels, np.exp(metrics.log_softmax(logits)), labels=range(CLASSES))
    assert metrics.nll(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert metrics.nll(np.float32([[1e30, 0], [0, 1e30]]), np.array([0, 1])) == 0
    assert metrics.nll(np.array([[0.0, -np.inf]]), np.array([0])) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(np.zeros((0, 3)), []), r"logits have shape \[0, 3\]; expected \[n, classes\]"),
        (lambda: metrics.accuracy([0, 1], [0]), "predictions: 2 where 1 are expected"),
        (
            lambda: metrics.accuracy([0.0, 1.0], [0, 1]),
            "predictions have shape .* dtype float64; expected .n. integers",
        ),
        (lambda: metrics.accuracy(np.eye(2), ["cat", "dog"]), "labels have shape .* expected .n. integers"),
        (lambda: metrics.accuracy(np.eye(2), [0, 2]), r"labels: row 1 is 2; expected 0\.\.1"),
        (lambda: metrics.accuracy(np.eye(2), [0, -1]), "labels: row 1 is -1; expected classes from 0"),
        (lambda: metrics.nll([[0, 1], [np.nan, 1]], [0, 1]), "logits: row 1 holds NaN"),
        (lambda: metrics.top(np.eye(2), [0, 1], 0), "k=0; expected at least 1"),
        (lambda: metrics.per_class([0, 1], [0, 5], 3), r"labels: row 1 is 5; expected 0\.\.2"),
        (lambda: metrics.ece(3 * np.eye(2), [0, 1]), "probabilities: row 0 sums to 3, expected 1"),
        (lambda: metrics.ece(np.eye(2), [0, 1], 0), "bins=0; expected at least 1"),
        (lambda: metrics.auroc(np.eye(2), np.eye(3)), r"targets have shape \[3, 3\]; expected \[2, 2\]"),
        (lambda: metrics.auroc(np.eye(2), 2 * np.eye(2)), "expected .2, 2. of 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
