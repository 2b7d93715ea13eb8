"""One training step as a pure function, partitioned before the gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jtransfer.kinds import SHARE, check, whole
from jtransfer.objectives.objective import WEIGHT
from jtransfer.train.state import EMA, TrainState
from jtransfer.tree import Tree, merge, prefixed, select

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    loss: Callable,
    optimiser: optax.GradientTransformation,
    accumulate: int = 1,
    ema: float = 0.0,
    unroll: bool = False,
) -> Step:
    """Make `step(train_state, frozen, batch) -> (train_state, metrics)`.

    The gradient is taken with respect to the trainable leaves alone, so that of a frozen one is never formed,
    whatever reads the gradients afterwards: the norm, clipping, accumulation or the moving average.

    Args:
        loss: `loss(params, state, batch, key) -> (value, (metrics, state))`, as in `jtransfer.objectives`.
        optimiser: Over the trainable leaves.
        accumulate: Number of equal parts of the batch that run one after another, for memory; their mean gradient is
            that of the whole batch. Where `metrics` have a `weight`, it is what each part counts in that mean, as the
            number of its tokens in a mean over tokens.
        ema: Decay of the moving average of the trainable leaves; 0 keeps none.
        unroll: Write the parts of an accumulated step out, so that `cost_analysis` counts each.

    Raises:
        InputError: `accumulate` below 1, or `ema` outside 0..1.
    """
    check(accumulate, whole(1), "accumulate")
    check(ema, SHARE, "ema")

    def value_and_grad(trainable, frozen, state, batch, key):
        def of_trainable(trainable):
            return loss(merge(trainable, frozen), state, batch, key)

        (_, (metrics, state)), grads = jax.value_and_grad(of_trainable, has_aux=True)(trainable)
        return grads, metrics, state

    def accumulated(trainable, frozen, state, batch, key):
        # Part i takes every `accumulate`-th example: a batch sharded over devices stays where it is.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(state, part):
            part, key = part
            grads, metrics, state = value_and_grad(trainable, frozen, state, part, key)
            if WEIGHT in metrics:
                grads, metrics = jax.tree.map(lambda x: metrics[WEIGHT] * x, (grads, metrics | {WEIGHT: 1}))
            return state, (grads, metrics)

        def add(carry, part):
            state, total = carry
            state, out = body(state, part)
            return (state, jax.tree.map(jnp.add, total, out)), None

        keys = jax.random.split(key, accumulate)
        _, shapes = jax.eval_shape(body, state, jax.tree.map(lambda x: x[0], (parts, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (state, total), _ = jax.lax.scan(add, (state, zeros), (parts, keys), unroll=accumulate if unroll else 1)
        weight = total[1].get(WEIGHT)
        count = accumulate if weight is None else jnp.where(weight > 0, weight, 1)
        grads, metrics = jax.tree.map(lambda x: x / count, total)
        return grads, metrics, state

    def step(train_state: TrainState, frozen: Tree, batch: Batch):
        average = select(train_state.state, EMA)
        state = {path: leaf for path, leaf in train_state.state.items() if not path.startswith(EMA)}
        key = jax.random.fold_in(train_state.key, train_state.step)
        gradient = accumulated if accumulate > 1 else value_and_grad
        grads, metrics, state = gradient(train_state.trainable, frozen, state, batch, key)
        metrics = {name: value for name, value in metrics.items() if name != WEIGHT}
        updates, opt_state = optimiser.update(grads, train_state.opt_state, train_state.trainable)
        trainable = optax.apply_updates(train_state.trainable, updates)
        average = {path: ema * leaf + (1 - ema) * trainable[path] for path, leaf in average.items()}
        train_state = TrainState(
            train_state.step + 1, trainable, state | prefixed(average, EMA), opt_state, train_state.key
        )
        return train_state, metrics | {"grad_norm": optax.tree.norm(grads)}

    return step
