"""k-means against scikit-learn's, and the agreement of labelings likewise."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from jtransfer.errors import InputError
from jtransfer.evaluate.clustering import ari, contingency, hungarian_accuracy, kmeans, lloyd, nmi


def blobs(n=300, d=5, k=4, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return (4 * rng.normal(size=(k, d))[y] + spread * rng.normal(size=(n, d)) + 20).astype(np.float32), y


def test_from_the_same_centres_lloyd_ends_where_scikit_learn_does():
    x, _ = blobs(spread=4.0)
    start = x[:7]
    peer = KMeans(7, init=start, n_init=1, tol=0, max_iter=300).fit(x.astype(np.float64))
    found = lloyd(x, start)
    assert (found.labels == peer.labels_).all()
    np.testing.assert_allclose(found.inertia, peer.inertia_, rtol=1e-5)
    np.testing.assert_allclose(found.centres, peer.cluster_centers_, rtol=1e-4)


def test_after_the_last_iteration_labels_are_those_of_the_nearest_centre():
    x, _ = blobs(spread=4.0)
    found = lloyd(x, x[:7], iterations=1)
    distances = ((x[:, None] - np.asarray(found.centres)) ** 2).sum(-1)
    assert (distances.argmin(1) == found.labels).all()
    np.testing.assert_allclose(found.inertia, distances.min(1).sum(), rtol=1e-5)


def test_restarts_find_what_one_bad_start_does_not():
    x, y = blobs(spread=0.3)
    stuck = lloyd(x, np.stack([x[0], x[4], x[1], (x[2] + x[3]) / 2]))  # two in one class, one between two
    found = kmeans(jax.random.key(0), x, 4)
    assert found.inertia < 0.5 * stuck.inertia
    assert hungarian_accuracy(found.labels, y) == 1
    np.testing.assert_allclose(found.inertia, KMeans(4, n_init=10, random_state=0).fit(x).inertia_, rtol=1e-5)


def test_restarts_that_do_not_fit_side_by_side_end_alike(monkeypatch):
    x, _ = blobs(spread=4.0)
    whole = kmeans(jax.random.key(1), x, 4)
    monkeypatch.setattr("jtransfer.evaluate.clustering.FLOATS", 5 * 4 * len(x))
    parts = kmeans(jax.random.key(1), x, 4)
    np.testing.assert_allclose(parts.inertia, whole.inertia, rtol=1e-6)


def test_an_empty_cluster_takes_the_row_that_lies_farthest():
    x = np.array([[0.0], [1.0], [2.0], [50.0]], np.float32)
    found = lloyd(x, np.array([[0.0], [1.0], [900.0]], np.float32))
    assert found.labels.tolist() in ([0, 1, 1, 2], [0, 0, 1, 2])
    assert found.inertia == 0.5


def test_more_clusters_than_distinct_rows_is_no_nan():
    x = np.tile(np.eye(2, 5, dtype=np.float32), (150, 1))
    found = kmeans(jax.random.key(0), x, 4)
    assert found.inertia == 0 and np.isfinite(found.centres).all()


@pytest.mark.parametrize("labels", [(10, 10), (3, 7), (1, 4), (1, 1), (60, 60)])
def test_labelings_agree_as_scikit_learn_says(labels):
    rng = np.random.default_rng(0)
    a = rng.permutation(np.arange(60) % labels[0])
    b = np.where(rng.random(60) < 0.5, a % labels[1], rng.integers(0, labels[1], 60))
    np.testing.assert_allclose(nmi(a, b), normalized_mutual_info_score(a, b), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ari(a, b), adjusted_rand_score(a, b), rtol=1e-12, atol=1e-12)


def test_names_of_clusters_do_not_matter():
    classes = np.array(["b", "b", "a", "a", "c", "c"])
    clusters = np.array([9, 9, -1, -1, 4, 4])
    assert (nmi(clusters, classes), ari(clusters, classes), hungarian_accuracy(clusters, classes)) == (1, 1, 1)


def test_a_cluster_stands_for_one_class_and_a_class_for_one_cluster():
    # Cluster 1 is better spent on class 1 (2 rows) while 0 takes class 0 (3 rows); cluster 2 is left over.
    clusters, classes = [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 1, 0]
    assert contingency(clusters, classes).tolist() == [[3, 1], [0, 2], [1, 0]]
    assert hungarian_accuracy(clusters, classes) == 5 / 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kmeans(jax.random.key(0), x, 301), r"k is 301; expected 1\.\.300"),
        (lambda x: kmeans(jax.random.key(0), x, 2, restarts=0), "restarts is 0; expected at least 1"),
        (lambda x: lloyd(x, x[:3, :2]), r"centres have shape \[3, 2\]; expected \[k, 5\]"),
        (lambda x: nmi([0, 1], [0, 1, 1]), r"labelings have shapes \[2\] and \[3\]"),
        (lambda x: kmeans(jax.random.key(0), x * np.inf, 2), "features: row 0 holds NaN or infinite"),
    ],
)
def test_what_cannot_be_clustered_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(blobs()[0])
