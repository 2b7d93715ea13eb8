"""LEEP, NCE, H-score and LogME, each against a short float64 reference written from its paper."""

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from jtransfer.errors import InputError
from jtransfer.evaluate.transferability import h_score, leep, logme, nce


def problem(n=120, d=8, classes=3, rank=None, seed=0):
    """Features that tell something of their classes, in directions of very different scale."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) + rng.normal(size=(classes, d))[y]
    x = x * np.logspace(0, -1, d) + 0.3
    if rank:
        x = x[:, :rank] @ rng.normal(size=(rank, d))
    return x.astype(np.float32), y


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def leep_by_the_paper(theta, y):
    total = 0.0
    joint = {(k, z): theta[y == k, z].sum() / len(y) for k in set(y) for z in range(theta.shape[1])}
    mass = theta.mean(axis=0)
    for row, k in zip(theta, y, strict=True):
        total += np.log(sum(joint[k, z] / mass[z] * row[z] for z in range(len(row)) if mass[z] > 0))
    return total / len(y)


def h_by_the_paper(x, y, cov, factor=1.0):
    means = np.stack([x[y == k].mean(axis=0) for k in y])
    return factor * np.trace(np.linalg.pinv(cov, rcond=1e-10) @ np.cov(means, rowvar=False, ddof=0))


def logme_by_the_paper(x, y):
    """The largest log density of labels under N(0, (I + FF'/t) / β): the best β in closed form, t on a fine grid."""
    x, n = x.astype(np.float64) / np.abs(x).max(), len(y)
    cov = np.eye(n) + x @ x.T / np.exp(np.linspace(-8, 8, 1601))[:, None, None]
    determinants = np.linalg.slogdet(cov)[1]
    precisions = np.linalg.inv(cov)
    targets = (y == np.unique(y)[:, None]).astype(float)
    beta = n / np.einsum("ci,tij,cj->ct", targets, precisions, targets, optimize=True)
    evidence = (n * np.log(beta / (2 * np.pi)) - n - determinants) / 2
    assert ((evidence.argmax(axis=1) > 0) & (evidence.argmax(axis=1) < 1600)).all()
    return evidence.max(axis=1).mean() / n


def test_leep_is_the_paper_s_mean_log_of_the_expected_empirical_prediction():
    x, y = problem()
    theta = softmax(x.astype(np.float64) * 3)
    np.testing.assert_allclose(leep(theta, y), leep_by_the_paper(theta, y), rtol=1e-5)


def test_a_source_class_without_mass_does_not_disturb_leep():
    x, y = problem()
    theta = softmax(x.astype(np.float64))
    wider = np.insert(theta, 2, 0.0, axis=1)
    np.testing.assert_allclose(leep(wider, y), leep_by_the_paper(theta, y), rtol=1e-5)


def test_leep_of_hard_predictions_is_nce():
    x, y = problem()
    z = x.argmax(axis=1)
    np.testing.assert_allclose(leep(np.eye(8, dtype=np.float32)[z], y), nce(z, y), rtol=1e-5)


def test_nce_is_minus_the_conditional_entropy_counted_by_hand():
    # Of three rows with z = 0 two are of class 1; the row with z = 7 leaves nothing to doubt.
    expected = (np.log(1 / 3) + 2 * np.log(2 / 3) + 0.0) / 4
    np.testing.assert_allclose(nce([0, 0, 0, 7], [0, 1, 1, 0]), expected)


def test_of_a_head_that_always_says_the_same_nce_is_minus_the_entropy_of_the_labels():
    np.testing.assert_allclose(nce([3, 3, 3, 3], [0, 1, 1, 0]), -np.log(2))


@pytest.mark.parametrize("shape", [{}, {"rank": 4}], ids=["full rank", "rank-deficient"])
def test_h_score_is_the_trace_of_the_paper(shape):
    x, y = problem(**shape)
    wide = x.astype(np.float64)
    expected = h_by_the_paper(wide, y, np.cov(wide, rowvar=False, ddof=0))
    np.testing.assert_allclose(h_score(x, y), expected, rtol=1e-4)


def test_h_score_knows_no_scale_and_no_rotation():
    x, y = problem()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    expected = h_score(x, y)
    np.testing.assert_allclose([h_score(x @ rotation, y), h_score(x * np.float32(1e12), y)], expected, rtol=1e-4)


def test_with_fewer_rows_than_features_the_plain_h_score_is_at_its_bound_whatever_the_labels():
    x, y = problem(n=20, d=50, classes=4)
    np.testing.assert_allclose(h_score(x, np.random.default_rng(0).permutation(y)), 3, rtol=1e-4)


@pytest.mark.parametrize("n", [20, 120])
def test_the_shrunk_h_score_is_ledoit_and_wolf_s_with_the_numerator_shrunk_too(n):
    x, y = problem(n=n, d=50, classes=4)
    peer = LedoitWolf().fit(x.astype(np.float64))
    assert 0 < peer.shrinkage_ < 1
    expected = h_by_the_paper(x.astype(np.float64), y, peer.covariance_, 1 - peer.shrinkage_)
    np.testing.assert_allclose(h_score(x, y, shrinkage="ledoit_wolf"), expected, rtol=1e-4)


def test_a_single_feature_is_not_shrunk():
    x, y = problem(d=1)
    assert LedoitWolf().fit(x).shrinkage_ == 0
    np.testing.assert_allclose(h_score(x, y, shrinkage="ledoit_wolf"), h_score(x, y), rtol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [{"n": 40}, {"n": 40, "rank": 4}, {"n": 30, "d": 40}],
    ids=["full rank", "rank-deficient", "more features than rows"],
)
def test_logme_is_the_largest_evidence_that_any_prior_and_noise_give(shape):
    x, y = problem(**shape)
    np.testing.assert_allclose(logme(x, y), logme_by_the_paper(x, y), rtol=1e-4)


def test_logme_is_finite_where_features_explain_everything_or_nothing():
    y = np.arange(60) % 3
    explained = np.eye(3, dtype=np.float32)[y]
    nothing = np.tile(np.eye(2, dtype=np.float32), (30, 1))[:, :1] - 0.5  # the same in every class
    assert logme(explained, y) > 5
    alone = np.mean([multivariate_normal.logpdf(t, cov=1 / 3) for t in explained[:, :1]])  # α without bound, β = 3
    np.testing.assert_allclose(logme(nothing, y), alone, rtol=1e-3)


def test_classes_without_rows_do_not_count():
    x, y = problem()
    gaps = np.array([0, 5, 9])[y]
    theta = softmax(x)
    for score in (h_score, logme):
        assert score(x, gaps) == score(x, y)
    assert leep(theta, gaps) == leep(theta, y)


def test_better_features_score_higher():
    x, y = problem()
    worse = x + 2 * np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    for score in (h_score, lambda *a: h_score(*a, "ledoit_wolf"), logme, lambda x, y: leep(softmax(x), y)):
        assert score(x, y) > score(worse, y)


def test_float64_features_are_scored_in_float64():
    x, y = problem()
    wide = x.astype(np.float64)
    with jax.enable_x64(True):
        found = h_score(wide, y)
    np.testing.assert_allclose(found, h_by_the_paper(wide, y, np.cov(wide, rowvar=False, ddof=0)), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: leep(x, y), "source probabilities: row 0 sums to .*; expected probabilities, as softmax gives"),
        (lambda x, y: leep(np.full((120, 4), 0.25, np.float32), y), "source probabilities are constant"),
        (lambda x, y: h_score(x, y, "ridge"), "shrinkage 'ridge' is unknown; choose one of None, ledoit_wolf"),
        (lambda x, y: logme(x, np.zeros(120, int)), "labels hold only class 0"),
        (lambda x, y: nce(y[:5], y), r"labelings have shapes \[5\] and \[120\]"),
        (lambda x, y: h_score(x * np.nan, y), "features: row 0 holds NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem())
