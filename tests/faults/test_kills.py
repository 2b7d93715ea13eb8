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
Training, left, assert_same, file, whole = shared.Training, shared.left, shared.assert_same, shared.file, shared.whole


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
@pytest.mark.parametrize("number", [1, 2])
def test_after_fifteen_kills_and_six_signals_all_is_as_in_an_undisturbed_run(number, file, whole, tmp_path):
    rng = random.Random(number)
    blows = [signal.SIGKILL] * 15 + [signal.SIGTERM, signal.SIGINT] * 3
    rng.shuffle(blows)
    for blow in blows:
        run = Training(file, tmp_path, number)
        if rng.random() < 0.7:
            run.until(20 * rng.randrange(1, 21))
        time.sleep(rng.random() * (0.3 if rng.random() < 0.7 else 5))
        struck = rng.choice(run.processes)
        struck.send_signal(blow)
        codes, said = run.end(120)
        assert set(codes) <= {0, 75, -9, 128 + blow}, (codes, said)
        assert all(lines.count("\n") <= 1 for lines in said), said
    assert set(Training(file, tmp_path, number).end(240)[0]) == {0}
    assert_same(left(tmp_path), whole(number))
