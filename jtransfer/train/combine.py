"""How the gradients of several tasks become one gradient: a weighted mean here, or any function `Combine`.

Every task has its own batch, hence its own forward and backward pass, whether losses or gradients are summed. So
gradients by task cost no further operation, and serve combinations that are not linear too.
"""

from collections.abc import Callable, Mapping

import jax

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, check
from jtransfer.tree import Tree

Combine = Callable[[Mapping[str, Tree]], Tree]
"""From the gradients of each task, by name and over all trainable leaves, to the gradient that the optimiser gets. A
leaf that a task does not use, as the head of another task, has the gradient 0."""


def mean(grads: Mapping[str, Tree]) -> Tree:
    """The gradient of the mean of the losses."""
    return weighted(dict.fromkeys(grads, 1.0))(grads)


def weighted(weights: Mapping[str, float]) -> Combine:
    """The gradient of the weighted mean of the losses.

    The weights count by their ratios, so that the rate of the optimiser, a clip and a penalty that a method adds to
    every loss mean what they mean for one task.

    Args:
        weights: The weight of each task, by name.

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
