"""Batches by the number of the step, and what is made ready ahead of them."""

import threading

import numpy as np
import pytest

from jtransfer.data.sources import open_stream
from jtransfer.data.streams import ahead
from jtransfer.errors import InputError


def test_what_is_made_ahead_comes_in_order_and_no_further_than_asked_for():
    made = []
    items = ahead((made.append(i) or i for i in range(100)), count=2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()  # which waits for the item in hand
    assert len(made) <= 5 + 2
    assert list(ahead(iter("abc"))) == ["a", "b", "c"] and list(ahead(iter(()))) == []


def test_what_fails_in_the_thread_is_raised_in_its_place_and_the_thread_ends():
    before = threading.active_count()
    items = ahead(1 // (3 - i) for i in range(5))
    assert [next(items) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["digits", "tfds:reviews"])
def test_a_stream_that_starts_at_a_step_gives_what_it_gave_there_and_processes_share_each_batch(name, reviews):
    whole = open_stream(name, batch=6, seed=3, data_dir=reviews)
    first = whole.batches(0)
    batches = [next(first) for _ in range(8)]
    assert [cursor for _, cursor in batches] == [1, 2, 3, 4, 5, 6, 7, 8]
    batches = [batch for batch, _ in batches]
    later, _ = next(whole.batches(5))
    assert later["labels"].tolist() == batches[5]["labels"].tolist()
    assert list(map(str, later["inputs"])) == list(map(str, batches[5]["inputs"]))
    shares = [next(open_stream(name, 6, 3, part, reviews).batches(5))[0] for part in (np.arange(3), np.arange(3, 6))]
    assert [*shares[0]["labels"], *shares[1]["labels"]] == later["labels"].tolist()
    assert [str(x) for share in shares for x in share["inputs"]] == list(map(str, later["inputs"]))


def test_held_out_examples_are_the_test_rows_and_are_read_by_slices(reviews):
    stream = open_stream("tfds:reviews", batch=4, seed=0, data_dir=reviews)
    name, inputs, labels = stream.held_out
    assert (name, stream.kind, len(inputs)) == ("test", "text", 10)
    assert inputs[3:5] == stream.inputs[[23, 24]]
    assert np.array_equal(labels, np.arange(10) % 2)


def test_data_with_several_labels_a_row_are_a_stream_unless_one_class_is_asked_for(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.zeros((20, 4, 4)), labels=np.eye(4, dtype=int)[np.arange(20) % 4])
    stream = open_stream(f"npz:{tmp_path / 'own.npz'}", batch=4, seed=0)
    assert (stream.targets, stream.outputs) == ("labels", 4)
    assert next(stream.batches(0))[0]["labels"].shape == (4, 4)
    with pytest.raises(InputError, match="own.npz has several labels a row; expected one class a row"):
        open_stream(f"npz:{tmp_path / 'own.npz'}", batch=4, seed=0, reads=("classes",))
