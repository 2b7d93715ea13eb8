"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545) and ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808).

    stem/{conv, norm}
    stage_0/block_0/{conv, norm, mlp/{up, down}, scale}
    stage_0/block_0/{conv, norm, mlp/{up, grn, down}}      V2
    stage_1/block_0/{downsample/{norm, conv}, ...}         the first block of every later stage
    norm                                                   of the pooled features

Methods reach in from outside through a block's `residual` and the `activate` of its MLP.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture

KERNEL = 7
"""Side of the depthwise convolution of a block."""

EXPANSION = 4
"""Factor by which the MLP of a block is wider inside."""


@dataclass(frozen=True)
class ConvNextConfig(Architecture):
    """Options of a ConvNeXt.

    Attributes:
        image: Height and width that inputs are expected to have; the model itself takes any from `least` on.
        channels: Channels of the input.
        stride: Side and stride of the patches that the stem reads.
        widths: Channels of each stage.
        depths: Number of blocks in each stage.
        activation: In the MLP of a block, a key of `layers.ACTIVATIONS`.
        grn: Whether global response normalisation follows the activation (V2).
        layer_scale: Start of a learned scale on the branch of a block (Touvron et al. 2021, arXiv:2103.17239); 0 for
            none (V2).
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first
            (Huang et al. 2016, arXiv:1603.09382).
        epsilon: Added to the variance in the last LayerNorm.
        inner_epsilon: Added to the variance in every other LayerNorm.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    stride: int = 4
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    activation: str = "gelu"
    grn: bool = False
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    epsilon: float = 1e-12
    inner_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"

    final_norm = "norm"

    def __post_init__(self):
        if self.activation not in layers.ACTIVATIONS:
            raise InputError(f"unknown activation '{self.activation}'; {nearest(self.activation, layers.ACTIVATIONS)}")
        sizes = (*self.image, self.channels, self.stride, *self.widths, *self.depths)
        if len(self.image) != 2 or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InputError("convnext: image, channels, stride, widths and depths must be whole numbers of at least 1")
        if not self.depths or len(self.widths) != len(self.depths):
            raise InputError(f"convnext: {len(self.widths)} widths do not fit the depths of {len(self.depths)} stages")
        self.check_sides(self.image)

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def least(self) -> int:
        """Pixels along a side that become one value in the last stage; a smaller image would become none."""
        return self.stride * 2 ** (len(self.depths) - 1)

    def check_sides(self, sides: tuple[int, int]) -> None:
        """Refuse an image of which nothing would be left.

        Raises:
            InputError: with the least that it may have.
        """
        if min(sides) < self.least:
            raise InputError(
                f"convnext: images of {sides[0]}x{sides[1]} are too small for a stem of stride {self.stride} and "
                f"{len(self.depths)} stages; expected at least {self.least} pixels a side"
            )

    def conv(self, features, side, name):
        """A convolution in this precision of `side` x `side` patches, side by side; what is left over is not seen."""
        return nn.Conv(features, (side, side), side, "VALID", name=name, **self.started)

    def depthwise(self, features, name):
        """A convolution in this precision of each channel alone, which keeps the resolution."""
        form = {"feature_group_count": features, "conv_general_dilated": layers.depthwise}
        return nn.Conv(features, (KERNEL, KERNEL), name=name, **form, **self.started)

    def dense(self, features, name):
        """A dense layer in this precision."""
        return layers.Dense(features, name=name, **self.started)

    def layer_norm(self, name, epsilon=None):
        """A LayerNorm in this precision, by default one before the last."""
        epsilon = self.inner_epsilon if epsilon is None else epsilon
        return nn.LayerNorm(epsilon=epsilon, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    @property
    def started(self):
        """What all layers with a kernel share; they start as in the paper's code, with standard deviation 0.02."""
        start = nn.initializers.truncated_normal(0.02)
        return {"kernel_init": start, "dtype": self.dtype, "param_dtype": self.param_dtype}


class ConvNextStem(nn.Module):
    """The stem: patches to channels, and their norm."""

    config: ConvNextConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        return c.layer_norm("norm")(c.conv(c.widths[0], c.stride, "conv")(x))


