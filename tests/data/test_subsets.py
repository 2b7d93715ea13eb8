"""Few-shot draws and batch orders."""

import re
from itertools import pairwise

import numpy as np
import pytest

from jtransfer.data.subsets import batches, few_shot
from jtransfer.errors import InputError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [20, 24, 30]))
POOL = np.arange(60)
SHOTS = (1, 2, 3, 4, 5, 8)


@pytest.mark.parametrize("shots", SHOTS)
def test_every_class_gives_as_many_rows(shots):
    train, validation = few_shot(LABELS, POOL, shots, seed=0)
    assert np.bincount(LABELS[train]).tolist() == [shots] * 3
    assert np.bincount(LABELS[validation]).tolist() == [min(shots, 4)] * 3


def test_rows_come_from_the_pool_and_never_twice():
    pool = np.arange(10, 70)
    rows = np.concatenate(few_shot(LABELS, pool, 8, seed=3))
    assert set(rows) <= set(pool)
    assert len(set(rows)) == len(rows)


def test_draws_of_one_seed_are_nested_across_shots():
    draws = [few_shot(LABELS, POOL, shots, seed=5) for shots in SHOTS]
    for (train, validation), (more_train, more_validation) in pairwise(draws):
        assert set(train) < set(more_train)
        assert set(validation) <= set(more_validation)


def test_validation_rows_of_any_shots_are_never_training_rows_of_any_other():
    draws = [few_shot(LABELS, POOL, shots, seed=5) for shots in SHOTS]
    train = {row for train, _ in draws for row in train}
    validation = {row for _, validation in draws for row in validation}
    assert not train & validation


def test_the_seed_decides_the_draw():
    assert np.array_equal(few_shot(LABELS, POOL, 4, seed=1)[0], few_shot(LABELS, POOL, 4, seed=1)[0])
    assert set(few_shot(LABELS, POOL, 4, seed=1)[0]) != set(few_shot(LABELS, POOL, 4, seed=2)[0])


def test_a_class_is_drawn_alike_whatever_the_other_classes_are():
    alone = few_shot(np.where(LABELS == 2, 1, LABELS), POOL, 4, seed=1)[0]
    assert np.array_equal(alone[:4], few_shot(LABELS, POOL, 4, seed=1)[0][:4])


def test_the_largest_shots_named_in_the_error_are_possible_and_one_more_is_not():
    for count, most in ((2, 1), (3, 1), (7, 3), (8, 4), (9, 5), (20, 16)):
        labels = np.repeat([0, 1], [count, 40])
        with pytest.raises(InputError, match=f"the most shots possible are {most}$"):
            few_shot(labels, np.arange(len(labels)), most + 1, seed=0)
        train, validation = few_shot(labels, np.arange(len(labels)), most, seed=0)
        assert len(np.intersect1d(train, validation)) == 0


def refusal(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_too_many_shots_are_refused_with_the_class_and_its_count():
    labels = np.array([0] * 9 + [1] * 5)
    message = refusal(few_shot, labels, np.arange(14), 5, 0)
    assert message == (
        "shots is 5, but class 1 has 5 rows in the pool and 5 + 4 are needed (training + validation); "
        "the most shots possible are 2"
    )


def test_a_class_outside_the_pool_is_refused():
    assert "class 1 has 0 rows in the pool" in refusal(few_shot, np.array([0] * 9 + [1] * 5), np.arange(9), 1, 0)


def test_shots_and_seeds_out_of_range_are_refused():
    assert refusal(few_shot, LABELS, POOL, 0, 0) == "shots is 0; expected at least 1"
    assert refusal(few_shot, LABELS, POOL, 1, -1) == "seed is -1; expected 0 or more"


ROWS = np.array([3, 5, 8, 13, 21])


@pytest.mark.parametrize("batch", [1, 3, 5, 7, 12])
def test_every_row_comes_once_an_epoch_across_the_borders_of_batches(batch):
    order = batches(ROWS, batch, steps=20, seed=0)
    assert order.shape == (20, batch)
    whole = order.reshape(-1)[: 20 * batch // 5 * 5].reshape(-1, 5)
    assert (np.sort(whole, axis=1) == ROWS).all()


def test_epochs_are_shuffled_differently():
    epochs = batches(ROWS, 5, steps=30, seed=0)
    assert len(np.unique(epochs, axis=0)) > 20


def test_more_steps_continue_the_same_order():
    assert np.array_equal(batches(ROWS, 3, 50, seed=1)[:7], batches(ROWS, 3, 7, seed=1))


def test_the_seed_decides_the_order():
    assert np.array_equal(batches(ROWS, 3, 9, seed=[1, 2]), batches(ROWS, 3, 9, seed=[1, 2]))
    assert not np.array_equal(batches(ROWS, 3, 9, seed=[1, 2]), batches(ROWS, 3, 9, seed=[1, 3]))


def test_no_steps_are_no_batches():
    assert batches(ROWS, 3, 0, seed=0).shape == (0, 3)


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "message"),
    [
        (ROWS[:0], 3, 1, "rows are empty; expected at least one row to make batches of"),
        (ROWS, 0, 1, "batch is 0; expected at least 1"),
        (ROWS, 3, -1, "steps is -1; expected 0 or more"),
    ],
)
def test_batches_of_nothing_are_refused(rows, batch, steps, message):
    with pytest.raises(InputError, match=re.escape(message)):
        batches(rows, batch, steps, seed=0)


SEVERAL, NUMBERS, NONE = np.eye(3, dtype=np.int32)[LABELS], LABELS.astype(np.float32), np.zeros((len(LABELS), 0))


@pytest.mark.parametrize("labels", [SEVERAL, NUMBERS, NONE.astype(np.int8)], ids=["several", "numbers", "none"])
def test_rows_without_one_class_are_drawn_altogether_nested_and_validated_on_a_quarter_more(labels):
    shots = (1, 3, 4, 8, 40, 48)
    draws = [few_shot(labels, POOL, k, seed=5) for k in shots]
    assert [(len(train), len(validation)) for train, validation in draws] == [(k, max(1, k // 4)) for k in shots]
    for (train, validation), (more_train, more_validation) in pairwise(draws):
        assert set(train) < set(more_train) and set(validation) <= set(more_validation)
    train, validation = (np.concatenate(rows) for rows in zip(*draws, strict=True))
    assert not set(train) & set(validation) and {*train, *validation} <= set(POOL)
    assert set(few_shot(labels, POOL, 8, seed=6)[0]) != set(draws[3][0])


def test_the_most_rows_altogether_that_the_error_names_are_possible_and_one_more_is_not():
    for count in (2, 3, 4, 5, 6, 8, 9, 10, 60):
        most = max(k for k in range(1, count) if k + max(1, k // 4) <= count)
        with pytest.raises(InputError, match=f"there are {count} rows in the pool and .*; the most shots .* {most}$"):
            few_shot(NUMBERS, np.arange(count), most + 1, seed=0)
        assert len(few_shot(NUMBERS, np.arange(count), most, seed=0)[0]) == most
