"""k nearest neighbours as in DINOv2: a float64 reference, scikit-learn, blocks, ties, leaving one out, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier

from jtransfer.errors import InputError
from jtransfer.evaluate import knn as module
from jtransfer.evaluate.knn import TEMPERATURE, knn

CLASSES = 4
K = (1, 5, 20)


def data(n, seed, d=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    centres = np.random.default_rng(9).normal(size=(CLASSES, d))
    return 3 * centres[labels] + rng.normal(size=(n, d)) * rng.uniform(0.1, 4, (n, 1)), labels


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_the_protocol(keys, labels, queries, exclude=None):
    """Softmax over the similarities of the max(K) nearest, in float64, then only the first k of them."""
    similarities = unit(queries) @ unit(keys).T
    if exclude is not None:
        similarities[np.arange(len(queries)), exclude] = -np.inf
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, : max(K)]
    shares = softmax(np.take_along_axis(similarities, nearest, 1) / TEMPERATURE, axis=1)
    votes = shares[..., None] * np.eye(CLASSES)[labels[nearest]]
    return np.stack([votes[:, :k].sum(1) for k in K])


KEYS, LABELS = data(300, 0)
TEST, TEST_LABELS = data(40, 1)


@pytest.mark.parametrize("block", [64, 10_000], ids=["last block in part", "one block"])
def test_scores_are_those_of_the_protocol_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 16)
    expected = by_the_protocol(KEYS, LABELS, TEST)
    found = knn(KEYS, LABELS, TEST, k=K, block=block)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found.argmax(-1) == expected.argmax(-1)).all()


def test_float64_features_stay_so():
    with jax.enable_x64(True):
        found = knn(KEYS, LABELS, TEST, k=K, block=128)
    np.testing.assert_allclose(found, by_the_protocol(KEYS, LABELS, TEST), atol=1e-12)


def test_predictions_are_scikit_learns_with_the_same_weights():
    for k, scores in zip(K, knn(KEYS, LABELS, TEST, k=K, block=64), strict=True):
        peer = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))
        expected = peer.fit(KEYS, LABELS).predict(TEST)
        assert (scores.argmax(-1) == expected).all()
        assert 0.6 < (expected == TEST_LABELS).mean() < 1


def test_fewer_neighbours_keep_the_weights_of_the_most():
    scores = knn(KEYS, LABELS, TEST, k=K, block=64)
    np.testing.assert_allclose(scores[-1].sum(-1), 1, atol=1e-6)
    assert (scores[1].sum(-1) < 1).all() and (scores[1] <= scores[2]).all()


def test_of_equal_keys_the_first_are_the_neighbours_across_blocks():
    keys = np.tile([[1.0, 0.0], [0.0, 1.0]], (50, 1))
    labels = np.arange(100) // 2 % CLASSES
    for block in (30, 100):
        scores = knn(keys, labels, np.array([[2.0, 0.0], [0.0, 3.0]]), k=(6,), classes=CLASSES, block=block)
        np.testing.assert_allclose(scores[0], [[2 / 6, 2 / 6, 1 / 6, 1 / 6]] * 2, atol=1e-6)


def test_without_queries_each_key_is_classified_by_the_others():
    found = knn(KEYS, LABELS, None, k=K, block=64)
    np.testing.assert_allclose(found, by_the_protocol(KEYS, LABELS, KEYS, np.arange(len(KEYS))), atol=2e-5)


def test_keys_may_be_a_mapped_file_of_half_precision_or_on_the_device(tmp_path):
    half = KEYS.astype(np.float16)
    half.tofile(tmp_path / "keys")
    mapped = np.memmap(tmp_path / "keys", np.float16, "r", shape=half.shape)
    expected = by_the_protocol(half.astype(np.float64), LABELS, TEST)
    for keys in (mapped, jnp.asarray(half)):
        np.testing.assert_allclose(knn(keys, LABELS, TEST, k=K, block=64), expected, atol=2e-5)


def test_a_step_never_holds_the_similarities_of_all_queries():
    def temporary(queries):
        blocks, rows, most, width, keys = queries // 64, 64, 8, 16, 4096
        arrays = [((blocks, rows, most), "f"), ((blocks, rows, most), "i"), ((blocks, rows, width), "f")]
        arrays += [((blocks, rows), "i"), ((keys, width), "f"), ((keys,), "i")]
        step = module._merged.lower(*(jax.ShapeDtypeStruct(*x) for x in arrays), 0, 0).compile()
        return step.memory_analysis().temp_size_in_bytes

    one, many = temporary(64), temporary(64 * 64)
    assert one > 64 * 4096 * 4  # those of one block of queries
    assert many - one < 0.1 * 64 * 64 * 4096 * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(KEYS, LABELS, TEST, k=(301,)), r"k is \[301\]; expected numbers from 1 to the 300 keys"),
        (lambda: knn(KEYS, LABELS, None, k=(300,)), "expected numbers from 1 to the 299 keys"),
        (lambda: knn(KEYS, LABELS, TEST, k=()), "expected numbers from 1"),
        (lambda: knn(KEYS, LABELS, TEST, k=(0, 5)), "expected numbers from 1"),
        (lambda: knn(KEYS, LABELS, TEST[:, :5], k=(5,)), "queries have width 5, keys 8; expected the same"),
        (lambda: knn(KEYS, LABELS[:5], TEST, k=(5,)), "labels: 5 for 300 rows"),
        (lambda: knn(KEYS, LABELS, TEST, k=(5,), classes=3), "expected 0..2"),
        (lambda: knn(KEYS, LABELS, TEST * np.inf, k=(5,)), "queries: row 0 holds NaN or infinite"),
        (
            lambda: knn(KEYS, LABELS, TEST, k=(5,), temperature=0),
            "temperature=0 and block=16384; expected both above 0",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
