"""Locks of directories: a file names the process that writes there, and a crash leaves nothing locked."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged, InputError

NAME = "lock.json"
BEAT = 10.0
"""Seconds between two signs of life."""
DEAD = 60.0
"""Seconds without one after which a holder on another machine is taken for dead."""
SETTLE = 0.2
"""Seconds in which two processes that take a lock at the same time see each other."""


@contextmanager
def held(directory: epath.Path) -> Iterator[Callable[[], None]]:
    """Hold a directory against every other process that asks, on this machine and on others.

    The lock is a file that names its holder and is written anew every `BEAT` seconds. A holder that was killed leaves
    the file behind: on the same machine its process is found to be gone at once; on another machine it is taken for
    dead after `DEAD` seconds without a sign of life. No clock is compared with another machine's.

    Args:
        directory: On a disk, or in an object store.

    Yields:
        A function that raises `InputError` if another process has taken the lock meanwhile, as after this machine
        slept. Call it before a write that must not mix with another process's.

    Raises:
        InputError: another process holds it; the error names the process, its machine and since when.
        MachineError: the file cannot be written.
    """
    path = directory / NAME
    me = {
        "machine": _machine(),
        "process": os.getpid(),
        "token": secrets.token_hex(8),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    _wait_for(path, directory)
    beats = 0

    def beat():
        nonlocal beats
        beats += 1
        files.write_record(path, me | {"beats": beats})

    def check():
        if (found := _read(path)) is not None and found.get("token") != me["token"]:
            raise _taken(directory, found)

    beat()
    time.sleep(SETTLE)
    check()
    stop = threading.Event()

    def live():
        while not stop.wait(BEAT):
            try:
                check()
                beat()
            except InputError:  # whoever writes next is told
                return
            except Exception:  # a full disk: the next beat may find room
                continue

    thread = threading.Thread(target=live, daemon=True, name="jtransfer-lock")
    thread.start()
    try:
        yield check
    finally:
        stop.set()
        thread.join()
        if (_read(path) or {}).get("token") == me["token"]:
            path.unlink(missing_ok=True)


def runs(process: int) -> bool:
    """Whether another process of this number runs on this machine; one that ended and was not waited for does not."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except PermissionError:  # there is one, of another user
        return True
    status = Path(f"/proc/{process}/stat")
    ended = status.exists() and status.read_text().rpartition(")")[2].split()[0] in "ZX"
    return process != os.getpid() and not ended


def _wait_for(path, directory):
    """Return when nobody holds the lock.

    Raises:
        InputError: somebody does.
    """
    first = _read(path)
    if first is None or not first or _is_gone(first, path):
        return
    if first.get("machine") == _machine():
        raise _taken(directory, first)
    until = time.monotonic() + DEAD
    while time.monotonic() < until:
        time.sleep(min(BEAT / 2, DEAD / 4))
        found = _read(path)
        if found is None or found.get("token") != first.get("token"):
            return _wait_for(path, directory)
        if found.get("beats") != first.get("beats"):
            raise _taken(directory, found)
    return None


def _read(path):
    """The holder; empty where the file does not tell, as after a crash of the disk; None where there is none."""
    if not files.exists(path):
        return None
    try:
        version, holder = files.read_record(path, "")
    except Damaged:
        return {}
    return holder if version > 1 else {}


def _is_gone(holder, path):
    """Whether a holder on this machine ended, or its number is another program's by now."""
    if holder.get("machine") != _machine():
        return False
    return not runs(holder.get("process")) or time.time() - path.stat().mtime > DEAD


def _taken(directory, holder):
    return InputError(
        f"workdir {directory} is in use: process {holder.get('process')} on {str(holder.get('machine')).split(' ')[0]} "
        f"has held it since {holder.get('since')}; wait for it, stop it, or choose another --workdir"
    )


def _machine():
    """The name of this machine, and what tells it from another of that name, or from its container's neighbours."""
    boot = epath.Path("/proc/sys/kernel/random/boot_id")
    namespace = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return " ".join([socket.gethostname(), boot.read_text().strip() if boot.exists() else "", namespace]).strip()
