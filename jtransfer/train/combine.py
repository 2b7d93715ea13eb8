"""How the gradients of several tasks become one: a sum with weights here, or any function of them by name.

Every task has a batch of its own, hence a forward and a backward pass of its own, whether losses or gradients are
summed: gradients by task cost no operation more, and serve the combinations that are not linear.
"""

from collections.abc import Callable, Mapping

import jax

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, check
from jtransfer.tree import Tree

Combine = Callable[[Mapping[str, Tree]], Tree]
"""From the gradients of each task, all of the same leaves, to those that the optimiser gets. A leaf that a task does
not use, as the head of another, has the gradient 0."""


def mean(grads: Mapping[str, Tree]) -> Tree:
    """The gradient of the mean of the losses."""
    return weighted(dict.fromkeys(grads, 1.0))(grads)


def weighted(weights: Mapping[str, float]) -> Combine:
    """The gradient of the weighted mean of the losses.

    The weights count by their ratios, so that the rate of the optimiser, a clip and a penalty that a method adds to
    every loss mean what they mean for one task.

    Args:
        weights: Of each task, by name.

    Raises:
        InputError: a weight below 0, or none above 0.
    """
    for name, weight in weights.items():
        check(weight, NOT_NEGATIVE, f"weight of task '{name}'")
    if not (total := sum(weights.values())) > 0:
        raise InputError(f"the weights of the tasks {', '.join(weights)} are all 0; expected one above 0 at least")
    shares = {name: weight / total for name, weight in weights.items()}

    def combine(grads):
        scaled = [jax.tree.map(lambda x, share=shares[name]: share * x, tree) for name, tree in grads.items()]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *scaled)

    return combine
