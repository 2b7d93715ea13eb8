"""A backbone and a linear head on its pooled output."""

import flax.linen as nn
import jax

from jtransfer.models import layers

SOURCE_HEAD = "source_head/"
"""Prefix of the head of a backbone's source task, which stays in the tree, frozen, whatever the method."""


class Classifier(nn.Module):
    """Adds `logits [batch, classes]` (float32) to the outputs of a backbone, whose paths stay as they are.

    The tree may hold several heads: which one is read is a matter of its name, so `Classifier(backbone, 62,
    "source_head")` on the tree of an adapted model still tells what it knows of its source task.

    Attributes:
        backbone: A module whose outputs have `pooler_output [batch, width]`.
        classes: Number of classes of the head; it starts at zero, so the first prediction is uniform.
        head: Name of the head's layer.
    """

    backbone: nn.Module
    classes: int
    head: str = "head"

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False, **kwargs) -> dict[str, jax.Array]:
        backbone = self.backbone.copy(name=None)
        nn.share_scope(self, backbone)
        outputs = backbone(inputs, train=train, **kwargs)
        head = layers.Dense(self.classes, kernel_init=nn.initializers.zeros, name=self.head, dtype="float32")
        return outputs | {"logits": head(outputs["pooler_output"])}
