"""How long a step and a prediction take, of several methods in turn, so that what slows the machine slows all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtransfer.methods import Adapted
from jtransfer.models import apply, shapes_of
from jtransfer.train.costs import StepShapes
from jtransfer.tree import Tree

ROUNDS, SPAN = 7, 0.02
"""How often each is timed, and the least seconds of one timing."""


class Timed(NamedTuple):
    """Seconds, each the least of several turns.

    Attributes:
        step: Of a training step.
        prediction: Of the outputs for one example, with what the method added beside the model.
        merged: Of the same from the plain model into which the method merges; None where there is none.
    """

    step: float
    prediction: float
    merged: float | None


def timed(methods: Sequence[tuple[Adapted, StepShapes, Callable[[Tree], Tree] | None]]) -> list[Timed]:
    """Time the step and the prediction of each method, compiled before; leaves have the right shapes and no meaning.

    Args:
        methods: The model under each, its step, and the method's `merge`.
    """
    pool: dict[Any, Any] = {}
    calls: list[dict[str, Callable[[], Any]]] = []
    for adapted, shapes, merge in methods:
        fill = partial(_filled, pool)
        step, (state, frozen, batch) = jax.jit(shapes.step), shapes.arguments
        own = {"step": partial(step, jax.tree.map(_array, state), fill(frozen), jax.tree.map(_array, batch))}
        inputs = jax.tree.map(_array, adapted.example)
        own["prediction"] = _prediction(adapted.model, fill(adapted.shapes | adapted.state), inputs)
        plain, tree = adapted.model.model, adapted.shapes | adapted.state
        if merge is not None:
            merged = jax.eval_shape(merge, dict(tree))
            if merged.keys() <= shapes_of(plain, adapted.example).keys() | adapted.base.keys():
                own["merged"] = _prediction(plain, fill(merged), inputs)
        calls.append(own)
    found = _least({(i, name): call for i, own in enumerate(calls) for name, call in own.items()})
    return [Timed(found[i, "step"], found[i, "prediction"], found.get((i, "merged"))) for i in range(len(calls))]


def _prediction(model, tree, inputs):
    return partial(jax.jit(partial(apply, model, train=False)), tree, inputs)


def _least(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
    """The least seconds of each call, in turn: what else runs on the machine only adds to them."""
    repeats = {}
    for key, call in calls.items():
        jax.block_until_ready(call())
        repeats[key] = max(1, int(SPAN / max(_seconds(call, 1), 1e-6)))
    rounds = [{key: _seconds(call, repeats[key]) for key, call in calls.items()} for _ in range(ROUNDS)]
    return {key: min(one[key] for one in rounds) for key in calls}


def _seconds(call, repeats):
    started = time.perf_counter()
    for _ in range(repeats):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - started) / repeats


def _filled(pool: dict, tree: Tree) -> Tree:
    """Arrays of the shapes of a tree; those of one path and shape are one array for all methods."""
    keys = {path: (path, leaf.shape, leaf.dtype) for path, leaf in tree.items()}
    pool |= {keys[path]: _array(leaf) for path, leaf in tree.items() if keys[path] not in pool}
    return {path: pool[key] for path, key in keys.items()}


def _array(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    value = 0.01 if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
    return jnp.full(leaf.shape, value, leaf.dtype)
