"""L-BFGS (Liu & Nocedal 1989, doi:10.1007/BF01589116) on many convex problems side by side in a compiled program.

Each problem has its own step length, history and end. The history is preconditioned by the diagonal of the Hessian,
which is measured anew every few steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MEMORY = 10
"""Number of pairs of a step and its change of the gradient that are kept."""
MEASURE = 10
"""Number of evaluations until the diagonal is measured again."""


class State(NamedTuple):
    """The state of all problems.

    Arrays have the shape of the points; numbers have one entry for each problem, as the axes of a problem have size 1.

    Attributes:
        point: The best point so far.
        value: The function at `point`.
        gradient: The gradient at `point`.
        direction: The direction of the next step.
        length: What `direction` is multiplied by to give the next step.
        steps: The last steps, `[MEMORY, ...]`.
        changes: The change of the gradient over each of `steps`, `[MEMORY, ...]`.
        inverse: One over the product of each step and its change of the gradient; 0 in a place that is not yet filled.
        diagonal: The diagonal of the Hessian, as measured last.
        done: Whether a further step is expected to lower the value by less than the tolerance.
        evaluations: How often the function was evaluated; each evaluation is of all problems.
    """

    point: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    length: jax.Array
    steps: jax.Array
    changes: jax.Array
    inverse: jax.Array
    diagonal: jax.Array
    done: jax.Array
    evaluations: jax.Array


def minimise(
    evaluate: Callable,
    measure: Callable,
    start: jax.Array,
    axes: tuple[int, ...],
    *,
    tolerance: float,
    iterations: int,
    project: Callable = lambda direction: direction,
) -> State:
    """Minimise convex, positive functions side by side.

    Args:
        evaluate: Gives values and gradients at points; values are sums over `axes`, which are kept with size 1.
        measure: Gives the diagonal of the Hessian at points, positive.
        start: The first points.
        axes: The axes of one problem; along the other axes the problems lie side by side.
        tolerance: A problem is done when a further step is expected to lower its value by less than this share.
        iterations: The most evaluations of the function.
        project: Removes from a direction the part along which the function does not change.

    Returns:
        The last state: `point` is the best of each problem, and `done` tells which problems have reached the tolerance.
    """

    def dot(u, v):
        return jnp.sum(u * v, axis=axes, keepdims=True)

    def downhill(gradient, steps, changes, inverse, diagonal):
        def back(q, pair):
            step, change, one = pair
            share = one * dot(step, q)
            return q - share * change, share

        def forth(q, pair):
            step, change, one, share = pair
            return q + (share - one * dot(change, q)) * step, None

        q, shares = jax.lax.scan(back, gradient, (steps, changes, inverse), reverse=True)
        scale = inverse[-1] * dot(changes[-1], project(changes[-1] / diagonal))
        q = project(q / diagonal) / jnp.where(scale > 0, scale, 1)
        return -jax.lax.scan(forth, q, (steps, changes, inverse, shares))[0]

    def advance(s):
        step = s.length * s.direction
        value, gradient = evaluate(s.point + step)
        before, after = dot(s.gradient, s.direction), dot(gradient, s.direction)
        # Beyond the minimum along the line a convex function rises; half as steep as it fell at first is too far.
        # Slopes keep digits where differences of values have lost theirs, so values have a say only when they rise.
        ok = ~s.done & (after <= -before / 2) & (value <= s.value * (1 + 20 * jnp.finfo(value.dtype).eps))
        change = gradient - s.gradient
        product = dot(step, change)
        pair = ok & (product > 0)

        def keep(new, old):
            return jnp.where(ok, new, old)

        def push(history, new):
            return jnp.where(pair, jnp.concatenate([history[1:], new[None]]), history)

        history = push(s.steps, step), push(s.changes, change), push(s.inverse, 1 / jnp.where(pair, product, 1))
        gradient, value = keep(gradient, s.gradient), keep(value, s.value)
        direction = downhill(gradient, *history, s.diagonal)
        gain = -dot(direction, gradient) / 2  # of the quadratic model
        shorter = s.length * jnp.clip(before / (before - after), 0.1, 0.7)
        return State(
            *(keep(s.point + step, s.point), value, gradient, keep(direction, s.direction), jnp.where(ok, 1, shorter)),
            *(*history, s.diagonal, s.done | (ok & (gain <= tolerance * value)), s.evaluations + 1),
        )

    def unfinished(s):
        return ~s.done.all() & (s.evaluations < iterations)

    def stretch(s):
        s = s._replace(diagonal=measure(s.point))
        end = s.evaluations + MEASURE
        return jax.lax.while_loop(lambda s: unfinished(s) & (s.evaluations < end), advance, s)

    zero = jnp.zeros_like(start)
    number = dot(zero, zero)
    history = jnp.zeros((MEMORY, *start.shape), start.dtype)
    # The first step goes nowhere: with nothing to compare with, its value and gradient are taken.
    state = State(
        *(start, number + jnp.inf, zero, zero, number + 1, history, history),
        *(jnp.zeros((MEMORY, *number.shape), start.dtype), zero, number > 0, jnp.zeros((), jnp.int32)),
    )
    return jax.lax.while_loop(unfinished, stretch, state)
