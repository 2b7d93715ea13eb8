"""The transformer blocks that the architectures share, pre-norm or post-norm, unrolled so that a rule can name one.

    block_0/{norm_1, attention/{query, key, value, out}, scale_1, norm_2, mlp/{up, gate, down}, scale_2}
    norm

Methods reach in from outside through the small named functions `tokens`, `residual`, `attend` and `activate`.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers


@dataclass(frozen=True)
class Stack:
    """What a stack of blocks is made of; every architecture derives one from its own config.

    Attributes:
        width: Of the stream, a multiple of `heads`.
        hidden: Width inside the MLP.
        norm: "pre" (each branch behind a LayerNorm, one more after the last block if `last_norm`) or "post" (a
            LayerNorm after each residual sum, as in BERT).
        last_norm: Whether a LayerNorm follows the last block.
        qkv_bias: Whether query, key and value have a bias.
        gated: Whether the MLP is `down(activation(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202).
        layer_scale: Start of a learned scale on each branch (Touvron et al. 2021, arXiv:2103.17239); 0 for none.
        dropout: Rate on both branches; `attention_dropout` on the attention weights.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first.
        remat: Recompute each block in the backward pass.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    norm: str = "pre"
    last_norm: bool = True
    qkv_bias: bool = True
    gated: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.activation not in layers.ACTIVATIONS:
            raise InputError(f"unknown activation '{self.activation}'; {nearest(self.activation, layers.ACTIVATIONS)}")
        if self.norm not in ("pre", "post"):
            raise InputError(f"unknown norm '{self.norm}'; {nearest(self.norm, ['pre', 'post'])}")
        if min(self.width, self.heads, self.hidden) < 1 or self.depth < 0:
            raise InputError("width, heads and hidden must be at least 1, and depth not negative")
        if self.width % self.heads:
            raise InputError(f"width {self.width} is not a multiple of heads {self.heads}")

    def dense(self, features, **kwargs):
        """A dense layer in this precision."""
        return layers.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs)

    def layer_norm(self, **kwargs):
        """A LayerNorm in this precision."""
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs)


class Attention(nn.Module):
    """Multi-head self-attention on `[batch, tokens, width]`."""

    config: Stack

    def attend(self, query, key, value, mask):
        """`[batch, tokens, heads, head width]`, three of them, to one."""
        return layers.attend(query, key, value, mask)

    @nn.compact
    def __call__(self, x, mask, train):
        c = self.config

        def project(name):
            return c.dense(c.width, use_bias=c.qkv_bias, name=name)(x).reshape(*x.shape[:-1], c.heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        if train and c.attention_dropout:
            drop = nn.Dropout(c.attention_dropout)
            with layers.dropping(lambda weights: drop(weights, deterministic=not train)):
                out = self.attend(query, key, value, mask)
        else:
            out = self.attend(query, key, value, mask)
        return c.dense(c.width, name="out")(out.reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers on `[batch, tokens, width]`, gated or not."""

    config: Stack

    def activate(self, h):
        """The nonlinearity on the hidden units `[batch, tokens, hidden]`."""
        return layers.ACTIVATIONS[self.config.activation](h)

    @nn.compact
    def __call__(self, x):
        c = self.config
        h = c.dense(c.hidden, name="up")(x)
        h = self.activate(c.dense(c.hidden, name="gate")(x)) * h if c.gated else self.activate(h)
        return c.dense(c.width, name="down")(h)


class Block(nn.Module):
    """Attention and MLP, each with its LayerNorm and a residual connection."""

    config: Stack
    drop_path: float

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("attention" or "mlp") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, mask, train):
        c = self.config

        def finish(y, number):
            if c.layer_scale:
                start = nn.initializers.constant(c.layer_scale)
                y = y * self.param(f"scale_{number}", start, (c.width,), c.param_dtype).astype(y.dtype)
            y = nn.Dropout(c.dropout)(y, deterministic=not train)
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)

        norm_1, norm_2 = c.layer_norm(name="norm_1"), c.layer_norm(name="norm_2")
        attention, mlp = Attention(c, name="attention"), Mlp(c, name="mlp")
        if c.norm == "pre":
            x = self.residual(x, finish(attention(norm_1(x), mask, train), 1), "attention")
            return self.residual(x, finish(mlp(norm_2(x)), 2), "mlp")
        x = norm_1(self.residual(x, finish(attention(x, mask, train), 1), "attention"))
        return norm_2(self.residual(x, finish(mlp(x), 2), "mlp"))


class Encoder(nn.Module):
    """The stack of blocks: `x [batch, tokens, width]` to the last state and the list of all `depth + 1` states.

    The first of the list is `x` itself, the others follow the blocks; the last LayerNorm, if any, is in none of them.
    """

    config: Stack

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
        return c.layer_norm(name="norm")(x) if c.last_norm else x, hidden_states


def padding_mask(attention_mask):
    """`attention_mask [batch, tokens]` (1 for a token, 0 for padding) as the mask that blocks take; None stays None."""
    return None if attention_mask is None else jnp.asarray(attention_mask, bool)[:, None, None, :]


def causal_mask(tokens: int, attention_mask=None):
    """Where a token may look at itself and at what is before it, `[batch or 1, 1, tokens, tokens]`."""
    mask = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
    return mask if attention_mask is None else mask & padding_mask(attention_mask)
