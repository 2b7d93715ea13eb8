"""The focal loss: examples that are right already count less (Lin et al. 2017, arXiv:1708.02002, equation 4)."""

import jax
import jax.numpy as jnp

from jtransfer.models import Head
from jtransfer.objectives import Objective


def focal(gamma: float = 2.0) -> Objective:
    """The mean of `-(1 - p)^gamma log p` over a batch, with p the probability of an example's class.

    Equation 4 is of two classes; this is its form for the softmax of any number. With `gamma` 0 it is cross-entropy.
    """

    def measure(outputs, batch):
        logits, labels = outputs["logits"], batch["labels"]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
        return {"loss": -((1 - jnp.exp(log_p)) ** gamma) * log_p, "accuracy": logits.argmax(-1) == labels}

    def score(params, outputs, batch):
        each = measure(outputs, batch)
        return each["loss"].mean(), {"accuracy": each["accuracy"].mean()}

    def head(architecture, classes):
        return Head(classes)

    return Objective(score, head, measure=measure, metrics=("accuracy",))
