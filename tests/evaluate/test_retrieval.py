"""Recall at k in both directions and mean average precision, against counting by sorting and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jtransfer.errors import InputError
from jtransfer.evaluate import retrieval as module
from jtransfer.evaluate.retrieval import mean_average_precision, ranks, retrieval


def normalised(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairs(images=60, captions=3, d=16, seed=0):
    """Image embeddings, and those of their captions in mixed order and of other lengths."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, d))
    owners = rng.permutation(np.repeat(np.arange(images), captions))
    texts = (x[owners] + 1.5 * rng.normal(size=(len(owners), d))) * rng.uniform(0.1, 10, size=(len(owners), 1))
    return x.astype(np.float32), texts.astype(np.float32), owners


@pytest.mark.parametrize("scores", [2**22, 700], ids=["one block", "blocks of queries"])
def test_recall_counts_an_image_if_any_of_its_captions_is_among_the_first(scores, monkeypatch):
    monkeypatch.setattr(module, "SCORES", scores)
    x, t, owners = pairs()
    similarity = normalised(x.astype(np.float64)) @ normalised(t.astype(np.float64)).T
    found = retrieval(x, t, owners)
    for k in (1, 5, 10):
        texts = owners[np.argsort(-similarity, axis=1)[:, :k]]  # of each image
        images = np.argsort(-similarity.T, axis=1)[:, :k]  # of each text
        assert found.image_to_text.at[k] == (texts == np.arange(60)[:, None]).any(axis=1).mean()
        assert found.text_to_image.at[k] == (images == owners[:, None]).any(axis=1).mean()
    assert found.image_to_text.at[1] < found.image_to_text.at[5] < found.image_to_text.at[10] < 1
    order = np.argsort(-similarity.T, axis=1)
    assert found.text_to_image.median_rank == np.median(np.argmax(order == owners[:, None], axis=1) + 1)


def test_embeddings_that_are_all_alike_find_nothing():
    same = np.ones((8, 4), np.float32)
    found = retrieval(same, same, np.arange(8), at=(1, 5))
    assert found.image_to_text.at == found.text_to_image.at == {1: 0.0, 5: 0.0}
    assert found.image_to_text.median_rank == 8


def test_the_rank_is_one_more_than_the_keys_of_other_labels_that_come_before():
    keys = np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]], np.float32)
    query = np.array([[1, 0], [0, 1]], np.float32)
    assert ranks(query, [1, 0], keys, [0, 0, 1, 1]).tolist() == [3, 3]


def problem(n=40, m=70, classes=4, d=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = [rng.permutation(np.arange(rows) % classes) for rows in (n, m)]
    centres = rng.normal(size=(classes, d))
    return [part for y in labels for part in ((centres[y] + rng.normal(size=(len(y), d))).astype(np.float32), y)]


@pytest.mark.parametrize("scores", [2**22, 700], ids=["one block", "blocks of queries"])
def test_mean_average_precision_is_scikit_learn_s(scores, monkeypatch):
    monkeypatch.setattr(module, "SCORES", scores)
    queries, query_labels, keys, key_labels = problem()
    similarity = normalised(queries) @ normalised(keys).T
    expected = np.mean([average_precision_score(key_labels == y, s) for y, s in zip(query_labels, similarity)])  # noqa: B905
    np.testing.assert_allclose(mean_average_precision(queries, query_labels, keys, key_labels), expected, rtol=1e-5)


def test_keys_that_tie_share_their_precision_as_in_scikit_learn():
    queries = np.eye(2, dtype=np.float32)
    keys = np.array([[1, 0], [2, 0], [3, 0], [0, 1], [0, 2]], np.float32)
    labels = np.array([0, 1, 0, 1, 1])
    expected = np.mean([average_precision_score(labels == i, normalised(keys) @ queries[i]) for i in range(2)])
    np.testing.assert_allclose(mean_average_precision(queries, [0, 1], keys, labels), expected, rtol=1e-6)


def test_a_row_among_its_own_keys_does_not_find_itself():
    x, y, *_ = problem()
    similarity = normalised(x) @ normalised(x).T
    others = ~np.eye(len(x), dtype=bool)
    expected = np.mean([average_precision_score((y == y[i])[o], similarity[i][o]) for i, o in enumerate(others)])
    np.testing.assert_allclose(mean_average_precision(x, y, x, y, exclude_self=True), expected, rtol=1e-5)
    assert mean_average_precision(x, y, x, y) > expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t, o: retrieval(x, t[:, :3], o), "queries have width 16, keys 3; expected the same"),
        (lambda x, t, o: retrieval(x, t, o[:-1]), "image_of_text: 179 for 180 rows"),
        (lambda x, t, o: retrieval(x, t, o + 1), r"image_of_text: row \d+ is 60; expected 0\.\.59"),
        (lambda x, t, o: retrieval(x, t[o != 7], o[o != 7]), "image_of_text: image 7 has no text"),
        (lambda x, t, o: retrieval(x, t, o, at=(0, 1)), r"recall at \[0, 1\]; expected ranks of at least 1"),
        (lambda x, t, o: mean_average_precision(x, np.arange(60), t, o % 9), "query 9 has label 9, which no key has"),
        (lambda x, t, o: mean_average_precision(t, o, t, o[::-1], True), "exclude_self needs .* the same rows"),
        (
            lambda x, t, o: (
                mean_average_precision(x, np.arange(60) // 2 * 2 % 59, x, np.arange(60) // 2 * 2 % 59, True)
                and mean_average_precision(x, np.arange(60), x, np.arange(60), True)
            ),
            "query 0 has label 0, which no other key has",
        ),
    ],
)
def test_what_cannot_be_retrieved_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(*pairs())
