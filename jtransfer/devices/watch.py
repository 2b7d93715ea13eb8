"""Where each process of a training is: one that stands still is ended, with a line that says who waits for what.

A stalled reader, and a collective that not all processes come to, raise nothing: a training would wait for ever. The
loop says what it is about to do (`at`), a thread of each process tells process 0 every few seconds, and process 0 ends
the run when no process has gone on for the time that the user is ready to wait.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jtransfer import stopping
from jtransfer.errors import Gone

BEAT = 5.0
"""Seconds between two reports of a process."""

SILENCE = 30.0
"""Seconds without a report after which a process in the middle of a training is taken for dead, as after SIGSTOP."""

LONG = 4.0
"""How many times the patience the places in `LONG_PLACES` have."""

DATA, STEP, COMPILING, EVALUATION, SAVING = "data", "step", "compiling", "evaluation", "saving"
LONG_PLACES = COMPILING, EVALUATION, SAVING
DOES = {
    DATA: "waits for data",
    STEP: "does not come out of a step",
    COMPILING: "does not come out of a step that compiles",
    EVALUATION: "does not come out of an evaluation",
    SAVING: "does not come out of saving",
}
"""The places of a training, and what a process that stays there does."""


class Whereabouts(NamedTuple):
    """Where a process is.

    Attributes:
        what: A key of `DOES`; empty before and after the training.
        step: The number of the step.
        moves: How many places the process has been at.
    """

    what: str = ""
    step: int = 0
    moves: int = 0


_here = [Whereabouts()]


def at(what: str, step: int = 0) -> None:
    """Say where this process is from now on: a key of `DOES` and the number of the step, or "" for nowhere."""
    _here[0] = Whereabouts(what, step, _here[0].moves + 1)


@dataclass
class Seen:
    """What is known of a process. Seconds are counted in reports, so that a machine that slept has waited for nothing.

    Attributes:
        place: Where it was at its last report.
        still: Seconds for which it has been there.
        silent: Seconds since its last report.
    """

    place: Whereabouts
    still: float = 0.0
    silent: float = 0.0


class Lookout:
    """The places of all processes of a run, in the process that has it.

    Args:
        hosts: The name of the host of each process; one that is empty for a single process.
        patience: Seconds for which a training may stand still; 0 for ever.
    """

    def __init__(self, hosts: list[str], patience: float):
        self.hosts, self.patience = hosts, patience
        self.seen = {index: Seen(Whereabouts()) for index in range(len(hosts))}

    def heard(self, index: int, report: Any) -> None:
        """Take a report of a process: the fields of its `Whereabouts`.

        Raises:
            TypeError: it is no report.
        """
        place, before = Whereabouts(*report), self.seen[index]
        self.seen[index] = Seen(place, before.still if before.place == place else 0.0)

    def passes(self, seconds: float) -> None:
        """Let time pass for all processes."""
        for seen in self.seen.values():
            seen.still, seen.silent = seen.still + seconds, seen.silent + seconds

    def verdict(self) -> str:
        """Why the run has to end, in words; empty while it goes on."""
        for index, seen in self.seen.items():
            if seen.place.what and seen.silent > SILENCE:
                return (
                    f"{self._name(index)} has not answered for {seen.silent:.0f} s, at step {seen.place.step}; {AGAIN}"
                )
        if not self.patience or any(seen.still <= self._limit(seen.place) for seen in self.seen.values()):
            return ""
        waiting = {index: seen for index, seen in self.seen.items() if seen.place.what != STEP}
        waiting = waiting or self.seen  # all are in a collective; the one that is behind keeps the others
        first = min(seen.place.step for seen in waiting.values())
        named = {index: seen for index, seen in waiting.items() if seen.place.step == first}
        index, seen = next(iter(named.items()))
        who = "every process" if len(named) == len(self.hosts) > 1 else self._name(index)
        others = "" if len(named) == len(self.hosts) else ", and the others wait for it"
        return f"{who} {DOES[seen.place.what]} since {seen.still:.0f} s, at step {first}{others}; {AGAIN}"

    def _limit(self, place):
        if not place.what:
            return float("inf")
        return self.patience * (LONG if place.what in LONG_PLACES else 1)

    def _name(self, index):
        return f"process {index} on {self.hosts[index]}" if len(self.hosts) > 1 else "this process"


AGAIN = "the same command goes on from the newest checkpoint"


def alone(patience: float) -> Callable[[], None]:
    """Watch the only process of a run, and end it when it stands still; call what is returned when the run is over."""
    watch, over = Lookout([""], patience), threading.Event()

    def look():
        while not over.wait(BEAT):
            watch.passes(BEAT)
            watch.heard(0, _here[0])
            if line := watch.verdict():
                stopping.end(f"jtransfer: error: {line}", Gone.CODE)

    if patience:
        threading.Thread(target=look, daemon=True).start()
    return over.set


def together(
    watch: Lookout,
    index: int,
    say: Callable[[Mapping[str, Any]], None],
    is_over: Callable[[], bool],
    end: Callable[[str], None],
) -> None:
    """Report where this process is, and look after the others: process 0 after all, each other one after process 0.

    Args:
        watch: Which hears the reports of the others.
        index: The number of this process.
        say: Sends a message to the processes that are connected with this one.
        is_over: Whether nobody has to be looked after any more.
        end: Ends the run for a reason, in words.
    """

    def look():
        threading.Event().wait(BEAT)
        while not is_over():
            watch.passes(BEAT)
            watch.heard(index, here := _here[0])
            say({"at": list(here)})
            if line := watch.verdict():
                end(line)
            threading.Event().wait(BEAT)

    threading.Thread(target=look, daemon=True).start()
