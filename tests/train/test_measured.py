"""Means over held-out examples at their edges: a loss whose perplexity no float can be."""

import math

import numpy as np

from jtransfer.train import measured


def test_the_perplexity_of_a_run_that_diverges_is_infinite_and_no_error():
    assert measured.perplexity(1000.0) == math.inf and math.isnan(measured.perplexity(math.nan))
    np.testing.assert_allclose(measured.perplexity(math.log(7)), 7)
