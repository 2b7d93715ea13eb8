"""Imitation of a teacher's logits, without a softmax (Ba and Caruana 2014, arXiv:1312.6184, equation 1)."""

import jax.numpy as jnp

from jtransfer.methods import Method, learn


def imitate(weight: float = 0.5) -> Method:
    """The score becomes `(1 - weight) * score + weight / 2 |teacher - logits|²`, as in `finetune + imitate`.

    The squared distance is over classes, its mean over the batch; of both sides' logits the mean over classes is taken
    off, which no prediction depends on. The teacher is `config.teacher`; nothing learns by this alone.
    """

    def scores(score):
        def taught(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            apart = batch["teacher"] - outputs["logits"]
            apart = apart - apart.mean(-1, keepdims=True)
            distance = jnp.sum(apart**2, -1).mean() / 2
            return (1 - weight) * value + weight * distance, metrics | {"distance": distance}

        return taught

    return Method("imitate", learn(), scores=scores, needs=("teacher",))
