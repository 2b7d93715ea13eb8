"""The published searches for the penalty of a probe: what they try, and that validation alone chooses."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jtransfer.errors import InputError
from jtransfer.evaluate import metrics
from jtransfer.evaluate.probe import SEARCHES, checked_search, clip_walk, probe

TRAIN, VALIDATION, TEST = np.arange(60), np.arange(60, 90), np.arange(90, 150)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    centres = rng.normal(size=(3, 8))
    return (centres[labels] + 1.5 * rng.normal(size=(150, 8))).astype("f"), labels


def test_clips_search_starts_at_seven_points_and_ends_at_eight_steps_a_decade():
    grid = np.log10(SEARCHES["clip"].l2)
    np.testing.assert_allclose(grid, -6 + np.arange(97) / 8)
    for peak in (0, 37, 48, 96):
        visited = clip_walk(-np.abs(np.arange(97.0) - peak))
        assert {0, 16, 32, 48, 64, 80, 96} <= set(visited) and peak in visited
        assert len(visited) <= 7 + 2 * 4, "two more for each of four halvings"
        assert {peak - 1, peak + 1} & set(range(97)) <= set(visited)


def test_the_published_grids_are_those_of_their_papers():
    np.testing.assert_allclose(1 / np.array(SEARCHES["dinov2"].l2)[::-1], 10 ** np.linspace(-6, 5, 45))
    np.testing.assert_allclose(1 / np.array(SEARCHES["lpft"].l2)[::-1], np.logspace(-7, 2, 50))
    assert checked_search((0.1, 0.01), "mean", 50).l2 == (0.5, 5.0), "λ on the mean is n times that on the sum"


def test_the_chosen_probe_is_scikit_learns_of_training_and_validation_rows(data):
    features, labels = data
    found = probe(features, labels, TRAIN, VALIDATION, (0.1, 1.0, 10.0, 100.0))
    scores = []
    for l2 in found.tried:
        fit = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(features[TRAIN], labels[TRAIN])
        scores.append(fit.score(features[VALIDATION], labels[VALIDATION]))
    np.testing.assert_allclose(found.scores, scores)
    assert found.l2 == max(l2 for l2, score in zip(found.tried, scores, strict=True) if score == max(scores))
    both = np.concatenate([TRAIN, VALIDATION])
    fit = LogisticRegression(C=1 / found.l2, tol=1e-10, max_iter=10_000).fit(features[both], labels[both])
    np.testing.assert_allclose(found.kernel, fit.coef_.T, atol=1e-3)


def test_two_classes_have_the_penalty_that_scikit_learn_means(data):
    features, labels = data[0], data[1] % 2
    found = probe(features, labels, TRAIN, VALIDATION, (1.0,), refit=False)
    fit = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(features[TRAIN], labels[TRAIN])
    np.testing.assert_allclose(found.kernel[:, 1] - found.kernel[:, 0], fit.coef_[0], atol=1e-3)


def test_the_search_of_lp_ft_divides_features_by_the_standard_deviation_of_all_of_them(data):
    features, labels = data[0] * 50 + 20, data[1]
    found = probe(features, labels, TRAIN, VALIDATION, "lpft", refit=False)
    scale = features[TRAIN].std()
    fit = LogisticRegression(C=1 / found.l2, tol=1e-10, max_iter=10_000)
    fit.fit((features[TRAIN] - features[TRAIN].mean()) / scale, labels[TRAIN])
    np.testing.assert_allclose(found.kernel, fit.coef_.T / scale, atol=1e-5)


@pytest.mark.parametrize("search", ["clip", "dinov2", "lpft"])
def test_every_search_gives_a_head_for_the_features_as_they_are(data, search):
    features, labels = data
    found = probe(features * 50, labels, TRAIN, VALIDATION, search)
    logits = features[TEST] * 50 @ found.kernel + found.bias
    assert metrics.accuracy(logits, labels[TEST]) > 0.6
    assert found.at_edge == (found.l2 in (found.tried[0], found.tried[-1]))


def test_rows_that_are_neither_fitted_nor_chosen_on_are_never_read(data):
    features, labels = data
    spoilt, wrong = features.copy(), labels.copy()
    spoilt[TEST], wrong[TEST] = np.nan, 7
    one, other = (
        probe(x, y, TRAIN, VALIDATION, (1.0, 10.0), classes=3) for x, y in ((features, labels), (spoilt, wrong))
    )
    np.testing.assert_array_equal(one.kernel, other.kernel)


def test_several_labels_are_chosen_by_the_mean_area_under_their_curves(data):
    features, labels = data
    targets = np.eye(3, dtype=int)[labels]
    targets[:, 2] |= features[:, 0] > 0.5
    found = probe(features, targets, TRAIN, VALIDATION, (0.1, 10.0), refit=False)
    fits = [LogisticRegression(C=1 / 10.0, tol=1e-10).fit(features[TRAIN], targets[TRAIN, i]) for i in range(3)]
    logits = np.stack([fit.decision_function(features[VALIDATION]) for fit in fits], 1)
    assert found.scores[1] == pytest.approx(np.mean(metrics.auroc(logits, targets[VALIDATION])), abs=0.01)


def test_without_rows_to_choose_on_nothing_is_chosen(data):
    with pytest.raises(InputError, match="validation has no rows"):
        probe(*data, TRAIN, VALIDATION[:0])
    targets = np.zeros((150, 2), int)
    targets[:30] = 1
    with pytest.raises(InputError, match="validation: no label is 0 in some rows and 1 in others"):
        probe(data[0], targets, TRAIN, VALIDATION, (1.0,))


def test_an_unknown_search_is_named_with_the_nearest(data):
    with pytest.raises(InputError, match="search 'clipp' is unknown; did you mean 'clip'?"):
        probe(*data, TRAIN, VALIDATION, "clipp")
    with pytest.raises(InputError, match="per is 'men'; did you mean 'mean'?"):
        probe(*data, TRAIN, VALIDATION, per="men")
