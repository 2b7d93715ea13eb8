"""How signals end a command: with one line, and in a training after the step that is under way, with its state saved.

SIGINT (Ctrl-C), SIGTERM (Slurm, Kubernetes and TPUs before they take a machine away) and SIGHUP (a terminal that is
closed) are one thing here.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

GRACE = 10.0
"""Seconds for a command to come out of what it does, such as a long compilation, before it is ended where it is."""

SAME = 0.5
"""Seconds within which a repeated signal is the first one: launchers send it to a process and to its group."""


class Stopped(KeyboardInterrupt):
    """A signal ended the work.

    Attributes:
        code: The exit code, as shells have it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
        agreed: Whether all processes of the run stop like this one, at the same step.
    """

    def __init__(self, number: int, where: str = "", agreed: bool = False):
        there = "there" if where else "here"
        super().__init__(f"stopped by {signal.Signals(number).name}{where}; the same command goes on from {there}")
        self.code, self.agreed = 128 + number, agreed


_ending = threading.Lock()
_waiting = threading.Event()
"""Set while a signal is answered after a step: saving takes the time it takes."""
_seen: list[int] = []
"""The first signal, once there is one."""
_noted: list[int] = []
"""The first signal that was noted in the last block of `after_a_step`."""


def guard() -> None:
    """Answer signals in this process from now on; call it first in a program's main thread.

    The first signal raises `Stopped`, or ends the process at once while something is imported, which would not
    survive it. A second Ctrl-C ends the process wherever it is, and so do `GRACE` seconds.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, writer), daemon=True).start()
    sys.unraisablehook = _unraisable
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _raise)


def first() -> int | None:
    """The number of the first signal that this process was sent; None before any."""
    return _seen[0] if _seen else None


def noted() -> int | None:
    """The number of the first signal in the last training of this process; None where there was none.

    One that comes in the last step ends nothing, as nothing is left to do: what would follow it has to ask.
    """
    return _noted[0] if _noted else None


def forget() -> None:
    """Forget signals that were noted before."""
    _noted.clear()


def done() -> None:
    """Ignore signals from now on: the work is done, and one of them would end Python without a word."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def after_a_step() -> Iterator[Callable[[], int]]:
    """Give a function that tells the first signal within this block, or 0.

    From its first call on, a signal is only noted. Before that call, and at another Ctrl-C, it raises `Stopped`.
    Outside of the main thread, which alone gets signals, the answer is 0.
    """
    times = []

    def note(number, frame):
        if (times and number == signal.SIGINT and time.monotonic() - times[0] > SAME) or not _waiting.is_set():
            _raise(number, frame)
        _noted.append(number)
        times.append(time.monotonic())

    def asked() -> int:
        _waiting.set()
        return noted() or 0

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    forget()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield asked
    finally:
        if not _noted:  # else it is being answered
            _waiting.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def end(line: str, code: int) -> None:
    """End this process with a line on stderr, from whichever thread comes first, waiting for no other."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()
    flushing = threading.Thread(target=_flush, daemon=True)  # a full pipe must not keep it
    flushing.start()
    flushing.join(1)
    with suppress(OSError):  # of a terminal that is gone
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a bar hides the cursor
        if line:
            os.write(2, f"{line}\n".encode())
    os._exit(code)


def _flush():
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


_raised: list[int] = []


def _raise(number: int, frame: FrameType | None) -> None:
    if _raised and _seen:  # the way out is under way, and `_watch` sees what comes after it
        return
    _raised.append(number)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end_of(number)
        frame = frame.f_back
    raise Stopped(number)


def _unraisable(what):
    """A signal that came where Python lets no exception through, as in a finaliser."""
    if isinstance(what.exc_value, Stopped):
        _end_of(what.exc_value.code - 128)
    if str(what.exc_value) != "Event loop is closed":  # a late read of a damaged checkpoint, that Orbax has given up
        sys.__unraisablehook__(what)


def _end_of(number):
    stopped = Stopped(number)
    end(f"jtransfer: {stopped}", stopped.code)


def _watch(reader, writer):
    """See every signal when it comes, whatever the main thread is doing."""
    since = None
    while True:
        reader.settimeout(1.0 if since else None)
        try:
            number = reader.recv(1)[0]
        except TimeoutError:
            number = None
        now = time.monotonic()
        if number in SIGNALS and since is None:
            since = now
            _seen.append(number)
        elif number == signal.SIGINT and now - since > SAME:
            _end_of(_seen[0])
        if since and now - since > GRACE and not _waiting.is_set():
            _end_of(_seen[0])
