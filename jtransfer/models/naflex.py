"""The vision transformer of SigLIP 2 "NaFlex" (Tschannen et al. 2025, arXiv:2502.14786): images of any sides.

    embeddings/{patch, positions}
    encoder/block_0/...          as in transformer.py
    encoder/norm
    pooler/...                   as in vit.py

An image comes as the pixels of its patches, row by row, filled up to the length of the batch, beside how many rows and
columns of patches it has. Methods reach in from outside through the small named functions `embed` and `positions`, and
those of the blocks.
"""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models.architecture import Architecture
from jtransfer.models.transformer import Encoder, Stack, padding_mask
from jtransfer.models.vit import AttentionPool

POOLS = ("map", "mean")


@dataclass(frozen=True)
class NaFlexViTConfig(Architecture):
    """Options of NaFlex's vision transformer.

    Attributes:
        places: Number of learned positions, those of a square of patches, which are resized to each image's rows and
            columns. An image may have more patches, or fewer.
        channels: Channels of the input.
        patch: Side of a patch in pixels.
        width: Width of the residual stream.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        pool: What `features` are: "map" lets a learned probe attend to the patches (Zhai et al. 2022,
            arXiv:2106.04560), "mean" averages them.
        epsilon: Added to the variance in every LayerNorm.
        activation: A key of `layers.ACTIVATIONS`, as "gelu_tanh".
        attention_dropout: Rate on the attention weights.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first
            (Huang et al. 2016, arXiv:1603.09382).
        remat: Recompute each block in the backward pass: less memory, a third more FLOPs.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
    """

    places: int = 256
    channels: int = 3
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    pool: str = "map"
    epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    final_norm = "encoder/norm"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise InputError(f"naflex_vit: unknown pool '{self.pool}'; {nearest(self.pool, POOLS)}")
        if min(self.patch, self.channels, self.places) < 1:
            raise InputError("naflex_vit: places, channels and patch must be at least 1")
        if self.side**2 != self.places:
            raise InputError(f"naflex_vit: {self.places} learned positions are no square of patches")
        _ = self.stack  # which checks the rest

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of one image with as many patches as there are learned positions; any other number is taken as well."""
        pixels = self.patch**2 * self.channels
        return {
            "pixel_values": jax.ShapeDtypeStruct((1, self.places, pixels), jnp.float32),
            "pixel_attention_mask": jax.ShapeDtypeStruct((1, self.places), jnp.int32),
            "spatial_shapes": jax.ShapeDtypeStruct((1, 2), jnp.int32),
        }

    @property
    def side(self) -> int:
        """Side, in patches, of the square that the learned positions are of."""
        return math.isqrt(self.places)

    @property
    def stack(self) -> Stack:
        """The blocks."""
        return Stack.of(self)


def resized(positions: jax.Array, shapes: jax.Array, length: int) -> jax.Array:
    """Positions of a square of patches for images of any rows and columns of them: bilinear, with antialias.

    Each place takes the triangle of `torch.nn.functional.interpolate(mode="bilinear", antialias=True)`, as wide as a
    patch of the coarser of both grids, along rows and along columns.

    Args:
        positions: `[side, side, width]`.
        shapes: Rows and columns of each image, `[batch, 2]`.
        length: The most patches of an image.

    Returns:
        `[batch, length, width]` float32; what is beyond an image's last patch has the position of its first.
    """
    side = positions.shape[0]
    sizes = jnp.maximum(shapes, 1)[:, None]  # of zeros, as models are initialised on, comes no NaN
    place = jnp.arange(length)[None, :, None]
    place = jnp.where(place < sizes.prod(-1, keepdims=True), place, 0)
    at = jnp.concatenate([place // sizes[..., 1:], place % sizes[..., 1:]], axis=-1).astype(jnp.float32)
    scale = side / sizes.astype(jnp.float32)
    distance = jnp.abs(jnp.arange(side) - ((at + 0.5) * scale - 0.5)[..., None])
    weights = jnp.maximum(0, 1 - distance / jnp.maximum(scale, 1)[..., None])
    weights /= weights.sum(-1, keepdims=True)
    both = weights[:, :, 0, :, None] * weights[:, :, 1, None, :]
    flat = positions.reshape(side * side, -1).astype(jnp.float32)
    return both.reshape(*both.shape[:2], -1) @ flat


class NaFlexEmbeddings(nn.Module):
    """Pixels of patches to tokens: linear patches and learned positions."""

    config: NaFlexViTConfig

    def embed(self, pixel_values):
        """`[batch, patches, patch * patch * channels]` to `[batch, patches, width]`, before positions."""
        return self.config.stack.dense(self.config.width, name="patch")(pixel_values)

    def positions(self, x, shapes):
        """Add the learned positions, resized to the rows and columns `shapes [batch, 2]`, to `x`."""
        c, init = self.config, nn.initializers.normal(0.02)
        learned = self.param("positions", init, (1, c.places, c.width), c.param_dtype)
        return x + resized(learned.reshape(c.side, c.side, -1), shapes, x.shape[1]).astype(x.dtype)

    @nn.compact
    def __call__(self, pixel_values, shapes):
        c = self.config
        if pixel_values.ndim != 3 or pixel_values.shape[-1] != c.patch**2 * c.channels:
            found, taken = "x".join(map(str, pixel_values.shape[1:])), c.patch**2 * c.channels
            raise InputError(f"naflex_vit: pixel_values are {found}, the model takes patches of {taken} values each")
        return self.positions(self.embed(pixel_values.astype(c.dtype)), shapes)


class NaFlexViT(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, patches, patch * patch * channels]`, `pixel_attention_mask [batch, patches]` (1
    for a patch, 0 for padding) and `spatial_shapes [batch, 2]`, rows and columns of patches, it returns
    `last_hidden_state [batch, patches, width]` (after the last LayerNorm), `patches [batch, width]`, its average over
    the patches that are no padding, `pooler_output` and `features`, the same `[batch, width]`, and, on request,
    `hidden_states`: the stream before the first block and after each, `depth + 1` of `[batch, patches, width]`.
    """

    config: NaFlexViTConfig

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array,
        pixel_attention_mask: jax.Array,
        spatial_shapes: jax.Array,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c, mask = self.config, padding_mask(pixel_attention_mask)
        x = NaFlexEmbeddings(c, name="embeddings")(pixel_values, spatial_shapes)
        x, hidden_states = Encoder(c.stack, name="encoder")(x, mask, train)
        counted = jnp.asarray(pixel_attention_mask, x.dtype)[..., None]
        mean = (x * counted).sum(1) / jnp.maximum(counted.sum(1), 1)
        pooled = AttentionPool(c.stack, name="pooler")(x, mask) if c.pool == "map" else mean
        outputs = {"last_hidden_state": x, "pooler_output": pooled, "features": pooled, "patches": mean}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
