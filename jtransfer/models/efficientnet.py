"""Networks of inverted bottlenecks: MobileNetV2 and V3, EfficientNet and EfficientNet-Lite, each a table of blocks.

    stem/{conv, norm}
    stage_0/block_0/{expand/{conv, norm}, depthwise/{conv, norm}, squeeze/{reduce, expand}, project/{conv, norm}}
    top/{conv, norm}
    pooler                                                                      MobileNetV3

A block widens its input by a 1x1 convolution, filters every channel by itself, and narrows it again by a 1x1
convolution without a nonlinearity behind it; the narrow ends are added (MobileNetV2: Sandler et al. 2018,
arXiv:1801.04381). In between it may weigh the channels by what all places hold on average (squeeze-and-excite: Hu et
al. 2018, arXiv:1709.01507; MobileNetV3: Howard et al. 2019, arXiv:1905.02244; EfficientNet: Tan & Le 2019,
arXiv:1905.11946). EfficientNet-Lite has no such weights, and ReLU6.

The running statistics of each norm are its `mean` and `var` in the collection `batch_stats`. Methods reach in from
outside through a block's `residual`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture, check_sides

ACTIVATIONS = layers.ACTIVATIONS | {"hard_swish": nn.hard_swish}
GATES = {"sigmoid": nn.sigmoid, "hard_sigmoid": nn.hard_sigmoid}
PADDINGS = ("same", "both", "after")
STEM_SIDE, STEM_STRIDE = 3, 2
MOST = 1_000_000_000
"""The largest size."""


class Shape(NamedTuple):
    """What one block is: a row of the table whose columns the config has.

    Attributes:
        width: Channels of the output.
        side: Of the depthwise kernel.
        stride: Of the depthwise convolution.
        expanded: Channels inside; 0 where the block does not expand.
        squeezed: Channels between the two layers of squeeze-and-excite; 0 for none.
        activation: Behind the first two norms, a key of `ACTIVATIONS`.
        even: Whether a convolution with a stride is padded on both sides alike, whatever the config's padding.
        dropped: Probability, in training, that an example skips the block.
    """

    width: int
    side: int
    stride: int
    expanded: int
    squeezed: int
    activation: str
    even: bool
    dropped: float


@dataclass(frozen=True)
class EfficientNetConfig(Architecture):
    """Options of a network of inverted bottlenecks; the defaults are EfficientNet-B0.

    Attributes:
        image: Height and width that inputs are expected to have; the model itself takes any.
        channels: Channels of the input.
        stem: Channels of the stem's 3x3 convolution, which halves the resolution.
        depths: Number of blocks in each stage.
        widths: Channels of the output of each stage.
        sides: Of the depthwise kernels in each stage, odd.
        strides: Of the first block of each stage, 1 or 2.
        expanded: Channels inside each block, counted through all stages; 0 for a block that does not expand.
        squeezed: Channels between the two layers of squeeze-and-excite in each block; 0 for a block without.
        top: Channels of the 1x1 convolution after the last block.
        pooler: Width of a dense layer on what is pooled (MobileNetV3); 0 for none.
        activation: A key of `ACTIVATIONS`.
        relu_stages: Number of stages, from the first on, whose blocks have ReLU instead.
        gate: What squeeze-and-excite makes weights with, a key of `GATES`.
        squeeze_activation: Between its two layers.
        padding: Of a convolution with a stride: "same" (TensorFlow's: what the size asks for, the odd one right and
            below), "both" (PyTorch's: on both sides alike), or "after" (as "same" of an even size, whatever the size).
        even: The blocks, counted through all stages, that are padded on both sides alike all the same.
        drop_path: Stochastic depth (Huang et al. 2016, arXiv:1603.09382): an example skips block i, which adds to its
            input, with the probability `drop_path * i / depth`, as in timm. Transformers drops single numbers instead.
        epsilon: Of every BatchNorm.
        momentum: What a step of training keeps of the running statistics.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`, its statistics float32.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    stem: int = 32
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    sides: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expanded: tuple[int, ...] = (0, 96, *[144] * 2, *[240] * 2, *[480] * 3, *[672] * 3, *[1152] * 4)
    squeezed: tuple[int, ...] = (8, 4, *[6] * 2, *[10] * 2, *[20] * 3, *[28] * 3, *[48] * 4)
    top: int = 1280
    pooler: int = 0
    activation: str = "silu"
    relu_stages: int = 0
    gate: str = "sigmoid"
    squeeze_activation: str = "silu"
    padding: str = "same"
    even: tuple[int, ...] = ()
    drop_path: float = 0.0
    epsilon: float = 1e-3
    momentum: float = 0.9
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name, known in (
            ("activation", ACTIVATIONS),
            ("squeeze_activation", ACTIVATIONS),
            ("gate", GATES),
            ("padding", PADDINGS),
        ):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"efficientnet: unknown {name} '{value}'; {nearest(str(value), known)}")
        sizes = (*self.image, self.channels, self.stem, self.top, *self.depths, *self.widths)
        if not all(isinstance(size, int) and 1 <= size <= MOST for size in sizes):
            raise InputError(f"efficientnet: image, channels, stem, top, depths and widths must be from 1 to {MOST:,}")
        if not all(0 <= size <= MOST for size in (*self.expanded, *self.squeezed, self.pooler)):
            raise InputError(f"efficientnet: expanded, squeezed and pooler must be from 0 to {MOST:,}")
        stages, blocks = len(self.depths), self.depth
        for name, expected in (("widths", stages), ("sides", stages), ("strides", stages)):
            if (found := len(getattr(self, name))) != expected or not stages:
                raise InputError(f"efficientnet: {found} {name} do not fit the depths of {stages} stages")
        for name in ("expanded", "squeezed"):
            if (found := len(getattr(self, name))) != blocks:
                raise InputError(f"efficientnet: {found} numbers in {name} do not fit {blocks} blocks")
        if any(side % 2 == 0 for side in self.sides):
            raise InputError(f"efficientnet: sides {list(self.sides)}; expected odd numbers")
        if not {1, 2}.issuperset(self.strides):
            raise InputError(f"efficientnet: strides {list(self.strides)}; expected 1 or 2")
        if any(block >= blocks for block in self.even):
            raise InputError(f"efficientnet: even {list(self.even)}; expected numbers of blocks, 0..{blocks - 1}")
        check_sides("efficientnet", self.image, self.least)

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def least(self) -> int:
        """The smallest side of an image, in pixels, of which something is left after all strides."""
        return next(side for side in range(STEM_STRIDE, MOST) if self._remains(side))

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def table(self) -> tuple[tuple[Shape, ...], ...]:
        """The blocks of each stage."""
        stages, number = [], 0
        for stage, depth in enumerate(self.depths):
            activation = "relu" if stage < self.relu_stages else self.activation
            rows = []
            for i in range(depth):
                stride = 1 if i else self.strides[stage]
                inside = self.expanded[number], self.squeezed[number]
                outside = self.widths[stage], self.sides[stage], stride
                dropped = self.drop_path * number / self.depth
                rows.append(Shape(*outside, *inside, activation, number in self.even, dropped))
                number += 1
            stages.append(tuple(rows))
        return tuple(stages)

    def padded(self, length: int, side: int, stride: int, even: bool = False) -> tuple[int, int]:
        """Zeros before and after an axis of an image for a convolution."""
        if stride == 1 or even or self.padding == "both":
            return side // 2, side // 2
        if self.padding == "after":
            return side // 2 - 1, side // 2
        total = max((-(-length // stride) - 1) * stride + side - length, 0)
        return total // 2, total - total // 2

    def _remains(self, length):
        """Whether anything is left of an axis of an image after all strides."""
        strided = [(STEM_SIDE, STEM_STRIDE, False)]
        strided += [(shape.side, shape.stride, shape.even) for stage in self.table for shape in stage]
        for side, stride, even in strided:
            length = (length + sum(self.padded(length, side, stride, even)) - side) // stride + 1
            if length < 1:
                return False
        return True


class NormedConv(nn.Module):
    """A convolution with its norm, and the activation where there is one."""

    config: EfficientNetConfig
    features: int
    side: int
    stride: int = 1
    depthwise: bool = False
    activation: str = ""
    even: bool = False

    @nn.compact
    def __call__(self, x, train):
        c = self.config
        fan = "fan_in" if self.depthwise else "fan_out"  # of a depthwise kernel both are the area of the kernel
        x = nn.Conv(
            self.features,
            (self.side, self.side),
            self.stride,
            [c.padded(length, self.side, self.stride, self.even) for length in x.shape[1:3]],
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, fan, "normal"),
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            conv_general_dilated=layers.depthwise if self.depthwise else layers.pointwise,
            name="conv",
        )(x)
        norm = layers.BatchNorm(not train, c.momentum, c.epsilon, dtype=c.dtype, param_dtype=c.param_dtype, name="norm")
        x = norm(x)
        return ACTIVATIONS[self.activation](x) if self.activation else x


class SqueezeExcite(nn.Module):
    """Weights from 0 to 1 on the channels, made of the mean of each over height and width."""

    config: EfficientNetConfig
    width: int

    @nn.compact
    def __call__(self, x):
        c = self.config

        def dense(width, name):
            return layers.Dense(width, dtype=c.dtype, param_dtype=c.param_dtype, name=name)

        y = ACTIVATIONS[c.squeeze_activation](dense(self.width, "reduce")(x.mean((1, 2))))
        return x * GATES[c.gate](dense(x.shape[-1], "expand")(y))[:, None, None]


class Bottleneck(nn.Module):
    """An inverted bottleneck on `[batch, height, width, channels]`."""

    config: EfficientNetConfig
    shape: Shape

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("convolutions") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, train):
        c, s, y = self.config, self.shape, x
        if s.expanded:
            y = NormedConv(c, s.expanded, 1, activation=s.activation, name="expand")(y, train)
        filters = {"depthwise": True, "activation": s.activation, "even": s.even}
        y = NormedConv(c, y.shape[-1], s.side, s.stride, **filters, name="depthwise")(y, train)
        if s.squeezed:
            y = SqueezeExcite(c, s.squeezed, name="squeeze")(y)
        y = NormedConv(c, s.width, 1, name="project")(y, train)
        if s.stride != 1 or x.shape != y.shape:
            return y
        y = nn.Dropout(s.dropped, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        return self.residual(x, y, "convolutions")


class EfficientNetStage(nn.Module):
    """Blocks of one width, of which the first may halve the resolution; gives the output of each."""

    config: EfficientNetConfig
    shapes: tuple[Shape, ...]

    @nn.compact
    def __call__(self, x, train):
        states = [x]
        for i, shape in enumerate(self.shapes):
            states.append(Bottleneck(self.config, shape, name=f"block_{i}")(states[-1], train))
        return states[1:]


class EfficientNet(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `last_hidden_state [batch, height, width,
    channels]` (transformers has channels before height), the output of the top, `pooler_output [batch, channels]`, its
    mean over height and width, in MobileNetV3 behind one more layer, `features`, the same, and, on request,
    `hidden_states`: the output of the stem and of each block.

    With `train=True` each norm uses the statistics of the batch and updates its running ones, so the collection
    `batch_stats` must be mutable.
    """

    config: EfficientNetConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        c = self.config
        check_sides("efficientnet", pixel_values.shape[1:3], c.least)
        stem = NormedConv(c, c.stem, STEM_SIDE, STEM_STRIDE, activation=c.activation, name="stem")
        hidden_states = [stem(pixel_values.astype(c.dtype), train)]
        for i, shapes in enumerate(c.table):
            hidden_states += EfficientNetStage(c, shapes, name=f"stage_{i}")(hidden_states[-1], train)
        x = NormedConv(c, c.top, 1, activation=c.activation, name="top")(hidden_states[-1], train)
        pooled = x.mean((1, 2))
        if c.pooler:
            dense = layers.Dense(c.pooler, dtype=c.dtype, param_dtype=c.param_dtype, name="pooler")
            pooled = ACTIVATIONS[c.activation](dense(pooled))
        outputs = {"last_hidden_state": x, "pooler_output": pooled, "features": pooled}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
