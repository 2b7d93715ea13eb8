"""Episodes: how they are drawn, what their accuracy is by a loop in NumPy, the interval, and Laplacian smoothing."""

from itertools import product
from math import perm

import jax
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from jtransfer.errors import InputError
from jtransfer.evaluate.episodes import CLASSIFIERS, chosen, episodes, laplacian_shot, sample
from jtransfer.solvers.prototypes import prototypes

COUNTS = np.array([9, 30, 12, 10, 25])
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(5), COUNTS))
FEATURES = (RNG.normal(size=(5, 12))[LABELS] + 1.5 * RNG.normal(size=(len(LABELS), 12))).astype("f")
KEY = jax.random.key(3)
SIZES = {"ways": 3, "shots": 4, "queries": 5, "episodes": 30}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def drawn():
    """Classes `[episodes, ways]` and which of their examples `[episodes, ways, shots + queries]` KEY draws."""
    return [np.asarray(x) for x in sample(KEY, COUNTS, 3, 9, 30)]


@pytest.fixture(scope="module")
def rows(drawn):
    """The rows of those examples."""
    members = [np.flatnonzero(c == LABELS) for c in range(5)]
    return np.array([[members[c][p] for c, p in zip(*one, strict=True)] for one in zip(*drawn, strict=True)])


@pytest.mark.parametrize(("count", "number"), [(5, 3), (4, 4)])
def test_every_ordered_choice_comes_from_exactly_one_sequence_of_picks(count, number):
    bits = np.array(list(product(*(range(count - i) for i in range(number)))), np.uint32)
    found = {tuple(row) for row in np.asarray(chosen(bits, count))}
    assert len(found) == len(bits) == perm(count, number)
    assert all(len(set(row)) == number and min(row) >= 0 and max(row) < count for row in found)


def test_classes_and_examples_of_an_episode_are_all_different(drawn):
    classes, places = drawn
    assert all(len(set(row)) == 3 for row in classes) and set(classes.ravel()) == set(range(5))
    assert all(len(set(row)) == 9 for row in places.reshape(-1, 9))
    assert [places[classes == c].max() for c in range(5)] == [count - 1 for count in COUNTS]
    assert places.min() == 0 and len(set(places[classes == 1].ravel())) == COUNTS[1]


@pytest.mark.parametrize("classifier", ["cosine", "lda"])
def test_accuracies_are_those_of_a_head_fitted_to_each_episode(classifier, rows):
    found = episodes(KEY, FEATURES, LABELS, classifier=classifier, **SIZES)
    known, asked = np.repeat(np.arange(3), 4), np.repeat(np.arange(3), 5)
    expected = []
    for own in rows:
        kernel, bias = prototypes(FEATURES[own[:, :4].ravel()], known, classifier)
        expected.append(((FEATURES[own[:, 4:].ravel()] @ kernel + bias).argmax(1) == asked).mean())
    np.testing.assert_allclose(found.accuracies, expected, atol=1e-6)
    assert 0.5 < found.mean < 0.95 and np.std(expected) > 0


def smoothed(logits, queries, strength, neighbours):
    """LaplacianShot's bound updates in float64, W from scikit-learn's neighbours without the query itself."""
    near = NearestNeighbors(n_neighbors=neighbours).fit(queries).kneighbors(queries, return_distance=False)[:, 1:]
    w = np.zeros((len(queries), len(queries)))
    np.put_along_axis(w, near, 1, axis=1)
    y = softmax(logits, axis=1)
    for _ in range(20):
        y = softmax(logits + strength * w @ y, axis=1)
    return y


