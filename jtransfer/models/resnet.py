"""Residual network (He et al. 2016, arXiv:1512.03385), in the form v1.5 that halves the resolution in the 3x3.

    stem/{conv, norm}
    stage_0/block_0/{conv_1, norm_1, conv_2, norm_2, shortcut/{conv, norm}}      basic
    stage_0/block_0/{..., conv_3, norm_3, ...}                                   bottleneck

A shortcut is there where a block changes the width or the resolution. The running statistics of each norm are its
`mean` and `var` in the collection `batch_stats`. Methods reach in from outside through a block's `residual`.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture, check_sides

BLOCKS = ("basic", "bottleneck")
STEM_STRIDE = 4
"""Of the stem's convolution and pooling together."""
REDUCTION = 4
"""Factor by which the 3x3 convolution of a bottleneck is narrower than the bottleneck's output."""


@dataclass(frozen=True)
class ResNetConfig(Architecture):
    """Options of a residual network.

    Attributes:
        image: Height and width that inputs are expected to have; the model itself takes any.
        channels: Channels of the input.
        block: "basic" (two 3x3: ResNet-18 and 34) or "bottleneck" (1x1, 3x3, 1x1: 50, 101 and 152).
        stem: Width of the stem.
        widths: Channels of the output of each stage.
        depths: Number of blocks in each stage.
        activation: After the stem and after each sum, a key of `layers.ACTIVATIONS`. Between the convolutions of a
            block it is ReLU whatever this says, as in transformers.
        downsample_in_first_stage: Whether the first stage halves the resolution, as all later ones do.
        downsample_in_bottleneck: Whether the first 1x1 of a bottleneck halves it, as in the paper, instead of the 3x3.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`, its statistics float32.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    block: str = "bottleneck"
    stem: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    activation: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.block not in BLOCKS:
            raise InputError(f"resnet: unknown block '{self.block}'; {nearest(str(self.block), BLOCKS)}")
        if self.activation not in layers.ACTIVATIONS:
            raise InputError(f"unknown activation '{self.activation}'; {nearest(self.activation, layers.ACTIVATIONS)}")
        sizes = (*self.image, self.channels, self.stem, *self.widths, *self.depths)
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InputError("resnet: image, channels, stem, widths and depths must be whole numbers of at least 1")
        check_sides("resnet", self.image, STEM_STRIDE)
        if not self.depths or len(self.widths) != len(self.depths):
            raise InputError(f"resnet: {len(self.widths)} widths do not fit the depths of {len(self.depths)} stages")
        if self.block == "bottleneck" and min(self.widths) < REDUCTION:
            raise InputError(f"resnet: widths {self.widths} of bottlenecks must be at least {REDUCTION}")

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def depth(self) -> int:
        return sum(self.depths)

    def convolutions(self, width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
        """`(features, side of the kernel, stride)` of each convolution of a block that gives out `width`."""
        if self.block == "basic":
            return (width, 3, stride), (width, 3, 1)
        narrow = width // REDUCTION
        early, late = (stride, 1) if self.downsample_in_bottleneck else (1, stride)
        return (narrow, 1, early), (narrow, 3, late), (width, 1, 1)

    def activate(self, x):
        """The nonlinearity outside the branches."""
        return layers.ACTIVATIONS[self.activation](x)

    def conv(self, features, side, stride, name):
        """A convolution in this precision, padded as PyTorch's: on both sides alike, whatever the stride."""
        return nn.Conv(
            features,
            (side, side),
            stride,
            [(side // 2, side // 2)] * 2,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def norm(self, train, name):
        """A batch normalisation in this precision."""
        return layers.BatchNorm(not train, dtype=self.dtype, param_dtype=self.param_dtype, name=name)


class ConvNorm(nn.Module):
    """A convolution and its norm: the stem, and the shortcut of a block."""

    config: ResNetConfig
    features: int
    side: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        x = self.config.conv(self.features, self.side, self.stride, "conv")(x)
        return self.config.norm(train, "norm")(x)


class ResNetBlock(nn.Module):
    """The convolutions of a block on `[batch, height, width, channels]`, each with its norm, around a shortcut."""

    config: ResNetConfig
    width: int
    stride: int

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("convolutions") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, train):
        c, y = self.config, x
        for number, (features, side, stride) in enumerate(c.convolutions(self.width, self.stride), 1):
            y = y if number == 1 else nn.relu(y)
            y = c.conv(features, side, stride, f"conv_{number}")(y)
            y = c.norm(train, f"norm_{number}")(y)
        if x.shape[-1] != self.width or self.stride != 1:
            x = ConvNorm(c, self.width, 1, self.stride, name="shortcut")(x, train)
        return c.activate(self.residual(x, y, "convolutions"))


class Stage(nn.Module):
    """Blocks of one width, of which the first may halve the resolution."""

    config: ResNetConfig
    width: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        for i in range(self.depth):
            x = ResNetBlock(self.config, self.width, self.stride if i == 0 else 1, name=f"block_{i}")(x, train)
        return x


class ResNet(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `feature_maps`, the output of each stage
    `[batch, height, width, channels]` (transformers has channels before height), `last_hidden_state`, the last of
    them, `pooler_output [batch, channels]`, its mean over height and width (transformers keeps two axes of 1),
    `features`, the same, and, on request, `hidden_states`: the output of the stem and the feature maps.

    With `train=True` each norm uses the statistics of the batch and updates its running ones, so the collection
    `batch_stats` must be mutable.
    """

    config: ResNetConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        c = self.config
        check_sides("resnet", pixel_values.shape[1:3], STEM_STRIDE)
        x = ConvNorm(c, c.stem, 7, 2, name="stem")(pixel_values.astype(c.dtype), train)
        x = nn.max_pool(c.activate(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        hidden_states = [x]
        for i, (width, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            stride = 2 if i or c.downsample_in_first_stage else 1
            x = Stage(c, width, depth, stride, name=f"stage_{i}")(x, train)
            hidden_states.append(x)
        pooled = x.mean((1, 2))
        outputs = {"last_hidden_state": x, "feature_maps": hidden_states[1:]}
        outputs |= {"pooler_output": pooled, "features": pooled}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
