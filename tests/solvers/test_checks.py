"""What evaluations ask of features: those that are fitted must tell rows apart, those that are asked about need not."""

import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.errors import InputError
from jtransfer.evaluate.attributes import bridge
from jtransfer.evaluate.knn import knn
from jtransfer.solvers import checks
from jtransfer.solvers.heads import values

ROWS, LABELS = np.array([[1, 0], [0, 1], [1, 1]], np.float32), np.array([0, 1, 0])
SAME = ROWS[[1, 1, 1]]


def test_queries_may_all_be_the_same_row_and_what_is_fitted_may_not():
    assert knn(ROWS, LABELS, SAME, k=(1,)).argmax(-1).tolist() == [[1, 1, 1]]
    assert values(np.eye(2), np.zeros(2), SAME, LABELS) == pytest.approx(1 / 3)
    attributes = np.eye(2)
    assert bridge(ROWS, LABELS, attributes, SAME).argmax(-1).tolist() == [1, 1, 1]
    for call in (lambda: knn(SAME, LABELS, ROWS, k=(1,)), lambda: bridge(SAME, LABELS, attributes, ROWS)):
        with pytest.raises(InputError, match="are constant: all 3 rows are the same"):
            call()


def test_a_row_that_is_not_finite_is_named_also_among_queries():
    with pytest.raises(InputError, match="queries: row 1 holds NaN or infinite values"):
        checks.features(np.where([[False], [True], [False]], np.nan, SAME), "queries", alike=True)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_features_of_few_bits_become_float32(dtype):
    assert checks.floats(ROWS.astype(dtype)).dtype == jnp.float32
