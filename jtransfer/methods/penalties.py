"""Terms on the score that keep what learns near where it started."""

from typing import Annotated

import jax.numpy as jnp

from jtransfer.kinds import NOT_NEGATIVE, checked
from jtransfer.methods.fisher import FISHER
from jtransfer.methods.method import Method, learn
from jtransfer.models import SOURCE_HEAD, STATISTICS
from jtransfer.objectives import Score
from jtransfer.tree import Tree, prefixed

ANCHOR = "anchor/"
"""Prefix of the paths under which the backbone's leaves are held as they were at the start."""


def anchored(base: Tree) -> Tree:
    """The parameters of the backbone, under `ANCHOR`."""
    return prefixed({path: leaf for path, leaf in base.items() if not path.startswith(STATISTICS)}, ANCHOR)


@checked
def l2sp(alpha: Annotated[float, NOT_NEGATIVE] = 0.1, beta: Annotated[float, NOT_NEGATIVE] = 0.01) -> Method:
    """Pull what learns to the backbone's weights, as in `finetune + l2sp(alpha=0.1)`; nothing learns by this alone.

    `alpha / 2 |w - w0|² + beta / 2 |v|²` is added to the loss, over leaves `w` that start as the backbone's `w0` and
    leaves `v` that it does not have, as a new head (L2-SP, Li et al. 2018, arXiv:1802.01483, equation 4). It is the
    loss that it is added to: unlike the optimiser's `decay`, AdamW scales it as any gradient. The metric `penalty` is
    the sum of both terms.

    Args:
        alpha: Weight of the leaves that the backbone gives.
        beta: Weight of the others.

    Raises:
        InputError: a weight below 0.
    """

    def scores(score: Score) -> Score:
        def penalised(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            penalty = jnp.float32(0)
            for path, leaf in params.items():
                if path.startswith((ANCHOR, FISHER, SOURCE_HEAD)):
                    continue
                start, weight = (params[ANCHOR + path], alpha) if ANCHOR + path in params else (0, beta)
                penalty += weight / 2 * jnp.sum(jnp.square((leaf - start).astype(jnp.float32)))
            return value + penalty, metrics | {"penalty": penalty}

        return penalised

    return Method("l2sp", learn(), scores=scores, holds=anchored)
