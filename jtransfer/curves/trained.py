"""The arms of a curve that train by steps: every seed and hyper-parameter of a cell in one program."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import checkpoints, methods
from jtransfer.checkpoints.headed import headed
from jtransfer.curves import fitted, raw
from jtransfer.curves.arms import Arm, Cell, Examples, Training, family
from jtransfer.data.subsets import batches
from jtransfer.methods.statistics import moving
from jtransfer.models.layers import platform
from jtransfer.objectives import Objective, make_loss
from jtransfer.objectives.objective import Loss
from jtransfer.starts import teachers
from jtransfer.storage.cells import ResultRow, value
from jtransfer.train import Optimiser, Plan, TrialData, costs, cut, make_trial, plan, predict_rows
from jtransfer.train.by_names import EMBEDS, ClassNames
from jtransfer.tree import Tree, partition, size

SEARCHED = ("rate", "decay")


@dataclass(frozen=True)
class Recipe:
    """How a curve trains its methods.

    Attributes:
        optimiser: Options of the optimiser, which `hyper` overrides.
        steps: Number of steps of each trial, which `hyper` overrides.
        batch: Number of examples in a step.
        hyper: By method, family of methods or "default": lists of the rates and decays that are searched, the number of
            steps, and the steps and rates of the phases.
        parallel: The most trials that run side by side; 0 for all.
        cache: MiB that what frozen layers make of all examples may take; 0 where it is computed in every step.
    """

    optimiser: Optimiser
    steps: int
    batch: int
    hyper: Mapping[str, Mapping[str, Any]]
    parallel: int = 0
    cache: int = 0


@dataclass(frozen=True, eq=False)
class Trained(Arm):
    """A method that is trained by steps.

    Attributes:
        name: Name of the method, as the config writes it.
        examples: The examples that it learns from.
        adapted: The model under the method.
        objective: What it learns.
        optimiser: Options of the optimiser.
        plan: Steps and rates of the phases, in each trial.
        grid: Every combination of the hyper-parameters that are searched.
        batch: Number of examples in a step.
        solved: Solves for the head of each seed before the first step; empty where heads start as the model says.
        parallel: The most trials that run side by side in the program, while the others wait; 0 for all.
        merge: That of the method.
        backbone: Of `adapted`, whose features fitted arms read too.
        cache: MiB that what frozen layers make of all examples may take; 0 where it is computed in every step.
    """

    name: str
    examples: Examples
    adapted: methods.Adapted
    objective: Objective
    optimiser: Optimiser
    plan: Plan
    grid: list[dict[str, float]]
    batch: int
    solved: tuple[fitted.Fitted, ...] = ()
    parallel: int = 0
    merge: Callable[[Tree], Tree] | None = dict
    backbone: checkpoints.Backbone | None = None
    cache: int = 0

    how = "trained"

    def compile(self, seeds: int) -> Cell:
        """Compile a cell into one program: the trials of all seeds and hyper-parameters, and the test of the best."""
        adapted, examples, many = self.running, self.examples, self.parallel
        trial = make_trial(adapted, self.objective, self.optimiser, self.plan, examples.metric, self.losses)
        test, source = examples.places(examples.test), self._source
        given = adapted.base | (examples.source.told(adapted) if adapted.told else {})
        held_out = source.held_out if source else ()
        given_parts = examples.on_device | {"inputs": examples.on_device["inputs"] | self._activations()}
        seeds_at_once = max(1, many // len(self.grid)) if many else 0

        def best(key, grid, base, parts, data, held_out):
            """All hyper-parameters of one seed: which is best on validation, how it fares there, and on test rows."""
            results = _over(lambda hyper: trial(key, hyper, base, parts, data), grid, many)
            score = results.score.max()
            chosen = jnp.where(results.score == score, results.loss, jnp.inf).argmin()
            learned, state = jax.tree.map(lambda leaf: leaf[chosen], (results.trainable, results.state))
            tree, _ = adapted.start(jax.random.split(key)[0], base)
            logits = predict_rows(adapted, tree | learned, state, parts["inputs"], test)
            measured = examples.measured(logits, parts["labels"][test])
            after = source.accuracy(self.adapted.model, tree | learned | state, held_out) if source else ()
            return chosen, score, measured, jnp.isfinite(score) & jnp.isfinite(logits).all(), after

        @jax.jit
        def program(keys, grid, base, heads, parts, data, held_out):
            own = keys, data, heads
            return _over(lambda one: best(one[0], grid, base | one[2], parts, one[1], held_out), own, seeds_at_once)

        def arguments(shots, seeds):
            data = [self._trial_data(shots, seed) for seed in seeds]
            keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), shots) for seed in seeds])
            data = TrialData(*map(np.stack, zip(*data, strict=True)))
            return keys, grid, given, self._heads(shots, list(seeds)), given_parts, data, held_out

        grid = {key: jnp.array([point[key] for point in self.grid], jnp.float32) for key in self.grid[0]}
        compiled = {seeds: program.lower(*arguments(min(examples.shots), range(seeds))).compile()}
        costs_of_all = self.trainable, self.flops_per_step()

        def cell(shots, seeds):
            call = arguments(shots, seeds)
            if len(seeds) not in compiled:  # where some seeds are done already, a cell has fewer
                compiled[len(seeds)] = program.lower(*call).compile()
            started = time.perf_counter()
            chosen, score, measured, finite, after = jax.device_get(compiled[len(seeds)](*call))
            seconds = (time.perf_counter() - started) / (len(seeds) * len(self.grid))
            sign = 1 if examples.metric.higher else -1
            afters = [float(after[i]) if source else None for i in range(len(seeds))]
            return [
                self.row(
                    *(shots, seed, self.grid[chosen[i]], sign * float(score[i]), measured[i], *costs_of_all, seconds),
                    after=afters[i],
                )
                if finite[i]
                else self.row(shots, seed, {}, None, None, *costs_of_all, seconds)
                for i, seed in enumerate(seeds)
            ]

        return cell

    def about(self, rows: list[ResultRow]) -> list[str]:
        """Sentences on how the method was trained, what was searched, how often an edge was best, and what diverged."""
        said = diverged(self.name, rows)
        rows = [row for row in rows if row["hyper"]]
        searched = {key: sorted({point[key] for point in self.grid}) for key in self.grid[0]}
        grid = "; ".join(f"{key} of {', '.join(f'{v:g}' for v in values)}" for key, values in searched.items())
        edges = {
            key: sum(row["hyper"][key] in (values[0], values[-1]) for row in rows)
            for key, values in searched.items()
            if len(values) > 1
        }
        edge = "".join(f"; {key} at an edge in {n} of {len(rows)}" for key, n in edges.items())
        steps = " + ".join(map(str, self.plan.steps))
        before = "".join(
            f"the head starts {'at the optimum of' if one.fit.least else 'from'} {one.fit.how}; " for one in self.solved
        )
        how = f"{before}{steps} steps of {self.batch}, {self.optimiser.name}, {self.optimiser.shown_schedules}"
        return [*said, f"{self.name}: {how}, {grid}{edge}{self._statistics()}."]

    def _statistics(self) -> str:
        """How many batch normalisations move their running statistics; empty for a model without any."""
        if not self.adapted.state:
            return ""
        norms = {path.rpartition("/")[0] for path in self.adapted.state}
        moved = {path.rpartition("/")[0] for phase in self.adapted.phases for path in moving(phase)}
        return f"; batch statistics of {len(moved) or 'none'} of {len(norms)} norms move"

    def phases(self) -> list[methods.Adapted]:
        """The model under the method in each phase."""
        return list(self.adapted.phases)

    def training(self) -> list[Training]:
        """The phases of the method, each with its step."""
        named = methods.named_phases(self.name, self.adapted)
        steps = self._steps()
        return [Training(name, phase, step, self.merge) for (name, phase), step in zip(named, steps, strict=True)]

    @property
    def trainable(self) -> int:
        """Number of parameters that learn, in any phase."""
        return size(partition(self.adapted.shapes, self.adapted.rates)[0])

    def flops_per_step(self) -> float:
        """FLOPs of one step; of a method with phases, the mean over all steps of a trial."""
        return costs.flops_per_step(self._steps(), self.plan)

    @cached_property
    def cuts(self) -> list[cut.Cut | None]:
        """Where the model of each phase is cut, as what lies before fits into the cache; None for nowhere."""
        if not self.cache:
            return [None] * len(self.adapted.phases)
        found = cut.cuts(self.adapted, self.objective, self.examples.parts)
        return cut.fitting(found, len(self.examples.rows), self.cache, self.name)

    @cached_property
    def running(self) -> methods.Adapted:
        """The model under the method as trials run it, behind what is computed once."""
        return cut.behind(self.adapted, self.cuts)

    def _activations(self):
        """What frozen layers make of all examples, by the place of each cut."""
        return {
            one.place: self.examples.activations(self.backbone, phase, one)
            for phase, one in zip(self.adapted.phases, self.cuts, strict=True)
            if one
        }

    @property
    def _source(self):
        """The source task, where the method starts from the backbone that knows it."""
        source = self.examples.source
        return source if source and source.backbone.params.keys() <= self.adapted.base.keys() else None

    @cached_property
    def losses(self) -> list[Loss]:
        """The loss of each phase: under `jit`, so that it is traced once, for the trials and for what they cost."""
        return [
            jax.jit(make_loss(phase.model, self.objective, phase.scores), inline=True) for phase in self.running.phases
        ]

    def _steps(self):
        options = self.objective, self.optimiser, self.batch
        # FLOPs are counted for the CPU, and another platform's trace has other kernels; of loops each turn counts.
        traced = platform() == "cpu" and not self.backbone.config.recurrent
        losses = self.losses if traced else [None] * len(self.losses)
        pairs = zip(self.running.phases, losses, strict=True)
        return [costs.step_shapes(phase, *options, parts=self.examples.parts, loss=loss) for phase, loss in pairs]

    def _heads(self, shots, seeds):
        """What is solved for, by path, `[seeds, ...]`."""
        found = [one.heads(shots, seeds) for one in self.solved]
        return {path: x for one in found for path, x in one.leaves.items()}

    def _trial_data(self, shots, seed):
        train, validation = self.examples.drawn(shots, seed)
        padded = self.examples.most[1]
        counts = np.arange(padded) < len(validation)
        order = batches(train, self.batch, sum(self.plan.steps), seed=(seed, shots))
        return TrialData(order, np.resize(validation, padded), counts.astype(np.float32))


def build(
    name: str,
    examples: Examples,
    backbone: checkpoints.Backbone,
    objective: Objective,
    recipe: Recipe,
    names: ClassNames | None = None,
) -> Trained:
    """The arm of a method that trains by steps.

    Args:
        name: The method, as the config writes it; "pixels" and "words" train a linear head on the inputs as they are,
            without the backbone.
        examples: The examples that it learns from.
        backbone: The backbone that it starts from.
        objective: What it learns.
        recipe: How it is trained.
        names: The names of the classes, and the backbone that reads them.

    Raises:
        InputError: hyper-parameters that cannot be searched, or a method or objective that does not fit the backbone.
    """
    hyper = dict(recipe.hyper.get(name) or recipe.hyper.get(family(name)) or recipe.hyper["default"])
    shares = hyper.pop("phase_steps", ()), hyper.pop("phase_rates", ())
    steps = hyper.pop("steps", sum(shares[0]) or recipe.steps)
    values = {key: tuple(hyper.get(key, (getattr(recipe.optimiser, key),))) for key in SEARCHED}
    grid = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    if name in raw.RAW.values():
        backbone, method = raw.representation(name, examples, backbone), methods.probe()
    else:
        method = methods.parse(name)
    if method.names:
        backbone, objective = names.start(method, objective, examples.example, examples.most[0])
        if examples.source:
            examples = replace(examples, source=replace(examples.source, backbone=names.images))
    if method.binds:
        method = method.bound(teachers.given(examples.parts, backbone, examples.example))
    model, params, _ = headed(backbone, objective, examples.dataset.outputs)
    where = f"config.hyper['{name}']" if name in recipe.hyper else "config"
    phases = plan(len(method.phases), steps, *shares, where)
    adapted = methods.adapt(method, model, params, examples.example)
    read = (EMBEDS, names) if method.names else ()
    solved = tuple(fitted.of_fit(name, fit, examples, backbone, recipe.batch, *read) for fit in method.solves)
    arguments = name, examples, adapted, objective, recipe.optimiser, phases, grid, recipe.batch, solved
    return Trained(*arguments, recipe.parallel, method.merge, backbone, recipe.cache)


def diverged(name: str, rows: list[ResultRow]) -> list[str]:
    """A sentence on the seeds of a method that have no result, because none of their trials stayed finite.

    Args:
        name: The method.
        rows: The rows of the method.

    Returns:
        One sentence, or none where every seed has a result.
    """
    of_each: dict[int, int] = {}
    for row in rows:
        if value(row) is None:
            of_each[row["shots"]] = of_each.get(row["shots"], 0) + 1
    if not of_each:
        return []
    where = ", ".join(
        f"{count} of {sum(row['shots'] == shots for row in rows)} seeds at {shots} per class"
        for shots, count in of_each.items()
    )
    return [f"{name}: diverged at every hyper-parameter in {where}, which no mean counts."]


def _over(call: Callable, xs: Any, many: int) -> Any:
    """`call` on every row of `xs`, at most `many` side by side; 0 for all."""
    if 0 < many < len(jax.tree.leaves(xs)[0]):
        return jax.lax.map(call, xs, batch_size=many if many > 1 else None)
    return jax.vmap(call)(xs)
