"""Where a training tells of itself beside `metrics.jsonl`: Weights & Biases, and a trace of some steps."""

import gzip
import json
import subprocess
import sys
import types
from contextlib import contextmanager

import pytest
from etils import epath

from jtransfer import config
from jtransfer.errors import InputError
from jtransfer.train import loop, runs
from jtransfer.train.boards import boards

FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=6, checkpoint_every=6)
    return ConfigDict(dict(data="digits", backbone="glyphs-vit", method="probe", batch=8, steps=6, **often))
"""


@pytest.fixture
def wandb(monkeypatch):
    """What Weights & Biases was told, by its own calls: `init` and `log`."""
    told = []
    module = types.ModuleType("wandb")

    @contextmanager
    def init(**about):
        told.append(about)
        yield types.SimpleNamespace(log=told.append, define_metric=lambda *names, **more: told.append((names, more)))

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_a_workdir_is_one_run_of_a_project_with_its_config_and_its_rows_by_step(wandb, tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    for some in (rows[:1], rows[1:]):  # as after a stop
        with boards(epath.Path(tmp_path), "mine", {"batch": 8}) as write:
            write(some[0])
    first, metric, one, second, _, two = wandb
    assert (first["project"], first["config"], first["resume"]) == ("mine", {"batch": 8}, "allow")
    assert first["id"] == second["id"]
    assert metric == (("*",), {"step_metric": "step"})
    assert [one, two] == rows


def test_another_workdir_is_another_run(wandb, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        with boards(epath.Path(tmp_path / name), "mine", {}) as write:
            write({"step": 1})
    assert wandb[0]["id"] != wandb[3]["id"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "train.py").write_text(FILE)
    return runs.prepare(config.load("train", str(tmp_path / "train.py"), [])[1])


def test_without_the_package_a_project_is_refused_and_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--wandb=mine: .*; pip install wandb, or leave it out"):
        loop.train(run, tmp_path / "run", lambda row, pace: None, wandb="mine")
    assert not (tmp_path / "run").exists()


def test_a_trace_holds_the_steps_that_were_asked_for_after_the_one_that_compiles(tmp_path):
    """By the command: JAX's profiler crashes in a process that has run thousands of tests."""
    (tmp_path / "train.py").write_text(FILE)
    command = [sys.executable, "-m", "jtransfer.cli", "train", "--profile=2"]
    command += [f"--config={tmp_path / 'train.py'}", f"--workdir={tmp_path / 'run'}"]
    subprocess.run(command, check=True)
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1, "as TensorBoard reads it"
    (file,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = [int(one["args"]["step_num"]) for one in events if one.get("name") == "train"]
    assert sorted(steps) == [3, 4]