@pytest.mark.parametrize(("strength", "neighbours"), [(0.0, 3), (0.7, 3), (1.5, 6)])
def test_laplacian_shot_repeats_the_bound_update_of_the_paper(strength, neighbours):
    queries, means = unit(RNG.normal(size=(30, 6))), RNG.normal(size=(4, 6)) / 3
    logits = -((queries[:, None] - means) ** 2).sum(-1)
    with jax.enable_x64(True):
        found = laplacian_shot(logits, queries, strength=strength, neighbours=neighbours)
    np.testing.assert_allclose(found, smoothed(logits, queries, strength, neighbours), atol=1e-12)


def test_laplacian_shot_classifies_the_queries_of_an_episode_together(rows):
    found = episodes(KEY, FEATURES, LABELS, classifier="laplacian_shot", strength=1.0, **SIZES)
    expected = []
    for own in rows:
        x = unit(FEATURES[own].astype(np.float64))
        queries, means = x[:, 4:].reshape(15, -1), x[:, :4].mean(1)
        y = smoothed(-((queries[:, None] - means) ** 2).sum(-1), queries, 1.0, 3)
        expected.append((y.argmax(1) == np.repeat(np.arange(3), 5)).mean())
    np.testing.assert_allclose(found.accuracies, expected, atol=1e-6)
    assert np.abs(found.accuracies - episodes(KEY, FEATURES, LABELS, **SIZES).accuracies).max() > 0.1


def test_the_interval_is_196_standard_errors_of_the_mean():
    found = episodes(KEY, FEATURES, LABELS, **SIZES)
    assert found.mean == pytest.approx(found.accuracies.mean())
    assert found.half == pytest.approx(1.96 * np.std(found.accuracies, ddof=1) / np.sqrt(30))


def test_the_key_decides_the_episodes():
    first, again, other = (episodes(key, FEATURES, LABELS, **SIZES).accuracies for key in (KEY, KEY, jax.random.key(4)))
    assert (first == again).all() and (first != other).any()


def test_other_keys_and_options_need_no_other_program():
    compilations = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        one = episodes(KEY, FEATURES, LABELS, classifier="euclidean", pseudo_count=1.0, **SIZES)
        assert compilations
        compilations.clear()
        other = episodes(jax.random.key(9), FEATURES, LABELS, classifier="euclidean", pseudo_count=9.0, **SIZES)
        assert not compilations and (one.accuracies != other.accuracies).any()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_chance_is_met_where_features_tell_nothing():
    noise = np.random.default_rng(4).normal(size=FEATURES.shape).astype("f")
    found = episodes(KEY, noise, LABELS, **SIZES)
    assert abs(found.mean - 1 / 3) < 2 * found.half < 0.1


def test_prototypes_need_no_more_queries_than_one():
    assert episodes(KEY, FEATURES, LABELS, **SIZES | {"ways": 2, "queries": 1, "episodes": 4}).mean > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 6}, "labels have 5 classes; expected at least ways=6"),
        ({"ways": 1}, "ways is 1; expected at least 2"),
        ({"episodes": 1}, "episodes is 1; expected at least 2"),
        ({"shots": 5}, "labels, for shots=5 and queries=5: class 0 has 9 examples, 10 are needed"),
        ({"classifier": "lda", "shots": 1}, "lda: every class has a single example"),
        ({"classifier": "lda", "shrinkage": 0.0}, "lda: shrinkage=0 with 12 rows; expected at least 15"),
        ({"classifier": "laplacian"}, "'laplacian' is no kind of prototypes; did you mean 'laplacian_shot'"),
        ({"classifier": "laplacian_shot", "neighbours": 16}, "neighbours=16; expected 1 to the 15 queries"),
        ({"strength": 1.0}, "cosine has no option 'strength'; choose one of pseudo_count"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        episodes(KEY, FEATURES, LABELS, **SIZES | options)
    assert "\n" not in str(error.value)


def test_every_classifier_has_a_name_that_the_error_for_a_wrong_one_lists():
    with pytest.raises(InputError, match="choose one of " + ", ".join(sorted(CLASSIFIERS))):
        episodes(KEY, FEATURES, LABELS, classifier="zzz", **SIZES)
