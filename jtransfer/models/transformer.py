"""The transformer blocks that the architectures share, pre-norm or post-norm, unrolled so that a rule can name one.

    block_0/{norm_1, attention/{query, key, value, out}, scale_1, norm_2, mlp/{up, gate, down}, scale_2}
    block_0/attention/{qkv, out}    where query, key and value are one layer
    block_0/attention/{query_norm, key_norm}    where queries and keys are normalised head by head
    block_0/attention/positions     where the tokens are those of a window
    norm

Methods reach in from outside through the small named functions `tokens`, `residual`, `attend` and `activate`.
"""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers, quantized


@dataclass(frozen=True)
class Stack:
    """Options of a stack of blocks; every architecture derives one from its own config.

    Attributes:
        width: Width of the residual stream, a multiple of `heads` unless `head_width` is given.
        hidden: Width inside the MLP.
        kv_heads: Heads of keys and values, each of which serves `heads / kv_heads` heads of queries (Ainslie et al.
            2023, arXiv:2305.13245); 0 for as many as `heads`.
        head_width: Width of a head; 0 for `width / heads`.
        norm: "pre" (each branch behind a LayerNorm, one more after the last block if `last_norm`) or "post" (a
            LayerNorm after each residual sum, as in BERT).
        last_norm: Whether a LayerNorm follows the last block.
        first_norm: Whether the first block of "pre" has a LayerNorm before its attention.
        rms: Whether every norm divides by the root of the mean square alone, and has no bias (Zhang and Sennrich 2019,
            arXiv:1910.07467), instead of a LayerNorm.
        norm_bias: Whether LayerNorms have a bias.
        qk_norm: Whether queries and keys are normalised, head by head, before they are turned.
        global_every: Of blocks 0, n, 2n, ... attention looks everywhere, of all others near by; see `Encoder`.
        unbiased: Names of the dense layers of a block that have no bias, as "key".
        fused_qkv: Whether query, key and value are one dense layer, as low-rank updates of GPT-2 expect.
        score_factor: Factor on the attention scores, beside `1 / sqrt(head width)`.
        score_by_depth: Whether the scores of block i are also divided by i + 1.
        gated: Whether the MLP is `down(activation(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202).
        layer_scale: Start of a learned scale on each branch (Touvron et al. 2021, arXiv:2103.17239); 0 for none.
        dropout: Rate on both branches; `attention_dropout` on the attention weights.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first if `drop_path_grows`,
            and else of every block.
        remat: Recompute each block in the backward pass.
        bits: 4 or 8 for kernels that are kept in so many bits and never learn, as in `quantized.py`; 0 for floats.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    kv_heads: int = 0
    head_width: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-6
    norm: str = "pre"
    last_norm: bool = True
    first_norm: bool = True
    rms: bool = False
    norm_bias: bool = True
    qk_norm: bool = False
    global_every: int = 1
    unbiased: tuple[str, ...] = ()
    fused_qkv: bool = False
    score_factor: float = 1.0
    score_by_depth: bool = False
    gated: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_grows: bool = True
    remat: bool = False
    bits: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.activation not in layers.ACTIVATIONS:
            raise InputError(f"unknown activation '{self.activation}'; {nearest(self.activation, layers.ACTIVATIONS)}")
        if self.norm not in ("pre", "post"):
            raise InputError(f"unknown norm '{self.norm}'; {nearest(self.norm, ['pre', 'post'])}")
        if min(self.width, self.heads, self.hidden) < 1 or self.depth < 0:
            raise InputError("width, heads and hidden must be at least 1, and depth not negative")
        if self.width % self.heads and not self.head_width:
            raise InputError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise InputError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.bits not in quantized.BITS:
            raise InputError(f"bits is {self.bits}; expected one of {', '.join(map(str, quantized.BITS))}")

    @classmethod
    def of(cls, config: Any, **own: Any) -> "Stack":
        """The stack of an architecture's config: fields of one name are copied, the others are given.

        `config.hidden` may be 0 for four times the width.
        """
        shared = {field.name for field in fields(cls)} & {field.name for field in fields(config)}
        options = {name: getattr(config, name) for name in shared}
        hidden = {} if "hidden" in own else {"hidden": config.hidden or 4 * config.width}
        return cls(**options | hidden | own)

    @property
    def of_head(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return (self.kv_heads or self.heads) * self.of_head

    def dense(self, features, **kwargs):
        """A dense layer in this precision."""
        kind = partial(quantized.QuantizedDense, bits=self.bits) if self.bits else layers.Dense
        return kind(features, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs)

    def layer_norm(self, epsilon=None, **kwargs):
        """A norm in this precision, with this epsilon or another."""
        kind = nn.RMSNorm if self.rms else nn.LayerNorm if self.norm_bias else partial(nn.LayerNorm, use_bias=False)
        epsilon = self.epsilon if epsilon is None else epsilon
        return kind(epsilon, dtype=self.dtype, param_dtype=self.param_dtype, **kwargs)


class Past(NamedTuple):
    """Keys and values of the tokens seen by a block's attention, in arrays `[batch, size, heads, head width]`.

    Attributes:
        key: Keys of the tokens so far, in the first `length` places.
        value: Values of these tokens, in the same places.
        length: Number of these tokens; an integer, traced or not.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array

    def then(self, key, value) -> "Past":
        """The past with the keys and values of the next tokens added, which must fit."""
        start = (0, self.length, 0, 0)
        return Past(
            jax.lax.dynamic_update_slice(self.key, key.astype(self.key.dtype), start),
            jax.lax.dynamic_update_slice(self.value, value.astype(self.value.dtype), start),
            self.length + key.shape[1],
        )


