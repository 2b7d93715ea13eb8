"""Cross-entropy on class labels, with label smoothing and mixup."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jtransfer import models
from jtransfer.tree import Tree, flat


def classification(model: nn.Module, smoothing: float = 0.0, mixup: float = 0.0) -> Callable:
    """The mean cross-entropy of `model`'s logits over a batch `{"inputs": [batch, ...], "labels": [batch]}`.

    Args:
        model: Called with `(inputs, train=True)`; its outputs have `logits [batch, classes]`.
        smoothing: Weight of the uniform distribution in the target (Szegedy et al. 2016, arXiv:1512.00567).
        mixup: Alpha of the Beta distribution from which one weight a batch is drawn; 0 is off
            (Zhang et al. 2018, arXiv:1710.09412).

    Returns:
        `loss(params, state, batch, key) -> (value, (metrics, state))`, flat trees in and out.
    """

    def loss(params: Tree, state: Tree, batch: dict[str, jax.Array], key: jax.Array):
        mix_key, dropout_key = jax.random.split(key)
        inputs, labels = batch["inputs"], batch["labels"]
        weight = jax.random.beta(mix_key, mixup, mixup) if mixup else None
        if mixup:
            inputs = weight * inputs + (1 - weight) * jnp.roll(inputs, 1, axis=0)
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
