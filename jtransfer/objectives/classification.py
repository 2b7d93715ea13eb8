"""Cross-entropy on class labels, with label smoothing and mixup."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, SHARE, check
from jtransfer.objectives.objective import Batch, Metrics, Objective, Outputs


def classification(smoothing: float = 0.0, mixup: float = 0.0) -> Objective:
    """The mean cross-entropy of logits over a batch `{"inputs": [batch, ...], "labels": [batch]}`.

    The inputs are one array, or several by name; the model's outputs have `logits [batch, classes]`.

    Args:
        smoothing: Weight of the uniform distribution in the target (Szegedy et al. 2016, arXiv:1512.00567).
        mixup: Alpha of the Beta distribution from which one weight a batch is drawn; 0 is off
            (Zhang et al. 2018, arXiv:1710.09412). Only numbers can be mixed: `check_mixup`.

    Raises:
        InputError: `smoothing` outside 0..1, or `mixup` below 0 or not finite.
    """
    check(smoothing, SHARE, "smoothing")
    check(mixup, NOT_NEGATIVE, "mixup")

    def augment(key, batch):
        if not mixup:
            return batch
        inputs, weight = batch["inputs"], jax.random.beta(key, mixup, mixup)
        check_mixup(mixup, inputs)
        mixed = jax.tree.map(lambda x: weight * x + (1 - weight) * jnp.roll(x, 1, axis=0), inputs)
        return batch | {"inputs": mixed, "weight": weight}

    def score(params, outputs, batch):
        logits, labels = outputs["logits"], batch["labels"]
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
        if mixup:
            targets = batch["weight"] * targets + (1 - batch["weight"]) * jnp.roll(targets, 1, axis=0)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        return value, {"accuracy": jnp.mean(logits.argmax(-1) == labels)}

    return Objective(score, augment, measure=measure)


def measure(outputs: Outputs, batch: Batch) -> Metrics:
    """Cross-entropy in nats and accuracy (0 or 1) of every example `[n]`."""
    logits, labels = outputs["logits"], batch["labels"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"loss": losses, "accuracy": logits.argmax(-1) == labels}


def check_mixup(mixup: float, inputs: Any) -> None:
    """Refuse to mix whole numbers, as the ids of tokens are.

    Args:
        mixup: See `classification`.
        inputs: One array or several by name, or their shapes.

    Raises:
        InputError: naming the inputs.
    """
    check(mixup, NOT_NEGATIVE, "mixup")
    named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    whole = [name for name, x in sorted(named.items()) if not jnp.issubdtype(x.dtype, jnp.floating)]
    if mixup and whole:
        raise InputError(
            f"mixup is {mixup:g}, but {', '.join(whole)} are whole numbers, which cannot be mixed; set it to 0"
        )