class Attention(nn.Module):
    """Multi-head self-attention on `[batch, tokens, width]`; with a `past`, the output and the longer past.

    With a `rotation`, as `layers.rotate` takes it, queries and keys of the last tokens are turned. With a `window`, the
    tokens are those of a square of at most so many rows and columns, row by row, and `bias` is added to the scores.
    """

    config: Stack
    factor: float = 1.0
    window: int = 0

    def attend(self, query, key, value, mask):
        """`[batch, tokens, heads, head width]`, three of them, to one."""
        bias = self.bias(query.shape[1], key.shape[1]) if self.window else None
        return layers.attend(query, key, value, mask, bias)

    def bias(self, tokens, keys):
        """The learned bias for what lies between two places (Liu et al. 2021, arXiv:2103.14030, equation 4).

        Returns:
            `[heads, tokens, keys]`; 0 for keys before those of the tokens, which a method may have put there.
        """
        side, across = math.isqrt(tokens), 2 * self.window - 1
        table = self.param(
            "positions", nn.initializers.normal(0.02), (across**2, self.config.heads), self.config.param_dtype
        )
        places = np.argwhere(np.ones((side, side)))
        rows, columns = np.moveaxis(places[:, None] - places + self.window - 1, -1, 0)
        bias = jnp.asarray(table)[rows * across + columns].transpose(2, 0, 1)
        return jnp.pad(bias, ((0, 0), (0, 0), (keys - tokens, 0)))

    @nn.compact
    def __call__(self, x, mask, train, past=None, rotation=None):
        c = self.config

        def project(name, heads):
            y = c.dense(heads * c.of_head, use_bias=name not in c.unbiased, name=name)(x)
            return y.reshape(*x.shape[:-1], heads, -1)

        if c.fused_qkv:
            query, key, value = jnp.split(project("qkv", 3 * c.heads), 3, axis=-2)
        else:
            kv_heads = c.kv_heads or c.heads
            query, key, value = project("query", c.heads), project("key", kv_heads), project("value", kv_heads)
        if c.qk_norm:
            query, key = c.layer_norm(name="query_norm")(query), c.layer_norm(name="key_norm")(key)
        query = query * self.factor if self.factor != 1 else query
        if rotation is not None:
            query, key = layers.rotate(query, *rotation), layers.rotate(key, *rotation)
        if past is not None:
            past = past.then(key, value)
            key, value = past.key, past.value
        if train and c.attention_dropout:
            with layers.dropping(c.attention_dropout, self.make_rng("dropout")):
                out = self.attend(query, key, value, mask)
        else:
            out = self.attend(query, key, value, mask)
        out = c.dense(c.width, use_bias="out" not in c.unbiased, name="out")(out.reshape(*x.shape[:-1], -1))
        return out if past is None else (out, past)


class Mlp(nn.Module):
    """Two dense layers on `[batch, tokens, width]`, gated or not."""

    config: Stack

    def activate(self, h):
        """The nonlinearity on the hidden units `[batch, tokens, hidden]`."""
        return layers.ACTIVATIONS[self.config.activation](h)

    @nn.compact
    def __call__(self, x):
        c = self.config

        def dense(features, name):
            return c.dense(features, use_bias=name not in c.unbiased, name=name)

        h = dense(c.hidden, "up")(x)
        h = self.activate(dense(c.hidden, "gate")(x)) * h if c.gated else self.activate(h)
        return dense(c.width, "down")(h)


