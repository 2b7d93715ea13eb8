"""The diagonal of the Fisher information: how much each weight matters to what a model knows already.

`F_i = E[(∂ log p(y|x) / ∂θ_i)²]`, the mean over single examples: the square of a batch's mean gradient is another
number, smaller by up to the size of the batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.models import SOURCE_HEAD, STATISTICS, apply
from jtransfer.tree import Tree, merge

FISHER = "fisher/"
"""Prefix of the paths of the diagonal's leaves."""

Predict = Callable[[Tree, Mapping[str, Any]], jax.Array]
"""From all leaves and a backbone's outputs to the logits `[n, outputs]` of its source task."""


@dataclass(frozen=True)
class Fisher:
    """What is asked of the source task.

    Attributes:
        drawn: Whether labels are drawn from the model's own predictions (the true Fisher), or are those of the data
            (the empirical one).
        rows: The most examples that the mean is taken over.
        seed: Of the labels that are drawn.
    """

    drawn: bool = False
    rows: int = 1024
    seed: int = 0

    def shapes(self, name: str, shapes: Tree, learned: Mapping[str, float], base: Tree) -> Tree:
        """Shape and dtype of the leaves of the diagonal: of those that learn and that the backbone gives.

        Args:
            name: Name of the method, for the error.
            shapes: Of all leaves of the adapted model.
            learned: Rates of the leaves that learn, in any phase.
            base: The leaves of the backbone; empty where only the shapes of a model are looked at.

        Raises:
            InputError: none of them learns.
        """
        own = [path for path in learned if path in base and not path.startswith((SOURCE_HEAD, STATISTICS))]
        if base and not own:
            raise InputError(
                f"method '{name}' holds leaves of the backbone where they are, of which none learns; add what trains "
                "some, as in 'finetune + ewc'"
            )
        return {FISHER + path: jax.ShapeDtypeStruct(shapes[path].shape, jnp.float32) for path in own}


def make_sums(model: nn.Module, predict: Predict, drawn: bool) -> Callable[..., Tree]:
    """Make `add(sums, trainable, frozen, inputs, labels, weights, key) -> sums`, one block of a streaming pass.

    The squared gradient of every example is added to `sums`, times its weight, 0 for padding. Only the gradient with
    respect to `trainable` is formed, one for each example of the block, side by side. Of n examples, P weights in
    `trainable` and a gradient of one example that takes g FLOPs, a block takes `n (g + 3 P)`.

    Args:
        model: A backbone, run in evaluation mode.
        predict: See `Predict`.
        drawn: As of `Fisher`.
    """

    def add(sums, trainable, frozen, inputs, labels, weights, key):
        def surprise(trainable, one, label, key):
            tree = merge(trainable, frozen)
            outputs = apply(model, tree, jax.tree.map(lambda x: x[None], one), train=False)
            log_p = jax.nn.log_softmax(predict(tree, outputs)[0].astype(jnp.float32))
            label = jax.random.categorical(key, jax.lax.stop_gradient(log_p)) if drawn else label
            return -log_p[label]

        keys = jax.random.split(key, len(labels))
        grads = jax.vmap(jax.grad(surprise), (None, 0, 0, 0))(trainable, inputs, labels, keys)
        return {
            path: sums[path] + jnp.einsum("n,n...->...", weights, jnp.square(leaf.astype(jnp.float32)))
            for path, leaf in grads.items()
        }

    return add
