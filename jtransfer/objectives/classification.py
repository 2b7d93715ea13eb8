"""Cross-entropy on class labels, with label smoothing and mixup."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jtransfer import models
from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, SHARE, check
from jtransfer.tree import Tree, flat


def classification(model: nn.Module, smoothing: float = 0.0, mixup: float = 0.0) -> Callable:
    """The mean cross-entropy of `model`'s logits over a batch `{"inputs": [batch, ...], "labels": [batch]}`.

    The inputs are one array, or several by name.

    Args:
        model: Called with `(inputs, train=True)`; its outputs have `logits [batch, classes]`.
        smoothing: Weight of the uniform distribution in the target (Szegedy et al. 2016, arXiv:1512.00567).
        mixup: Alpha of the Beta distribution from which one weight a batch is drawn; 0 is off
            (Zhang et al. 2018, arXiv:1710.09412). Only numbers can be mixed: `check_mixup`.

    Returns:
        `loss(params, state, batch, key) -> (value, (metrics, state))`, flat trees in and out.

    Raises:
        InputError: `smoothing` outside 0..1, or `mixup` below 0 or not finite.
    """
    check(smoothing, SHARE, "smoothing")
    check(mixup, NOT_NEGATIVE, "mixup")

    def loss(params: Tree, state: Tree, batch: dict[str, jax.Array], key: jax.Array):
        mix_key, dropout_key = jax.random.split(key)
        inputs, labels = batch["inputs"], batch["labels"]
        weight = jax.random.beta(mix_key, mixup, mixup) if mixup else None
        if mixup:
            check_mixup(mixup, inputs)
            inputs = jax.tree.map(lambda x: weight * x + (1 - weight) * jnp.roll(x, 1, axis=0), inputs)
        mutable = ["batch_stats"] if state else []
        outputs, updated = models.apply(
            model, params | state, inputs, train=True, rngs={"dropout": dropout_key}, mutable=mutable
        )
        logits = outputs["logits"]
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
        if mixup:
            targets = weight * targets + (1 - weight) * jnp.roll(targets, 1, axis=0)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        return value, ({"loss": value, "accuracy": jnp.mean(logits.argmax(-1) == labels)}, flat(updated))

    return loss


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
