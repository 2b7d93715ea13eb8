"""A trial is a pure function: a whole run from a key, hyper-parameters and data to a result.

The loop over steps is one `lax.scan`, so `vmap` runs seeds and hyper-parameters side by side in one program, over one
copy of the frozen weights: a leaf that no trial changes is never batched.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import models
from jtransfer.data.coded import take
from jtransfer.methods import Adapted
from jtransfer.methods.endings import now
from jtransfer.objectives import Objective, make_loss
from jtransfer.objectives.metrics import METRICS, Metric
from jtransfer.objectives.objective import Loss
from jtransfer.optimiser import Optimiser
from jtransfer.train.phases import Plan, entered
from jtransfer.train.state import TrainState
from jtransfer.train.step import make_step
from jtransfer.tree import FROZEN, Tree, merge, partition

BLOCK = 256
"""Rows that are predicted at once."""


class TrialData(NamedTuple):
    """The rows of one dataset that a trial uses.

    Attributes:
        batches: Rows of each training step, `[steps, batch]`.
        validation: Rows to choose hyper-parameters on, `[n]`, perhaps padded.
        counts: 1 for a row of `validation` that counts and 0 for padding, `[n]`.
    """

    batches: jax.Array
    validation: jax.Array
    counts: jax.Array


class TrialResult(NamedTuple):
    """What a trial leaves.

    Attributes:
        trainable: The leaves that learned, in any phase.
        state: Leaves that are no parameters, as batch statistics.
        score: The metric on the validation rows, negated if a lower metric is better, so that a higher score is always
            better. Minus infinity if the run diverged or the metric is NaN.
        loss: The mean loss on the validation rows; infinite if the run diverged.
        losses: The loss of each training step, `[steps]`.
    """

    trainable: Tree
    state: Tree
    score: jax.Array
    loss: jax.Array
    losses: jax.Array


def make_trial(
    adapted: Adapted,
    objective: Objective,
    optimiser: Optimiser,
    plan: Plan,
    metric: Metric = METRICS["accuracy"],
    losses: Sequence[Loss] = (),
) -> Callable:
    """Make `trial(key, hyper, base, examples, data) -> TrialResult`.

    A trial takes a key; `hyper`, `{"rate": ..., "decay": ...}`, scalars that may be traced; `base`, the leaves that the
    backbone gives, and perhaps leaves of a head that was solved for; `examples`, the parts of a batch for all rows
    `[n, ...]`, as `inputs` (one array or several by name) and `labels`; and `data`, a `TrialData` of rows of
    `examples`. The phases of the method run one after another, each in its own loop.

    Args:
        adapted: The model under a method.
        objective: What is learned; its `measure` gives the loss of each validation row.
        optimiser: Options of the optimiser, beside the rate and the decay.
        plan: Steps and rates of the phases of the method.
        metric: The metric of the score, measured after the last phase.
        losses: The loss of each phase, where it is there already; empty where it is made here.
    """
    losses = losses or [make_loss(phase.model, objective, phase.scores) for phase in adapted.phases]

    def trial(key, hyper, base, examples, data: TrialData) -> TrialResult:
        start_key, run_key = jax.random.split(key)
        tree, others = adapted.start(start_key, base)
        held = adapted.held(base)
        state, ends, values = None, (0, *plan.ends), []
        for number, (phase, factor) in enumerate(zip(adapted.phases, plan.factors, strict=True)):
            own = hyper | {"rate": factor * hyper["rate"]} if factor != 1 else hyper
            transformation = optimiser.build(phase.rates, plan.steps[number], **own, since=phase.since)
            if state is None:
                trainable, frozen = partition(tree, phase.rates)
                frozen |= phase.begun(trainable)
                state = TrainState.create(run_key, trainable, others, transformation)
            else:
                state, kept, frozen = entered(adapted, number, state, frozen, transformation)
                frozen = merge(kept, frozen)
            step = make_step(losses[number], transformation)

            fixed, own = merge(now(frozen), held), examples | {"inputs": read_by(phase, examples["inputs"])}

            def body(state, rows, step=step, fixed=fixed, own=own):
                state, metrics = step(state, fixed, take(own, rows))
                return state, metrics["loss"]

            state, found = jax.lax.scan(body, state, data.batches[ends[number] : ends[number + 1]])
            values.append(found)
        values, tree = jnp.concatenate(values), phase.ended(state.trainable, frozen)
        logits = predict_rows(adapted, tree, state.state, examples["inputs"], data.validation)
        others = {name: x for name, x in examples.items() if name != "inputs"}
        asked = take(others, data.validation)
        value = jnp.sum(objective.measure({"logits": logits}, asked)["loss"] * data.counts) / data.counts.sum()
        finite = jnp.isfinite(value) & jnp.isfinite(values).all()
        score = metric.score(metric(logits, asked["labels"], data.counts))
        learned = {path: tree[path] for path, rate in adapted.rates.items() if rate != FROZEN}
        return TrialResult(
            learned, state.state, jnp.where(finite, score, -jnp.inf), jnp.where(finite, value, jnp.inf), values
        )

    return trial


def in_blocks(call: Callable, inputs: Any, rows: jax.Array | np.ndarray, block: int = BLOCK) -> Any:
    """`call` on some rows of `inputs`, at most `block` at a time, so that memory does not grow with their number.

    Args:
        call: From inputs `[n, ...]` to outputs `[n, ...]`, each row for itself.
        inputs: One array, or several by name.
        rows: `[r]` row numbers.
        block: The most rows in a block; blocks are of one size, and the last is filled up with other rows.
    """
    count = -(-len(rows) // block)
    if count <= 1:
        return call(take(inputs, rows))
    filled = jnp.resize(jnp.asarray(rows), (count, -(-len(rows) // count)))
    outputs = jax.lax.map(lambda rows_of_block: call(take(inputs, rows_of_block)), filled)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(rows)], outputs)


def predict_rows(adapted: Adapted, params: Tree, state: Tree, inputs: Any, rows: jax.Array | np.ndarray) -> jax.Array:
    """Logits `[rows, classes]` of some rows of `inputs` in evaluation mode, in blocks."""
    return in_blocks(lambda some: predict(adapted, params, state, some), read_by(adapted, inputs), rows)


def read_by(adapted: Adapted, inputs: Any) -> Any:
    """Of several inputs by name, those that a model reads; one array as it is."""
    several = isinstance(inputs, Mapping) and isinstance(adapted.example, Mapping)
    return {name: inputs[name] for name in adapted.example} if several else inputs


def predict(adapted: Adapted, params: Tree, state: Tree, inputs: Any) -> jax.Array:
    """Logits `[n, classes]` in evaluation mode."""
    return models.apply(adapted.model, params | state, inputs, train=False)["logits"]
