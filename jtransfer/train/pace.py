"""How fast a training goes, where its time goes, and how long it will take."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
from etils import epath

INPUT, LEFT, MEMORY = "input_share", "seconds_left", "device_bytes"
"""What is measured beside the examples per second: the share of the time in which the loop waited for a batch, the
seconds that the steps to come will take, and the most bytes that a device of this process has held, where JAX tells."""


def of_time(name: str) -> bool:
    """Whether a value of a row of metrics tells of time or memory."""
    return name in (INPUT, LEFT, MEMORY) or name.endswith("s_per_second")


def untimed(row: Mapping[str, float]) -> dict[str, float]:
    """A row of metrics without what tells of time or memory: it is equal in equal runs."""
    return {name: value for name, value in row.items() if not of_time(name)}


def learned(path: epath.PathLike) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, `untimed`."""
    return [untimed(json.loads(line)) for line in epath.Path(path).read_text().splitlines()]


class Pace:
    """Clocks of a training. Steps that compile do not count, nor do evaluations.

    Args:
        kind: What the examples are called, as "image".
        examples: Examples of a step.
        steps: The last step.
    """

    def __init__(self, kind: str, examples: int, steps: int):
        self.kind, self.examples, self.steps = kind, examples, steps
        self._counted = self._all_steps = 0
        self._waited, self._since, self._first = 0.0, math.nan, math.nan

    def again(self) -> None:
        """Count from now on, as after a row, a step that compiled, or a way back."""
        self._counted, self._waited, self._since = 0, 0.0, time.perf_counter()
        self._first = self._since if math.isnan(self._first) else self._first

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds of a block as those in which the loop waits for a batch."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def step(self) -> None:
        """Count a step."""
        self._counted += 1
        self._all_steps += 1

    def read(self, number: int) -> dict[str, float]:
        """What was measured since `again`, by the names that rows of metrics have, after a step of this number.

        It is empty where no step was counted.
        """
        if not self._counted:
            return {}
        now = time.perf_counter()
        taken, each = now - self._since, (now - self._first) / self._all_steps
        found = {f"{self.kind}s_per_second": self._counted * self.examples / taken, INPUT: self._waited / taken}
        return found | {LEFT: each * (self.steps - number)} | _memory()


def _memory():
    told = [device.memory_stats() for device in jax.local_devices()]
    most = [one["peak_bytes_in_use"] for one in told if one and "peak_bytes_in_use" in one]
    return {MEMORY: max(most)} if most else {}
