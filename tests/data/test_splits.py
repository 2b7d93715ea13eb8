"""A part of the test rows: each class in its proportion, the same every time."""

import numpy as np

from jtransfer.data.splits import stratified

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
