"""How long each phase of a method lasts, and what is carried from one to the next."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import optax

from jtransfer.errors import InputError
from jtransfer.methods import Adapted
from jtransfer.train.state import EMA, TrainState
from jtransfer.tree import FROZEN, Tree, prefixed, select

KEPT = "kept/"
"""Prefix, in a checkpoint, of the paths of leaves that earlier phases trained and the present phase does not."""


class Plan(NamedTuple):
    """The phases of a run.

    Attributes:
        steps: Number of steps of each phase.
        factors: Factor on the rate of the optimiser in each phase.
    """

    steps: tuple[int, ...]
    factors: tuple[float, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of the last step of each phase; the first step of the run has number 1."""
        return tuple(accumulate(self.steps))

    def at(self, step: int) -> int:
        """The phase of a step, counted from 0; step 0, before the first step, belongs to the first phase."""
        return next(phase for phase, end in enumerate(self.ends) if step <= end)


def plan(
    phases: int, steps: int, each: Sequence[int] = (), factors: Sequence[float] = (), where: str = "config"
) -> Plan:
    """Share steps among phases.

    Args:
        phases: How many phases there are.
        steps: Number of steps of all phases together.
        each: Number of steps of each phase; empty for shares that are as even as possible, longer ones first.
        factors: Factor on the rate in each phase; empty for 1 in each.
        where: The section of the config that errors name, before `.steps`, `.phase_steps` and `.phase_rates`.

    Raises:
        InputError: fewer steps than phases; `each` or `factors` without one number for each phase; or an `each` that
            does not add up to `steps`.
    """
    for name, values in (("phase_steps", each), ("phase_rates", factors)):
        if values and len(values) != phases:
            raise InputError(f"{where}.{name} has {len(values)} numbers; expected {phases}, one for each phase")
    if each and sum(each) != steps:
        raise InputError(f"{where}.phase_steps add up to {sum(each)}; expected {where}.steps, which is {steps}")
    if steps < phases:
        raise InputError(f"{where}.steps is {steps}; expected at least {phases}, one for each phase of the method")
    shares = tuple(each) or tuple(steps // phases + (phase < steps % phases) for phase in range(phases))
    return Plan(shares, tuple(factors) or (1.0,) * phases)


def parts(adapted: Adapted, phase: int, tree: Tree) -> tuple[Tree, Tree, Tree]:
    """Split a tree into the leaves that learn in a phase, leaves that were found earlier, and all others.

    A leaf was found earlier if an earlier phase trained it or if it is of a head that was solved for, and it does not
    learn in this phase; and so were the leaves that the phase begins with, under `BEGAN`, where its method reads them.

    Args:
        adapted: The model under the method.
        phase: The phase, counted from 0.
        tree: All leaves of the model.
    """
    learned = {path for one in adapted.phases[:phase] for path, rate in one.rates.items() if rate != FROZEN}
    learned |= set(adapted.solved)
    rates = adapted.phases[phase].rates
    found: tuple[Tree, Tree, Tree] = {}, {}, {}
    for path, leaf in tree.items():
        found[0 if rates[path] != FROZEN else 1 if path in learned else 2][path] = leaf
    found[1].update(adapted.phases[phase].begun(found[0]))
    return found


def entered(
    adapted: Adapted, phase: int, state: TrainState, others: Tree, optimiser: optax.GradientTransformation
) -> tuple[TrainState, Tree, Tree]:
    """The state at the start of a phase, made of the state at the end of the phase before.

    A leaf that goes on learning keeps its moments and its moving average. A leaf that stops learning keeps the moving
    average as its value, where an average is kept, because the average is what was evaluated.

    Args:
        adapted: The model under the method.
        phase: The phase that starts, counted from 0.
        state: The state at the end of the phase before.
        others: All leaves that did not learn in the phase before.
        optimiser: The optimiser of the phase that starts.

    Returns:
        The state; the leaves that were found earlier and do not learn now, as `parts` has them; and all others.
    """
    before = adapted.phases[phase - 1]
    average = {path: x for path, x in before.ended(state.average, others).items() if path in select(state.state, EMA)}
    trainable, kept, frozen = parts(adapted, phase, before.ended(state.trainable, others))
    kept |= {path: leaf for path, leaf in average.items() if path in kept}
    own = {path: leaf for path, leaf in state.state.items() if not path.startswith(EMA)}
    own |= prefixed({path: average.get(path, leaf) for path, leaf in trainable.items()}, EMA) if average else {}
    moments = carried(optimiser.init(trainable), state.opt_state)
    return TrainState(state.step, trainable, own, moments, state.key), kept, frozen


MOMENTS = (
    *(optax.ScaleByAdamState, optax.TraceState, optax.FactoredState, optax.EmaState, optax.ScaleByRssState),
    optax.contrib.MuonState,
)
"""What optimisers keep of each leaf by its path, and how many steps it has learned."""


def carried(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """The state `new` of an optimiser, with the moments and step counts that the state `old` has of its leaves.

    A leaf that `old` does not have keeps what `new` has.
    """

    def is_moments(x):
        return isinstance(x, MOMENTS)

    def of(tree):
        return {path: leaf for path, leaf in tree.items() if not isinstance(leaf, optax.MaskedNode)}

    def moments(state):
        return {name: of(value) for name, value in state._asdict().items() if isinstance(value, Mapping)}

    before: dict[tuple[type, str], dict[str, Any]] = {}
    for state in filter(is_moments, jax.tree.leaves(old, is_leaf=is_moments)):
        for name, own in moments(state).items():
            before.setdefault((type(state), name), {}).update(own)
            counts = dict.fromkeys(own, getattr(state, "count", None))
            before.setdefault((type(state), "count"), {}).update(counts)

    def carry(state):
        if not is_moments(state):
            return state
        known = {name: before.get((type(state), name), {}) for name in state._fields}
        found = {}
        for name, own in moments(state).items():
            found[name] = getattr(state, name) | {path: known[name][path] for path in own if path in known[name]}
            if counts := [known["count"][path] for path in own if path in known["count"]] if "count" in known else []:
                found["count"] = counts[0]
        return state._replace(**found)

    return jax.tree.map(carry, new, is_leaf=is_moments)


def packed(state: TrainState, kept: Tree) -> TrainState:
    """A state as a checkpoint has it: with the leaves `kept`, which earlier phases found, under `KEPT`."""
    return state.replace(state=state.state | prefixed(kept, KEPT))


def unpacked(state: TrainState) -> tuple[TrainState, Tree]:
    """Split what `packed` gave into the state and the leaves that earlier phases found."""
    own = {path: leaf for path, leaf in state.state.items() if not path.startswith(KEPT)}
    return state.replace(state=own), select(state.state, KEPT)
