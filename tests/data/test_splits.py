"""Which rows are for testing and for choosing: each class in its proportion, the same every time."""

import numpy as np
import pytest

from jtransfer.data.dataset import Dataset
from jtransfer.data.splits import by_class, hold_out_a_fifth, hold_out_the_last, stratified
from jtransfer.data.subsets import few_shot
from jtransfer.errors import InputError
from jtransfer.evaluate.task import split

LABELS = np.repeat([0, 1, 2], [100, 60, 40])
ROWS = np.random.default_rng(0).permutation(200)[:180]


def test_each_class_has_its_proportion_within_one_row():
    share = np.bincount(LABELS[ROWS]) / len(ROWS)
    for count in (7, 50, 179):
        chosen = stratified(LABELS, ROWS, count)
        assert len(np.unique(chosen)) == count and np.isin(chosen, ROWS).all()
        assert (np.abs(np.bincount(LABELS[chosen], minlength=3) - share * count) <= 1).all()


def test_fewer_rows_are_a_subset_of_more_and_the_order_of_the_others_does_not_matter():
    few, many = stratified(LABELS, np.sort(ROWS), 20), stratified(LABELS, np.sort(ROWS), 90)
    assert np.isin(few, many).all()
    assert few.tolist() == sorted(few)


def test_all_rows_are_all_rows():
    assert stratified(LABELS, ROWS, 180).tolist() == sorted(ROWS)


def test_classes_come_with_their_rows_in_order():
    found = list(by_class(np.array([7, 5, 7, 5, 9]), np.array([4, 2, 1, 0])))
    assert [(label, rows.tolist()) for label, rows in found] == [(5, [1]), (7, [2, 0]), (9, [4])]
    assert not list(by_class(LABELS, ROWS[:0]))


@pytest.mark.parametrize(("count", "last"), [(3, 2), (10, 2), (100, 20), (250, 50), (8000, 80), (600_000, 5000)])
def test_without_labels_the_last_hundredth_is_held_out_of_few_rows_more_and_of_many_less(count, last):
    pool, test = hold_out_the_last(count, "own.txt")
    assert (len(test), [*pool, *test]) == (last, list(range(count)))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_rows_than_one_to_train_on_and_two_to_hold_out_are_refused(count):
    with pytest.raises(InputError, match=f"^own.txt: {count} texts; expected three at least, of which two are held"):
        hold_out_the_last(count, "own.txt", "texts")


def dataset(labels, pool, test):
    return Dataset("mine", np.zeros((len(labels), 1, 1, 1)), labels, tuple("abcdefgh"[: labels.max() + 1]), pool, test)


@pytest.mark.parametrize("seed", range(3))
def test_draws_are_those_of_a_loop_over_classes_that_looks_at_every_row(seed):
    """The rows of versions before, which took time in the number of classes times that of rows."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(5, dtype=np.int32), rng.integers(12, 30, 5)))
    every = np.arange(len(labels))
    own = {label: np.flatnonzero(labels == label) for label in range(5)}
    fifth = [np.random.default_rng([0, k]).permutation(rows)[: max(1, len(rows) // 5)] for k, rows in own.items()]
    pool, test = hold_out_a_fifth(labels, "", "")
    assert test.tolist() == sorted(np.concatenate(fifth)) and pool.tolist() == sorted({*every} - {*test})

    shuffled = rng.permutation(pool)
    drawn = [np.random.default_rng([seed, k]).permutation(shuffled[labels[shuffled] == k]) for k in range(5)]
    train, validation = few_shot(labels, shuffled, 4, seed)
    assert train.tolist() == np.concatenate([rows[:4] for rows in drawn]).tolist()
    assert validation.tolist() == np.concatenate([rows[-4:] for rows in drawn]).tolist()

    quantiles = np.empty(len(shuffled))
    for k in range(5):
        places = np.random.default_rng([0, k]).permutation(np.flatnonzero(labels[shuffled] == k))
        quantiles[places] = (np.arange(len(places)) + 0.5) / len(places)
    assert stratified(labels, shuffled, 20).tolist() == sorted(shuffled[np.argsort(quantiles, kind="stable")[:20]])

    kept = [np.random.default_rng([0, k]).permutation(pool[labels[pool] == k]) for k in range(5)]
    kept = np.concatenate([rows[: max(1, round(0.1 * len(rows)))] for rows in kept])
    fit_on, choose_on, how = split(dataset(labels, pool, test), 0.1)
    assert choose_on.tolist() == sorted(kept) and fit_on.tolist() == sorted({*pool} - {*kept})
    assert how == "10% of each class of the training rows, drawn with seed 0"


def test_a_class_with_a_single_row_is_fitted_on_and_counted():
    labels = np.array([0] * 5 + [1] * 5 + [2])
    fit_on, choose_on, how = split(dataset(labels, np.arange(11), np.arange(2)), 0.2)
    assert 10 in fit_on and np.bincount(labels[choose_on]).tolist() == [1, 1]
    assert how.endswith("drawn with seed 0 (nothing of the 1 with a single row)")
    with pytest.raises(InputError, match="every class has a single row; expected a class with two"):
        split(dataset(labels, np.array([0, 5, 10]), np.arange(2)), 0.2)
    with pytest.raises(InputError, match="class 2 has 0 examples, 1 are needed"):
        split(dataset(labels, np.arange(10), np.arange(2)), 0.2)


def several(labels):
    return Dataset("mine", np.zeros((len(labels), 1)), labels, (*"abc",), np.arange(len(labels)), np.arange(2))


def test_several_labels_are_split_as_they_were():
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    rows = np.random.default_rng(0).permutation(40)
    fit_on, choose_on, how = split(several(labels), 0.25)
    assert (fit_on.tolist(), choose_on.tolist()) == (sorted(rows[10:]), sorted(rows[:10]))
    assert how == "25% of the training rows, drawn with seed 0"


@pytest.mark.parametrize("value", [0, 1])
def test_the_only_rows_with_a_label_or_without_it_are_fitted_on_whatever_is_drawn(value):
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    labels[:, 1] = 1 - value
    drawn = np.random.default_rng(0).permutation(40)[:10]
    labels[drawn[[2, 5]], 1] = value
    fit_on, choose_on, how = split(several(labels), 0.25)
    assert drawn[5] in fit_on and choose_on.tolist() == sorted({*drawn} - {drawn[5]})
    assert how.endswith("(1 of them fitted on instead, as no other row has their label)")


def test_a_label_that_no_row_has_does_not_refuse_the_others():
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    labels[:, 2] = 0
    assert len(split(several(labels), 0.25)[1]) == 10
    with pytest.raises(InputError, match="no label is 0 in some rows and 1 in others"):
        split(several(labels * 0), 0.25)
