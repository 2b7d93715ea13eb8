"""Processes that make batches: what they are sent, what they give, and how they end."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest

from jtransfer.data import workers
from jtransfer.data.sources import open_pairs, open_stream
from jtransfer.errors import InputError, MachineError

cloudpickle = pytest.importorskip("cloudpickle")
pytest.importorskip("grain")
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
READER = """
import numpy as np
from jtransfer.data.dataset import Dataset, Lazy

def ramp(rest, context):
    def read(rows):
        return [np.full((6, 6, 3), row, np.uint8) for row in rows]

    return Dataset(context.name, Lazy(20, read, "ramp"), np.arange(20, dtype=np.int32) % 2, ("a", "b"),
                   np.arange(16), np.arange(16, 20))
"""


@pytest.fixture
def files(tmp_path, monkeypatch, png):
    """A working directory with 20 pictures in every format."""
    monkeypatch.chdir(tmp_path)
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels, contents = np.arange(20) % 2, [png(pixels).getvalue() for pixels in PIXELS]
    np.savez("own.npz", images=PIXELS, labels=labels)
    (tmp_path / "my_ramp.py").write_text(READER)
    with open("own.csv", "w", newline="") as file, tarfile.open("own.tar", "w") as tar:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        for i, content in enumerate(contents):
            path = tmp_path / "folder" / f"{labels[i]}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            rows.writerow([path.relative_to(tmp_path), labels[i]])
            (tmp_path / f"{i}.cls").write_text(str(labels[i]))
            (tmp_path / f"{i}.txt").write_text(f"thing {i}")
            for ending, source in (("png", path), ("cls", tmp_path / f"{i}.cls"), ("txt", tmp_path / f"{i}.txt")):
                tar.add(source, f"{i:04}.{ending}")
    table = pyarrow.table({"image": [{"bytes": one, "path": None} for one in contents], "label": labels})
    parquet.write_table(table, "own.parquet")
    saved = tmp_path / "saved"
    saved.mkdir()
    file = saved / "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(file), "wb") as opened, pyarrow.ipc.new_stream(opened, table.schema) as stream:
        stream.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": file.name}]}))
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    (saved / "dataset_info.json").write_text(json.dumps({"features": features}))
    yield tmp_path
    sys.modules.pop("my_ramp", None)


def given(batch, part="inputs"):
    """What is in a batch, as arrays."""
    return [np.asarray(one) for one in batch[part][np.arange(len(batch[part]))]]


NAMES = (
    "npz:own.npz",
    "folder:folder",
    "table:own.csv",
    "table:own.parquet",
    "hf:saved",
    "tar:own.tar",
    "my_ramp.ramp:",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_what_makes_a_batch_makes_it_again_and_holds_none_of_what_lies_in_files(name, files, png):
    stream = open_stream(name, 6, seed=3, augment=("random_crop(6, 2)", "flip"))
    (whole, _), *_ = [next(stream.batches(5))]
    sent = cloudpickle.dumps(stream.at)
    parts = [pixels.tobytes() for pixels in PIXELS] + [png(pixels).getvalue() for pixels in PIXELS]
    assert sum(part in sent for part in parts) <= 1  # of the first row, by which columns are told
    copied = cloudpickle.loads(sent)(5)
    assert all((one == other).all() for one, other in zip(given(whole), given(copied), strict=True))
    assert (whole["labels"] == copied["labels"]).all()


def test_copies_draw_the_same_captions_and_crops(files, captioned):
    for name in ("tar:own.tar", "tfds:things?caption=name+words"):
        stream = open_pairs(name, 4, seed=1, data_dir=captioned, crop=(0.5, 0.9))
        whole, copied = next(stream.batches(3))[0], cloudpickle.loads(cloudpickle.dumps(stream.at))(3)
        assert whole["texts"] == copied["texts"]
        pairs = zip(given(whole, "images"), given(copied, "images"), strict=True)
        assert all((one == other).all() for one, other in pairs)


def squares(**raises):
    """From a step to its square; step 1 logs, and of `at3=error` step 3 raises."""

    def host(step):
        import logging

        if step == 1:
            logging.getLogger("jtransfer").warning("one is odd")
        if f"at{step}" in raises:
            raise raises[f"at{step}"]
        return {"square": np.full((2, 3), step * step), "own": {"step": np.arange(step)}}

    return host


def test_items_of_two_processes_come_in_order_and_their_warnings_are_logged_once(caplog):
    items = workers.made(squares(), range(1, 8), 2)
    found = list(items)
    assert [one["square"][1, 2] for one in found] == [1, 4, 9, 16, 25, 36, 49]
    assert [len(one["own"]["step"]) for one in found] == [1, 2, 3, 4, 5, 6, 7]
    assert caplog.messages == ["one is odd"]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (InputError("row 3 is damaged"), InputError, "row 3 is damaged"),
        pytest.param(
            SystemExit(0),
            RuntimeError,
            r"(?s)input worker 1 of 1 failed at step 4: .*SystemExit: 0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_process_raises_is_raised_here_and_the_process_ends(error, kind, said):
    with pytest.raises(kind) as caught:
        list(workers.made(squares(at3=error), range(100), 1))
    assert re.fullmatch(said, str(caught.value)) and not multiprocessing.active_children()


def test_a_process_that_is_killed_is_named_and_the_others_end():
    items = workers.made(squares(), range(10**6), 2)
    next(items)
    victim = next(one for one in multiprocessing.active_children())
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(MachineError, match=r"input worker [12] of 2 died before .* step \d+: it was ended by SIGKILL"):
        for _ in items:
            pass
    assert not multiprocessing.active_children()


ORPHANS = """
import sys, multiprocessing, numpy as np
from jtransfer.data import workers
items = workers.made(lambda step: np.arange(step), range(10**6), 2)
next(items), next(items)
print(*(one.pid for one in multiprocessing.active_children()), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_of_a_training_that_is_killed_end_too():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    training = subprocess.Popen([sys.executable, "-c", ORPHANS], **pipes)
    pids = list(map(int, training.stdout.readline().split()))
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGINT)  # as Ctrl-C, which is for the training
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    training.kill()
    training.wait()
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_data_without_batches_by_number_and_a_machine_without_grain_are_refused(monkeypatch):
    digits = open_stream("digits", 4, seed=0)
    with pytest.raises(InputError, match="config.workers is 2, and digits has no batches by the number of the step"):
        workers.check(2, replace(digits, at=None))
    workers.check(2, digits)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(InputError, match=r"needs Grain \(.*\); install it: pip install 'jtransfer\[grain\]'"):
        workers.check(2, digits)
