"""The regularisation path has the optimum that scikit-learn has, at every penalty."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jtransfer.errors import InputError
from jtransfer.solvers import logistic
from jtransfer.solvers.logistic import few_shot_paths, logistic_path, objectives

SUMMED = np.logspace(-6, 6, 7)
"""Penalties on the summed loss; divided by the number of rows, those on the mean."""


def data(rows=240, width=24, classes=4, condition=1.0, noise=1.0):
    """Features far from zero whose directions differ in scale by `condition`, rotated out of the axes."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(rows, width))
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    features = hidden * np.logspace(0, -np.log10(condition), width) @ rotation + 3 * rng.normal(size=width)
    logits = hidden @ rng.normal(size=(width, classes)) + noise * rng.gumbel(size=(rows, classes))
    return features.astype("f").astype(float), logits.argmax(1)


def peer(features, labels, l2, tol=1e-10, columns=1, solver="newton-cholesky"):
    """Objectives of scikit-learn in float64; `columns` is 2 where it gives two classes the half of ours each."""
    heads = []
    for value in l2:
        fit = LogisticRegression(C=columns / (value * len(labels)), tol=tol, max_iter=100, solver=solver)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at the limit of its precision it says that it cannot go on
            fit.fit(features, labels)
        heads.append((fit.coef_.T, fit.intercept_))
        if columns == 2:
            heads[-1] = np.hstack([-fit.coef_.T, fit.coef_.T]) / 2, np.array([-1, 1]) * fit.intercept_ / 2
    return objectives(features, labels, l2, *zip(*heads, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"condition": 1e4}, {"noise": 0.05}, {"rows": 30, "width": 60, "condition": 100.0}],
    ids=["ill-conditioned", "separable", "fewer rows than features"],
)
def test_at_every_penalty_the_objective_is_scikit_learns(options):
    features, labels = data(**options)
    l2 = SUMMED / len(labels)
    expected = peer(features, labels, l2)
    kernels, biases = logistic_path(features.astype("f"), labels, l2)
    assert kernels.shape == (7, features.shape[1], 4) and biases.shape == (7, 4) and kernels.dtype == np.float32
    np.testing.assert_allclose(objectives(features, labels, l2, kernels, biases), expected, rtol=3e-6)
    with jax.enable_x64(True):
        kernels, biases = logistic_path(features, labels, l2)
    assert kernels.dtype == np.float64
    found = objectives(features, labels, l2, kernels, biases)
    assert (found <= expected * (1 + 1e-7)).all(), "where scikit-learn stops early, ours is better"
    assert (found <= peer(features, labels, l2, tol=1e-4, solver="lbfgs") * (1 + 1e-9)).all(), "as it does by default"


def test_two_classes_are_a_softmax_whose_columns_are_the_halves_of_scikit_learns():
    features, labels = data(classes=2)
    l2 = SUMMED / len(labels)
    kernels, biases = logistic_path(features.astype("f"), labels, l2)
    found = objectives(features, labels, l2, kernels, biases)
    np.testing.assert_allclose(found, peer(features, labels, l2, columns=2), rtol=1e-6)
    np.testing.assert_allclose(kernels[..., 0], -kernels[..., 1], atol=1e-6 * np.abs(kernels).max())


def test_kernels_and_biases_are_those_of_scikit_learn_where_the_penalty_decides_them():
    features, labels = data()
    with jax.enable_x64(True):
        kernels, biases = logistic_path(features, labels, [0.01, 1.0], tolerance=1e-14)
    for i, l2 in enumerate((0.01, 1.0)):
        fit = LogisticRegression(C=1 / (l2 * 240), tol=1e-10, solver="newton-cholesky").fit(features, labels)
        np.testing.assert_allclose(kernels[i], fit.coef_.T, atol=1e-5)
        np.testing.assert_allclose(biases[i] - biases[i].mean(), fit.intercept_ - fit.intercept_.mean(), atol=1e-4)


