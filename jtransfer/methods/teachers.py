"""Terms on the score that make a model follow another one, whose outputs ride in the batch."""

from typing import Annotated

import jax
import jax.numpy as jnp

from jtransfer.kinds import POSITIVE, checked, number
from jtransfer.methods.method import Method, learn
from jtransfer.objectives import Score

TEACHER = "teacher"
"""The part of a batch that has the teacher's logits `[batch, classes]`."""


def apart(teacher: jax.Array, own: jax.Array, temperature: float) -> jax.Array:
    """`KL(teacher || own)` of two softmaxes of logits `[batch, classes]` at a temperature, the mean over the batch."""
    teacher, own = (jax.nn.log_softmax(x / temperature) for x in (teacher, own))
    return jnp.sum(jnp.exp(teacher) * (teacher - own), -1).mean()


@checked
def distill(
    weight: Annotated[float, number(least=0, most=1)] = 0.5, temperature: Annotated[float, POSITIVE] = 2.0
) -> Method:
    """Follow a teacher's predictions, as in `finetune + distill(weight=0.9)`; nothing learns by this alone.

    The score becomes `(1 - weight) * score + weight * T² KL(teacher || model)`, both softmaxes at temperature T, in the
    mean over the batch (Hinton et al. 2015, arXiv:1503.02531, section 2). The metric `distillation` is `T² KL`.

    Args:
        weight: Of the teacher beside the labels, 0..1.
        temperature: T; higher ones tell more of the classes that the teacher thinks unlikely.

    Raises:
        InputError: a `weight` outside 0..1, or a `temperature` that is not above 0.
    """

    def scores(score: Score) -> Score:
        def taught(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            distance = temperature**2 * apart(batch[TEACHER], outputs["logits"], temperature)
            return (1 - weight) * value + weight * distance, metrics | {"distillation": distance}

        return taught

    return Method("distill", learn(), scores=scores, needs=(TEACHER,))
