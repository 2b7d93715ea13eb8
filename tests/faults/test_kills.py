"""Processes of a run that die or do not come: the others end, with a line that names them."""

import importlib.util
import random
import signal
import socket
import time
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("signals_of_trainings", Path(__file__).with_name("test_signals.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
Training, left, assert_same, whole = shared.Training, shared.left, shared.assert_same, shared.whole
FILE = shared.FILE
LAST = 1600
"""Steps that no training comes to while it is struck, at most 80 steps after it started."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "train.py"
    path.write_text(FILE.replace("steps=400", f"steps={LAST}"))
    return path


@pytest.mark.parametrize("gone", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_other_process_ends_with_a_line_that_names_the_host_of_the_one_that_was_killed(gone, file, tmp_path):
    run = Training(file, tmp_path, 2)
    run.until(20)
    run.processes[gone].kill()
    codes, said = run.end()
    assert codes[1 - gone] == 75
    assert said[1 - gone].startswith(f"jtransfer: error: process {gone} on {socket.gethostname()} is gone;")
    assert said[1 - gone].count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_never_comes_is_missed_within_a_minute(index, file, tmp_path):
    codes, said = Training(file, tmp_path, 2, only=[index]).end(75)
    assert codes == [75] and f"process {1 - index}" in said[0] and said[0].count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (4, 2)])
def test_after_a_kill_a_training_goes_on_with_fewer_processes_as_one_alone_would(before, after, tmp_path):
    file = tmp_path / "train.py"
    file.write_text(FILE.replace("steps=400", "steps=60").replace("eval_every=200", "eval_every=60"))
    run = Training(file, tmp_path / "run", before)
    run.until(40)
    run.processes[-1].kill()
    codes, said = run.end(120)
    assert set(codes) <= {0, 75, -9}, said
    assert set(Training(file, tmp_path / "run", after).end(240)[0]) == {0}
    assert Training(file, tmp_path / "alone").end(240)[0] == [0]
    for row, other in zip(left(tmp_path / "run")[2], left(tmp_path / "alone")[2], strict=True):
        assert row == pytest.approx(other, abs=1e-5)


FINETUNE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=5, eval_every=10, checkpoint_every=10)
    rest = dict(batch=16, steps=10, optimiser=dict(rate=1e-4), sharding="HOW")
    return ConfigDict(dict(data="digits", backbone="glyphs-vit", method="finetune", **often, **rest))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicated", "fsdp"])
def test_two_and_four_processes_finetune_as_one_does(how, tmp_path):
    file = tmp_path / "train.py"
    file.write_text(FINETUNE.replace("HOW", how))
    rows = {}
    for number in (1, 2, 4):
        codes, said = Training(file, tmp_path / str(number), number).end(240)
        assert set(codes) == {0}, said
        rows[number] = left(tmp_path / str(number))[2]
    for number in (2, 4):
        for row, alone in zip(rows[number], rows[1], strict=True):
            assert row == pytest.approx(alone, abs=1e-5)


def until_rows(run, number):
    """Wait for some rows of a training, or its end; gives the time of each."""
    times = []
    while len(times) < number and run.processes[0].poll() is None:
        rows = sum(line[:7].strip().isdigit() for line in list(run.printed[0][0]))
        times += [time.monotonic()] * (rows - len(times))
        time.sleep(0.005)
    return times


def strike(run, rng, blow, ends, startup):
    """Send a signal to one of the processes of a training; each ends by one of some codes, with one line at most.

    Those that still start, in about `startup` seconds, wait 50 s for the one that was struck.
    """
    rng.choice(run.processes).send_signal(blow)
    codes, said = run.end(120 + startup)
    assert set(codes) <= ends, (codes, said)
    assert all(lines.count("\n") <= 1 for lines in said), said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kills", "signals"), [(1, 15, 3), (2, 12, 3), (4, 3, 1)])
def test_after_kills_and_signals_all_is_as_in_an_undisturbed_run(number, kills, signals, file, whole, tmp_path):
    """Struck are trainings that start, that train, and that end; none of the first two is done when it is struck."""
    rng, startup = random.Random(number), 5.0
    blows = [signal.SIGKILL] * kills + [signal.SIGTERM, signal.SIGINT] * signals
    rng.shuffle(blows)
    for blow in blows:
        run = Training(file, tmp_path, number)
        if blow == signal.SIGKILL and rng.random() < 0.3:  # a signal before our first line is Python's
            time.sleep(rng.random() * startup)
        else:
            started, times = time.monotonic(), until_rows(run, rng.randrange(2, 4))
            assert len(times) > 1, run.end()
            startup = times[0] - started
            time.sleep(rng.random() * (times[-1] - times[-2]))
        strike(run, rng, blow, {75, -9, 128 + blow}, startup)
    for _ in range(2):
        run = Training(file, tmp_path, number)
        run.until(LAST)
        strike(run, rng, signal.SIGKILL, {0, 75, -9}, startup)
    assert set(Training(file, tmp_path, number).end(240)[0]) == {0}
    assert_same(left(tmp_path), whole(number))
