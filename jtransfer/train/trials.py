"""A trial is a pure function: a whole run from a key, hyper-parameters and data to a result.

The loop over steps is one `lax.scan`, so `vmap` runs seeds and hyper-parameters side by side in one program, over one
copy of the frozen weights: a leaf that no trial changes is never batched.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtransfer import models
from jtransfer.data.coded import take
from jtransfer.methods import Adapted
from jtransfer.objectives import Objective, make_loss
from jtransfer.train.optimiser import Optimiser
from jtransfer.train.state import TrainState
from jtransfer.train.step import make_step
from jtransfer.tree import Tree, merge, partition

BLOCK = 256
"""Rows that are predicted at once."""


class TrialData(NamedTuple):
    """The rows of one dataset that a trial uses.

    Attributes:
        batches: Rows of each training step, `[steps, batch]`.
        validation: Rows to choose on, `[n]`; `counts [n]` is 1 for a row that counts and 0 for padding.
        counts: See `validation`.
    """

    batches: jax.Array
    validation: jax.Array
    counts: jax.Array


class TrialResult(NamedTuple):
    """What a trial leaves.

    Attributes:
        trainable: The leaves that learned.
        state: Leaves that are no parameters.
        accuracy: On the validation rows, 0..1; -1 if the run diverged (a NaN counts as the worst result).
        loss: Mean cross-entropy there, in nats; infinite if the run diverged.
        losses: Of each training step, `[steps]`.
    """

    trainable: Tree
    state: Tree
    accuracy: jax.Array
    loss: jax.Array
    losses: jax.Array


def make_trial(adapted: Adapted, objective: Objective, optimiser: Optimiser, steps: int) -> Callable:
    """Make `trial(key, hyper, base, inputs, labels, data) -> TrialResult`.

    `hyper` is `{"rate": ..., "decay": ...}`, scalars that may be traced; `base` are the leaves that the backbone gives;
    `inputs` (one array `[n, ...]` or several by name) and `labels [n]` are the dataset, of which `data` names rows.
    """
    loss = make_loss(adapted.model, objective)

    def trial(key, hyper, base, inputs, labels, data: TrialData) -> TrialResult:
        start_key, run_key = jax.random.split(key)
        tree, state = adapted.start(start_key, base)
        trainable, frozen = partition(tree, adapted.rates)
        transformation = optimiser.build(adapted.rates, steps, **hyper)
        step = make_step(loss, transformation)

        def body(train_state, rows):
            train_state, metrics = step(train_state, frozen, {"inputs": take(inputs, rows), "labels": labels[rows]})
            return train_state, metrics["loss"]

        start = TrainState.create(run_key, trainable, state, transformation)
        end, losses = jax.lax.scan(body, start, data.batches)
        logits = predict_rows(adapted, merge(end.trainable, frozen), end.state, inputs, data.validation)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels[data.validation])
        value = jnp.sum(cross_entropy * data.counts) / data.counts.sum()
        right = jnp.sum((logits.argmax(-1) == labels[data.validation]) * data.counts) / data.counts.sum()
        finite = jnp.isfinite(value) & jnp.isfinite(losses).all()
        return TrialResult(
            end.trainable, end.state, jnp.where(finite, right, -1.0), jnp.where(finite, value, jnp.inf), losses
        )

    return trial


def in_blocks(call: Callable, inputs: Any, rows: jax.Array | np.ndarray, block: int = BLOCK) -> Any:
    """`call` on some rows of `inputs`, at most `block` at a time, so that memory does not grow with their number.

    Args:
        call: From inputs `[n, ...]` to outputs `[n, ...]`, each row for itself.
        inputs: One array, or several by name.
        rows: [r] row numbers.
        block: The blocks are as even as they can be; the last is filled up with other rows.
    """
    count = -(-len(rows) // block)
    if count <= 1:
        return call(take(inputs, rows))
    filled = jnp.resize(jnp.asarray(rows), (count, -(-len(rows) // count)))
    outputs = jax.lax.map(lambda rows_of_block: call(take(inputs, rows_of_block)), filled)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(rows)], outputs)


def predict_rows(adapted: Adapted, params: Tree, state: Tree, inputs: Any, rows: jax.Array | np.ndarray) -> jax.Array:
    """Logits `[rows, classes]` of some rows of `inputs` in evaluation mode, in blocks."""
    return in_blocks(lambda some: predict(adapted, params, state, some), inputs, rows)


def predict(adapted: Adapted, params: Tree, state: Tree, inputs: Any) -> jax.Array:
    """Logits `[n, classes]` in evaluation mode."""
    return models.apply(adapted.model, params | state, inputs, train=False)["logits"]
