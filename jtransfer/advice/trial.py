"""The trial of an advice: at how many labels of each class, with how many steps, and how long it will take.

A trial is a curve whose test rows are training rows that were held out. It has as many labels as there are, and where
time allows a quarter of them too, so that one sees where the methods are heading.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from jtransfer import files, models, starts
from jtransfer.config import curve_defaults
from jtransfer.curves import run as curves
from jtransfer.curves import trained
from jtransfer.curves.arms import Arm, family
from jtransfer.curves.raw import RAW
from jtransfer.data.dataset import Dataset
from jtransfer.train import costs

APART = 4
"""How many times the labels of the smaller count the larger one has."""
BOTH = 8
"""Labels of each class from which on there is a smaller count."""
ENOUGH_STEPS, EPOCHS, MOST_STEPS = 300, 5, 2000
"""A trial has 300 steps, or as many as go 5 times through the rows of the largest count: a rule of thumb that is not
relied on, as half as many steps are tried too: on one set of drawings a solved head led finetuning by 2.8 points after
50 steps of it, and by 0.2 after 300."""
FEW_STEPS, LEAST_STEPS = 150, 50
"""Where there is no time for 150 steps, the smaller count is left out; but there are never fewer than 50."""
MEMORY = 4 << 30
"""Bytes that the trials which run side by side may take, where `config.parallel` leaves their number open."""
OF_A_PARAMETER = 16
"""Bytes of a parameter that learns: itself, its gradient and the two moments of AdamW."""


class Work(NamedTuple):
    """What a trial computes.

    Attributes:
        flops: Floating-point operations that do not depend on the number of steps, of all methods.
        flops_per_step: Those of each further step of the methods whose steps are open.
    """

    flops: float
    flops_per_step: float


@dataclass(frozen=True, eq=False)
class Trial:
    """A trial with everything checked and nothing compiled.

    Attributes:
        curve: All methods, at one or two numbers of shots.
        half: The networks that are trained, with half as many steps, at the most shots; None where there are none.
        seconds: How long both will take, without compiling; nan where that was not estimated.
        speed: The floating-point operations in a second that `seconds` counts on.
    """

    curve: curves.Curve
    half: curves.Curve | None = None
    seconds: float = float("nan")
    speed: float = float("nan")

    @property
    def most(self) -> int:
        """The largest number of shots."""
        return max(self.curve.config.shots)

    def __str__(self) -> str:
        """The estimate in a line."""
        config, names = self.curve.config, [arm.name for arm in self.curve.arms]
        also = f"; with half the steps {', '.join(arm.name for arm in self.half.arms)}" if self.half else ""
        steps = {sum(arm.plan.steps) for arm in self.curve.arms if arm.how == "trained"}
        shots, steps = " and ".join(map(str, config.shots)), " or ".join(map(str, sorted(steps)))
        return (
            f"trial: {len(names)} methods, {config.seeds} seeds, at {shots} labels of each class, {steps} steps of "
            f"{config.batch}{also}: about {_duration(self.seconds)} at the {self.speed / 1e9:,.0f} GFLOP/s of the "
            "backbone's forward pass here, compiling not counted"
        )


def config_of(config: Any, names: Sequence[str], shots: Sequence[int], steps: int) -> ConfigDict:
    """The config of the curve that is a trial.

    Args:
        config: Of `jtransfer advise`.
        names: The methods.
        shots: Labels of each class.
        steps: Of the methods that `config.hyper` gives none.
    """
    own = {key: config[key] for key in curve_defaults()}
    return ConfigDict(own | {"methods": tuple(names), "shots": tuple(shots), "steps": steps})


def begun(config: Any, directory: epath.Path) -> tuple[tuple[int, ...], int]:
    """Shots and steps of a trial: those of the config; where it leaves them open, those that a directory began with.

    Returns:
        Shots, empty where they are open, and steps, 0 where they are.

    Raises:
        Damaged: the directory's `config.json` is not as it was written.
    """
    shots, steps = tuple(config.shots), config.steps
    if (directory / "config.json").exists():
        _, before = files.read_record(directory / "config.json", "choose another --workdir, or remove it")
        shots, steps = shots or tuple(before.get("shots", ())), steps or before.get("steps", 0)
    return shots, steps


def enough(shots: int, classes: int, batch: int) -> int:
    """Steps that are enough for so many labels of each class."""
    return min(max(ENOUGH_STEPS, -(-EPOCHS * shots * classes // batch)), MOST_STEPS)


def sized(trial: Trial, config: Any, dataset: Dataset, directory: epath.Path) -> Trial:
    """A trial whose shots and steps, where the config and the directory leave them open, take `config.minutes`.

    Args:
        trial: With as many shots and steps as are good.
        config: Of `jtransfer advise`.
        dataset: Of the trial.
        directory: Of the trial; what it began with goes on.

    Returns:
        The trial, of two numbers of shots if there is time for `FEW_STEPS` steps of each, else of the larger alone; and
        an estimate of its time. Methods are counted by their FLOPs, at the speed of a forward pass of the backbone.
    """
    (shots, steps), first = begun(config, directory), trial.curve
    speed, most = _speed(first), trial.most
    good = enough(most, dataset.outputs, config.batch)
    for some in [shots] if shots else [first.config.shots[-2:], first.config.shots[-1:]]:
        work = _work(first, some)
        affordable = int((60 * config.minutes * speed - work.flops) / max(work.flops_per_step, 1))
        if steps or affordable >= FEW_STEPS:
            break
    steps = steps or min(good, max(affordable, LEAST_STEPS))
    curve = first
    if (tuple(some), steps) != (tuple(first.config.shots), first.config.steps):
        curve = curves.prepare(config_of(first.config, first.config.methods, some, steps), dataset)
    half = _half(curve, dataset)
    seconds = (work.flops + work.flops_per_step * steps) / speed
    return Trial(_side_by_side(curve), half and _side_by_side(half), seconds, speed)


def _half(curve: curves.Curve, dataset: Dataset) -> curves.Curve | None:
    """The networks that are trained, with half as many steps."""
    hyper, names = dict(curve.config.hyper.to_dict()), []
    for arm in curve.arms:
        if not _may_starve(arm) or (steps := sum(arm.plan.steps)) < 2:
            continue
        own = dict(hyper.get(arm.name) or hyper.get(family(arm.name)) or hyper["default"])
        if not own.get("phase_steps"):
            names.append(arm.name)
            hyper[arm.name] = own | {"steps": steps // 2}
    if not names:
        return None
    config = ConfigDict(curve.config.to_dict() | {"methods": tuple(names), "shots": (max(curve.config.shots),)})
    config.hyper = ConfigDict(hyper)
    return curves.prepare(config, dataset)


def _may_starve(arm: Arm) -> bool:
    return arm.how == "trained" and arm.name not in RAW.values()


def _side_by_side(curve: curves.Curve) -> curves.Curve:
    """The curve with as many trials side by side as `MEMORY` takes, if the config does not say how many."""
    learning = max((arm.trainable * len(arm.grid) * curve.config.seeds for arm in _trained(curve.arms)), default=0)
    if curve.config.parallel or learning * OF_A_PARAMETER <= MEMORY:
        return curve
    largest = max(arm.trainable for arm in _trained(curve.arms))
    many = max(1, MEMORY // (OF_A_PARAMETER * largest))
    arms = [replace(arm, parallel=many) if arm.how == "trained" else arm for arm in curve.arms]
    return replace(curve, arms=arms)


def _trained(arms: Sequence[Arm]) -> list[trained.Trained]:
    return [arm for arm in arms if arm.how == "trained"]


def _work(curve: curves.Curve, shots: Sequence[int]) -> Work:
    """What a trial at so many shots computes; steps that are those of the curve are open."""
    examples, config = curve.examples, curve.config
    forward = _forward_flops(curve)
    flops, flops_per_step = forward * len(examples.rows), 0.0
    for arm in _trained(curve.arms):
        steps, trials = sum(arm.plan.steps), config.seeds * len(arm.grid)
        tested = (
            (arm.name not in RAW.values()) * forward * (trials * examples.most[1] + config.seeds * len(examples.test))
        )
        flops += len(shots) * tested
        of_a_step = arm.flops_per_step() * trials
        rounds = len(shots) + 0.5 * _may_starve(arm)
        if steps == config.steps:
            flops_per_step += of_a_step * rounds
        else:
            flops += of_a_step * rounds * steps
    return Work(flops, flops_per_step)


def _tower(curve):
    return starts.tower_for(curve.backbone, curve.dataset)


def _forward_flops(curve):
    """Of one row."""
    tower = _tower(curve)
    return costs.forward_flops(tower.model, tower.params | tower.state, curve.examples.shapes(1))


def _speed(curve: curves.Curve, times: int = 3) -> float:
    """FLOP a second of the backbone's forward pass on a batch, the fastest of a few."""
    tower, rows = _tower(curve), curve.examples.rows[: max(32, curve.config.batch)]
    inputs = {name: jnp.asarray(x) for name, x in curve.examples.prepare(curve.dataset.inputs[rows]).items()}
    forward = jax.jit(lambda tree, inputs: models.apply(tower.model, tree, inputs)["features"])
    tree, seconds = tower.params | tower.state, []
    for _ in range(times + 1):
        started = time.perf_counter()
        forward(tree, inputs).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return _forward_flops(curve) * len(rows) / min(seconds[1:])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
