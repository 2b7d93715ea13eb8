"""Pipelines of Grain as streams: by number or by the state of an iterator, and what is refused."""

import json
import sys

import numpy as np
import pytest

from jtransfer.data.dataset import Context
from jtransfer.data.sources import open_stream
from jtransfer.data.streams import taken
from jtransfer.errors import InputError

grain = pytest.importorskip("grain")
cloudpickle = pytest.importorskip("cloudpickle")

READER = """
import grain
import numpy as np
from jtransfer.data import grains

class Noise(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element | {"inputs": element["inputs"] + rng.integers(0, 9, (4, 4, 3), dtype=np.uint8)}

def element(i):
    return {"inputs": np.full((4, 4, 3), 10 * i, np.uint8), "labels": i % 2}

def ramp(rest, context, form="map"):
    train = grain.MapDataset.range(10).map(element).shuffle(seed=context.seed).random_map(Noise(), seed=3)
    if form == "iter":
        train = train.repeat().to_iter_dataset()
    return grains.stream(context, train, grain.MapDataset.range(10, 14).map(element), ("even", "odd"))

def wrong(rest, context, form):
    forms = {"filtered": lambda i: None, "floats": lambda i: {"inputs": np.ones((4, 4, 3)), "labels": 0},
             "bare": lambda i: i, "named": lambda i: element(i) | {"labels": "even"}}
    whole = grain.MapDataset.range(10)
    return grains.stream(context, whole, whole.map(forms[form]))
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_grains.py").write_text(READER)
    yield
    sys.modules.pop("my_grains", None)


def given(stream, count, cursor=0):
    """Inputs and labels of some batches, and the cursor after each."""
    found, batches = [], taken(stream, len(next(stream.batches(0))[0]["labels"]), cursor)
    for _, (batch, after) in zip(range(count), batches, strict=False):
        rows = np.arange(len(batch["labels"]))
        found.append((np.stack(batch["inputs"][rows]), batch["labels"], json.loads(json.dumps(after))))
    return found


def assert_equal(found, others):
    for (inputs, labels, cursor), (theirs, same, after) in zip(found, others, strict=True):
        assert (inputs == theirs).all() and (labels == same).all() and cursor == after


@pytest.mark.parametrize("form", ["map", "iter"])
def test_batches_are_epochs_in_another_order_and_go_on_from_any_cursor_on_any_number_of_processes(form):
    name = f"my_grains.ramp(form='{form}'):"
    stream = open_stream(name, 5, seed=1)
    whole = given(stream, 6)
    assert_equal(given(open_stream(name, 5, seed=1), 3, whole[2][2]), whole[3:])
    numbers = np.concatenate([inputs[:, 0, 0, 0] // 10 for inputs, _, _ in whole]).reshape(3, 10)
    assert (np.sort(numbers) == np.arange(10)).all() and len({*map(tuple, numbers)}) == 3
    assert np.array_equal(np.concatenate([labels for _, labels, _ in whole]), numbers.reshape(-1) % 2)
    assert stream.targets == "classes" and stream.held_out[2].tolist() == [0, 1, 0, 1]
    assert stream.held_out[1][np.arange(1, 2)][0][0, 0, 0] == 110
    shares = [given(open_stream(name, 5, 1, share), 6) for share in (np.arange(2), np.arange(2, 5))]
    for (inputs, *_), (first, *_), (second, *_) in zip(whole, *shares, strict=True):
        assert (inputs == np.concatenate([first, second])).all()


def test_workers_make_batches_by_number_alone_and_a_copy_of_what_makes_them_augments_alike():
    stream = open_stream("my_grains.ramp:", 5, seed=1, augment=("random_crop(4, 2)", "flip"))
    sys.modules.pop("my_grains")  # as another process has not imported it
    sys.path.insert(0, ".")
    copied = cloudpickle.loads(cloudpickle.dumps(stream.at))(2)
    sys.path.remove(".")
    (inputs, labels, _) = given(stream, 3)[2]
    assert (np.stack(copied["inputs"][np.arange(5)]) == inputs).all() and (copied["labels"] == labels).all()
    assert open_stream("my_grains.ramp(form='iter'):", 5, seed=1).at is None


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("filtered", "element 0 is None; expected a dict with 'inputs' and 'labels', as filter leaves them"),
        ("floats", "expected uint8 pixels or a text"),
        ("bare", "element 0 is 0; expected a dict with 'inputs' and 'labels'"),
        ("named", "labels are 'even'; expected numbers"),
    ],
)
def test_other_elements_are_refused(form, said):
    with pytest.raises(InputError, match=said):
        open_stream(f"my_grains.wrong(form='{form}'):", 5, seed=0)


def test_other_pipelines_and_what_cannot_be_augmented_are_refused():
    from jtransfer.data import grains

    with pytest.raises(InputError, match="pipelines are list and list; expected a MapDataset or IterDataset"):
        grains.stream(Context("mine"), [], [])
    with pytest.raises(InputError, match="let the pipeline augment"):
        open_stream("my_grains.ramp(form='iter'):", 5, seed=0, augment=("flip",))
