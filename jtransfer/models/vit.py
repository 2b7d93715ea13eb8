"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and what grew from it.

    embeddings/{patch, cls, distillation, registers, positions, norm}
    encoder/block_0/...          as in transformer.py
    encoder/norm
    pooler, or pooler/{probe, attention/{query, key, value, out}, norm, mlp/{up, down}}

Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models.transformer import Encoder, Stack

POOLS = ("cls", "mean", "cls_mean")


@dataclass(frozen=True)
class ViTConfig:
    """The architecture.

    Attributes:
        image: Height and width of the input in pixels, each a multiple of `patch`.
        channels: Channels of the input.
        patch: Side of a patch in pixels.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        pool: What `features` are: "cls" puts a learned token first and takes it; "mean" has no such token and
            averages the patches; "cls_mean" takes the token and the average of the patches, side by side.
        pooler: Whether `pooler_output` is `tanh(dense(token))` instead of the features.
        qkv_bias: Whether query, key and value have a bias.
        epsilon: Of every LayerNorm.
        activation: A key of `layers.ACTIVATIONS`, as "gelu" (exact) or "gelu_tanh".
        dropout: Rate after the embeddings and in both branches of a block.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first
            (Huang et al. 2016, arXiv:1603.09382).
        remat: Recompute each block in the backward pass: less memory, a third more FLOPs.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    pool: str = "cls"
    pooler: bool = False
    qkv_bias: bool = True
    epsilon: float = 1e-6
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise InputError(f"vit: unknown pool '{self.pool}'; {nearest(self.pool, POOLS)}")
        if self.patch < 1 or any(side < 1 or side % self.patch for side in self.image):
            raise InputError(f"vit: image {self.image} is not a multiple of patch {self.patch}")
        _ = self.stack  # which checks the rest

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One example of each input that the model is called with."""
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def stack(self) -> Stack:
        """The blocks."""
        return Stack(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden or 4 * self.width,
            activation=self.activation,
            epsilon=self.epsilon,
            qkv_bias=self.qkv_bias,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            drop_path=self.drop_path,
            remat=self.remat,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class Embeddings(nn.Module):
    """Pixels to tokens: linear patches, the class token, learned positions."""

    config: ViTConfig

    def embed(self, pixel_values):
        """`[batch, height, width, channels]` to `[batch, tokens, width]`, before positions."""
        c = self.config
        batch, height, width, channels = pixel_values.shape
        grid = pixel_values.reshape(batch, height // c.patch, c.patch, width // c.patch, c.patch, channels)
        patches = grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, c.patch * c.patch * channels)
        x = c.stack.dense(c.width, name="patch")(patches)
        if c.pool != "mean":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, c.width), c.param_dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls.astype(x.dtype), (batch, 1, c.width)), x], axis=1)
        return x

    def positions(self, x):
        """Add the learned positions to `x [batch, tokens, width]`."""
        init = nn.initializers.normal(0.02)
        return x + self.param("positions", init, (1, *x.shape[1:]), self.config.param_dtype).astype(x.dtype)

    @nn.compact
    def __call__(self, pixel_values, train):
        x = self.positions(self.embed(pixel_values.astype(self.config.dtype)))
        return nn.Dropout(self.config.dropout)(x, deterministic=not train)


class ViT(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `last_hidden_state [batch, tokens, width]`
    (after the last LayerNorm), `features [batch, width]` (what a head reads), `pooler_output [batch, width]` (the
    same, but for a config with `pooler`) and, on request, `hidden_states`: the stream before the first block and after
    each, `depth + 1` of `[batch, tokens, width]`.
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        c = self.config
        x = Embeddings(c, name="embeddings")(pixel_values, train)
        x, hidden_states = Encoder(c.stack, name="encoder")(x, None, train)
        cls, mean = x[:, 0], x[:, 1 if c.pool == "cls_mean" else 0 :].mean(1)
        features = {"cls": cls, "mean": mean, "cls_mean": jnp.concatenate([cls, mean], -1)}[c.pool]
        pooled = features if c.pool == "mean" else cls
        pooled = jnp.tanh(c.stack.dense(c.width, name="pooler")(cls)) if c.pooler else pooled
        outputs = {"last_hidden_state": x, "pooler_output": pooled, "features": features}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
