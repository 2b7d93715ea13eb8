"""Which running statistics a training step moves, found where the model itself says it: by tracing it."""

from typing import TYPE_CHECKING

import jax

from jtransfer import models
from jtransfer.tree import flat

if TYPE_CHECKING:
    from jtransfer.methods.method import Adapted


def moving(adapted: "Adapted") -> list[str]:
    """Paths of the batch statistics that a step in training mode changes, as `batch_stats/stem/norm/mean`.

    Those of norms in evaluation mode stay: of parts in which nothing learns, and of all under `frozen_norm`.

    Args:
        adapted: The model under a method, in one of its phases.
    """
    if not adapted.state:
        return []
    found = []

    def trace(tree, state, inputs):
        rngs = {"dropout": jax.random.key(0)}
        _, updated = models.apply(adapted.model, tree | state, inputs, train=True, rngs=rngs, mutable=["batch_stats"])
        after = flat(updated)
        found.extend(path for path in state if path in after and after[path] is not state[path])
        return after

    # Two examples, as one value a channel has no variance.
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), adapted.example)
    jax.eval_shape(trace, adapted.shapes, adapted.state, inputs)
    return found
