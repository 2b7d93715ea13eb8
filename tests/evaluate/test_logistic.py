"""The regularisation path has the optimum that scikit-learn has, at every penalty."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jtransfer.errors import InputError
from jtransfer.evaluate.logistic import CHUNK as BLOCK
from jtransfer.evaluate.logistic import few_shot_paths, logistic_path, objectives

L2 = np.logspace(-6, 1, 12)


def data(rows=240, width=24, classes=4, seed=0, condition=1.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width)) * np.logspace(0, -np.log10(condition), width)
    logits = features @ rng.normal(size=(width, classes)) * 2 + rng.gumbel(size=(rows, classes))
    return features + 3 * rng.normal(size=width), logits.argmax(1)


def peer(features, labels, l2, tol=1e-12):
    """Objectives of scikit-learn at a tight tolerance, in float64."""
    fits = [
        LogisticRegression(C=1 / (x * len(labels)), tol=tol, max_iter=100_000, solver="newton-cholesky").fit(
            features, labels
        )
        for x in l2
    ]
    return objectives(features, labels, l2, [fit.coef_.T for fit in fits], [fit.intercept_ for fit in fits])


@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_in_float64_the_objective_is_scikit_learns_to_a_millionth(condition):
    features, labels = data(condition=condition)
    with jax.enable_x64(True):
        kernels, biases = logistic_path(features, labels, L2, tolerance=1e-12)
    assert kernels.shape == (12, 24, 4) and biases.shape == (12, 4) and kernels.dtype == np.float64
    found, expected = objectives(features, labels, L2, kernels, biases), peer(features, labels, L2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found >= expected * (1 - 1e-9)).all()


def test_in_float32_it_is_within_a_hundred_thousandth(condition=10.0):
    features, labels = data(condition=condition)
    kernels, biases = logistic_path(features.astype("f"), labels, L2)
    assert kernels.dtype == np.float32
    np.testing.assert_allclose(objectives(features, labels, L2, kernels, biases), peer(features, labels, L2), rtol=1e-5)


def test_kernels_and_biases_are_those_of_scikit_learn_where_the_penalty_decides_them():
    features, labels = data()
    with jax.enable_x64(True):
        kernels, biases = logistic_path(features, labels, [0.01, 1.0], tolerance=1e-14)
    for i, l2 in enumerate((0.01, 1.0)):
        fit = LogisticRegression(C=1 / (l2 * 240), tol=1e-12, max_iter=10_000).fit(features, labels)
        np.testing.assert_allclose(kernels[i], fit.coef_.T, atol=1e-5)
        np.testing.assert_allclose(biases[i] - biases[i].mean(), fit.intercept_ - fit.intercept_.mean(), atol=1e-4)


def test_several_labels_are_as_many_regressions():
    features, labels = data()
    targets = np.stack([labels == 0, labels % 2, features[:, 0] > features[:, 0].mean()], 1).astype(int)
    with jax.enable_x64(True):
        kernels, biases = logistic_path(features, targets, [0.001, 0.1], tolerance=1e-13)
    for i, l2 in enumerate((0.001, 0.1)):
        for column in range(3):
            fit = LogisticRegression(C=1 / (l2 * 240), tol=1e-12, max_iter=10_000).fit(features, targets[:, column])
            np.testing.assert_allclose(kernels[i][:, column], fit.coef_[0], atol=1e-4)
            np.testing.assert_allclose(biases[i][column], fit.intercept_[0], atol=1e-4)


def test_fewer_rows_than_features_are_solved_in_the_space_of_the_rows():
    features, labels = data(rows=20, width=60, classes=3)
    l2 = np.logspace(-3, 1, 5)
    with jax.enable_x64(True):
        found = objectives(features, labels, l2, *logistic_path(features, labels, l2, tolerance=1e-12))
    np.testing.assert_allclose(found, peer(features, labels, l2), rtol=1e-6)


def test_weights_count_rows_and_a_weight_of_zero_is_no_row():
    features, labels = data(rows=60)
    weights = np.tile([0, 1, 2], 20)
    twice = np.repeat(np.arange(60), weights)
    with jax.enable_x64(True):
        weighted = logistic_path(features, labels, [0.01], weights=weights, classes=4, tolerance=1e-14)
        repeated = logistic_path(features[twice], labels[twice], [0.01], classes=4, tolerance=1e-14)
    for one, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_more_rows_than_a_block_are_streamed_to_the_same_optimum():
    features, labels = data(rows=BLOCK + 300, width=6, classes=3)
    l2 = np.array([0.001, 0.1])
    with jax.enable_x64(True):
        found = objectives(features, labels, l2, *logistic_path(features, labels, l2, tolerance=1e-12))
    np.testing.assert_allclose(found, peer(features, labels, l2), rtol=1e-6)


def test_the_order_of_the_penalties_and_repeated_ones_change_nothing():
    features, labels = data()
    l2 = np.array([0.1, 1e-4, 1.0, 0.1, 0.01, 1e-5, 10.0, 1e-3, 0.03, 0.3])
    sorted_too = np.argsort(l2)
    with jax.enable_x64(True):
        one, other = (
            objectives(features, labels, x, *logistic_path(features, labels, x)) for x in (l2, l2[sorted_too])
        )
    np.testing.assert_allclose(one[sorted_too], other, rtol=1e-6)


def test_draws_of_a_few_rows_are_solved_side_by_side_as_each_alone():
    features, labels = data()
    rng = np.random.default_rng(1)
    rows = np.stack([np.concatenate([rng.choice(np.flatnonzero(labels == c), 3) for c in range(4)]) for _ in range(2)])
    rows, weights = np.pad(rows, ((0, 0), (0, 4))), np.pad(np.ones((2, 12), "f"), ((0, 0), (0, 4)))
    l2 = np.array([1e-3, 0.1])
    with jax.enable_x64(True):
        kernels, biases = few_shot_paths(features, labels, l2, rows=rows, weights=weights, tolerance=1e-13)
        assert kernels.shape == (2, 2, 24, 4) and biases.shape == (2, 2, 4)
        for draw in range(2):
            own = rows[draw, :12]
            alone = logistic_path(features[own], labels[own], l2, classes=4, tolerance=1e-13)
            found = objectives(features[own], labels[own], l2, kernels[draw], biases[draw])
            np.testing.assert_allclose(found, objectives(features[own], labels[own], l2, *alone), rtol=1e-6)


FEATURES, LABELS = data(rows=20, width=5, classes=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logistic_path(FEATURES, LABELS, [0.0]), "l2 is .*expected a list of positive numbers"),
        (lambda: logistic_path(FEATURES, LABELS[:4], [1.0]), "labels: 4 for 20 rows"),
        (lambda: logistic_path(FEATURES, np.array(["a", "b"] * 10), [1.0]), "labels are strings, as 'a'"),
        (lambda: logistic_path(FEATURES, LABELS * 0, [1.0]), "labels hold only class 0"),
        (lambda: logistic_path(FEATURES * np.nan, LABELS, [1.0]), "row 0 holds NaN"),
        (lambda: logistic_path(FEATURES * 0, LABELS, [1.0]), "features are constant"),
        (lambda: logistic_path(FEATURES, LABELS, [1.0], weights=-np.ones(20)), "none below 0"),
        (lambda: logistic_path(FEATURES, np.full((20, 2), 2), [1.0]), "row 0, column 0 is 2; expected 0 or 1"),
        (lambda: few_shot_paths(FEATURES, LABELS, [1.0], rows=[[20]]), r"expected integers 0..19"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
