"""Batches by worker processes: equal to the bit to those by a thread, in every kind of task and on going on."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jtransfer import config, imports
from jtransfer.checkpoints.store import Store
from jtransfer.data import workers
from jtransfer.errors import InputError
from jtransfer.train import feeding, loop, programs, runs
from jtransfer.train.pace import learned

cloudpickle = pytest.importorskip("cloudpickle")
pytest.importorskip("grain")

MODEL = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "depth": 1, "heads": 2}
OFTEN = {"batch": 8, "steps": 8, "log_every": 1, "eval_every": 8, "checkpoint_every": 2}
AUGMENT = {"augment": ("random_crop(8, 2)", "flip", "randaugment(2, 9)")}
VISION = {"image": (8, 8), "channels": 3, "patch": 4, "width": 8, "depth": 1, "heads": 2}
TEXT = {"vocabulary": 514, "positions": 32, "width": 8, "depth": 1, "heads": 2, "eos_token": 513}
CLIP = {"architecture": "clip", "vision": VISION, "text": TEXT, "projection": 8}
ROWS = {"data": "digits", "model": MODEL} | OFTEN | AUGMENT

READER = """
from dataclasses import replace

from jtransfer.data.dataset import Lazy
from jtransfer.data.sources import load

def read(inputs, rows):
    return [(255 * inputs[row]).astype("uint8") for row in rows]

def lazy(rest, context):
    data = load("digits")
    return replace(data, inputs=Lazy(len(data.labels), lambda rows: read(data.inputs, rows), "digits"))
"""


def written(tmp_path, values):
    """The path of a config."""
    path = tmp_path / "train.py"
    path.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return written(tmp_path, ROWS)


def prepared(file, *flags):
    return runs.prepare(config.load("train", file, list(flags))[1])


class Broken(Exception):
    pass


def broken_at(step):
    def on_row(row, speed):
        if row["step"] == step:
            raise Broken

    return on_row


def given(file, count, start=0, cursor=0):
    """The batches after a step, of 8 in all, by so many workers, each with the cursor after it."""
    own = programs.Programs(prepared(file, f"--config.workers={count}"))
    own.know(0)
    batches = feeding.batches(own, start, cursor)
    found = [next(batches) for _ in range(start, 8)]
    batches.close()
    return found


def assert_equal(found, others):
    for (batch, cursor), (other, after) in zip(found, others, strict=True):
        assert cursor == after and jax.tree.structure(batch) == jax.tree.structure(other)
        assert jax.tree.all(jax.tree.map(np.array_equal, batch, other))


def test_augmented_batches_of_any_number_of_workers_are_those_of_a_thread_from_any_step_on(tmp_path):
    """Of rows that a reader of the user's reads, in a module beside the config."""
    (tmp_path / "my_digits.py").write_text(READER)
    file = written(tmp_path, ROWS | {"data": "my_digits.lazy:"})
    with imports.beside(tmp_path):
        whole = given(file, 0)
        assert_equal(given(file, 2), whole)
        assert_equal(given(file, 1, 5, whole[4][1]), whole[5:])


def test_workers_read_on_behind_the_batch_that_a_run_went_back_from(file, monkeypatch):
    """A run that goes back has done fewer steps than it has read batches; here 3 and 5."""
    monkeypatch.setattr(workers, "made", lambda host, steps, count: (host(step) for step in steps))
    by_workers, by_thread = given(file, 1, 3, 5), given(file, 0, 3, 5)
    assert_equal(by_workers, by_thread)
    assert [cursor for _, cursor in by_workers] == [6, 7, 8, 9, 10]


@pytest.mark.slow
def test_a_training_on_two_workers_goes_on_with_one_and_leaves_what_a_thread_leaves(file, tmp_path):
    loop.train(prepared(file), tmp_path / "thread", lambda row, speed: None)
    with pytest.raises(Broken):
        loop.train(prepared(file, "--config.workers=2"), tmp_path / "workers", broken_at(5))
    with Store(epath.Path(tmp_path / "workers" / "checkpoints"), reading=True) as store:
        kept = store.manager.restore(4, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        assert (store.latest, kept.about["about"]["cursor"]) == (4, 4)  # however many batches the workers had made
    loop.train(prepared(file, "--config.workers=1"), tmp_path / "workers", lambda row, speed: None)
    assert learned(tmp_path / "thread" / "metrics.jsonl") == learned(tmp_path / "workers" / "metrics.jsonl")
    for name in ("model/model.safetensors", "config.json"):
        assert (tmp_path / "thread" / name).read_bytes() == (tmp_path / "workers" / name).read_bytes(), name


KINDS = {
    "what the backbone's own head said, which is added here": {
        **{"data": "digits", "backbone": "glyphs-vit", "method": "finetune + lwf"},
        **OFTEN,
        **AUGMENT,
    },
    "what frozen layers made of rows, in the first of two phases": {
        **{
            "data": "digits",
            "backbone": "glyphs-vit",
            "method": "probe >> finetune",
            "phase_steps": (6, 2),
            "batch": 200,
        },
        **{key: value for key, value in OFTEN.items() if key != "batch"},
    },
    "several tasks": {"tasks": {"a": {"data": "digits"}, "b": {"data": "digits"}}, "model": MODEL} | OFTEN,
    "texts": {"data": "tfds:reviews", "backbone": "BERT", "method": "finetune"} | OFTEN,
    "pairs": {"data": "tfds:things?caption=name+words", "objective": "clip", "model": CLIP, "crop": (0.5, 0.9)} | OFTEN,
}


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_batches_and_cursors_are_those_of_a_thread_from_any_step_on(
    values, tmp_path, captioned, reviews, bert, request, monkeypatch
):
    """In this process, by the copies that workers are sent."""

    def made(host, steps, count):
        yield from map(cloudpickle.loads(cloudpickle.dumps(host)), steps)

    monkeypatch.setattr(workers, "made", made)
    own = {"texts": {"data_dir": reviews, "backbone": bert}, "pairs": {"data_dir": captioned}}
    file = written(tmp_path, values | own.get(request.node.callspec.id, {}))
    whole = given(file, 0)
    assert_equal(given(file, 2), whole)
    assert_equal(given(file, 2, 5, whole[4][1]), whole[5:])


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_training_saves_and_leaves_none(file, tmp_path):
    command = [sys.executable, "-m", "jtransfer.cli", "train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    command += ["--config.workers=2", "--config.steps=100000", "--config.checkpoint_every=1000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    training = subprocess.Popen([*command, "--config.eval_every=1000"], start_new_session=True, **pipes)
    for line in training.stdout:
        if line.split()[:1] == ["20"]:
            break
    os.killpg(training.pid, signal.SIGTERM)
    _, said = training.communicate(timeout=120)
    assert training.returncode == 143 and "stopped by SIGTERM" in said and said.count("\n") <= 2, said
    with pytest.raises(ProcessLookupError):
        for _ in range(600):
            os.killpg(training.pid, 0)
            time.sleep(0.1)


def test_workers_that_are_no_number_or_make_no_batches_are_refused(file):
    with pytest.raises(InputError, match="config.workers"):
        prepared(file, "--config.workers=-1")
    with pytest.raises(InputError, match="config.workers is 1, and letters has no batches by the number of the step"):
        prepared(file, "--config.workers=1", "--config.data=letters", "--config.augment=")
