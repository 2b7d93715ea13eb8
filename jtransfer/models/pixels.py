"""No backbone at all: the raw input as the representation, so that a probe on it is logistic regression on pixels."""

from dataclasses import dataclass

import flax.linen as nn


@dataclass(frozen=True)
class PixelsConfig:
    """The shape `[height, width, channels]` of one input."""

    image: tuple[int, int]
    channels: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`[height, width, channels]` of one example."""
        return (*self.image, self.channels)


class Pixels(nn.Module):
    """`pooler_output` is the flattened image `[batch, height * width * channels]`. There are no parameters."""

    config: PixelsConfig

    @nn.compact
    def __call__(self, pixel_values, train=False):
        return {"pooler_output": pixel_values.reshape(len(pixel_values), -1)}
