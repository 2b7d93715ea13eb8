"""The vision transformer of DINOv3 (Siméoni et al. 2025, arXiv:2508.10104): places of patches turn queries and keys.

    embeddings/{patch, cls, registers}
    encoder/block_0/...          as in transformer.py
    encoder/norm

Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.models.architecture import Architecture
from jtransfer.models.transformer import Encoder, Stack
from jtransfer.models.vit import check_patches, patches, prepend

BIASES = {
    "query_bias": ("query",),
    "key_bias": ("key",),
    "value_bias": ("value",),
    "out_bias": ("out",),
    "mlp_bias": ("up", "gate", "down"),
}
"""Options of biases, and the dense layers of a block that each is of."""


@dataclass(frozen=True)
class DINOv3ViTConfig(Architecture):
    """Options of DINOv3's vision transformer.

    Attributes:
        image: Height and width of the input in pixels; what is left over beyond the last whole patch, at the bottom
            and on the right, is not seen.
        channels: Channels of the input.
        patch: Side of a patch in pixels.
        width: Width of the residual stream, of which every head has a multiple of 4.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        registers: Number of learned tokens between the class token and the patches
            (Darcet et al. 2024, arXiv:2309.16588).
        theta: The periods of the rotations grow from 1 towards this, where an image is 2 long.
        shift: Training moves the places of all patches by a draw from -shift to shift, one for each axis.
        jitter: Training stretches each axis by a factor from 1 / jitter to jitter, log-uniform; 0 for none.
        rescale: Training stretches both axes by one factor, likewise; 0 for none.
        query_bias: Whether the layer of queries has a bias; `key_bias`, `value_bias` and `out_bias` likewise.
        mlp_bias: Whether the layers of the MLP have biases.
        epsilon: Added to the variance in every LayerNorm.
        activation: A key of `layers.ACTIVATIONS`, as "gelu" (exact) or "silu".
        gated: Whether the MLP is gated, as in `transformer.Stack`.
        layer_scale: Start of the learned scale on each branch, as in `transformer.Stack`.
        attention_dropout: Rate on the attention weights.
        drop_path: Stochastic depth: rate of every block (Huang et al. 2016, arXiv:1603.09382).
        remat: Recompute each block in the backward pass: less memory, a third more FLOPs.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 0
    registers: int = 4
    theta: float = 100.0
    shift: float = 0.0
    jitter: float = 0.0
    rescale: float = 2.0
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    epsilon: float = 1e-5
    activation: str = "gelu"
    gated: bool = False
    layer_scale: float = 1.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    cls = True
    final_norm = "encoder/norm"

    def __post_init__(self):
        check_patches(self, "dinov3_vit")
        if self.registers < 0:
            raise InputError("dinov3_vit: registers must not be negative")
        if self.width % (4 * self.heads):
            raise InputError(
                f"dinov3_vit: width {self.width} is not a multiple of 4 x heads {self.heads}: each head turns as many "
                "pairs of its units by rows as by columns"
            )
        if self.theta <= 0 or self.layer_scale <= 0 or self.shift < 0:
            raise InputError("dinov3_vit: theta and layer_scale must be above 0, and shift not negative")
        for name in ("jitter", "rescale"):
            if 0 < getattr(self, name) < 1 or getattr(self, name) < 0:
                raise InputError(f"dinov3_vit: {name} is {getattr(self, name)}; expected 0 for none, or 1 and more")
        _ = self.stack  # which checks the rest

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def grid(self) -> tuple[int, int]:
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def prefix_tokens(self) -> int:
        return 1 + self.registers

    @property
    def stack(self) -> Stack:
        """The blocks."""
        unbiased = (layer for option, of in BIASES.items() if not getattr(self, option) for layer in of)
        return Stack.of(self, unbiased=tuple(unbiased), drop_path_grows=False)


class PatchPlaces(nn.Module):
    """Where the centres of the patches are, `[patches, 2]` in rows and columns, the image from -1 to 1 in both.

    In training the image is moved and stretched at random, the whole batch alike.
    """

    config: DINOv3ViTConfig
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, deterministic: bool | None = None) -> jax.Array:
        c = self.config
        axes = [(2 * np.arange(number, dtype=np.float32) + 1) / number - 1 for number in c.grid]
        places = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return places
        if c.shift:
            places += jax.random.uniform(self.make_rng("dropout"), (2,), minval=-c.shift, maxval=c.shift)
        for most, shape in ((c.jitter, (2,)), (c.rescale, (1,))):
            if most > 1:
                bound = math.log(most)
                places *= jnp.exp(jax.random.uniform(self.make_rng("dropout"), shape, minval=-bound, maxval=bound))
        return places


class DINOv3Embeddings(nn.Module):
    """Pixels to tokens, and the rotation of those of the patches."""

    config: DINOv3ViTConfig

    def embed(self, pixel_values):
        """`[batch, height, width, channels]` to `[batch, tokens, width]`: class token, registers, patches."""
        c = self.config
        x = c.stack.dense(c.width, name="patch")(patches(pixel_values, c, "dinov3_vit"))
        x = prepend(self, "registers", c.registers, x, 0.02) if c.registers else x
        return prepend(self, "cls", 1, x, 0.02)

    def positions(self, places):
        """The rotation at `places [patches, 2]`, as `layers.rotate` takes it: by rows and columns, each frequency."""
        c = self.config
        units = c.width // c.heads // 4
        frequencies = 2 * math.pi * c.theta ** -(np.arange(units, dtype=np.float32) / units)
        angles = (places[..., None] * frequencies).reshape(len(places), 1, -1)
        return jnp.cos(angles).astype(c.dtype), jnp.sin(angles).astype(c.dtype)

    @nn.compact
    def __call__(self, pixel_values, train):
        places = PatchPlaces(self.config, name="places")(deterministic=not train)
        return self.embed(pixel_values.astype(self.config.dtype)), self.positions(places)


class DINOv3ViT(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `last_hidden_state [batch, tokens, width]`
    (after the last LayerNorm), its class token as `pooler_output [batch, width]` and, for a head, as `features`, and,
    on request, `hidden_states`: the stream before the first block and after each, `depth + 1` of
    `[batch, tokens, width]`.
    """

    config: DINOv3ViTConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        x, rotation = DINOv3Embeddings(self.config, name="embeddings")(pixel_values, train)
        x, hidden_states = Encoder(self.config.stack, name="encoder")(x, None, train, rotation=rotation)
        outputs = {"last_hidden_state": x, "pooler_output": x[:, 0], "features": x[:, 0]}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
