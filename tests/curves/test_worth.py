"""How many labels zero-shot is worth: log-linear interpolation, and an interval from resampled seeds."""

import math

import numpy as np
import pytest

from jtransfer.curves.worth import crossing, worth


def results(method, **by_seed):
    shots = (1, 2, 4, 8)
    return [
        {"method": method, "shots": k, "seed": int(seed.strip("s")), "test_accuracy": a}
        for seed, curve in by_seed.items()
        for k, a in zip(shots, curve, strict=True)
    ]


ZERO = [{"method": "zero_shot", "shots": 0, "seed": 0, "test_accuracy": 0.6}]


def test_between_two_points_the_crossing_is_linear_in_the_logarithm_of_the_shots():
    assert crossing([1, 4], [0.5, 0.7], 0.6) == pytest.approx(2.0)
    assert crossing([1, 2, 16], [0.1, 0.4, 0.7], 0.6) == pytest.approx(2 * 8 ** (2 / 3))
    assert crossing([1, 2, 4], [0.1, 0.6, 0.5], 0.6) == pytest.approx(2.0), "the first time that it is reached"


def test_beyond_the_ends_of_a_curve_it_is_a_bound():
    assert crossing([1, 4], [0.6, 0.7], 0.6) == 0
    assert math.isinf(crossing([1, 4], [0.1, 0.5], 0.6))
    found = worth([*ZERO, *results("probe", s0=(0.7, 0.8, 0.9, 0.9)), *results("scratch", s0=(0.1, 0.2, 0.3, 0.4))])
    assert str(found["probe"]) == "less than 1" and str(found["scratch"]) == "more than 8"


def test_the_interval_comes_from_the_seeds_and_is_none_for_one():
    one = worth([*ZERO, *results("probe", s0=(0.4, 0.5, 0.7, 0.8))])["probe"]
    assert one.labels == pytest.approx(2 * 2**0.5) and math.isnan(one.low)
    same = worth([*ZERO, *results("probe", s0=(0.4, 0.5, 0.7, 0.8), s1=(0.4, 0.5, 0.7, 0.8))])["probe"]
    assert same.low == same.high == pytest.approx(one.labels)
    apart = worth([*ZERO, *results("probe", s0=(0.5, 0.6, 0.7, 0.8), s1=(0.3, 0.4, 0.6, 0.8))])["probe"]
    assert 2 < apart.labels < 4
    assert apart.low == 0 and apart.high > 6, "of two seeds next to nothing is known"


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth, slope, held = 2**1.5, 0.1, 0
    for trial in range(200):
        levels = np.random.default_rng(trial).normal(0, 0.02, 5)
        curves = {f"s{i}": [0.45 + slope * k + level for k in range(4)] for i, level in enumerate(levels)}
        found = worth([*ZERO, *results("probe", **curves)])["probe"]
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 200 <= 0.98, "resampling alone holds it in 86 of 100"


def test_nothing_is_said_without_a_reference_and_nothing_of_a_single_number_of_shots():
    assert worth(results("probe", s0=(0.4, 0.5, 0.7, 0.8))) == {}
    assert worth([*ZERO, {"method": "probe", "shots": 5, "seed": 0, "test_accuracy": 0.7}]) == {}


def test_seeds_that_diverged_count_for_no_method():
    def rows(method, shots, *accuracies):
        return [{"method": method, "shots": shots, "seed": i, "test_accuracy": x} for i, x in enumerate(accuracies)]

    curve = [*rows("zero_shot", 0, 0.6), *rows("probe", 1, 0.5, 0.5), *rows("probe", 4, 0.7, 0.7)]
    lost = [*curve, *rows("probe", 1, 0, 0, None)[2:], *rows("lora", 1, None), *rows("lora", 4, None)]
    assert worth(lost) == worth(curve) and worth(curve)["probe"].labels == pytest.approx(2)
