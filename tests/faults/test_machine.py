"""What the machine refuses: one line that names the place, exit code 74, and the same command goes on when it may."""

import contextlib
import errno
import os
import resource
import signal

import pytest

from jtransfer import cli
from jtransfer.cli import commands
from jtransfer.errors import InputError, MachineError, refusal

CONFIGS = {
    "train": "data='digits', batch=8, steps=2, log_every=1, eval_every=2, checkpoint_every=2, model=dict("
    "image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2, pool='mean')",
    "curve": "methods=('prototypes',), shots=(1,), seeds=1, test_rows=20",
    "evaluate": "protocols=('prototypes',), store='store'",
}


@contextlib.contextmanager
def room(size):
    """No file may grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def command(name):
    with open("own.py", "w") as file:
        file.write(
            f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict(dict({CONFIGS[name]}))\n"
        )
    return [name, "--config=own.py", "--workdir=run"]


@pytest.mark.parametrize(
    ("name", "size", "again"),
    [
        ("train", 20, False),
        pytest.param("train", 5000, True, marks=pytest.mark.slow),
        ("curve", 20, True),
        ("curve", 5000, True),
        ("evaluate", 20, True),
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys, name, size, again):
    monkeypatch.chdir(tmp_path)
    words = command(name)
    with room(size):
        assert cli.main(words) == 74
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("jtransfer: error: ") and "make room" in lines[0], lines
    assert "run/" in lines[0] or "store/" in lines[0] or " run " in lines[0], lines
    assert not again or cli.main(words) == 0


def test_an_export_without_room_names_the_place_that_it_writes_to(monkeypatch, capsys):
    def full(arguments, overrides):
        raise ValueError("in a library: No space left on device")

    monkeypatch.setattr(commands, "export", full)
    assert cli.main(["export", "--workdir=run", "--format=hf", "--out=there"]) == 74
    assert "a file in there cannot be written: No space left on device" in capsys.readouterr().err


def caused(error, *causes):
    for cause in causes:
        try:
            raise error from cause
        except Exception as whole:
            error = whole
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (FULL, "/disk/file cannot be written: No space left", 74),
        (OSError(errno.EROFS, "Read-only file system"), "a file in run cannot be written: Read-only file system", 74),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "x cannot be written: Disk quota exceeded", 74),
        (caused(ValueError("in a library"), FULL), "/disk/file cannot be written", 74),
        (caused(InputError("the directory cannot be used"), FULL), "/disk/file cannot be written", 74),
        (
            ValueError("many\nError writing [OS error 28: ENOSPC No space left on device]\nlines"),
            "a file in run cannot be written: No space",
            74,
        ),
        (
            ValueError('local file "/disk/f": [OS error 30: EROFS]'),
            "/disk/f cannot be written: Read-only file system",
            74,
        ),
        (OSError(errno.EACCES, "Permission denied", "/x"), "/x cannot be used: Permission denied; put that right", 74),
        (MachineError("full"), "full", 74),
        (InputError("a\nb"), "a b", 2),
        (caused(InputError("no such file"), FileNotFoundError(errno.ENOENT, "none", "x")), "no such file", 2),
        (MemoryError(), "out of memory", 74),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes"), "smaller config.batch", 74),
    ],
)
def test_whatever_wraps_what_the_machine_said_it_is_found(error, line, code):
    found, number = refusal(error, "a file in run")
    assert line in found and "\n" not in found and number == code


def test_a_fault_of_ours_keeps_its_traceback():
    assert refusal(TypeError("'NoneType' object is not callable")) is None
    assert refusal(caused(KeyError("x"), ValueError("y"))) is None
