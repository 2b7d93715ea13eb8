"""A pull of kernels to where they started, as by a rubber band: steeper than a square near the start."""

import jax.numpy as jnp

from jtransfer.methods import Method, learn
from jtransfer.tree import prefixed

START = "start/"
"""What the paths of the held kernels begin with."""


def elastic(square: float = 0.01, absolute: float = 0.001) -> Method:
    """Add `Σ square / 2 (w - w0)² + absolute |w - w0|` over the backbone's kernels, as in `finetune + elastic`.

    That is the elastic net of Zou and Hastie 2005 on the change of a weight in place of the weight. Biases, norms and
    embeddings are free; nothing learns by this alone.
    """

    def holds(base):
        return prefixed({path: leaf for path, leaf in base.items() if path.endswith("/kernel")}, START)

    def scores(score):
        def penalised(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            held = [path for path in params if path.startswith(START) and path[len(START) :] in params]
            moved = [params[path[len(START) :]] - params[path] for path in held]
            pull = sum(square / 2 * jnp.sum(x**2) + absolute * jnp.sum(jnp.abs(x)) for x in moved)
            return value + pull, metrics | {"pull": pull}

        return penalised

    return Method("elastic", learn(), scores=scores, holds=holds)
