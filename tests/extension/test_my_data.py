"""A reader in a file of the user's: in a curve and in a training, stopped and resumed, and what is wrong with one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from jtransfer import cli
from jtransfer.checkpoints.store import Store
from jtransfer.config import load
from jtransfer.data import sources
from jtransfer.errors import InputError
from jtransfer.stopping import Stopped
from jtransfer.train import loop, runs
from jtransfer.train.pace import learned

HERE = Path(__file__).parent
CURVE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "data": "my_data.shards:shards", "backbone": "glyphs-vit", "methods": ("probe",), "shots": (1,), "seeds": 1,
        "batch": 4, "steps": 2, "hyper": {"default": {"rate": (0.01,)}},
    })
"""
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    model = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "heads": 2, "depth": 1}
    return ConfigDict({
        "data": "my_data.in_order:shards", "model": model | {"hidden": 8}, "batch": 8, "steps": 6,
        "log_every": 1, "eval_every": 6, "checkpoint_every": 2, "optimiser": {"rate": 0.01},
    })
"""

# In one launch, as starting takes longest: an undisturbed run, and one that ends after step 5 and goes on from 4.
TWO = """
import pathlib
from contextlib import suppress

from jtransfer.config import load
from jtransfer.devices import hosts
from jtransfer.stopping import Stopped
from jtransfer.train import loop, runs

def stop(row, speed):
    if row["step"] == 5:
        raise Stopped(15, "there")

def train(workdir, on_row=lambda row, speed: None):
    loop.train(runs.prepare(load("train", "train.py", [])[1]), workdir, on_row)