class ConvNextDownsample(nn.Module):
    """Half the resolution in `width` channels."""

    config: ConvNextConfig
    width: int

    @nn.compact
    def __call__(self, x):
        return self.config.conv(self.width, 2, "conv")(self.config.layer_norm("norm")(x))


class GlobalResponseNorm(nn.Module):
    """Global response normalisation of `x [batch, height, width, channels]` (arXiv:2301.00808, equations 1 to 3).

    A channel is scaled by its norm over space, relative to the mean of all channels' norms; at the start, where `scale`
    and `bias` are zero, nothing changes.
    """

    config: ConvNextConfig
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        of = (x.shape[-1],), self.config.param_dtype
        scale = self.param("scale", nn.initializers.zeros, *of)
        bias = self.param("bias", nn.initializers.zeros, *of)
        square = jnp.square(x.astype(jnp.float32)).sum((1, 2), keepdims=True)
        norm = jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))  # whose gradient is 0 where all is 0
        relative = norm / (norm.mean(-1, keepdims=True) + self.epsilon)
        return (x * (1 + scale * relative) + bias).astype(x.dtype)


class ConvNextMlp(nn.Module):
    """Two dense layers on `[batch, height, width, channels]`."""

    config: ConvNextConfig

    def activate(self, h):
        """The nonlinearity on the hidden units."""
        return layers.ACTIVATIONS[self.config.activation](h)

    @nn.compact
    def __call__(self, x):
        c = self.config
        h = self.activate(c.dense(EXPANSION * x.shape[-1], "up")(x))
        h = GlobalResponseNorm(c, name="grn")(h) if c.grn else h
        return c.dense(x.shape[-1], "down")(h)


class ConvNextBlock(nn.Module):
    """A depthwise convolution and an MLP around a shortcut, on `[batch, height, width, channels]`.

    The layers that lead into a stage are part of its first block, so that all blocks in their order are the network
    between stem and norm.
    """

    config: ConvNextConfig
    width: int
    drop_path: float
    downsample: bool

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("convolution") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, train):
        c = self.config
        x = ConvNextDownsample(c, self.width, name="downsample")(x) if self.downsample else x
        y = ConvNextMlp(c, name="mlp")(c.layer_norm("norm")(c.depthwise(self.width, "conv")(x)))
        if c.layer_scale:
            start = nn.initializers.constant(c.layer_scale)
            y = y * self.param("scale", start, (self.width,), c.param_dtype).astype(y.dtype)
        y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        return self.residual(x, y, "convolution")


class ConvNextStage(nn.Module):
    """Blocks of one width.

    Attributes:
        first: Place of its first block among those of all stages.
    """

    config: ConvNextConfig
    width: int
    depth: int
    first: int

    @nn.compact
    def __call__(self, x, train):
        c = self.config
        for i in range(self.depth):
            rate = c.drop_path * (self.first + i) / max(c.depth - 1, 1)
            leads = i == 0 and self.first > 0
            x = ConvNextBlock(c, self.width, rate, leads, name=f"block_{i}")(x, train)
        return x


class ConvNext(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `feature_maps`, the output of each stage
    `[batch, height, width, channels]` (transformers has channels before height), `last_hidden_state`, the last of
    them, `pooler_output [batch, channels]`, the LayerNorm of its mean over height and width, `features`, the same, and,
    on request, `hidden_states`: the output of the stem and the feature maps.
    """

    config: ConvNextConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        c = self.config
        c.check_sides(pixel_values.shape[1:3])
        x = ConvNextStem(c, name="stem")(pixel_values.astype(c.dtype))
        hidden_states = [x]
        for i, (width, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            x = ConvNextStage(c, width, depth, sum(c.depths[:i]), name=f"stage_{i}")(x, train)
            hidden_states.append(x)
        pooled = c.layer_norm("norm", c.epsilon)(x.mean((1, 2)))
        outputs = {"last_hidden_state": x, "feature_maps": hidden_states[1:]}
        outputs |= {"pooler_output": pooled, "features": pooled}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
