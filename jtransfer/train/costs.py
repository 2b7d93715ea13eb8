"""What a training step costs: FLOPs and bytes, counted on the lowered or compiled program."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.methods import Adapted
from jtransfer.methods.statistics import moving
from jtransfer.models import apply, layers
from jtransfer.models.lstm import unrolled
from jtransfer.objectives import Objective, begun, make_loss
from jtransfer.objectives.objective import Loss
from jtransfer.optimiser import Optimiser
from jtransfer.train.phases import Plan
from jtransfer.train.state import TrainState
from jtransfer.train.step import Step, make_step
from jtransfer.tree import FROZEN, Tree, partition

LABELS = MappingProxyType({"labels": jax.ShapeDtypeStruct((1,), jnp.int32)})
"""What a batch has beside `inputs` where each row has one class: shape and dtype of one example."""


@dataclass(frozen=True)
class StepShapes:
    """A training step, and the shapes that it takes: enough to lower it without any array.

    Attributes:
        step: The step as it runs.
        counted: `step` with the parts of an accumulated batch written out, because `cost_analysis` counts the body of
            a loop once.
        arguments: Shapes of `(state, frozen, batch)`.
    """

    step: Step
    counted: Step
    arguments: tuple


def step_shapes(
    adapted: Adapted,
    objective: Objective | Mapping[str, Objective],
    optimiser: Optimiser,
    batch: int,
    accumulate: int = 1,
    ema: float = 0.0,
    parts: Mapping[str, jax.ShapeDtypeStruct] = LABELS,
    loss: Loss | None = None,
) -> StepShapes:
    """The step of a method, and its shapes for a batch.

    Args:
        adapted: The model under the method, in one phase.
        objective: What is learned; of several tasks, by name.
        optimiser: Options of the optimiser.
        batch: Number of examples in a batch; of several tasks, in the batch of each.
        accumulate: Number of equal parts of the batch that run one after another; it divides `batch`.
        ema: Decay of the moving average of the trainable leaves; 0 for none.
        parts: Shape and dtype of one example of what a batch has beside `inputs`; of several tasks, of all that the
            batch of each has, by task.
        loss: That of the model, where it is there already.

    Raises:
        InputError: `accumulate` below 1, or an `ema` that is not a share from 0 to below 1.
    """
    transformation = optimiser.build(adapted.rates, steps=100, since=adapted.since)
    loss = loss or make_loss(adapted.model, objective, adapted.scores)
    step, counted = (make_step(loss, transformation, accumulate, ema, unroll) for unroll in (False, True))
    trainable, frozen = partition(adapted.shapes, adapted.rates)
    frozen |= jax.eval_shape(adapted.held, adapted.base | adapted.told)

    def create(trainable, state):
        state |= begun(objective, adapted.model, batch)
        return TrainState.create(jax.random.key(0), trainable, state, transformation, ema)

    state = jax.eval_shape(create, trainable, adapted.state)
    one = parts if isinstance(objective, Mapping) else {"inputs": adapted.example} | parts
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), one)
    return StepShapes(step, counted, (state, frozen, many))


def step_flops(shapes: StepShapes) -> float:
    """Floating-point operations of one step, from the lowered program: no compilation is needed."""
    return _flops(shapes.counted, *shapes.arguments)


def flops_per_step(phases: Sequence[StepShapes], plan: Plan) -> float:
    """Floating-point operations of one step; of a method with phases, the mean over all steps of a run.

    Args:
        phases: The step of each phase.
        plan: How many steps each phase has.
    """
    each = [step_flops(shapes) for shapes in phases]
    if len(each) == 1:
        return each[0]
    return sum(steps * flops for steps, flops in zip(plan.steps, each, strict=True)) / sum(plan.steps)


class Memory(NamedTuple):
    """Bytes on one device that a compiled step needs.

    Attributes:
        temporary: Beside its inputs and outputs.
        peak: Altogether: parameters, the optimiser's state, which is updated in place, the batch, and `temporary`.
    """

    temporary: int
    peak: int


def memory(shapes: StepShapes) -> Memory:
    """What a step needs, from the program that XLA compiled."""
    found = jax.jit(shapes.step, donate_argnums=0).lower(*shapes.arguments).compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(int(found.temp_size_in_bytes), int(held + found.temp_size_in_bytes))


def temporary_bytes(shapes: StepShapes) -> int:
    """Bytes that the compiled step needs beside its inputs and outputs."""
    return memory(shapes).temporary


def optimiser_bytes(shapes: StepShapes) -> int:
    """Bytes of the optimiser's state."""
    return _bytes(jax.tree.leaves(shapes.arguments[0].opt_state))


def kept_bytes(adapted: Adapted) -> int:
    """Bytes of what has to be kept of a method beside its backbone: leaves that are new, that learn or that move."""
    new = [leaf for path, leaf in adapted.shapes.items() if path not in adapted.base or adapted.rates[path] != FROZEN]
    return _bytes([*new, *(adapted.state[path] for path in moving(adapted))])


def _bytes(leaves):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def forward_flops(model: nn.Module, tree: Tree, inputs: Any) -> float:
    """Floating-point operations of a model's outputs on a batch, in evaluation mode.

    Args:
        model: With a head or without.
        tree: Its leaves or their shapes, as `models.apply` takes them.
        inputs: Shapes of the batch, one array or several by name.
    """

    def forward(tree, inputs):
        return apply(model, tree, inputs, train=False)

    return _flops(forward, tree, inputs)


def _flops(function: Callable, *arguments: Any) -> float:
    """Of a program lowered for the CPU: JAX counts none for a GPU or TPU, and would count fused kernels as nothing."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise InputError(
            f"JAX_PLATFORMS={jax.config.jax_platforms} leaves out the CPU, for which FLOPs are counted; add ',cpu'"
        ) from None
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    if layers.platform() == "cpu":  # where what is traced already serves
        with unrolled():
            return float(jax.jit(function).lower(*shapes).cost_analysis()["flops"])
    with unrolled(), layers.compiling_for("cpu"), jax.default_device(cpu):
        return float(jax.jit(function).lower(*shapes).cost_analysis()["flops"])
