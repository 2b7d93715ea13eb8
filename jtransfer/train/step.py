"""One training step as a pure function, partitioned before the gradient."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jtransfer.kinds import SHARE, check, whole
from jtransfer.objectives.objective import WEIGHT, Batch, Loss
from jtransfer.train.combine import Combine, mean
from jtransfer.train.state import EMA, TrainState
from jtransfer.tree import Tree, merge, prefixed, select

Step = Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]
"""`step(train_state, frozen, batch) -> (train_state, metrics)`, with scalar metrics by name."""


def make_step(
    loss: Loss | Mapping[str, Loss],
    optimiser: optax.GradientTransformation,
    accumulate: int = 1,
    ema: float = 0.0,
    unroll: bool = False,
    combine: Combine = mean,
) -> Step:
    """Make `step(train_state, frozen, batch) -> (train_state, metrics)`.

    The gradient is taken with respect to the trainable leaves alone, so that the gradient of a frozen leaf is never
    formed, whatever reads the gradients afterwards: the norm, clipping, accumulation or the moving average. The metrics
    are those of the loss, and `grad_norm`, the norm of the gradient before any clipping.

    Of several tasks the batch is a mapping from their names to the batch of each, and metrics are called `TASK_loss`.
    The tasks run one after another, and batch statistics go from each task to the next:

        {"digits": loss, "fonts": loss}, {"digits": {"inputs": x, ...}, "fonts": {"inputs": y, ...}}

    Args:
        loss: `loss(params, state, batch, key) -> (value, (metrics, state))`, as in `jtransfer.objectives`; or one for
            each of several tasks, by name.
        optimiser: The optimiser of the trainable leaves.
        accumulate: Number of equal parts of the batch that run one after another, for memory; their mean gradient is
            that of the whole batch. Where the metrics of a part have a `weight`, the part counts by it in that mean, as
            by the number of its tokens in a mean over tokens.
        ema: Decay of the moving average of the trainable leaves; 0 keeps none.
        unroll: Write the parts of an accumulated step out, so that `cost_analysis` counts each.
        combine: Makes one gradient of the gradients of several tasks.

    Raises:
        InputError: `accumulate` below 1, or an `ema` that is not a share from 0 to below 1.
    """
    check(accumulate, whole(1), "accumulate")
    check(ema, SHARE, "ema")
    several = isinstance(loss, Mapping)
    losses = loss if several else {"": loss}

    def value_and_grad(trainable, frozen, state, batch, key):
        """Gradients and metrics, each by task, and the state."""
        keys = jax.random.split(key, len(losses)) if len(losses) > 1 else [key]
        grads, metrics = {}, {}
        for (name, loss), own in zip(losses.items(), keys, strict=True):

            def of_trainable(trainable, loss=loss, state=state, name=name, own=own):
                return loss(merge(trainable, frozen), state, batch[name], own)

            (_, (metrics[name], state)), grads[name] = jax.value_and_grad(of_trainable, has_aux=True)(trainable)
        return grads, metrics, state

    def accumulated(trainable, frozen, state, batch, key):
        # Part i takes every `accumulate`-th example: a batch sharded over devices stays where it is.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(state, part):
            grads, metrics, state = value_and_grad(trainable, frozen, state, *part)
            for name, own in metrics.items():
                if (weight := own.get(WEIGHT)) is not None:
                    both = grads[name], own | {WEIGHT: 1}
                    grads[name], metrics[name] = jax.tree.map(lambda x, weight=weight: weight * x, both)
            return state, (grads, metrics)

        def add(carry, part):
            state, total = carry
            state, out = body(state, part)
            return (state, jax.tree.map(jnp.add, total, out)), None

        keys = jax.random.split(key, accumulate)
        _, shapes = jax.eval_shape(body, state, jax.tree.map(lambda x: x[0], (parts, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (state, (grads, metrics)), _ = jax.lax.scan(
            add, (state, zeros), (parts, keys), unroll=accumulate if unroll else 1
        )
        for name, own in metrics.items():
            weight = own.get(WEIGHT)
            count = accumulate if weight is None else jnp.where(weight > 0, weight, 1)
            both = grads[name], own
            grads[name], metrics[name] = jax.tree.map(lambda x, count=count: x / count, both)
        return grads, metrics, state

    def step(train_state: TrainState, frozen: Tree, batch: Batch):
        average = select(train_state.state, EMA)
        state = {path: leaf for path, leaf in train_state.state.items() if not path.startswith(EMA)}
        key = jax.random.fold_in(train_state.key, train_state.step)
        gradient = accumulated if accumulate > 1 else value_and_grad
        batch = batch if several else {"": batch}
        grads, found, state = gradient(train_state.trainable, frozen, state, batch, key)
        grads = combine(grads) if several else grads[""]
        metrics = {
            f"{task}_{name}" if several else name: value
            for task, own in found.items()
            for name, value in own.items()
            if name != WEIGHT
        }
        updates, opt_state = optimiser.update(grads, train_state.opt_state, train_state.trainable)
        trainable = optax.apply_updates(train_state.trainable, updates)
        average = {path: ema * leaf + (1 - ema) * trainable[path] for path, leaf in average.items()}
        train_state = TrainState(
            train_state.step + 1, trainable, state | prefixed(average, EMA), opt_state, train_state.key
        )
        return train_state, metrics | {"grad_norm": optax.tree.norm(grads)}

    return step
