"""Trainings that stand still: they end with a line that says which process waits for what, and exit code 75."""

import importlib.util
import signal
import socket
import time
from pathlib import Path

import pytest

from jtransfer import stopping
from jtransfer.devices import watch
from jtransfer.devices.watch import COMPILING, DATA, EVALUATION, SILENCE, STEP, Lookout

spec = importlib.util.spec_from_file_location("signals_of_trainings", Path(__file__).with_name("test_signals.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
Training, FILE = shared.Training, shared.FILE

READER = """
import os, time
from dataclasses import replace
from jtransfer.data import sources, streams

def digits(rest, context):
    stream = streams.of_dataset(sources.load("digits"), context)

    def batches(cursor):
        for batch, after in stream.batches(cursor):
            while after == 31 and os.environ.get("JAX_PROCESS_ID", "0") == rest:
                time.sleep(1)
            yield batch, after

    return replace(stream, name=context.name, batches=batches)
"""


def watched(*places, hosts=("a", "b", "c"), patience=300, beats=1, seconds=301):
    """A watch that has heard where each process is, again and again while time passes."""
    watch = Lookout(list(hosts[: len(places)]), patience)
    for _ in range(beats + 1):
        for index, (what, step) in enumerate(places):
            watch.heard(index, [what, step, step])
        watch.passes(seconds / beats)
        for seen in watch.seen.values():
            seen.silent = 0
    return watch


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([(STEP, 17), (STEP, 18), (DATA, 17)], "process 2 on c waits for data since 602 s, at step 17, and the others"),
        ([(STEP, 17), (STEP, 16), (STEP, 17)], "process 1 on b does not come out of a step since 602 s, at step 16"),
        (
            [(STEP, 17), (STEP, 17)],
            "every process does not come out of a step since 602 s, at step 17; the same command",
        ),
        ([(DATA, 9)], "this process waits for data since 602 s, at step 9; the same command goes on from the newest"),
        ([(DATA, 9), ("", 0)], ""),  # has not begun
        ([(STEP, 9), (COMPILING, 9)], ""),
        ([(STEP, 9), (EVALUATION, 9)], ""),
    ],
)
def test_the_process_that_keeps_the_others_is_named(places, said):
    found = watched(*places).verdict()
    assert found.startswith(said) and bool(found) == bool(said)


def test_what_takes_long_is_given_four_times_the_patience():
    assert "every process does not come out of an evaluation" in watched(*[(EVALUATION, 8)] * 2, seconds=1201).verdict()


def test_nobody_is_named_while_one_process_goes_on_or_has_not_reported_or_patience_has_no_end():
    watch = watched((STEP, 17), (STEP, 17))
    watch.heard(1, [STEP, 18, 18])
    assert not watch.verdict()
    watch = Lookout(["a", "b"], 300)
    for _ in range(3):
        watch.passes(301)
        watch.heard(0, [STEP, 17, 17])
    assert not watch.verdict()
    assert not watched((STEP, 17), (STEP, 17), patience=0).verdict()


def test_a_process_that_reports_no_more_is_named_within_its_training_alone():
    watch = Lookout(["a", "b"], 0)
    watch.heard(0, [STEP, 5, 9])
    watch.heard(1, ["", 0, 0])
    watch.passes(SILENCE + 1)
    watch.heard(0, [STEP, 5, 9])
    assert not watch.verdict()
    watch.heard(1, [DATA, 5, 9])
    watch.passes(SILENCE + 1)
    watch.heard(0, [STEP, 5, 9])
    assert watch.verdict().startswith("process 1 on b has not answered for 31 s, at step 5; the same command goes on")


def test_a_single_process_that_stands_still_ends_itself_and_one_that_is_done_does_not(monkeypatch):
    ended = []
    monkeypatch.setattr(stopping, "end", lambda line, code: ended.append((line, code)))
    monkeypatch.setattr(watch, "BEAT", 0.01)
    watch.at(DATA, 7)
    over = watch.alone(0.05)
    until = time.monotonic() + 20
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
    over()
    line, code = ended[0]
    assert line.startswith("jtransfer: error: this process waits for data since 0 s, at step 7") and code == 75
    watch.at("")
    watch.alone(0)()


@pytest.fixture
def stalling(tmp_path):
    (tmp_path / "my_stall.py").write_text(READER)
    (tmp_path / "train.py").write_text(FILE.replace('"digits"', '"my_stall.digits:1"'))
    return tmp_path / "train.py"


@pytest.mark.slow
def test_a_stalled_reader_of_one_of_two_processes_is_named_by_both(stalling, tmp_path):
    """The batch after step 30 never comes; the run goes on from the checkpoint before, 20 steps of the 40 kept."""
    run = Training(stalling, tmp_path / "run", 2, flags=["--patience=0.1"])
    codes, said = run.end(120)
    assert codes == [75, 75] and said[0] == said[1], said
    assert said[0].startswith(f"jtransfer: error: process 1 on {socket.gethostname()} waits for data since "), said
    assert "at step 31, and the others wait for it; the same command goes on from the newest checkpoint" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_process_that_is_frozen_is_named_by_the_others_within_a_minute(frozen, tmp_path):
    (tmp_path / "train.py").write_text(FILE.replace("steps=400", "steps=100_000"))
    run = Training(tmp_path / "train.py", tmp_path / "run", 2)
    run.until(20)
    run.processes[frozen].send_signal(signal.SIGSTOP)
    try:
        assert run.processes[1 - frozen].wait(60) == 75
    finally:
        run.processes[frozen].send_signal(signal.SIGKILL)
    _, said = run.end()
    assert said[1 - frozen].startswith(f"jtransfer: error: process {frozen} on {socket.gethostname()} has not answered")
    assert said[1 - frozen].count("\n") == 1, said
