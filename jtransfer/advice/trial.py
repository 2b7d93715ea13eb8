"""The trial of an advice: at how many labels of each class, with how many steps, and how long it will take.

A trial is a curve whose test rows are training rows that were held out. It has as many labels as there are, and where
time allows a quarter of them too, so that one sees where the methods are heading.
"""

import time
from collections.abc import Mapping, Sequence
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
"""Where there is no time for 150 steps, the trial is made smaller; but there are never fewer than 50."""
SEEDS, LEAST_SEEDS = 5, 3
"""Seeds where `config.seeds` leaves their number open, and where there is little time."""
MEMORY = 4 << 30
"""Bytes that the trials which run side by side may take, where `config.parallel` leaves their number open."""
OF_A_PARAMETER = 16
"""Bytes of a parameter that learns: itself, its gradient and the two moments of AdamW."""


class Size(NamedTuple):
    """How large a trial is.

    Attributes:
        names: The methods.
        shots: Labels of each class, ascending.
        steps: Of the methods that `config.hyper` gives none.
        seeds: Draws of labels.
    """

    names: tuple[str, ...]
    shots: tuple[int, ...]
    steps: int
    seeds: int


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
        left_out: Methods for which there is no time.
    """

    curve: curves.Curve
    half: curves.Curve | None = None
    seconds: float = float("nan")
    speed: float = float("nan")
    left_out: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """The largest number of shots."""
        return max(self.curve.config.shots)

    def __str__(self) -> str:
        """The estimate in a line."""
        config, names = self.curve.config, [arm.name for arm in self.curve.arms]
        also = f"; with half the steps {', '.join(arm.name for arm in self.half.arms)}" if self.half else ""
        also += f"; left out for lack of time: {', '.join(self.left_out)}" if self.left_out else ""
        steps = {sum(arm.plan.steps) for arm in self.curve.arms if arm.how == "trained"}
        programs = sum(arm.how == "trained" for curve in (self.curve, self.half) if curve for arm in curve.arms)
        shots, steps = " and ".join(map(str, config.shots)), " or ".join(map(str, sorted(steps)))
        return (
            f"trial: {len(names)} methods, {config.seeds} seeds, at {shots} labels of each class, {steps} steps of "
            f"{config.batch}{also}: about {_duration(self.seconds)} at the {self.speed / 1e9:,.0f} GFLOP/s of the "
            f"backbone's forward pass here, not counting {programs} programs of training to compile"
        )


def config_of(config: Any, size: Size) -> ConfigDict:
    """The config of the curve that is a trial of a size, from that of `jtransfer advise`."""
    own = {key: config[key] for key in curve_defaults()} | {"source": "", "source_dir": ""}  # which no trial measures
    return ConfigDict(own | {"methods": size.names, "shots": size.shots, "steps": size.steps, "seeds": size.seeds})


def begun(size: Size, config: Any, directory: epath.Path, optional: Sequence[str]) -> Size | None:
    """The size that a trial began with in a directory, where the config leaves it open; None if none did.

    Args:
        size: Of a trial that has all that is good.
        config: Of `jtransfer advise`.
        directory: Of the trial.
        optional: Methods that may have been left out for lack of time.

    Raises:
        Damaged: the directory's `config.json` is not as it was written.
    """
    if not (directory / "config.json").exists():
        return None
    _, before = files.read_record(directory / "config.json", "choose another --workdir, or remove it")
    there = before.get("methods", ())
    return Size(
        tuple(name for name in size.names if name not in optional or name in there),
        tuple(config.shots or before.get("shots", size.shots)),
        config.steps or before.get("steps", size.steps),
        config.seeds or before.get("seeds", size.seeds),
    )


def enough(shots: int, classes: int, batch: int) -> int:
    """Steps that are enough for so many labels of each class."""
    return min(max(ENOUGH_STEPS, -(-EPOCHS * shots * classes // batch)), MOST_STEPS)


def good(config: Any, names: Sequence[str], most: int, classes: int) -> Size:
    """The size of a trial that has time enough.

    Args:
        config: Of `jtransfer advise`.
        names: The methods.
        most: The most labels of each class that can be drawn.
        classes: Number of classes.
    """
    shots = tuple(sorted(config.shots)) or ((most // APART, most) if most >= BOTH else (max(1, most),))
    steps = config.steps or enough(shots[-1], classes, config.batch)
    return Size(tuple(names), shots, steps, config.seeds or SEEDS)


def smaller(size: Size, config: Any, optional: Sequence[str]) -> list[Size]:
    """A size and ever smaller ones: of one count, of fewer seeds, without one or more methods; where these are open."""
    found = [size]
    if not config.shots:
        found.append(size._replace(shots=size.shots[-1:]))
    if not config.seeds:
        found.append(found[-1]._replace(seeds=LEAST_SEEDS))
    for name in optional:
        found.append(found[-1]._replace(names=tuple(kept for kept in found[-1].names if kept != name)))
    return list(dict.fromkeys(found))


def size_of(curve: curves.Curve) -> Size:
    """The size of a trial."""
    config = curve.config
    return Size(*(tuple(config[key]) for key in ("methods", "shots")), config.steps, config.seeds)


def sized(trial: Trial, config: Any, dataset: Dataset, directory: epath.Path, optional: Sequence[str]) -> Trial:
    """A trial of the size that it began with in a directory, or the largest for which there is time.

    Args:
        trial: Of the size that is good.
        config: Of `jtransfer advise`.
        dataset: Of the trial.
        directory: Of the trial.
        optional: Methods that may be left out, the first of them first.

    Returns:
        The trial with an estimate of its time, by FLOPs at the speed of a forward pass of the backbone. It is the first
        of `smaller` with time for its steps, or at least `FEW_STEPS`; or the last, with `LEAST_STEPS` or more.
    """
    first, speed, flops = trial.curve, _speed(trial.curve), _flops(trial.curve)
    whole = size_of(first)
    there = begun(whole, config, directory, optional)
    for size in [there] if there else smaller(whole, config, optional):
        work, needed = _work(first, flops, size), size.steps if config.steps else min(size.steps, FEW_STEPS)
        affordable = int((60 * config.minutes * speed - work.flops) / max(work.flops_per_step, 1))
        if affordable >= needed:
            break
    if not config.steps and not there:
        size = size._replace(steps=min(size.steps, max(affordable, LEAST_STEPS)))
    curve = first if size == whole else curves.prepare(config_of(first.config, size), dataset)
    half = _half(curve, dataset)
    seconds = (work.flops + work.flops_per_step * size.steps) / speed
    left_out = tuple(name for name in whole.names if name not in size.names)
    return Trial(_side_by_side(curve), half and _side_by_side(half), seconds, speed, left_out)


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


def _flops(curve: curves.Curve) -> dict[str, float]:
    """FLOPs of a step of each network that is trained."""
    return {arm.name: arm.flops_per_step() for arm in _trained(curve.arms)}


def _work(curve: curves.Curve, flops_of: Mapping[str, float], size: Size) -> Work:
    """What the trial of a curve computes at a size; steps that are those of the curve are open."""
    examples, forward = curve.examples, _forward_flops(curve)
    flops, flops_per_step = forward * len(examples.rows), 0.0
    for arm in _trained(curve.arms):
        if arm.name in size.names:
            steps, trials, half = sum(arm.plan.steps), size.seeds * len(arm.grid), _may_starve(arm)
            tested = trials * examples.most[1] + size.seeds * len(examples.test)
            flops += (len(size.shots) + half) * forward * tested * half  # inputs as they are cost nothing
            of_all = flops_of[arm.name] * trials * (len(size.shots) + 0.5 * half)
            if steps == curve.config.steps:
                flops_per_step += of_all
            else:
                flops += of_all * steps
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
