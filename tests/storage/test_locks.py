"""Who writes into a directory: two at once are refused, a crash leaves nothing locked, and a sleeper is told."""

import json
import os
import subprocess
import sys

import pytest
from etils import epath

from jtransfer import files
from jtransfer.errors import InputError
from jtransfer.storage import locks

KILLED = """
import os, signal, sys
from etils import epath
from jtransfer.storage import locks
with locks.held(epath.Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SETTLE", 0.0)
    return epath.Path(tmp_path)


def holder(directory, **changes):
    """A lock as somebody else holds it; by default this test's parent, which lives."""
    values = {"machine": locks._machine(), "process": os.getppid(), "token": "theirs", "since": "then", "beats": 1}
    files.write_record(directory / locks.NAME, values | changes)


def test_the_second_is_told_who_holds_it_and_a_holder_that_ends_leaves_nothing(directory):
    holder(directory)
    said = rf"workdir {directory} is in use: process {os.getppid()} on \S+ has held it since then; .* another --workdir"
    with pytest.raises(InputError, match=said), locks.held(directory):
        pytest.fail("both hold it")
    (directory / locks.NAME).unlink()
    with locks.held(directory) as check:
        check()
        assert json.loads((directory / locks.NAME).read_text())["process"] == os.getpid()
    assert not (directory / locks.NAME).exists()


def test_a_holder_that_was_killed_is_in_nobodys_way(directory):
    assert subprocess.run([sys.executable, "-c", KILLED, str(directory)]).returncode == -9
    assert (directory / locks.NAME).exists()
    with locks.held(directory):
        pass


def test_a_child_that_ended_and_was_not_waited_for_holds_nothing(directory):
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    child.stdout.read()
    while locks.runs(child.pid):
        pass
    holder(directory, process=child.pid)
    with locks.held(directory):
        child.wait()


def test_a_holder_on_another_machine_is_waited_for_until_it_shows_no_sign_of_life(directory, monkeypatch):
    monkeypatch.setattr(locks, "DEAD", 0.2)
    holder(directory, machine="elsewhere")
    with locks.held(directory):
        pass
    holder(directory, machine="elsewhere")
    beats = iter(range(2, 100))
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: holder(directory, machine="elsewhere", beats=next(beats)))
    with pytest.raises(InputError, match="is in use: process .* on elsewhere"), locks.held(directory):
        pytest.fail("both hold it")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": 3}', "\xff"])
def test_a_lock_that_cannot_be_read_locks_nobody_out(directory, content):
    (directory / locks.NAME).write_bytes(content.encode("latin-1"))
    with locks.held(directory) as check:
        check()


def test_who_slept_while_another_took_over_is_told_before_it_writes(directory):
    with locks.held(directory) as check:
        holder(directory)
        with pytest.raises(InputError, match="is in use"):
            check()
    assert (directory / locks.NAME).exists()  # it is theirs
