"""Few-shot ridge: big_vision's `fewshot_lsr` by a direct solve, its draws, many draws at once, and the choice of λ."""

import re

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jtransfer.errors import InputError
from jtransfer.solvers import draws, heads, ridge

L2 = 2.0 ** np.arange(-10, 21, 5)
CLASSES = 4


def data(n, d, seed=0):
    """Features of very different scales and far from zero, and labels that they tell in part."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    features = rng.normal(size=(n, d)) + rng.normal(size=(CLASSES, d))[labels]
    return features * np.geomspace(0.1, 10, d) + np.linspace(-5, 5, d), labels


def by_solving(features, labels, l2, test):
    """Logits `[k, n, classes]` on `test` as the protocol says, in float64 and with one solve for each λ."""
    mean, std = features.mean(0), features.std(0) + 1e-5
    x, test = (np.pad((f - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for f in (features, test))
    y = 2.0 * np.eye(CLASSES)[labels] - 1
    return np.stack([test @ np.linalg.solve(x.T @ x + value * np.eye(x.shape[1]), x.T @ y) for value in l2])


def logits(heads, features):
    """`[k, n, classes]`, in float64."""
    kernels, biases = (np.asarray(x, np.float64) for x in heads)
    return features @ kernels + biases[..., None, :]


@pytest.mark.parametrize(("n", "d"), [(60, 12), (12, 60)], ids=["more rows than columns", "more columns than rows"])
def test_every_l2_equals_a_direct_solve(n, d):
    features, labels = data(n, d)
    test, _ = data(30, d, seed=1)
    expected = by_solving(features, labels, L2, test)
    with jax.enable_x64(True):
        found = logits(ridge.ridge_path(features, labels, L2), test)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    single = logits(ridge.ridge_path(features.astype("f"), labels, L2), test)
    np.testing.assert_allclose(single, expected, atol=1e-4 * np.abs(expected).max())


def test_a_free_intercept_gives_scikit_learns_ridge():
    features, labels = data(60, 12)
    whitened = (features - features.mean(0)) / (features.std(0) + 1e-5)
    peer = Ridge(alpha=7.0, tol=1e-12).fit(whitened, 2.0 * np.eye(CLASSES)[labels] - 1)
    with jax.enable_x64(True):
        found = logits(ridge.ridge_path(features, labels, [7.0], bias=1e6), features)[0]
    np.testing.assert_allclose(found, peer.predict(whitened), atol=1e-8)


def test_all_l2_of_a_draw_come_from_one_decomposition_of_the_smaller_side():
    features, labels = (np.asarray(x) for x in data(60, 24))
    rows, weights = draws.draws(labels, shots=(1, 3), seeds=(0, 1, 2))
    program = str(jax.make_jaxpr(lambda x: ridge._ridge_paths(x, labels, rows, weights, L2, 100.0, CLASSES))(features))
    (shape,) = re.findall(r"f32\[([\d,]+)\] \w+:f32\[[\d,]+\] = eigh\[", program)
    assert shape == "6,12,12"


def test_draws_are_those_of_big_vision():
    labels = data(60, 2)[1]
    rows, weights = draws.draws(labels, shots=(2, 5), seeds=(3, 4))
    assert rows.shape == weights.shape == (2, 2, 20)
    for j, seed in enumerate((3, 4)):
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(np.where(labels == c)[0]) for c in range(CLASSES)]
        for i, shots in enumerate((2, 5)):
            expected = np.concatenate([own[:shots] for own in shuffled])
            assert rows[i, j][weights[i, j] == 1].tolist() == expected.tolist()


def test_padded_draws_equal_each_draw_on_its_own():
    features, labels = data(60, 12)
    test, _ = data(30, 12, seed=1)
    rows, weights = draws.draws(labels, shots=(1, 2, 5), seeds=(0, 1))
    with jax.enable_x64(True):
        kernels, biases = ridge.ridge_path(features, labels, L2, rows=rows, weights=weights)
    assert kernels.shape == (3, 2, len(L2), 12, CLASSES) and biases.shape == (3, 2, len(L2), CLASSES)
    for place in np.ndindex(3, 2):
        kept = rows[place][weights[place] == 1]
        expected = by_solving(features[kept], labels[kept], L2, test)
        np.testing.assert_allclose(logits((kernels[place], biases[place]), test), expected, rtol=1e-8, atol=1e-8)


def test_a_feature_that_never_changes_has_no_say():
    features, labels = data(60, 12)
    features[:, 3] = 0.1
    kernels, _ = ridge.ridge_path(features.astype("f"), labels, L2)
    assert np.abs(kernels[:, 3]).max() == 0
    assert np.isfinite(kernels).all() and np.abs(kernels[:, 4]).min() > 0


def test_accuracies_are_those_of_every_head_on_all_rows_or_on_the_rows_of_its_draw():
    features, labels = data(80, 12)
    rows, weights = draws.draws(labels, shots=(1, 4), seeds=(0,))
    fitted = ridge.ridge_path(features, labels, L2, rows=rows, weights=weights)
    right = logits(fitted, features).argmax(-1) == labels
    np.testing.assert_allclose(heads.values(*fitted, features, labels), right.mean(-1), atol=1e-6)
    held_out = np.arange(80)[None, None] + np.zeros((2, 1, 1), int)
    counts = (held_out % 7 < np.array([3, 5])[:, None, None]).astype("f")
    expected = (right * counts[:, :, None]).sum(-1) / counts.sum(-1)[..., None]
    np.testing.assert_allclose(
        heads.values(*fitted, features, labels, rows=held_out, weights=counts), expected, atol=1e-6
    )


def test_validation_chooses_the_best_l2_and_the_larger_among_equals():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    labels = np.array([0, 1, 0])
    right, wrong = np.eye(2), 1 - np.eye(2)
    kernels = np.stack([np.stack([right, right, wrong]), np.stack([right, wrong, wrong])])
    chosen = heads.choose(kernels, np.zeros((2, 3, 2)), [1.0, 4.0, 2.0], features, labels)
    assert chosen.l2.tolist() == [4.0, 1.0] and chosen.value.tolist() == [1.0, 1.0]
    assert np.array_equal(chosen.kernel, [right, right]) and chosen.bias.shape == (2, 2)
    on_own_rows = heads.choose(
        kernels, np.zeros((2, 3, 2)), [1.0, 4.0, 2.0], features, 1 - labels, rows=[[0, 2], [1, 2]]
    )
    assert on_own_rows.l2.tolist() == [2.0, 4.0]


FEATURES, LABELS = data(40, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridge.ridge_path(FEATURES, LABELS, [0.0]), r"l2 is \[0.0\]; expected a list of positive numbers"),
        (lambda: ridge.ridge_path(FEATURES, LABELS, []), "expected a list of positive numbers"),
        (lambda: ridge.ridge_path(FEATURES * np.nan, LABELS, [1.0]), "features: row 0 holds NaN"),
        (lambda: ridge.ridge_path(FEATURES, LABELS.astype(str), [1.0]), "labels are strings"),
        (lambda: ridge.ridge_path(FEATURES, LABELS, [1.0], rows=[[40]]), r"rows have .* expected integers 0..39"),
        (lambda: ridge.ridge_path(FEATURES, LABELS, [1.0], rows=[[0, 1]], weights=[[0, 0]]), "some 1 in every draw"),
        (lambda: ridge.ridge_path(FEATURES, LABELS, [1.0], weights=[[1.0]]), "weights are given without rows"),
        (lambda: draws.draws(LABELS, shots=(1, 11)), "labels: class 0 has 10 examples, 11 are needed"),
        (lambda: draws.draws(LABELS, shots=()), "expected numbers of at least 1"),
        (lambda: heads.values(np.ones((5, 4)), np.ones(4), FEATURES, LABELS), "6 columns; the heads expect 5"),
        (
            lambda: heads.values(np.ones((2, 6, 4)), np.ones((2, 4)), FEATURES, LABELS, rows=[[0]]),
            r"rows have shape \[1, 1\]; expected one draw for each of the heads \[2, 6, 4\]",
        ),
        (
            lambda: heads.choose(np.ones((2, 6, 4)), np.ones((2, 4)), [1.0], FEATURES, LABELS),
            r"l2 has shape \[1\]; expected one for each",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
