"""Trainings that are killed and stopped, alone and in twos: one line, and in the end what an undisturbed run leaves."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest
from etils import epath

from jtransfer import cli, stopping
from jtransfer.checkpoints.store import Store
from jtransfer.devices import hosts, launch
from jtransfer.errors import Damaged, Gone, InputError
from jtransfer.train.pace import learned

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2, dropout=0.1)
    often = dict(log_every=20, eval_every=200, checkpoint_every=40)
    return ConfigDict(dict(data="digits", model=model, batch=8, steps=400, ema=0.9, optimiser=dict(rate=1e-3), **often))
"""


class Training:
    """A `jtransfer train` of one or more processes."""

    def __init__(self, file, workdir, number=1, only=None, flags=()):
        with socket.create_server(("", 0)) as probe:
            port = str(probe.getsockname()[1])
        self.processes, self.printed = [], {}
        for index in range(number) if only is None else only:
            env = {"XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
            command = [
                sys.executable,
                "-m",
                "jtransfer.cli",
                "train",
                f"--config={file}",
                f"--workdir={workdir}",
                *flags,
            ]
            if number > 1:
                command += [f"--coordinator=localhost:{port}", f"--processes={number}", f"--process={index}"]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell's & ignores it
            process = subprocess.Popen(command, env=os.environ | env, **pipes)
            signal.signal(signal.SIGINT, before)
            lines, errors = [], []
            pairs = (process.stdout, lines), (process.stderr, errors)
            readers = [threading.Thread(target=lambda f, to: to.extend(f), args=pair, daemon=True) for pair in pairs]
            readers[0] = threading.Thread(target=self._follow, args=pairs[0], daemon=True)
            for reader in readers:
                reader.start()
            self.processes.append(process)
            self.printed[index] = lines, errors, readers

    @staticmethod
    def _follow(file, to):
        for line in file:
            to.append(line)

    def until(self, step):
        """Wait for the row of a step, or the end."""
        while self.processes[0].poll() is None:
            if any(line.split()[:1] == [str(step)] for line in list(self.printed[0][0])):
                return
            time.sleep(0.01)

    def end(self, within=60):
        """The exit codes and what each process wrote on stderr."""
        until = time.monotonic() + within
        try:
            codes = [process.wait(max(until - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        for _, _, readers in self.printed.values():
            for reader in readers:
                reader.join()
        return codes, ["".join(errors) for _, errors, _ in self.printed.values()]


def left(workdir):
    """What a run leaves, as it must be to the bit."""
    with Store(epath.Path(workdir) / "checkpoints", reading=True) as store:
        arguments = ocp.args.Composite(about=ocp.args.JsonRestore())
        arrays = store.manager.restore(store.latest, args=arguments).about["sums"]  # on any mesh the same
    weights = {path.name: path.read_bytes() for path in (workdir / "model").iterdir() if path.suffix != ".json"}
    return arrays, weights, learned(workdir / "metrics.jsonl")


def assert_same(one, other):
    assert one == other


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "train.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Runs that nobody disturbs, by their number of processes."""
    done = {}

    def of(number):
        if number not in done:
            workdir = tmp_path_factory.mktemp("whole")
            assert set(Training(file, workdir, number).end(900)[0]) == {0}
            done[number] = left(workdir)
        return done[number]

    return of


@pytest.mark.slow
def test_stopped_twice_and_killed_a_training_ends_as_if_nothing_had_been(file, whole, tmp_path):
    for number, at in ((signal.SIGTERM, 20), (signal.SIGINT, 100), (signal.SIGKILL, 200)):
        run = Training(file, tmp_path)
        run.until(at)
        run.processes[0].send_signal(number)
        (code,), (said,) = run.end()
        if number == signal.SIGKILL:
            continue
        assert code == 128 + number, said
        assert said.count("\n") == 1 and f"stopped by {number.name} at step" in said and "saved" in said
    assert Training(file, tmp_path).end(120)[0] == [0]
    assert_same(left(tmp_path), whole(1))


def test_a_signal_to_one_of_two_processes_stops_both_saved_at_one_step(file, tmp_path):
    run = Training(file, tmp_path, 2)
    run.until(20)
    run.processes[1].send_signal(signal.SIGINT)
    codes, said = run.end()
    assert codes == [130, 130] and said[0] == said[1], said
    assert said[0].startswith(f"jtransfer: stopped by SIGINT to process 1 on {socket.gethostname()} at step")
    assert said[0].split("at step ")[1].split(";")[0] in [path.name for path in (tmp_path / "checkpoints").iterdir()]


@pytest.mark.parametrize("cause", [None, ValueError("Gloo AllGather failed: Connection reset by peer")])
def test_a_checkpoint_is_not_called_damaged_where_another_process_left_while_it_was_read(cause, monkeypatch):
    link = SimpleNamespace(hosts=["a", "b"], address="", missing=lambda: Gone("a: stopped", 143), tell=lambda *_: None)
    monkeypatch.setattr("jtransfer.devices.link.Link", lambda here, patience: link)
    monkeypatch.setattr(hosts, "launch", lambda: launch.Launch(1, 2))
    monkeypatch.setattr(hosts, "_join", lambda *_: None)
    monkeypatch.setattr(hosts, "_names", [])
    with pytest.raises(Gone if cause else Damaged), hosts.together():
        raise Damaged("a checkpoint cannot be read; remove it") from cause


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS='two'"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "2"}, "SLURM_PROCID='2': expected a whole number from 0 to 1"),
        ({"OMPI_COMM_WORLD_SIZE": "-1"}, "OMPI_COMM_WORLD_SIZE='-1'"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID is not set"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_NUM_PROCESSES": "1", "JAX_COORDINATOR_ADDRESS": "a:b"}, "expected host:port"),
        ({"JAX_NUM_PROCESSES": "1", "JAX_COORDINATOR_ADDRESS": "a:70000"}, "expected host:port"),
    ],
)
def test_an_environment_that_names_no_launch_is_refused_by_the_variable(env, named, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=named):
        launch.launch()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "gpu[007-9]", "SLURM_JOB_ID": "5"},
            61445,
        ),
        ({"JAX_COORDINATOR_ADDRESS": "[gpu007]:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}, 99),
        ({"TPU_WORKER_HOSTNAMES": "gpu007,b,c,d", "TPU_WORKER_ID": "3"}, 8476),
    ],
)
def test_the_first_process_is_met_where_the_launcher_put_it(env, expected, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = launch.launch()
    assert (found.index, found.number, found.host, found.port) == (3, 4, "gpu007", expected)


@pytest.mark.parametrize("command", ["evaluate", "curve", "advise", "inspect"])
def test_what_one_process_does_is_refused_in_a_second_one(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    workdir = [] if command == "inspect" else [f"--workdir={tmp_path}"]
    assert cli.main([command, "--config=none.py", *workdir]) == 2
    assert "this is number 1 of the 2 that SLURM_NTASKS names" in capsys.readouterr().err


def test_what_asyncio_says_after_the_first_damaged_array_is_no_line_of_its_own(monkeypatch):
    said = []
    monkeypatch.setattr("sys.unraisablehook", lambda raised: said.append(str(raised.exc_value)))
    assert cli.main(["train", "--config=none.py", "--workdir=none"]) == 2
    for words in ("Event loop is closed", "a fault"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(words)))
    assert said == ["a fault"]


def test_a_signal_is_noted_for_the_step_and_raised_where_nothing_can_be_saved():
    with stopping.after_a_step(), pytest.raises(stopping.Stopped, match="stopped by SIGTERM; the same command goes on"):
        signal.raise_signal(signal.SIGTERM)
    for number in stopping.SIGNALS:
        stopping._raised.clear()
        with stopping.after_a_step() as signalled:
            assert signalled() == 0
            signal.raise_signal(number)
            assert signalled() == number
    stopping._waiting.clear()


def test_a_signal_in_the_last_step_of_a_command_ends_the_script_behind_it(monkeypatch, capsys):
    def main(argv):
        with stopping.after_a_step() as signalled:
            assert signalled() == 0
            signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(cli, "main", main)
    with pytest.raises(SystemExit) as stopped:
        cli.run("train")
    assert stopped.value.code == 143 and "jtransfer: stopped by SIGTERM; the same command" in capsys.readouterr().err
    stopping._waiting.clear()
    monkeypatch.setattr(cli, "main", lambda argv: 0)
    cli.run("train")


def test_a_closed_terminal_stops_a_training_as_a_signal_does():
    assert signal.SIGHUP in stopping.SIGNALS and stopping.Stopped(signal.SIGHUP).code == 129


def test_what_is_done_is_not_ended_by_a_signal():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        stopping.done()
        for number in stopping.SIGNALS:
            signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
