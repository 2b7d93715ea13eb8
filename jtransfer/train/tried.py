"""A user's objective and terms, tried on shapes: what fails in them is told before anything compiles."""

import sys
from collections.abc import Collection, Iterable, Mapping
from functools import partial

import jax

from jtransfer import imports, models
from jtransfer.errors import InputError
from jtransfer.methods import Adapted
from jtransfer.objectives import Objective, make_loss
from jtransfer.optimiser import Optimiser
from jtransfer.train import costs


def check(
    phases: Iterable[Adapted],
    objective: Objective | Mapping[str, Objective],
    parts: Mapping[str, jax.ShapeDtypeStruct],
    modules: Collection[str],
    rows: int,
    measured: Collection[str] = (),
) -> None:
    """Trace losses and measures on shapes, if a module of the user's takes part; do nothing otherwise.

    Args:
        phases: The model under a method, in each of its phases.
        objective: What is learned; of several tasks, by name.
        parts: What a batch has beside `inputs`, as `costs.step_shapes` takes it.
        modules: Names of the user's modules that method and objective come from.
        rows: Examples of a batch, which the devices divide.
        measured: Entries that `measure` must have: a curve reads "loss".

    Raises:
        InputError: the user's code fails (the error names its file and line), a value has an unexpected shape, or
            `measure` lacks an entry.
    """
    files = [sys.modules[name].__file__ or "" for name in modules if name in sys.modules]
    if not files:
        return
    with imports.blaming("a method or objective of yours fails: file", files):
        for phase in phases:
            state, frozen, batch = costs.step_shapes(phase, objective, Optimiser(), rows, parts=parts).arguments
            params, key = state.trainable | frozen, jax.random.key(0)
            losses = make_loss(phase.model, objective, phase.scores)
            named = losses if isinstance(losses, Mapping) else {"": losses}
            for name, loss in named.items():
                value, _ = jax.eval_shape(loss, params, state.state, batch[name] if name else batch, key)
                _expect("the score", value, (), rows)
            for name, one in objective.items() if isinstance(objective, Mapping) else [("", objective)]:
                if one.measure:
                    measure, own = partial(_measured, phase.model, one), batch[name] if name else batch
                    found = jax.eval_shape(measure, params | state.state, own, key)
                    for of, value in found.items():
                        _expect(f"measure's '{of}'", value, (rows,), rows)
                    if missing := [of for of in measured if of not in found]:
                        there = ", ".join(map(repr, found)) or "nothing"
                        raise InputError(f"measure gives {there}; expected '{missing[0]}' of every example too")


def _measured(model, objective, tree, batch, key):
    if objective.targets:
        batch = objective.targets(key, batch)
    return objective.measure(models.apply(model, tree, batch["inputs"], train=False), batch)


def _expect(what, value, shape, rows):
    if value.shape != shape:
        expected = "one number" if not shape else "one number for each example"
        raise InputError(f"{what} has shape {list(value.shape)} for {rows} examples; expected {expected}")
