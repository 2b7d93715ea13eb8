"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), pre-norm, with its blocks unrolled.

    embeddings/{patch, cls, positions}
    encoder/block_0/{norm_1, attention/{query, key, value, out}, norm_2, mlp/{up, down}}
    encoder/norm

Methods reach in from outside through the small named functions `embed`, `positions`, `tokens`, `residual`, `attend`
and `activate`; nothing here knows them. Blocks are not stacked, so that a rule can name one.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers


@dataclass(frozen=True)
class ViTConfig:
    """The architecture.

    Attributes:
        image: Height and width of the input in pixels, each a multiple of `patch`.
        channels: Channels of the input.
        patch: Side of a patch in pixels.
        pool: "cls" puts a learned token first and pools it; "mean" has no such token and averages the patches.
        mlp_ratio: Hidden width of the MLP over `width`.
        qkv_bias: Whether query, key and value have a bias.
        epsilon: Of every LayerNorm.
        activation: "gelu" (exact), "gelu_tanh" or "relu".
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
    pool: str = "cls"
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    epsilon: float = 1e-6
    activation: str = "gelu"
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.pool not in ("cls", "mean"):
            raise InputError(f"vit: unknown pool '{self.pool}'; {nearest(self.pool, ['cls', 'mean'])}")
        if self.activation not in layers.ACTIVATIONS:
            close = nearest(self.activation, layers.ACTIVATIONS)
            raise InputError(f"vit: unknown activation '{self.activation}'; {close}")
        if self.width % self.heads:
            raise InputError(f"vit: width {self.width} is not a multiple of heads {self.heads}")
        if any(side % self.patch for side in self.image):
            raise InputError(f"vit: image {self.image} is not a multiple of patch {self.patch}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`[height, width, channels]` of one example."""
        return (*self.image, self.channels)

    def dense(self, features, **kwargs):
        """A dense layer in this model's precision."""
        return layers.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs)

    def norm(self, **kwargs):
        """A LayerNorm in this model's precision."""
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs)


class Embeddings(nn.Module):
    """Pixels to tokens: linear patches, the class token, learned positions."""

    config: ViTConfig

    def embed(self, pixel_values):
        """`[batch, height, width, channels]` to `[batch, tokens, width]`, before positions."""
        c = self.config
        batch, height, width, channels = pixel_values.shape
        grid = pixel_values.reshape(batch, height // c.patch, c.patch, width // c.patch, c.patch, channels)
        patches = grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, c.patch * c.patch * channels)
        x = c.dense(c.width, name="patch")(patches)
        if c.pool == "cls":
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


class Attention(nn.Module):
    """Multi-head self-attention on `[batch, tokens, width]`."""

    config: ViTConfig

    def attend(self, query, key, value, mask):
        """`[batch, tokens, heads, head width]`, three of them, to one."""
        return layers.attend(query, key, value, mask)

    @nn.compact
    def __call__(self, x, mask):
        c = self.config

        def project(name):
            return c.dense(c.width, use_bias=c.qkv_bias, name=name)(x).reshape(*x.shape[:-1], c.heads, -1)

        out = self.attend(project("query"), project("key"), project("value"), mask)
        return c.dense(c.width, name="out")(out.reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers on `[batch, tokens, width]`."""

    config: ViTConfig

    def activate(self, h):
        """The nonlinearity on the hidden units `[batch, tokens, hidden]`."""
        return layers.ACTIVATIONS[self.config.activation](h)

    @nn.compact
    def __call__(self, x):
        c = self.config
        return c.dense(c.width, name="down")(self.activate(c.dense(int(c.width * c.mlp_ratio), name="up")(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and a residual connection."""

    config: ViTConfig
    drop_path: float

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("attention" or "mlp") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, mask, train):
        c = self.config

        def drop(y):
            y = nn.Dropout(c.dropout)(y, deterministic=not train)
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)

        x = self.residual(x, drop(Attention(c, name="attention")(c.norm(name="norm_1")(x), mask)), "attention")
        return self.residual(x, drop(Mlp(c, name="mlp")(c.norm(name="norm_2")(x))), "mlp")


class Encoder(nn.Module):
    """The stack of blocks and the last LayerNorm."""

    config: ViTConfig

    def tokens(self, x, mask):
        """The sequence that the blocks see, after positions: `x [batch, tokens, width]` and its mask."""
        return x, mask

    @nn.compact
    def __call__(self, x, mask, train):
        c = self.config
        x, mask = self.tokens(x, mask)
        hidden_states = [x]
        block = nn.remat(Block, static_argnums=(3,)) if c.remat else Block  # argument 0 is the module, 3 is `train`
        for i in range(c.depth):
            x = block(c, c.drop_path * i / max(c.depth - 1, 1), name=f"block_{i}")(x, mask, train)
            hidden_states.append(x)
        return c.norm(name="norm")(x), hidden_states


class ViT(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `last_hidden_state [batch, tokens, width]`
    (after the last LayerNorm), `pooler_output [batch, width]` and, on request, `hidden_states`: the stream before the
    first block and after each, `depth + 1` of `[batch, tokens, width]`.
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        x = Embeddings(self.config, name="embeddings")(pixel_values, train)
        x, hidden_states = Encoder(self.config, name="encoder")(x, None, train)
        outputs = {"last_hidden_state": x, "pooler_output": x[:, 0] if self.config.pool == "cls" else x.mean(1)}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
