"""CKA, plain and debiased, against its definition on Gram matrices in float64."""

import numpy as np
import pytest

from jtransfer.errors import InputError
from jtransfer.evaluate.similarity import cka, cka_matrix


def representations(n, *widths, seed=0):
    """Features that share five directions, and have noise of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 5)) * [4, 3, 2, 1, 1]
    return [(shared @ rng.normal(size=(5, d)) + 3 * rng.normal(size=(n, d)) + 1).astype(np.float32) for d in widths]


def hsic(k, l):  # noqa: E741
    """Kornblith et al.: tr(KHLH) / (n - 1)²."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ l @ h) / (n - 1) ** 2


def unbiased_hsic(k, l):  # noqa: E741
    """Song et al. 2012, equation 5, on matrices without their diagonals."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def by_definition(x, y, debiased):
    k, l = (z.astype(np.float64) @ z.T.astype(np.float64) for z in (x, y))  # noqa: E741
    f = unbiased_hsic if debiased else hsic
    return f(k, l) / np.sqrt(f(k, k) * f(l, l))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("shape", [(60, 10, 20), (12, 64, 48), (30, 40, 40)], ids=["n > d", "n < d", "n about d"])
def test_cka_is_its_definition(shape, debiased):
    x, y = representations(*shape)
    np.testing.assert_allclose(cka(x, y, debiased), by_definition(x, y, debiased), rtol=1e-4)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("n", [60, 12])
def test_a_rotated_scaled_and_shifted_copy_is_the_same_representation(n, debiased):
    (x,) = representations(n, 30)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(30, 30)))[0].astype(np.float32)
    np.testing.assert_allclose(cka(x, 1e6 * (x @ rotation + 2), debiased), 1, rtol=1e-4)


def test_of_independent_noise_with_few_examples_only_the_debiased_form_finds_nothing():
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 20, 100)).astype(np.float32) for _ in range(20)]
    assert np.mean([cka(x, y, debiased=False) for x, y in pairs]) > 0.8
    assert abs(np.mean([cka(x, y) for x, y in pairs])) < 0.03


def test_a_map_holds_each_layer_with_each_whatever_their_widths():
    xs, ys = representations(40, 8, 64, 8), representations(40, 8, seed=1)
    found = cka_matrix(xs, ys)
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found, [[by_definition(x, y, True) for y in ys] for x in xs], rtol=1e-4)


def test_a_map_of_a_model_with_itself_is_symmetric_with_ones_on_the_diagonal():
    xs = representations(40, 8, 64, 8)
    found = cka_matrix(xs)
    np.testing.assert_allclose(found, [[by_definition(x, y, True) for y in xs] for x in xs], rtol=1e-4)
    assert (found == found.T).all()
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-6)


def test_one_outlier_and_nothing_else_has_no_debiased_similarity():
    (x,) = representations(40, 8)
    outlier = np.zeros((40, 3), np.float32)
    outlier[7] = 1
    assert np.isnan(cka(outlier, x))


@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        ([(9, 3), (9, 4)], [(8, 3)], "features have 9, 9, 8 rows; expected the same examples in each"),
        ([(3, 5)], None, "features have 3 rows; CKA needs at least 4"),
        ([(5,)], None, r"features x\[0\] have shape \[5\]; expected \[n, d\]"),
        ([], None, "there are no features to compare"),
    ],
)
def test_representations_that_cannot_be_compared_are_refused(xs, ys, message):
    rng = np.random.default_rng(0)
    xs, ys = ([rng.normal(size=s) for s in shapes] if shapes is not None else None for shapes in (xs, ys))
    with pytest.raises(InputError, match=message):
        cka_matrix(xs, ys)
