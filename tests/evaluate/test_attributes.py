"""Zero-shot by attributes: each method is its formula, and what it costs when classes share a row."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jtransfer.errors import InputError
from jtransfer.evaluate.attributes import bridge, dap, eszsl
from jtransfer.evaluate.unseen import accuracy, ceiling, generalised, harmonic, validate

SHARED = Path(__file__).parents[3] / "shared"
# His ten unseen classes.
LAMPERT = "chimpanzee,giant panda,leopard,persian cat,pig,hippopotamus,humpback whale,raccoon,rat,seal"


def task(classes=8, seen=5, width=6, attributes=7, images=20, seed=0):
    """Features [n, d] and labels [n] of the seen classes, binary attributes [classes, m], queries [9, d]: float64."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2, (classes, attributes)).astype(np.float64)
    rows[:2] = [[0] * attributes, [1] * attributes]  # every attribute varies among the seen classes
    labels = np.repeat(np.arange(seen), images)
    features = rows[labels] @ rng.normal(size=(attributes, width)) + rng.normal(size=(len(labels), width))
    return features, labels, rows, rng.normal(size=(9, width))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_eszsl_is_its_formula_at_every_pair_of_hyper_parameters(x64):
    features, labels, attributes, queries = task()
    gamma, penalty = np.array([0.01, 1, 100]), np.array([0.1, 10])
    scores = eszsl(features, labels, attributes, queries, gamma[:, None], penalty)
    assert scores.shape == (3, 2, 9, 8)
    x, s, y = features.T, attributes[:5].T, 2.0 * (labels[:, None] == np.arange(5)) - 1
    for i, g in enumerate(gamma):
        for j, p in enumerate(penalty):
            v = np.linalg.inv(x @ x.T + g * np.eye(6)) @ x @ y @ s.T @ np.linalg.inv(s @ s.T + p * np.eye(7))
            np.testing.assert_allclose(scores[i, j], queries @ v @ attributes.T, rtol=1e-9)


def test_float32_gives_the_same_scores_but_for_rounding():
    features, labels, attributes, queries = task()
    for method in (eszsl, bridge):
        single = method(features.astype(np.float32), labels, attributes, queries.astype(np.float32))
        assert single.dtype == np.float32
        with jax.enable_x64(True):
            double = np.asarray(method(features, labels, attributes, queries))
        assert np.abs(single - double).max() < 1e-3 * np.abs(double).max()


def test_the_bridge_is_a_ridge_from_attributes_to_centroids_with_a_free_intercept(x64):
    features, labels, attributes, queries = task()
    l2 = np.array([1e-3, 1.0, 30.0])
    centroids = np.array([features[labels == c].mean(0) for c in range(5)])
    a, c = attributes[:5] - attributes[:5].mean(0), centroids - centroids.mean(0)
    for i, penalty in enumerate(l2):
        w = np.linalg.solve(a.T @ a + penalty * np.eye(7), a.T @ c)
        predicted = centroids.mean(0) + (attributes - attributes[:5].mean(0)) @ w
        products = queries @ predicted.T
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(predicted, axis=1)
        distances = np.linalg.norm(queries[:, None] - predicted, axis=-1) ** 2
        for decision, expected in (("cosine", products / lengths), ("dot", products), ("euclidean", -distances)):
            scores = bridge(features, labels, attributes, queries, l2, decision)
            np.testing.assert_allclose(scores[i], expected, rtol=1e-9)


def test_a_long_centroid_draws_every_image_unless_vectors_are_scaled_to_length_one():
    # Classes 0 and 1 lie at (1, 0) and (0, 1); class 2 has twice what makes class 0, and lies at about (2, -1).
    features = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    attributes, image = [[1, 0], [0, 1], [2, 0]], np.array([[0.9, 0.1], [0, 1]], np.float32)
    nearest = {
        how: bridge(features, [0, 0, 1, 1], attributes, image, 1e-4, how).argmax(-1) for how in ("dot", "cosine")
    }
    assert nearest["dot"].tolist() == [2, 1]
    assert nearest["cosine"].tolist() == [0, 1]


def test_dap_is_the_product_of_logistic_probabilities_over_their_priors(x64):
    from sklearn.linear_model import LogisticRegression

    features, labels, attributes, queries = task()
    l2 = np.array([1e-3, 0.1])
    scores = dap(features, labels, attributes, queries, l2)
    for i, penalty in enumerate(l2):
        product = np.zeros((9, 8))  # its logarithm
        for m in range(7):
            model = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-10, max_iter=10_000)
            there = model.fit(features, attributes[labels, m]).predict_proba(queries)[:, 1]
            prior = attributes[:5, m].mean()
            for k in range(8):
                product[:, k] += np.log(there / prior if attributes[k, m] else (1 - there) / (1 - prior))
        np.testing.assert_allclose(scores[i], product, rtol=1e-4, atol=1e-3)


