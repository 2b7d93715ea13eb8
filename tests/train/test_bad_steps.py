"""Steps whose loss is not finite or jumps: the run stops, leaves them out, or goes back and around them."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from jtransfer import config
from jtransfer.checkpoints.store import Store
from jtransfer.errors import InputError
from jtransfer.train import bad_steps, loop, make_step, programs, runs
from jtransfer.train.pace import learned
from jtransfer.train.state import TrainState

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=8, depth=0, heads=1, pool="mean")
    often = dict(log_every=2, eval_every=12, checkpoint_every=4)
    return ConfigDict(dict(data="digits", model=model, mesh={"data": 1, "rest": -1}, batch=8, steps=12, **often))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "train.py"
    path.write_text(FILE)
    return str(path)


def prepared(file, *overrides, bad=(6,), without=()):
    """A run on batches 1, 2, ..., of which some are NaN and some are not there."""
    run = runs.prepare(config.load("train", file, [f"--config.{one}" for one in overrides])[1])
    good = run.task.data.stream.batches

    def batches(start):
        for batch, number in good(start):
            if number not in without:
                inputs = batch["inputs"][np.arange(8)]
                yield batch | {"inputs": inputs * (np.nan if number in bad else 1)}, number

    object.__setattr__(run.task.data.stream, "batches", batches)
    return run


def state_of(directory, step):
    with Store(epath.Path(directory) / "checkpoints") as store:
        tree = store.manager.restore(step)["state"]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Broken(Exception):
    pass


def breaks_at(step):
    def on_row(row, speed):
        if row["step"] == step:
            raise Broken

    return on_row


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        assert leaf.tobytes() == other[path].tobytes(), path


def loss(params, state, batch, key):
    value = jnp.mean((batch["x"] * params["w"]) ** 2)
    return value, ({"loss": value}, state | {"batch_stats/mean": batch["x"].mean()})


def toy(spike=0.0):
    """A guarded step on one weight, and its state: the loss is the weight times x, squared, with a rate of nearly 0."""
    optimiser = optax.adam(1e-6)
    state = {"batch_stats/mean": jnp.float32(0)} | bad_steps.fresh(bad_steps.skip(spike=spike))
    start = TrainState.create(jax.random.key(0), {"w": jnp.float32(1)}, state, optimiser, ema=0.5)
    step = jax.jit(bad_steps.guarded(make_step(loss, optimiser, ema=0.5), spike))
    return start, lambda state, x: step(state, {}, {"x": jnp.full(4, x, jnp.float32)})


@pytest.mark.parametrize("x", [np.nan, np.inf])
def test_a_step_that_is_left_out_changes_its_number_alone(x):
    start, step = toy()
    before, _ = step(start, 1.0)
    for in_a_row in (1, 2):
        after, metrics = step(before, x)
        assert int(after.step) == int(before.step) + 1 and metrics[bad_steps.IN_A_ROW] == in_a_row
        for one, other in ((before.trainable, after.trainable), (before.opt_state, after.opt_state)):
            jax.tree.map(np.testing.assert_array_equal, one, other)
        own = {path: leaf for path, leaf in before.state.items() if path != "guard/in_a_row"}
        assert "ema/w" in own and all(after.state[path] == leaf for path, leaf in own.items())
        before = after
    after, metrics = step(before, 2.0)
    assert metrics[bad_steps.IN_A_ROW] == 0 and after.state["batch_stats/mean"] == 2
    assert after.trainable["w"] != before.trainable["w"]


def test_a_spike_is_a_loss_above_so_many_times_its_running_mean_over_good_steps():
    start, step = toy(spike=4)
    state, metrics = step(start, 10.0)  # the first steps, whose losses vary, are none
    assert metrics[bad_steps.IN_A_ROW] == 0
    state, _ = toy(spike=4)
    for _ in range(bad_steps.WARM):
        state, metrics = step(state, 1.0)
        assert metrics[bad_steps.IN_A_ROW] == 0
    for x, bad in ((2.1, 1), (1.9, 0), (np.nan, 1), (2.3, 2), (1.0, 0)):  # the 1.9 has moved the mean to 1.14
        state, metrics = step(state, x)
        assert metrics[bad_steps.IN_A_ROW] == bad, x


def test_a_run_that_stops_at_bad_steps_costs_nothing_more(file):
    def flops(*flags):
        run = prepared(file, *flags)
        made = programs.Programs(run)
        state, kept, frozen = made.start(0)
        batch = run.task.data.ready(next(run.task.data.stream.batches(0))[0])
        return made.step(0).lower(state, kept | frozen, batch).cost_analysis()["flops"]

    plain, skips = flops(), flops("on_bad_step=skip(spike=4)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bad_steps, "guarded", None)  # which is not called
        patch.setattr(bad_steps, "fresh", lambda on_bad: {})
        assert flops() == plain
    assert plain < skips < 1.1 * plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skp", "unknown on_bad_step 'skp'; did you mean 'skip'"),
        ("skip(limt=2)", "on_bad_step 'skip' has no option 'limt'; did you mean 'limit'"),
        ("rewind(limit=0)", "limit: expected a whole number of at least 1, found 0"),
        ("stop(spike=0.5)", "spike: expected 0 or a number above 1, found 0.5"),
    ],
)
def test_what_is_no_way_with_bad_steps_is_refused_before_the_run(text, message, file):
    with pytest.raises(InputError, match=message):
        prepared(file, f"on_bad_step={text}")


def test_a_bad_step_is_left_out_and_the_run_goes_on_also_after_a_break(file, tmp_path, caplog):
    flag = "on_bad_step=skip(limit=2)"
    rows = loop.train(prepared(file, flag), tmp_path / "whole", lambda row, speed: None)
    assert [row["skipped"] for row in rows] == [0, 0, 0, 1, 0, 0, 0]  # of steps 1, 2, 4, 6, ...
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert lines(tmp_path / "whole" / "events.jsonl") == [{"step": 6, "event": "skip", "why": "loss is nan"}]
    assert "loss is nan at step 6; the step is left out" in caplog.text
    with pytest.raises(Broken):
        loop.train(prepared(file, flag), tmp_path / "parts", breaks_at(8))
    assert loop.train(prepared(file, flag), tmp_path / "parts", lambda row, speed: None) == rows
    assert_same(*(state_of(tmp_path / name, 12) for name in ("whole", "parts")))
    assert lines(tmp_path / "parts" / "events.jsonl") == lines(tmp_path / "whole" / "events.jsonl")


def test_a_run_that_ended_at_a_bad_step_goes_on_with_another_way(file, tmp_path):
    with pytest.raises(bad_steps.Diverged, match="loss is nan at step 6; .* or config.on_bad_step='skip'"):
        loop.train(prepared(file), tmp_path, lambda row, speed: None)
    rows = loop.train(prepared(file, "on_bad_step=skip"), tmp_path, lambda row, speed: None)
    assert [row.get("skipped") for row in rows] == [None, None, None, 1, 0, 0, 0]
    step, tree = loop.restored(prepared(file), tmp_path)  # as an export does, which takes the config that it has
    assert step == 12 and not any("guard" in path for path in tree)


def test_a_run_goes_back_as_if_the_batches_up_to_the_bad_one_had_not_been_there(file, tmp_path, caplog):
    """The checkpoint of step 4 is of the phase before that of step 6; batches 5 and 6 are not read again."""
    flags = "on_bad_step=rewind", "method=probe >> finetune", "phase_steps=(5, 7)"
    rows = loop.train(prepared(file, *flags), tmp_path / "whole", lambda row, speed: None)
    assert "loss is nan at step 6; the run goes back to step 4, and on with the data behind it" in caplog.text
    event = {"step": 6, "event": "rewind", "why": "loss is nan", "to": 4}
    assert lines(tmp_path / "whole" / "events.jsonl") == [event]
    without = loop.train(prepared(file, *flags, without=(5, 6)), tmp_path / "without", lambda row, speed: None)
    assert rows == without and not (tmp_path / "without" / "events.jsonl").exists()
    assert_same(*(state_of(tmp_path / name, 12) for name in ("whole", "without")))
    with pytest.raises(Broken):
        loop.train(prepared(file, *flags), tmp_path / "parts", breaks_at(6))
    assert loop.train(prepared(file, *flags), tmp_path / "parts", lambda row, speed: None) == rows
    assert_same(*(state_of(tmp_path / name, 12) for name in ("whole", "parts")))
    assert lines(tmp_path / "parts" / "events.jsonl") == [event]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skip(limit=3)", "loss is nan at step 8; it is the 3. in a row; the checkpoint of step 4 is kept"),
        ("rewind(limit=2)", "loss is nan at step 5; the run went back 2 times; the checkpoint of step 4 is kept"),
    ],
)
def test_a_run_that_does_not_recover_ends(text, message, file, tmp_path):
    with pytest.raises(bad_steps.Diverged, match=message):
        loop.train(prepared(file, f"on_bad_step={text}", bad=range(6, 99)), tmp_path, lambda row, speed: None)
    assert len(lines(tmp_path / "events.jsonl")) == 2


TOGETHER = """
import sys
import numpy as np
from jtransfer import config
from jtransfer.devices import hosts
from jtransfer.train import loop, runs

