"""Prototypes as linear heads: their definitions, scikit-learn's nearest centroids and LDA, Ledoit-Wolf, many draws."""

import jax
import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from jtransfer.errors import InputError
from jtransfer.solvers import draws
from jtransfer.solvers.prototypes import KINDS, prototypes

CLASSES = 3


def data(n, d, seed=0, balanced=False):
    """Features of different scales about a mean far from zero, and labels that they tell in part."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES) if balanced else rng.choice(CLASSES, n, p=[0.5, 0.3, 0.2])
    centres = np.random.default_rng(5).normal(size=(CLASSES, d))
    return (rng.normal(size=(n, d)) + centres[labels]) * np.geomspace(0.3, 3, d) + 2, labels


WIDE, TALL = (15, 40), (80, 10)
TEST = {d: data(50, d, seed=1)[0] for _, d in (WIDE, TALL)}


def logits(head, x):
    """Of the test rows, less their mean over classes, which no prediction depends on."""
    kernel, bias = (np.asarray(part, np.float64) for part in head)
    return centred(x @ kernel + bias)


def centred(scores):
    return scores - scores.mean(1, keepdims=True)


def means_of(x, y):
    return np.stack([x[y == c].mean(0) for c in range(CLASSES)])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_cosine_prefers_the_class_of_the_nearest_mean_direction():
    x, y = data(*TALL)
    expected = unit(TEST[10]) @ unit(means_of(unit(x), y)).T
    kernel, bias = prototypes(x, y, "cosine")
    np.testing.assert_allclose(unit(TEST[10]) @ kernel + bias, expected, atol=1e-12)


@pytest.mark.parametrize("count", [0.0, 4.0])
def test_euclidean_logits_are_negative_squared_distances_to_means_shrunk_by_pseudo_counts(count):
    x, y = data(*TALL)
    counts = np.bincount(y)[:, None]
    means = (counts * means_of(x, y) + count * x.mean(0)) / (counts + count)
    expected = centred(-((TEST[10][:, None] - means) ** 2).sum(-1))
    np.testing.assert_allclose(logits(prototypes(x, y, "euclidean", pseudo_count=count), TEST[10]), expected, atol=1e-9)
    if not count:
        peer = NearestCentroid().fit(x, y).predict(TEST[10])
        assert (expected.argmax(1) == peer).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0])
def test_shrunken_centroids_are_those_of_scikit_learn_and_logits_those_of_the_paper(threshold):
    x, y = data(*TALL)
    kernel, bias = (np.asarray(part) for part in prototypes(x, y, "shrunken", threshold=threshold))
    spread = np.sqrt(((x - means_of(x, y)[y]) ** 2).sum(0) / (len(x) - CLASSES))
    spread = spread + np.median(spread)
    centroids = NearestCentroid(shrink_threshold=threshold or None).fit(x, y).centroids_
    np.testing.assert_allclose(kernel.T * spread**2 + x.mean(0), centroids, rtol=1e-9)
    discriminants = (((TEST[10][:, None] - centroids) / spread) ** 2).sum(-1) - 2 * np.log(np.bincount(y) / len(y))
    np.testing.assert_allclose(logits((kernel, bias), TEST[10]), centred(-discriminants / 2), atol=1e-9)


def test_a_high_threshold_leaves_only_features_in_which_classes_stand_out():
    x, y = data(*TALL)
    x[:, 4] += 40 * y
    kernel, _ = prototypes(x, y, "shrunken", threshold=10.0)
    assert np.flatnonzero(np.abs(kernel).max(1)).tolist() == [4]


@pytest.mark.parametrize(("n", "d", "shrinkage"), [(*TALL, 0), (*TALL, 0.3), (*TALL, 1), (*WIDE, 0.3), (*WIDE, 0.01)])
def test_lda_with_a_given_shrinkage_is_scikit_learns(n, d, shrinkage):
    x, y = data(n, d)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
    found = logits(prototypes(x, y, "lda", shrinkage=shrinkage), TEST[d])
    np.testing.assert_allclose(found, centred(peer.decision_function(TEST[d])), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [TALL, WIDE], ids=["more rows than columns", "more columns than rows"])
def test_lda_shrinks_the_common_covariance_as_ledoit_and_wolf(n, d):
    x, y = data(n, d)
    means, priors = means_of(x, y), np.bincount(y) / n
    estimate = LedoitWolf(assume_centered=True).fit(x - means[y])
    assert 0.01 < estimate.shrinkage_ < 0.99
    coefficients = np.linalg.solve(estimate.covariance_, means.T)
    expected = centred(TEST[d] @ coefficients - (means * coefficients.T).sum(1) / 2 + np.log(priors))
    np.testing.assert_allclose(logits(prototypes(x, y, "lda"), TEST[d]), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_draws_equal_each_draw_on_its_own(kind):
    x, y = data(*TALL, balanced=True)
    rows, weights = draws.draws(y, shots=(2, 5), seeds=(0, 1))
    kernels, biases = prototypes(x, y, kind, rows=rows, weights=weights)
    assert kernels.shape == (2, 2, 10, CLASSES)
    for place in np.ndindex(2, 2):
        kept = rows[place][: 2 * CLASSES if place[0] == 0 else None]
        np.testing.assert_allclose(
            logits((kernels[place], biases[place]), TEST[10]),
            logits(prototypes(x[kept], y[kept], kind), TEST[10]),
            atol=1e-9,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_enough_far_from_the_origin(kind):
    x, y = data(*TALL)
    expected = logits(prototypes(x + 50, y, kind), TEST[10] + 50)
    with jax.enable_x64(False):
        found = logits(prototypes((x + 50).astype("f"), y, kind), TEST[10] + 50)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max() + 2e-5)


def test_lda_of_examples_without_any_spread_takes_the_nearest_mean():
    x = np.repeat(np.random.default_rng(0).normal(size=(CLASSES, 10)), 4, axis=0)
    y = np.repeat(np.arange(CLASSES), 4)
    expected = logits(prototypes(x, y, "euclidean"), TEST[10]) / 2
    np.testing.assert_allclose(logits(prototypes(x, y, "lda"), TEST[10]), expected, atol=1e-9)


X, Y = data(*TALL)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prototypes(X, Y, "euclidian"), "'euclidian' is no kind of prototypes; did you mean 'euclidean'?"),
        (lambda: prototypes(X, Y, "lda", threshold=1.0), "lda has no option 'threshold'; choose one of shrinkage"),
        (lambda: prototypes(X, Y, "lda", shrinkage=1.5), "lda: shrinkage=1.5; expected 0 to 1"),
        (lambda: prototypes(X, Y, "euclidean", pseudo_count=-1), "pseudo_count=-1; expected 0 to inf"),
        (lambda: prototypes(X, Y, classes=4), "cosine: class 3 has no examples; expected at least one of each class"),
        (
            lambda: prototypes(X, Y, rows=[[*range(80)], [*np.flatnonzero(Y > 0)[:20]] * 4]),
            "cosine: class 0 has no examples in draw 1",
        ),
        (
            lambda: prototypes(X, Y, "shrunken", rows=[[np.argmax(c == Y) for c in range(3)]]),
            "shrunken: every class has a single example; the spread within classes needs a class with two",
        ),
        (
            lambda: prototypes(X[:12], Y[:12], "lda", shrinkage=0.0),
            "lda: shrinkage=0 with 12 rows; expected at least 13",
        ),
        (lambda: prototypes(X, Y * 0), "labels hold only class 0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as error:
        call()
    assert "\n" not in str(error.value)
