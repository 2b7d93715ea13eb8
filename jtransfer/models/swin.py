"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030): attention in windows, shifted in every other block.

    embeddings/{patch, norm, positions}
    stage_0/block_0/{norm_1, attention/{query, key, value, out, positions}, norm_2, mlp/{up, down}}
    stage_1/block_0/{merge/{norm, reduction}, ...}
    norm

Patches are merged at the beginning of the first block of each stage but the first. Methods reach in from outside
through the small named functions `embed` and `positions`, and those of the blocks: `attend`, `residual`, `activate`.
"""

import itertools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.models.architecture import Architecture, check_sides
from jtransfer.models.transformer import Attention, Mlp, Stack
from jtransfer.models.vit import patches

EPSILON = 1e-5
"""Added to the variance in the LayerNorms of the embeddings and of merged patches, whatever `epsilon` is."""


@dataclass(frozen=True)
class SwinConfig(Architecture):
    """Options of a Swin Transformer.

    Attributes:
        image: Height and width of the input in pixels, filled up with zeros to whole patches.
        channels: Channels of the input.
        patch: Side of a patch in pixels.
        width: Of the first stage; each other stage is twice as wide as that before it.
        depths: Number of blocks in each stage.
        heads: Number of attention heads in each stage.
        window: Side of a window in patches. Where a stage is smaller, so are its windows, without a shift.
        mlp_ratio: Hidden width of an MLP over that of its stage, rounded down.
        absolute: Whether learned positions are added to the patches.
        qkv_bias: Whether query, key and value have a bias.
        epsilon: Added to the variance in the LayerNorms of the blocks and the last one.
        activation: A key of `layers.ACTIVATIONS`.
        dropout: Rate after the embeddings and in both branches of a block.
        attention_dropout: Rate on the attention weights.
        drop_path: Stochastic depth of the attention branch alone, as in transformers: rate of the last block, growing
            linearly from 0 at the first (Huang et al. 2016, arXiv:1603.09382).
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    patch: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    absolute: bool = False
    qkv_bias: bool = True
    epsilon: float = 1e-5
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.1
    dtype: str = "float32"
    param_dtype: str = "float32"

    final_norm = "norm"

    def __post_init__(self):
        sizes = (*self.image, self.channels, self.patch, self.width, self.window, *self.depths, *self.heads)
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InputError(
                "swin: image, channels, patch, width, window, depths and heads must be whole numbers of at least 1"
            )
        check_sides("swin", self.image, self.patch)
        if not self.depths or len(self.heads) != len(self.depths):
            raise InputError(f"swin: heads {self.heads} do not fit the depths of {len(self.depths)} stages")
        if self.absolute and any(side % self.patch for side in self.image):
            raise InputError(f"swin: image {self.image} has no whole patches of side {self.patch}; positions need them")
        _ = self.stacks  # which checks the rest

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.image[0] // self.patch), -(-self.image[1] // self.patch)

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The blocks of each stage."""
        unbiased = () if self.qkv_bias else ("query", "key", "value")
        widths = [self.width * 2**i for i in range(len(self.depths))]
        return tuple(
            Stack.of(self, width=width, depth=depth, heads=heads, hidden=int(self.mlp_ratio * width), unbiased=unbiased)
            for width, depth, heads in zip(widths, self.depths, self.heads, strict=True)
        )


class SwinEmbeddings(nn.Module):
    """Pixels to patches `[batch, height, width, features]`."""

    config: SwinConfig

    def embed(self, pixel_values):
        """`[batch, height, width, channels]` to `[batch, patches, width]`, before positions."""
        stack = self.config.stacks[0]
        x = stack.dense(stack.width, name="patch")(patches(pixel_values, self.config, "swin"))
        return stack.layer_norm(name="norm", epsilon=EPSILON)(x)

    def positions(self, x):
        """Add the learned positions, if there are any, to `x [batch, patches, width]`."""
        if not self.config.absolute:
            return x
        init = nn.initializers.normal(0.02)
        return x + self.param("positions", init, (1, *x.shape[1:]), self.config.param_dtype).astype(x.dtype)

    @nn.compact
    def __call__(self, pixel_values, train):
        c = self.config
        x = nn.Dropout(c.dropout)(self.positions(self.embed(pixel_values.astype(c.dtype))), deterministic=not train)
        return x.reshape(len(x), *c.grid, -1)


class PatchMerge(nn.Module):
    """Two by two patches to one of half as many features; an odd number of them is filled up with zeros."""

    config: Stack

    @nn.compact
    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        x = self.config.layer_norm(name="norm", epsilon=EPSILON)(x)
        return self.config.dense(self.config.width, use_bias=False, name="reduction")(x)


class SwinBlock(nn.Module):
    """Attention in windows and MLP, each behind a LayerNorm, on `x [batch, height, width, features]`.

    It returns the stream as it enters, after patches are merged, and as it leaves.

    Attributes:
        config: Of the stage.
        window: Side of a window in patches.
        merges: Whether patches are merged before.
        shifted: Whether windows are shifted by half a side.
        drop_path: Rate at which the attention branch is dropped in training.
    """

    config: Stack
    window: int
    merges: bool
    shifted: bool
    drop_path: float

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("attention" or "mlp") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, train):
        c = self.config
        start = x = PatchMerge(c, name="merge")(x) if self.merges else x
        attention, mlp = Attention(c, window=self.window, name="attention"), Mlp(c, name="mlp")
        y = self.in_windows(attention, c.layer_norm(name="norm_1")(x), train)
        y = nn.Dropout(c.dropout)(y, deterministic=not train)
        y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        x = self.residual(x, y, "attention")
        y = mlp(c.layer_norm(name="norm_2")(x))
        return start, self.residual(x, nn.Dropout(c.dropout)(y, deterministic=not train), "mlp")

    def in_windows(self, attention, x, train):
        """Apply an attention on `[batch * windows, tokens, features]` to `x [batch, height, width, features]`.

        Zeros fill up the last windows, and are seen. In shifted windows, patches that the roll brought together from
        two edges of the image do not see each other.
        """
        batch, height, width, features = x.shape
        side, shift = min(self.window, height, width), self.window // 2 * self.shifted
        shift = 0 if side == min(height, width) else shift
        rows, columns = -(-height // side), -(-width // side)
        x = jnp.pad(x, ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0)))
        x = jnp.roll(x, (-shift, -shift), (1, 2)).reshape(batch, rows, side, columns, side, features)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, features)
        mask = jnp.tile(_mask(rows, columns, side, shift), (batch, 1, 1, 1)) if shift else None
        x = attention(x, mask, train).reshape(batch, rows, columns, side, side, features)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, features)
        return jnp.roll(x, (shift, shift), (1, 2))[:, :height, :width]


def _mask(rows: int, columns: int, side: int, shift: int) -> np.ndarray:
    """Whether two patches of a shifted window were neighbours in the image, `[windows, 1, tokens, tokens]`."""
    across, down = (np.arange(number * side) >= number * side - shift for number in (columns, rows))
    part = (2 * down[:, None] + across).reshape(rows, side, columns, side).transpose(0, 2, 1, 3)
    part = part.reshape(rows * columns, 1, side * side)
    return part[..., None] == part[..., None, :]


class SwinStage(nn.Module):
    """Blocks of one width on `x [batch, height, width, features]`; returns the stream as it enters the first attention,
    and as it leaves the last block."""

    config: Stack
    window: int
    merges: bool
    drop_path: tuple[float, ...]

    @nn.compact
    def __call__(self, x, train):
        states = []
        for i, rate in enumerate(self.drop_path):
            block = SwinBlock(self.config, self.window, self.merges and i == 0, i % 2 == 1, rate, name=f"block_{i}")
            start, x = block(x, train)
            states.append(start)
        return states[0], x


class Swin(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `feature_maps`, the output of each stage
    `[batch, height, width, features]`, `last_hidden_state [batch, patches, features]`, the last of them after the last
    LayerNorm, `pooler_output [batch, features]`, its average, `features`, the same, and, on request, `hidden_states`:
    the output of the embeddings and of each stage, with patches merged for the next, `[batch, height, width,
    features]` (those in transformers' `reshaped_hidden_states` have features first).
    """

    config: SwinConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        c = self.config
        x, starts, feature_maps = SwinEmbeddings(c, name="embeddings")(pixel_values, train), [], []
        rates = iter(c.drop_path * i / max(c.depth - 1, 1) for i in range(c.depth))
        for i, stack in enumerate(c.stacks):
            drop_path = tuple(itertools.islice(rates, stack.depth))
            start, x = SwinStage(stack, c.window, i > 0, drop_path, name=f"stage_{i}")(x, train)
            starts.append(start)
            feature_maps.append(x)
        normed = stack.layer_norm(name="norm")(x.reshape(len(x), -1, stack.width))
        pooled = normed.mean(1)
        outputs = {"last_hidden_state": normed, "feature_maps": feature_maps}
        outputs |= {"pooler_output": pooled, "features": pooled}
        return outputs | ({"hidden_states": [*starts, x]} if output_hidden_states else {})
