"""What becomes of a step whose loss is not finite or jumps: the run stops, leaves it out, or goes back and around it.

A config says it as a call: `stop`, `skip(limit=10)`, `rewind(spike=4)`. What is bad is found in the compiled step,
which then leaves the state of training as it was; the host learns of it when it reads the metrics for a row.
`optax.apply_if_finite` guards the optimiser alone: batch statistics and moving averages would take the NaN in, and it
knows no spikes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import expressions
from jtransfer.data.streams import Cursor
from jtransfer.errors import InputError
from jtransfer.kinds import either, number, whole
from jtransfer.train.state import TrainState
from jtransfer.train.step import Step
from jtransfer.tree import Tree

log = logging.getLogger("jtransfer")

WATCHED = ("temperature", "loss", "grad_norm")
"""Metrics that make a step bad when they are not finite, as the loss of each task does; the first is named."""

GUARD = "guard/"
"""Prefix, in the state of training, of what tells spikes: the running mean, its steps, and bad steps in a row."""
IN_A_ROW = "bad_in_a_row"
"""Metric of a guarded step: how many bad steps have come one after another with it; 0 where it is none."""

DECAY, WARM = 0.99, 20
"""Of the running mean of the loss over good steps, and how many of these come before a spike can be told."""

Spike = Annotated[float, either(number(least=0, most=0), number(above=1))]


class Diverged(InputError):
    """A loss, the norm of the gradient or the temperature of a contrastive loss became NaN or infinite, or jumped."""


class Rewind(Exception):
    """A run has to go back before a bad step.

    Attributes:
        step: The bad step.
        cursor: Where the data go on behind its batch.
        why: What was bad.
    """

    def __init__(self, step: int, cursor: Cursor, why: str):
        super().__init__(why)
        self.step, self.cursor, self.why = step, cursor, why


@dataclass(frozen=True)
class OnBad:
    """What becomes of bad steps.

    Attributes:
        does: "stop", "skip" or "rewind".
        limit: How many bad steps in a row end the run; of "rewind", how many times it may go back.
        spike: A loss above so many times its running mean is bad too; 0 for none.
    """

    does: str = "stop"
    limit: int = 0
    spike: float = 0.0

    @property
    def guards(self) -> bool:
        """Whether the compiled step looks at its loss; where it does not, it is the plain one."""
        return self.does != "stop" or self.spike > 0


def stop(spike: Spike = 0.0) -> OnBad:
    """End the run; the newest checkpoint is kept."""
    return OnBad("stop", 0, spike)


def skip(limit: Annotated[int, whole(1)] = 10, spike: Spike = 0.0) -> OnBad:
    """Leave the step out: the state stays as it was, but for the number of the step. `limit` in a row end the run."""
    return OnBad("skip", limit, spike)


def rewind(limit: Annotated[int, whole(1)] = 5, spike: Spike = 0.0) -> OnBad:
    """Go back to the newest checkpoint and on with the data behind the bad batch, at most `limit` times.

    The batches between are not read again (Chowdhery et al. 2022, PaLM, section 5.1).
    """
    return OnBad("rewind", limit, spike)


CHOICES = {"stop": stop, "skip": skip, "rewind": rewind}


def parse(text: str) -> OnBad:
    """What a config's `on_bad_step` stands for, as `skip(limit=3, spike=4)`.

    Raises:
        InputError: none of `CHOICES`, or other options than these have.
    """
    return expressions.call(expressions.parse(text, "on_bad_step"), text, "on_bad_step", CHOICES)()


def fresh(on_bad: OnBad) -> Tree:
    """What a guarded step adds to the state of training before the first step; empty where no step is guarded."""
    if not on_bad.guards:
        return {}
    return {f"{GUARD}mean": jnp.float32(0), f"{GUARD}good": jnp.int32(0), f"{GUARD}in_a_row": jnp.int32(0)}


def guarded(step: Step, spike: float) -> Step:
    """A step that leaves the state as it was, but for its number, where what it found is bad.

    Args:
        step: From `make_step`.
        spike: A loss above so many times its running mean is bad; 0 for losses and gradients that are not finite alone.

    Returns:
        The step. Its state has `fresh` leaves, and its metrics `IN_A_ROW`.
    """

    def call(before: TrainState, frozen: Tree, batch: Any):
        own = {path: leaf for path, leaf in before.state.items() if path.startswith(GUARD)}
        before = before.replace(state={path: leaf for path, leaf in before.state.items() if path not in own})
        after, metrics = step(before, frozen, batch)
        mean, good, in_a_row = (own[f"{GUARD}{name}"] for name in ("mean", "good", "in_a_row"))
        fine = jnp.all(jnp.stack([jnp.isfinite(metrics[name]) for name in _watched(metrics)]))
        loss = sum(metrics[name] for name in _losses(metrics)).astype(jnp.float32)
        if spike:
            usual = mean / (1 - DECAY ** jnp.maximum(good, 1).astype(jnp.float32))
            fine &= (good < WARM) | (loss <= spike * usual)
        kept = jax.tree.map(
            lambda new, old: jnp.where(fine, new, old),
            (after.trainable, after.state, after.opt_state),
            (before.trainable, before.state, before.opt_state),
        )
        in_a_row = jnp.where(fine, 0, in_a_row + 1)
        own = {
            f"{GUARD}mean": jnp.where(fine, DECAY * mean + (1 - DECAY) * loss, mean),
            f"{GUARD}good": good + fine.astype(jnp.int32),
            f"{GUARD}in_a_row": in_a_row,
        }
        after = after.replace(trainable=kept[0], state=kept[1] | own, opt_state=kept[2])
        return after, metrics | {IN_A_ROW: in_a_row}

    return call


def _watched(metrics):
    return [name for name in metrics if name in WATCHED or name.endswith("_loss")]


def _losses(metrics):
    return ["loss"] if "loss" in metrics else [name for name in metrics if name.endswith("_loss")]


class BadSteps:
    """What the host makes of bad steps when it reads the metrics.

    Attributes:
        on_bad: What becomes of bad steps.
        events: What became of each, in the order in which they came: a checkpoint keeps them.
        checked: The last step whose metrics were read.
    """

    def __init__(self, on_bad: OnBad, events: list[dict[str, Any]], checked: int):
        self.on_bad, self.events, self.checked = on_bad, events, checked
        self.cursors: dict[int, Cursor] = {}

    def saw(self, step: int, cursor: Cursor) -> None:
        """Note where the data go on behind the batch of a step."""
        if self.on_bad.does == "rewind":
            self.cursors[step] = cursor

    def read(self, last: int, pending: list[Mapping[str, Any]], kept: str) -> list[dict[str, float]]:
        """The metrics of the steps up to `last` as numbers; those of a step that was left out are empty.

        Args:
            last: The number of the last step.
            pending: The metrics of each step.
            kept: What is left of the run, for errors.

        Raises:
            Diverged: a step is bad, and the run is to stop, or the limit is reached.
            Rewind: a step is bad, and the run is to go back.
        """
        found = [{name: float(value) for name, value in one.items()} for one in jax.device_get(pending)]
        for step, metrics in enumerate(found, last - len(found) + 1):
            in_a_row = int(metrics.pop(IN_A_ROW, 0))
            why = _why(metrics, in_a_row, self.on_bad.spike)
            if why and step > self.checked:
                self._answer(step, why, in_a_row, kept)
                metrics.clear()
        self.checked = last
        self.cursors.clear()
        return found

    def _answer(self, step, why, in_a_row, kept):
        does, limit = self.on_bad.does, self.on_bad.limit
        if does == "rewind" and sum(one["event"] == "rewind" for one in self.events) < limit:
            raise Rewind(step, self.cursors[step], why)
        if does == "skip" and in_a_row < limit:
            self.note(step, why)
            log.warning("%s at step %d; the step is left out", why, step)
            return
        other = "" if self.on_bad.guards else ", or config.on_bad_step='skip'"
        many = {"stop": "", "skip": f"; it is the {limit}. in a row", "rewind": f"; the run went back {limit} times"}
        raise Diverged(f"{why} at step {step}{many[does]}; {kept}; try a lower config.optimiser.rate{other}")

    def note(self, step: int, why: str, **more: Any) -> None:
        """Note what became of a bad step."""
        self.events.append({"step": step, "event": self.on_bad.does, "why": why} | more)

    def back(self, rewind: Rewind, to: int) -> None:
        """Note that the run goes back to a step."""
        self.checked = to
        self.cursors.clear()
        self.note(rewind.step, rewind.why, to=to)
        log.warning(
            "%s at step %d; the run goes back to step %d, and on with the data behind it", rewind.why, rewind.step, to
        )


def _why(metrics, in_a_row, spike):
    bad = [name for name in [*WATCHED, *_watched(metrics)] if not np.isfinite(metrics.get(name, 0))]
    if bad:
        return f"{bad[0]} is {metrics[bad[0]]}"
    if in_a_row:
        loss = sum(metrics[name] for name in _losses(metrics))
        return f"loss is {loss:.4g}, above {spike:g} times its running mean"
    return ""