with hosts.together():
    run = runs.prepare(config.load("train", sys.argv[1], sys.argv[3:])[1])
    good = run.task.data.stream.batches

    def batches(start):
        for batch, number in good(start):
            inputs = batch["inputs"][np.arange(len(batch["labels"]))]
            yield batch | {"inputs": inputs * (np.nan if number == 6 else 1)}, number

    object.__setattr__(run.task.data.stream, "batches", batches)
    loop.train(run, sys.argv[2], lambda row, speed: None)
"""


@pytest.mark.slow
def test_two_processes_go_back_and_set_a_damaged_checkpoint_aside_together(file, tmp_path):
    flags = ["on_bad_step=rewind", "sharding=fsdp", "mesh.data=-1", "mesh.rest=1"]
    command = [sys.executable, "-c", TOGETHER, file, str(tmp_path / "two"), *(f"--config.{flag}" for flag in flags)]

    def go():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        launch = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": ""}
        environments = [os.environ | launch | {"JAX_PROCESS_ID": str(i)} for i in range(2)]
        processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in environments]
        printed = [process.communicate(timeout=600)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], printed
        return printed

    assert all("the run goes back to step 4" in said for said in go())
    rows = loop.train(prepared(file, flags[0]), tmp_path / "one", lambda row, speed: None)
    events, two = ((tmp_path / name / "events.jsonl").read_text() for name in ("one", "two"))
    assert events == two
    for ours, theirs in zip(learned(tmp_path / "two" / "metrics.jsonl"), rows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    state = tmp_path / "two" / "checkpoints" / "12" / "state"
    for path in (state / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert all("set aside as" in said and "goes on from step 8" in said for said in go())
    assert (tmp_path / "two" / "checkpoints" / "damaged-12").exists()
    for ours, theirs in zip(learned(tmp_path / "two" / "metrics.jsonl"), rows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