with hosts.together():
    train("whole")
    with suppress(Stopped):
        train("parts", stop)
    assert not pathlib.Path("parts/model").exists()
    train("parts")
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, write_shards):
    """The working directory, with the user's module and configs, and 30 pictures in three files."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_data", None)
    shutil.copy(HERE / "my_data.py", tmp_path)
    Path("curve.py").write_text(CURVE)
    Path("train.py").write_text(TRAIN)
    write_shards(Path("shards"))
    yield tmp_path
    sys.modules.pop("my_data", None)


def prepared(*flags):
    return runs.prepare(load("train", "train.py", list(flags))[1])


def refusal(capsys, *arguments):
    """The one line that a command says when it refuses, with nothing written."""
    capsys.readouterr()
    sys.modules.pop("my_data", None)
    assert cli.main([*arguments, "--workdir=run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not Path("run").exists(), said
    return said


def test_a_curve_of_the_rows_of_a_reader_runs_from_the_command_line():
    data = "--config.data=my_data.shards(suffix='tar'):shards"
    assert cli.main(["curve", "--config=curve.py", "--workdir=curve", data]) == 0
    (row,) = map(json.loads, Path("curve/results.jsonl").read_text().splitlines())
    assert row["method"] == "probe" and row["shots"] == 1


@pytest.mark.slow
def test_a_training_knows_the_source_of_its_reader_and_is_exported_without_reader_and_rows(capsys):
    again = ["train", "--config=train.py", "--workdir=run", "--config.data=my_data.shards:shards"]
    assert cli.main(again) == 0
    noted = json.loads(Path("run/config.json").read_text())["fingerprints"]["modules"]
    assert list(noted) == ["my_data"] and len(noted["my_data"]) == 16

    Path("my_data.py").write_text(Path("my_data.py").read_text().replace("sorted(named)", "list(named)"))
    sys.modules.pop("my_data", None)
    assert cli.main(again) == 2
    assert "another config: fingerprints.modules.my_data is" in capsys.readouterr().err

    shutil.rmtree("shards")
    Path("my_data.py").write_text("raise RuntimeError('imported')")
    sys.modules.pop("my_data", None)
    assert cli.main(["export", "--workdir=run", "--format=orbax", "--out=out"]) == 0
    assert "my_data" not in sys.modules


@pytest.mark.slow
def test_a_stream_goes_on_from_the_cursor_of_the_batch_that_was_trained_on_bit_for_bit():
    """24 rows in batches of 8: the third batch ends the first time, and more batches than that were made ahead."""
    rows = loop.train(prepared(), "whole", lambda row, speed: None)

    def stop(row, speed):
        if row["step"] == 5:
            raise Stopped(15, "there")

    with pytest.raises(Stopped):
        loop.train(prepared(), "parts", stop)
    with Store(epath.Path("parts/checkpoints")) as store:
        assert store.latest == 4
        assert store.manager.restore(4)["about"]["about"]["cursor"] == {"time": 1, "row": 8}
    assert loop.train(prepared(), "parts", lambda row, speed: None) == rows
    whole, parts = (sorted(Path(name, "model").glob("*")) for name in ("whole", "parts"))
    assert [path.name for path in whole] == [path.name for path in parts]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(whole, parts, strict=True))


@pytest.mark.slow
def test_two_processes_go_on_from_the_cursor_bit_for_bit_and_learn_what_one_does():
    """Each reads half of every batch; the cursor is a place in whole batches, and that of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    env |= {"PYTHONPATH": str(HERE.parents[1]), "XLA_FLAGS": env["XLA_FLAGS"].replace("count=8", "count=1")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", TWO]
    processes = [subprocess.Popen(command, env=env | {"JAX_PROCESS_ID": str(i)}, **pipes) for i in range(2)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said

    assert learned("whole/metrics.jsonl") == learned("parts/metrics.jsonl")
    for path in (path.relative_to("whole") for path in Path("whole/model").iterdir()):
        assert Path("whole", path).read_bytes() == Path("parts", path).read_bytes(), path
    about = json.loads(Path("parts/checkpoints/4/about/metadata").read_text())["about"]
    assert about["cursor"] == {"time": 1, "row": 8}
    alone = loop.train(prepared(), "alone", lambda row, speed: None)
    for row, other in zip(learned("parts/metrics.jsonl"), alone, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_a_checkpoint_without_a_cursor_goes_on_from_its_step(monkeypatch):
    """As checkpoints of versions before cursors, whose streams all counted steps."""
    flags = ("--config.data=digits", "--config.steps=4", "--config.eval_every=4")
    save, asked = Store.save, []

    def without(store, step, tree, about):
        save(store, step, tree, {key: value for key, value in about.items() if key != "cursor"})

    def stop(row, speed):
        if row["step"] == 3:
            raise Stopped(15, "there")

    monkeypatch.setattr(Store, "save", without)
    with pytest.raises(Stopped):
        loop.train(prepared(*flags), "run", stop)
    run = prepared(*flags)
    object.__setattr__(run.task.data.stream, "batches", lambda cursor: asked.append(cursor) or iter(()))
    with pytest.raises(InputError, match="digits ended after 2 of 4 batches; .* the checkpoint of step 2 is kept"):
        loop.train(run, "run", lambda row, speed: None)
    assert asked == [2]


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        (None, "my_dta.shards:shards", "reader 'my_dta.shards': there is no module 'my_dta' in"),
        (None, "my_data.shard:shards", "has no 'shard'; did you mean 'shards'?"),
        (None, "my_data.shards(sufix='tar'):shards", "has no option 'sufix'; did you mean 'suffix'?"),
        (None, "my_data.shards:elsewhere", "my_data.shards:elsewhere: elsewhere holds no .tar files"),
        ("\n1 / 0", "my_data.shards:shards", "my_data.py', line 2: ZeroDivisionError: division by zero"),
        (
            "def shards(rest, context):\n    return rest",
            "my_data.shards:x",
            "returned 'x'; expected a Dataset or a Stream",
        ),
        ("def shards(rest):\n    return rest", "my_data.shards:x", "does not fit my_data.shards"),
    ],
)
def test_what_is_no_reader_is_refused_in_one_line(source, name, said, capsys):
    if source is not None:
        Path("my_data.py").write_text(source)
    for command in ("curve", "train"):
        assert said in refusal(capsys, command, f"--config={command}.py", f"--config.data={name}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "data.classes, ",
            "data.classes[1:], ",
            "a Stream whose held_out has labels from 0 to 1; expected 0..0",
        ),
        ("after, held_out", "after, held_out[1:]", "whose held_out is no tuple (name, inputs, array of labels)"),
        (
            '"image", data.inputs',
            '"picture", data.inputs',
            "with the kind 'picture'; expected 'image' or 'text'",
        ),
        ('"image", data.inputs', '"image", []', "whose inputs are []; expected an array or a Lazy, of which some"),
        ('"image", data.inputs', '"image", data.inputs[:0]', "expected an array or a Lazy"),
    ],
)
def test_a_stream_whose_parts_do_not_fit_is_refused_before_anything_is_trained(old, new, said, capsys):
    source = Path("my_data.py").read_text()
    assert old in source
    Path("my_data.py").write_text(source.replace(old, new))
    assert said in refusal(capsys, "train", "--config=train.py")


def test_what_a_reader_raises_when_rows_are_asked_for_is_a_line_too():
    Path("my_data.py").write_text(Path("my_data.py").read_text().replace("file.seek(start)", "file.seek(start[0])"))
    data = sources.load("my_data.shards:shards")
    with pytest.raises(
        InputError, match="reader 'my_data.shards': file '.*my_data.py', line 52: TypeError: 'int' object"
    ):
        data.inputs[[3]]


