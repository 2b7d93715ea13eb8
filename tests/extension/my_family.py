"""ConvMixer: convolutions over places, then over channels (Trockman and Kolter 2022, arXiv:2201.09792, section 2).

stem/{conv, norm}
block_0/{conv_1, norm_1, conv_2, norm_2}
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.models import Architecture, layers


@dataclass(frozen=True)
class ConvMixerConfig(Architecture):
    """The architecture; `kernel` is the side of the convolutions over places."""

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    patch: int = 7
    width: int = 512
    depth: int = 12
    kernel: int = 8

    @property
    def inputs(self):
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}


class Part(nn.Module):
    """The stem, or a block, on `x [batch, height, width, channels]`."""

    config: ConvMixerConfig
    stem: bool = False

    @nn.compact
    def __call__(self, x, train):
        def layer(x, number, side, **options):
            y = nn.Conv(self.config.width, (side, side), name=f"conv{number}", **options)(x)
            return layers.BatchNorm(not train, name=f"norm{number}")(jax.nn.gelu(y))

        if self.stem:
            return layer(x, "", self.config.patch, strides=self.config.patch)
        y = layer(x, "_1", self.config.kernel, feature_group_count=self.config.width)
        return layer(x + y, "_2", 1)


class ConvMixer(nn.Module):
    """`features [batch, width]` of `pixel_values [batch, height, width, channels]`."""

    config: ConvMixerConfig

    @nn.compact
    def __call__(self, pixel_values, train=False):
        x = Part(self.config, stem=True, name="stem")(pixel_values, train)
        for i in range(self.config.depth):
            x = Part(self.config, name=f"block_{i}")(x, train)
        return {"last_hidden_state": x, "features": x.mean((1, 2))}