def test_several_labels_are_as_many_regressions():
    features, labels = data(condition=100.0)
    targets = np.stack([labels == 0, labels % 2, features[:, 0] > features[:, 0].mean()], 1).astype(int)
    l2 = SUMMED / len(labels)
    kernels, biases = logistic_path(features.astype("f"), targets, l2)
    for column in range(3):
        own = targets[:, [column]]
        found = objectives(features, own, l2, kernels[..., [column]], biases[..., [column]])
        fits = [
            LogisticRegression(C=1 / value, tol=1e-9, solver="newton-cholesky").fit(features, own[:, 0])
            for value in SUMMED
        ]
        expected = objectives(features, own, l2, [fit.coef_.T for fit in fits], [fit.intercept_ for fit in fits])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_count_rows_and_a_weight_of_zero_is_no_row():
    features, labels = data(rows=60)
    weights = np.tile([0, 1, 2], 20)
    twice = np.repeat(np.arange(60), weights)
    with jax.enable_x64(True):
        weighted = logistic_path(features, labels, [0.01], weights=weights, classes=4, tolerance=1e-14)
        repeated = logistic_path(features[twice], labels[twice], [0.01], classes=4, tolerance=1e-14)
    for one, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_rows_are_streamed_in_blocks_of_which_only_one_is_ever_logits():
    features, labels = data(rows=logistic.CHUNK + 300, width=6, classes=3)
    l2 = np.array([1e-4, 0.001, 0.1])
    found = objectives(features, labels, l2, *logistic_path(features.astype("f"), labels, l2))
    np.testing.assert_allclose(found, peer(features, labels, l2), rtol=1e-6)

    rows, width, classes, count = 2**20, 64, 10, 96
    _, one = logistic._prepared(np.eye(500, width), np.arange(500) % classes, np.full(500, 1 / 500), np.dtype("f"))
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows // 500, *a.shape[1:]), jnp.result_type(a)), one)
    plan = logistic._plan(np.logspace(-6, 6, count), classes, np.dtype("f"))
    memory = logistic._solve.lower(many, *plan, 1e-8, classes, 1000).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**24 < rows * classes * count, "not a byte for every logit of the path"


def test_the_order_of_the_penalties_and_repeated_ones_change_nothing():
    features, labels = data()
    l2 = np.array([0.1, 1e-4, 1.0, 0.1, 0.01, 1e-5, 10.0, 1e-3, 0.03, 0.3])
    kernels, biases = logistic_path(features.astype("f"), labels, l2)
    once, place = np.unique(l2, return_inverse=True)
    one, other = logistic_path(features.astype("f"), labels, once)
    np.testing.assert_array_equal(kernels, one[place])
    np.testing.assert_array_equal(biases, other[place])


def test_a_start_interpolates_solved_neighbours_exactly_where_the_path_is_a_cubic_of_the_logarithm():
    l2 = np.logspace(-6, 6, 97)
    path = np.polyval([0.1, -1, 2, 3], np.log10(l2))
    _, groups, factors = logistic._plan(l2, 20, np.dtype(float))
    assert sorted({*groups.ravel().tolist()}) == list(range(97))
    solved = set(groups[0].tolist())
    for group, factor in zip(groups[1:], factors[1:], strict=True):
        inside = (group > min(solved)) & (group < max(solved)) & (len(solved) >= 4)
        np.testing.assert_allclose((factor @ path)[inside], path[group[inside]])
        assert set(np.flatnonzero(factor.any(0)).tolist()) <= solved
        solved |= set(group.tolist())


def test_draws_of_a_few_rows_are_solved_side_by_side_as_each_alone():
    features, labels = data()
    rng = np.random.default_rng(1)
    rows = np.stack([np.concatenate([rng.choice(np.flatnonzero(labels == c), 3) for c in range(4)]) for _ in range(2)])
    rows, weights = np.pad(rows, ((0, 0), (0, 4))), np.pad(np.ones((2, 12), "f"), ((0, 0), (0, 4)))
    l2 = np.array([1e-3, 0.1])
    kernels, biases = few_shot_paths(features.astype("f"), labels, l2, rows=rows[None], weights=weights[None])
    assert kernels.shape == (1, 2, 2, 24, 4) and biases.shape == (1, 2, 2, 4)
    for draw in range(2):
        own = features[rows[draw, :12]], labels[rows[draw, :12]]
        np.testing.assert_allclose(objectives(*own, l2, kernels[0, draw], biases[0, draw]), peer(*own, l2), rtol=1e-6)


def test_a_class_without_rows_gets_no_probability_and_a_limit_that_is_met_is_told():
    features, labels = data(rows=60, width=5, classes=3)
    kernels, biases = logistic_path(features.astype("f"), labels, [1e-3], classes=4)
    logits = features @ kernels[0] + biases[0]
    assert (logits[:, 3] - logits[:, :3].max(1)).max() < -10
    with pytest.warns(RuntimeWarning, match=r"2 passes over the rows are too few for l2 = 1e-06, 0.001"):
        logistic_path(features, labels, [1e-3, 1e-6], iterations=2)


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
        (lambda: logistic_path(FEATURES, np.eye(20)[:, :2], [1.0], classes=3), "classes is 3, but labels have 2"),
        (lambda: few_shot_paths(FEATURES, LABELS, [1.0], rows=[[20]]), r"expected integers 0..19"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