@pytest.mark.parametrize(
    ("inputs", "error"), [("data.inputs", "TypeError: 'int' object is not"), ("pictures", "NameError: name '_late'")]
)
def test_what_the_rows_of_a_stream_raise_is_a_line_too_before_training_and_in_it(inputs, error, capsys):
    """Rows of the stream's own inputs, which are asked for before the training, and rows that batches alone have."""
    source = Path("my_data.py").read_text()
    late = "    pictures = Lazy(30, lambda rows: [_late(row) for row in rows], '')\n    def after(cursor):"
    source = source.replace("    def after(cursor):", late).replace("Rows(data.inputs, own)", f"Rows({inputs}, own)")
    if inputs == "data.inputs":
        source = source.replace("file.seek(start)", "file.seek(start[0])")
    Path("my_data.py").write_text(source)
    assert cli.main(["train", "--config=train.py", "--workdir=run"]) == 2
    said = capsys.readouterr().err
    assert "jtransfer: error: reader 'my_data.in_order': file '" in said and error in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '("test", Rows',
            '("test", "mine", Rows',
            "a Stream whose held_out is no tuple (name, inputs, array",
        ),
        ("data.labels[data.test])", "data.labels[data.pool])", "a Stream whose held_out has 6 inputs and 24 labels"),
        (
            "data.fingerprint)",
            "data.fingerprint, pool=data.inputs)",
            "a Stream whose pool is no tuple (inputs, array of",
        ),
        (
            "data.fingerprint)",
            "data.fingerprint, pool=(data.inputs, data.labels[1:]))",
            "whose pool has 30 inputs and 29",
        ),
    ],
)
def test_what_a_stream_holds_out_and_its_pool_have_as_many_inputs_as_labels(old, new, said, capsys):
    Path("my_data.py").write_text(Path("my_data.py").read_text().replace(old, new))
    assert said in refusal(capsys, "train", "--config=train.py")


def test_what_a_reader_raises_when_its_rows_are_checked_is_a_line_too(capsys):
    source = Path("my_data.py").read_text()
    Path("my_data.py").write_text(source.replace("repr(found))", "repr(found), damaged=lambda rows: [_wrong(rows)])"))
    said = refusal(capsys, "train", "--config=train.py", "--config.data=my_data.shards:shards")
    assert "reader 'my_data.shards': file '" in said and "line 21: NameError: name '_wrong' is not" in said


def test_a_curve_takes_no_stream(capsys):
    said = refusal(capsys, "curve", "--config=curve.py", "--config.data=my_data.in_order:shards")
    assert "dataset 'my_data.in_order:shards' is a Stream of batches, which jtransfer train alone reads" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("labels, tuple(", "labels[1:], tuple(", "returned a Dataset with 30 inputs and 29 labels; expected as many"),
        ("range(labels.max() + 1)", "range(1)", "a Dataset with labels from 0 to 1; expected 0..0, of its classes"),
        ("pool, test)", "pool, pool)", "row 0 in both pool and test; what is tested on is never trained on"),
        ("pool, test)", "pool, test + 99)", "in its pool or test; expected 0..29"),
    ],
)
def test_a_dataset_whose_parts_do_not_fit_is_refused_before_anything_is_trained(old, new, said, capsys):
    source = Path("my_data.py").read_text()
    assert old in source
    Path("my_data.py").write_text(source.replace(old, new))
    assert said in refusal(capsys, "curve", "--config=curve.py")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("data.labels[own]}, at", "data.labels[own]}", "gave a dict; expected pairs of a batch (by name) and the"),
        ("data.labels[own]}, at", "data.labels[own][1:]}, at", "gave a batch with 7 labels; expected 8 in every batch"),
        ("data.labels[own]}, at", "data.labels[own]}, rows[0]", "gave the cursor"),
        (
            '"labels": data.labels[own]}',
            '"label": own}',
            "gave a batch of 'inputs', 'label'; expected 'inputs' and 'labels'",
        ),
        (
            "data.labels[own]}, at",
            "data.labels[own] + 1}, at",
            "labels from 1 to 2; expected 0..1, of its classes",
        ),
        ("data.labels[own]}, at", "data.labels[own] / 2}, at", "numbers as labels [8]; expected one class a row as in"),
        ("file.seek(start)", "file.seek(start[0])", "my_data.py', line 52: TypeError: 'int' object is not"),
        ("            own =", "            open('none')\n            own =", "line 34: FileNotFoundError: [Errno 2]"),
        ("times: int = 1000", "times: int = 1", "ended after 3 of 6 batches; set config.steps to 3, or let it begin"),
        ("times: int = 1000", "times: int = 0", "ended after 0 of 6 batches; expected one at least"),
    ],
)
def test_a_stream_that_does_not_keep_what_it_promises_ends_in_one_line(old, new, said, capsys):
    source = Path("my_data.py").read_text()
    assert old in source
    Path("my_data.py").write_text(source.replace(old, new))
    assert cli.main(["train", "--config=train.py", "--workdir=run"]) == 2
    errors = capsys.readouterr().err
    assert said in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("times: int = 1000", "times: int = 1", "ended after 3 of 6 batches; set config.steps to 3, or let it begin"),
        ("data.labels[own]}, at", "data.labels[own][1:]}, at", "gave a batch with 7 labels; expected 8 in every batch"),
    ],
)
def test_of_several_tasks_the_one_whose_stream_breaks_its_promise_is_named(old, new, said, capsys):
    tasks = '"tasks": {"first": {"data": "digits"}, "second": {"data": "my_data.in_order:shards"}}'
    Path("train.py").write_text(TRAIN.replace('"data": "my_data.in_order:shards"', tasks))
    Path("my_data.py").write_text(Path("my_data.py").read_text().replace(old, new))
    assert cli.main(["train", "--config=train.py", "--workdir=run"]) == 2
    errors = capsys.readouterr().err
    assert f"config.tasks.second.data: my_data.in_order:shards {said}" in errors and "Traceback" not in errors
