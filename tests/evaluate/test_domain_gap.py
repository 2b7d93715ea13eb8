"""MMD and its permutation test, the Fréchet distance and the domain classifier, against their definitions."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from sklearn.linear_model import LogisticRegression

from jtransfer.errors import InputError
from jtransfer.evaluate.domain_gap import domain_classifier, frechet, mmd


def samples(n=50, m=40, d=6, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 1.2 + shift
    return (x + 5).astype(np.float32), (y + 5).astype(np.float32)


def mmd_by_definition(x, y, sigma):
    """Gretton et al. 2012, equation 3."""
    xx, yy, xy = (np.exp(-(cdist(a, b) ** 2) / (2 * sigma**2)) for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    return (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_mmd_is_the_unbiased_estimate_at_the_median_distance(shift):
    x, y = samples(shift=shift)
    found = mmd(x, y)
    np.testing.assert_allclose(found.bandwidth, np.median(pdist(np.vstack([x, y]))), rtol=1e-4)
    np.testing.assert_allclose(found.squared, mmd_by_definition(x, y, found.bandwidth), rtol=1e-3, atol=1e-6)


def test_the_p_value_is_the_share_of_random_splits_that_reach_the_observed_value():
    x, y = samples(shift=0.15)
    found = mmd(x, y)
    pooled, rng = np.vstack([x, y]), np.random.default_rng(1)
    splits = [pooled[rng.permutation(90)] for _ in range(1000)]
    values = np.array([mmd_by_definition(z[:50], z[50:], found.bandwidth) for z in splits])
    expected = (1 + (values >= found.squared).sum()) / 1001
    assert 0.01 < expected < 0.5
    np.testing.assert_allclose(found.p_value, expected, atol=4 * np.sqrt(2 * expected / 1000))


def test_a_clear_gap_has_the_least_p_value_there_is():
    assert mmd(*samples(shift=2.0)).p_value == 1 / 1001


def test_of_equal_distributions_p_values_are_uniform():
    # 200 of them: 5 % of the mass on each 5 %, give or take three standard deviations.
    rng = np.random.default_rng(0)
    values = [mmd(*rng.normal(size=(2, 12, 2)).astype(np.float32), permutations=99).p_value for _ in range(200)]
    for level in (0.1, 0.5):
        assert abs(np.mean(np.array(values) <= level) - level) < 3 * np.sqrt(level * (1 - level) / 200)


def test_splits_that_tie_count_as_reached():
    # Of the 6 ways to split 4 rows in two, the observed one and its mirror image are the most extreme.
    x, y = np.array([[0.0], [0.1]], np.float32), np.array([[5.0], [5.1]], np.float32)
    np.testing.assert_allclose(mmd(x, y, permutations=3000).p_value, 1 / 3, atol=0.03)


def test_of_large_samples_a_seeded_part_is_used():
    x, y = samples(300, 200, shift=0.3)
    found = mmd(x, y, most=60, seed=3)
    assert found == mmd(x, y, most=60, seed=3) != mmd(x, y, most=60, seed=4)
    np.testing.assert_allclose(found.squared, mmd_by_definition(x, y, found.bandwidth), atol=0.03)


def test_where_most_rows_are_the_same_the_bandwidth_is_not_zero():
    x, y = (np.zeros((20, 2), np.float32) for _ in range(2))
    x[0], y[0] = 1, 2
    assert mmd(x, y).bandwidth > 0


@pytest.mark.parametrize("shape", [{}, {"n": 5, "m": 7, "d": 12}], ids=["n > d", "n < d"])
def test_the_frechet_distance_is_its_formula_with_a_root_of_a_matrix(shape):
    x, y = samples(**shape, shift=0.5)
    a, b = (np.cov(z.astype(np.float64), rowvar=False) for z in (x, y))
    root = sqrtm(sqrtm(a) @ b @ sqrtm(a)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    np.testing.assert_allclose(frechet(x, y), expected, rtol=1e-4)


def test_the_frechet_distance_of_a_sample_from_itself_is_zero_and_of_a_shifted_copy_the_shift_squared():
    x, _ = samples(10, d=40)
    assert frechet(x, x) < 1e-5 * 40
    np.testing.assert_allclose(frechet(x, x + 3), 9 * 40, rtol=1e-4)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.4, 0.6), (0.5, 0.2, 0.4), (4.0, 0.0, 0.02)])
def test_the_domain_classifier_errs_as_often_as_the_distributions_overlap(shift, low, high):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 4)).astype(np.float32), rng.normal(size=(170, 4)).astype(np.float32) + shift
    found = domain_classifier(x, y)
    assert low <= found.error <= high
    assert found.a_distance == 2 * (1 - 2 * found.error)


def test_where_there_is_no_gap_the_error_is_chance_though_penalties_are_chosen():
    # Twenty small samples: had the tested fold a say in the choice among six penalties, 0.45 would be reported.
    samples = (np.random.default_rng(seed).normal(size=(2, 25, 8)).astype(np.float32) for seed in range(20))
    assert 0.475 < np.mean([domain_classifier(x, y).error for x, y in samples]) < 0.525


def test_its_error_is_near_that_of_scikit_learn_s_classifier_on_the_same_distributions():
    rng = np.random.default_rng(0)
    (x, y), (u, v) = (
        (rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(n, 4)).astype(np.float32) + 0.5)
        for n in (150, 5000)
    )
    peer = LogisticRegression().fit(np.vstack([x, y]), np.arange(300) >= 150)
    expected = 1 - peer.score(np.vstack([u, v]), np.arange(10000) >= 5000)
    np.testing.assert_allclose(domain_classifier(x, y).error, expected, atol=3 * np.sqrt(0.25 / 300))


@pytest.mark.parametrize(
    ("gap", "shapes", "options", "message"),
    [
        (mmd, ((9, 3), (9, 4)), {}, "source features have width 3, target features 4; expected the same"),
        (frechet, ((9, 3), (1, 3)), {}, "target features have 1 row; expected at least 2"),
        (mmd, ((9, 3), (9, 3)), {"permutations": 0}, "mmd: permutations=0"),
        (mmd, ((9, 3), (9, 3)), {"bandwidth": -1.0}, "bandwidth=-1.0; expected .* a positive number"),
        (domain_classifier, ((9, 3), (4, 3)), {}, "folds=5 with 9 and 4 rows"),
        (domain_classifier, ((9, 3), (9, 3)), {"folds": 2}, "expected at least 3 folds"),
        (domain_classifier, ((9,), (9, 3)), {}, r"source features have shape \[9\]"),
    ],
)
def test_gaps_that_cannot_be_measured_are_refused(gap, shapes, options, message):
    x, y = (np.random.default_rng(0).normal(size=shape) for shape in shapes)
    with pytest.raises(InputError, match=message):
        gap(x, y, **options)


def test_a_source_may_lie_in_another_directory_than_the_data(reviews, tmp_path):
    from types import SimpleNamespace

    from jtransfer.evaluate.protocols.structure import domain_gap

    task = SimpleNamespace(dataset=SimpleNamespace(kind="text", name="mine"), data_dir=str(tmp_path), also=[])
    with pytest.raises(InputError, match="'reviews' is not prepared"):
        domain_gap(task, source="tfds:reviews")
    assert callable(domain_gap(task, source="tfds:reviews", source_dir=reviews))
    with pytest.raises(InputError, match="source_dir nope://there: expected a path"):
        domain_gap(task, source="tfds:reviews", source_dir="nope://there")