class Block(nn.Module):
    """Attention and MLP, each with its LayerNorm and a residual connection; a `past` goes in and out beside `x`."""

    config: Stack
    drop_path: float
    factor: float = 1.0
    first: bool = False

    def residual(self, x, y, branch):
        """Add the output `y` of a branch ("attention" or "mlp") to the stream `x`."""
        return x + y

    @nn.compact
    def __call__(self, x, mask, train, past=None, rotation=None):
        c = self.config

        def finish(y, number):
            if c.layer_scale:
                start = nn.initializers.constant(c.layer_scale)
                y = y * self.param(f"scale_{number}", start, (c.width,), c.param_dtype).astype(y.dtype)
            y = nn.Dropout(c.dropout)(y, deterministic=not train)
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)

        norm_1 = c.layer_norm(name="norm_1") if c.first_norm or not self.first else _same
        norm_2 = c.layer_norm(name="norm_2")
        attention, mlp = Attention(c, self.factor, name="attention"), Mlp(c, name="mlp")

        def attend(x):
            nonlocal past
            y = attention(x, mask, train, past, rotation)
            y, past = (y, None) if past is None else y
            return finish(y, 1)

        if c.norm == "pre":
            x = self.residual(x, attend(norm_1(x)), "attention")
            x = self.residual(x, finish(mlp(norm_2(x)), 2), "mlp")
        else:
            x = norm_1(self.residual(x, attend(x), "attention"))
            x = norm_2(self.residual(x, finish(mlp(x), 2), "mlp"))
        return x if past is None else (x, past)


def _same(x):
    return x


class Encoder(nn.Module):
    """The stack of blocks: `x [batch, tokens, width]` to the last state and the list of all `depth + 1` states.

    The first of the list is `x` itself, the others follow the blocks; the last LayerNorm, if any, is in none of them.
    With `past`, one `Past` for each block, the longer ones come as a third output. Every attention gets the mask and
    the `rotation`, but for those of the blocks that look near by, which get the two of `near`.
    """

    config: Stack

    def tokens(self, x, mask):
        """The sequence that the blocks see, after positions: `x [batch, tokens, width]` and its mask."""
        return x, mask

    @nn.compact
    def __call__(self, x, mask, train, past=None, rotation=None, near=None):
        c = self.config
        x, mask = self.tokens(x, mask)
        hidden_states, seen = [x], []
        block = nn.remat(Block, static_argnums=(3,)) if c.remat else Block  # argument 0 is the module, 3 is `train`
        for i in range(c.depth):
            factor = c.score_factor / (i + 1 if c.score_by_depth else 1)
            drop_path = c.drop_path * (i / max(c.depth - 1, 1) if c.drop_path_grows else 1)
            layer = block(c, drop_path, factor, first=i == 0, name=f"block_{i}")
            seen_here, turned = near if near and i % c.global_every else (mask, rotation)
            if past is None:
                x = layer(x, seen_here, train, None, turned)
            else:
                x, longer = layer(x, seen_here, train, past[i], turned)
                seen.append(longer)
            hidden_states.append(x)
        x = c.layer_norm(name="norm")(x) if c.last_norm else x
        return (x, hidden_states) if past is None else (x, hidden_states, tuple(seen))


def padding_mask(attention_mask):
    """`attention_mask [batch, tokens]` (1 for a token, 0 for padding) as the mask that blocks take; None stays None."""
    return None if attention_mask is None else jnp.asarray(attention_mask, bool)[:, None, None, :]


def causal_mask(tokens: int, attention_mask=None, start: int | jax.Array = 0, size: int | None = None, window: int = 0):
    """Where a token may look at itself and at what is before it, `[batch or 1, 1, tokens, size]`.

    The first of the tokens has place `start` among `size` (by default 0 among `tokens`), which `attention_mask` covers.
    A `window` above 0 is how many places back it may look, its own counted.
    """
    places, own = jnp.arange(size or tokens), start + jnp.arange(tokens)[:, None]
    mask = places <= own
    mask = (mask & (places > own - window) if window else mask)[None, None]
    return mask if attention_mask is None else mask & padding_mask(attention_mask)


def document_mask(document_ids):
    """Where a token may look, as it is of one document with what it looks at: `[batch, tokens]` to `[..., 1, t, t]`."""
    return (document_ids[:, :, None] == document_ids[:, None, :])[:, None]