def test_dap_of_about_as_many_rows_compiles_nothing_anew():
    features, labels, attributes, queries = task(images=20)
    features, compiled = features.astype(np.float32), []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for rows in (100, 99, 97):
            compiled.clear()
            dap(features[:rows], labels[:rows], attributes, queries)
            assert rows == 100 or not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_dap_leaves_out_what_all_seen_classes_have():
    features, labels, attributes, queries = task()
    attributes[:5, 3] = 1
    scores = []
    for unseen in ([0, 1, 0], [1, 0, 1]):
        attributes[5:, 3] = unseen
        scores.append(np.asarray(dap(features, labels, attributes, queries)))
    np.testing.assert_array_equal(*scores)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("method", [dap, bridge, eszsl])
def test_a_number_gives_one_score_and_an_array_its_shape_in_front(method):
    features, labels, attributes, queries = task()
    one = method(features, labels, attributes, queries, 0.1)
    many = method(features, labels, attributes, queries, np.full((2, 1), 0.1))
    assert one.shape == (9, 8)
    assert many.shape == (2, 1, 9, 8)
    np.testing.assert_allclose(many[1, 0], one, rtol=1e-4, atol=1e-4)


def test_the_ceiling_is_the_share_of_classes_with_a_row_of_their_own():
    rows = [[0, 1], [1, 1], [0, 1], [0, 0], [0, 1]]
    assert ceiling(rows) == 3 / 5
    assert ceiling(rows, [0, 1, 3]) == 1
    assert ceiling(rows, [0, 2]) == 1 / 2


def test_on_lamperts_animals_two_classes_with_one_row_cost_one_of_ten():
    if not (SHARED / "tfds/animal_attributes").exists():
        pytest.skip("needs ../shared/tfds/animal_attributes")
    tfds = pytest.importorskip("tensorflow_datasets")
    animals = list(tfds.data_source("animal_attributes", data_dir=SHARED / "tfds", split="train", download=False))
    names = [animal["name"].decode() for animal in animals]
    attributes = np.array([animal["attributes"] for animal in animals])
    unseen = [names.index(name) for name in LAMPERT.split(",")]
    seen = np.setdiff1d(np.arange(50), unseen)
    assert ceiling(attributes) == ceiling(attributes, unseen) == 1

    # Images that show their attributes, with a little noise: nothing but the rows can go wrong.
    rng = np.random.default_rng(0)
    labels, asked = np.repeat(seen, 10), np.repeat(unseen, 5)
    features, queries = (
        (attributes[rows] + rng.normal(0, 0.1, (len(rows), 85))).astype(np.float32) for rows in (labels, asked)
    )
    methods = dap, bridge, eszsl
    assert [accuracy(f(features, labels, attributes, queries), asked, unseen) for f in methods] == [1, 1, 1]
    attributes[names.index("seal")] = attributes[names.index("rat")]
    assert ceiling(attributes, unseen) == 0.9
    assert [accuracy(f(features, labels, attributes, queries), asked, unseen) for f in methods] == [0.9, 0.9, 0.9]


def test_a_class_counts_the_same_however_many_images_it_has():
    scores = np.eye(3)[[0, 0, 0, 1, 2]]
    labels = [0, 0, 0, 2, 2]
    assert accuracy(scores, labels, [0, 2]) == (1 + 1 / 2) / 2  # not 4 of 5; and class 1 is no candidate


def test_generalised_accuracy_searches_all_classes_and_stacking_hands_some_back():
    # Seen class 0, unseen class 2; class 1 is no candidate, whatever its score.
    scores = np.array([[0.6, 9, 0.5], [0.9, 9, 0.1], [0.6, 9, 0.4], [0.2, 9, 0.8]])
    labels = np.array([0, 0, 2, 2])
    assert generalised(scores, labels, [0], [2]) == (1, 0.5, harmonic(1, 0.5))
    stacked = generalised(scores, labels, [0], [2], np.array([0, 0.15, 0.3, 2]))
    assert stacked.seen.tolist() == [1, 0.5, 0.5, 0]
    assert stacked.unseen.tolist() == [0.5, 0.5, 1, 1]
    np.testing.assert_allclose(stacked.harmonic, [2 / 3, 1 / 2, 2 / 3, 0])


def test_validation_asks_each_seen_class_once_and_never_fits_it_then():
    features, labels, attributes, _ = task(seen=7)
    asked = []

    def score(fitted, fitted_labels, rows, queries):
        assert rows is attributes
        missing = np.setdiff1d(labels, fitted_labels)
        assert len(fitted) == len(fitted_labels) == 20 * (7 - len(missing))
        np.testing.assert_array_equal(queries, features[np.isin(labels, missing)])
        asked.extend(missing)
        right = np.eye(8)[labels[np.isin(labels, missing)]]
        return np.stack([right, np.roll(right, 1, axis=1)])  # two hyper-parameters

    found = validate(score, features, labels, attributes, folds=3)
    assert sorted(asked) == list(range(7))
    assert found[0] == 1
    assert found[1] < 1


