"""Which checkpoints of a run are kept: the newest, the best, and some of all others by time or by step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orbax.checkpoint as ocp


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept; a config has a section `keep` with these keys.

    Attributes:
        newest: How many of the newest.
        best: The metric of an evaluation by which one more is kept, the best; empty for none.
        every_hours: One more for each time so many hours have gone by, for good; 0 for none.
        every_steps: Those whose step is a multiple of it, for good; 0 for none.
    """

    newest: int = 2
    best: str = ""
    every_hours: float = 0.0
    every_steps: int = 0

    def policies(self) -> list[Any]:
        """Policies of Orbax, of which one is enough to keep a checkpoint; that of the best is not among them."""
        managers = ocp.checkpoint_managers
        found = [managers.LatestN(self.newest)]
        found += [managers.EveryNSeconds(self.every_hours * 3600)] if self.every_hours else []
        found += [managers.EveryNSteps(self.every_steps)] if self.every_steps else []
        return found


@dataclass(frozen=True)
class Highest:
    """A policy of Orbax that keeps the checkpoint of the highest score; of equal ones, the newest.

    Attributes:
        score: From a step to its score; None for a step that has none.
    """

    score: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of some checkpoints, that have a `step`, are kept."""
        best = self.of(one.step for one in checkpoints)
        return [one.step == best for one in checkpoints]

    def of(self, steps: Iterable[int]) -> int | None:
        """The step of the highest score; None where none has any."""
        scored = [(score, step) for step in steps if (score := self.score(step)) is not None]
        return max(scored, default=(None, None))[1]
