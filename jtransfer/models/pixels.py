"""No backbone at all: the raw input as the representation, so that a probe on it is logistic regression on pixels."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.models.architecture import Architecture


@dataclass(frozen=True)
class PixelsConfig(Architecture):
    """The shape `[height, width, channels]` of one input."""

    image: tuple[int, int]
    channels: int

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}


class Pixels(nn.Module):
    """`features` are the flattened image `[batch, height * width * channels]`. There are no parameters."""

    config: PixelsConfig

    @nn.compact
    def __call__(self, pixel_values, train=False):
        return {"features": pixel_values.reshape(len(pixel_values), -1)}