def test_validation_prefers_a_penalty_that_names_held_out_classes():
    features, labels, attributes, _ = task(classes=20, seen=20, attributes=5, images=10)
    found = validate(partial(bridge, l2=np.array([1e-2, 1e6])), features, labels, attributes)
    assert found.shape == (2,)
    assert found[0] > found[1]


FEATURES, LABELS, ATTRIBUTES, QUERIES = task()
BROKEN, SAME, ALIKE = ATTRIBUTES.copy(), ATTRIBUTES.copy(), ATTRIBUTES.copy()
BROKEN[3, 2], SAME[:, 4], ALIKE[:5] = np.nan, 1, 1


@pytest.mark.parametrize("method", [dap, bridge, eszsl])
@pytest.mark.parametrize(
    "change, line",
    [
        ({"attributes": ATTRIBUTES[:4]}, "attributes have 4 rows, but labels name class 4; expected a row each"),
        ({"attributes": BROKEN}, "attributes: row 3, column 2 is nan; expected a number"),
        ({"attributes": SAME}, "attributes: column 4 is 1 for every class; leave it out"),
        ({"attributes": ALIKE}, "the 5 seen classes all have the same attributes; nothing can be learned from them"),
        ({"attributes": ATTRIBUTES[0]}, "attributes have shape [7] and dtype float64; expected [classes, m] numbers"),
        ({"labels": LABELS * 0}, "labels hold only class 0; at least two classes are expected"),
        ({"labels": LABELS[:0], "features": FEATURES[:0]}, "no seen class: features are empty, shape [0, 6]"),
        ({"queries": QUERIES[:, :3]}, "queries have width 3, features 6; expected the same"),
    ],
)
def test_what_cannot_be_is_one_line(method, change, line):
    arrays = {"features": FEATURES, "labels": LABELS, "attributes": ATTRIBUTES, "queries": QUERIES} | change
    with pytest.raises(InputError) as error:
        method(**arrays)
    assert str(error.value) == line


SCORES = np.zeros((3, 4))


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda: dap(FEATURES, LABELS, ATTRIBUTES / 2, QUERIES), "row 1, column 0 is 0.5; dap expects 0 or 1"),
        (lambda: bridge(FEATURES, LABELS, ATTRIBUTES, QUERIES, decision="cos"), "did you mean 'cosine'?"),
        (lambda: bridge(FEATURES, LABELS, ATTRIBUTES, QUERIES, 0.0), "l2 is 0.0; expected above 0"),
        (lambda: eszsl(FEATURES, LABELS, ATTRIBUTES, QUERIES, 1, -1), "penalty is -1.0; expected above 0"),
        (
            lambda: validate(bridge, FEATURES, LABELS, ATTRIBUTES, 3),
            "folds is 3 for 5 seen classes; expected at least 2",
        ),
        (lambda: accuracy(SCORES, [0, 1, 1], [0, 1, 2]), "class 2 has no image; its accuracy cannot be measured"),
        (lambda: accuracy(SCORES, [0, 1, 3], [0, 1]), "labels: row 2 is class 3, which is none of the candidates"),
        (lambda: accuracy(SCORES * np.nan, [0, 1, 1], [0, 1]), "scores: row 0 holds NaN"),
        (lambda: accuracy(SCORES, [0, 1], [0, 1]), "labels have shape [2]; expected [3], one a row of scores"),
        (lambda: generalised(SCORES, [0, 1, 1], [], [0, 1]), "no seen class is given"),
        (lambda: generalised(SCORES, [0, 1, 1], [0, 1], [1, 2]), "class 1 is both seen and unseen"),
        (lambda: generalised(SCORES, [0, 1, 1], [0, 1], [2, 3]), "class 2 has no image"),
    ],
)
def test_what_cannot_be_measured_is_one_line(call, line):
    with pytest.raises(InputError) as error:
        call()
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backbone_of_letters_is_asked_for_no_digit(monkeypatch):
    from jtransfer.data import glyphs
    from jtransfer.data.sources import open_stream

    def examples(bases, key, rows, classes):
        return np.zeros((len(rows), 8, 8, 1), np.float32), np.asarray(classes)[np.asarray(rows) % len(classes)]

    monkeypatch.setattr(glyphs, "examples", examples)
    stream = open_stream("letters", batch=104, seed=3)
    assert "".join(stream.classes) == "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert set(next(stream.batches(2))[0]["labels"]) == set(stream.held_out[2]) == set(range(52))
