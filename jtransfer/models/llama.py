"""Decoders of the kind of Llama (Touvron et al. 2023, arXiv:2302.13971): Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3.

    embeddings/word/embedding
    encoder/block_0/{norm_1, attention/{query, key, value, out}, norm_2, mlp/{up, gate, down}}
    encoder/block_0/attention/{query_norm, key_norm}    of Qwen 3
    encoder/norm

Norms are RMSNorms, places turn queries and keys, fewer heads of keys and values serve those of queries, and the MLP is
gated. Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

import re
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.models.decoding import Decoder, decoded
from jtransfer.models.rotary import Rotary
from jtransfer.models.transformer import Past, Stack

BIASES = {"qkv_bias": ("query", "key", "value"), "out_bias": ("out",), "mlp_bias": ("up", "gate", "down")}
"""Options of biases, and the dense layers of a block that each is of."""


@dataclass(frozen=True)
class LlamaConfig(Decoder):
    """The architecture.

    Attributes:
        vocabulary: Number of tokens there are.
        positions: Tokens that the model takes at most.
        width: Width of the residual stream.
        hidden: Hidden width of the MLP.
        kv_heads: Heads of keys and values, which divide `heads`; 0 for as many.
        head_width: Width of a head; 0 for `width / heads`.
        qkv_bias: Whether the layers of queries, keys and values have biases; `out_bias` and `mlp_bias` likewise.
        qk_norm: Whether queries and keys are normalised, head by head, before they are turned.
        theta: Of the rotary positions, as in `rotary.Rotary`, and so are `rope` (its `kind`), `rope_factor`,
            `rope_low`, `rope_high` and `rope_original`.
        window: Places back that a token may look, its own counted (Mistral); 0 for all.
        epsilon: Of every RMSNorm.
        tied: Whether a head of language modelling reads the table of words.
        pad_token: The token that pads, which `features` pass over; None where only the mask says what is padding.
        eos_tokens: The tokens that end a text.
        attention_dropout: Rate on the attention weights.
        remat: Recompute each block in the backward pass.
        bits: 4 or 8 for kernels of the blocks that are kept in so many bits and never learn; 0 for floats.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    vocabulary: int = 32000
    positions: int = 4096
    width: int = 4096
    depth: int = 32
    heads: int = 32
    hidden: int = 11008
    kv_heads: int = 0
    head_width: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    theta: float = 10000.0
    rope: str = "default"
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original: int = 8192
    window: int = 0
    epsilon: float = 1e-6
    activation: str = "silu"
    tied: bool = False
    pad_token: int | None = None
    eos_tokens: tuple[int, ...] = (2,)
    attention_dropout: float = 0.0
    remat: bool = False
    bits: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if min(self.vocabulary, self.positions, self.depth) < 1 or self.window < 0:
            raise InputError("llama: vocabulary, positions and depth must be at least 1, and window not negative")
        if self.stack.of_head % 2:
            raise InputError(f"llama: a head is {self.stack.of_head} wide; expected an even width, which places turn")
        _ = self.rotary  # which checks the rest

    @property
    def rotary(self) -> Rotary:
        """The rotary positions."""
        return Rotary(self.theta, self.rope, self.rope_factor, self.rope_low, self.rope_high, self.rope_original)

    @property
    def stack(self) -> Stack:
        """The blocks."""
        unbiased = (layer for option, of in BIASES.items() if not getattr(self, option) for layer in of)
        return Stack.of(self, unbiased=tuple(unbiased), rms=True, gated=True)

    def heads_at(self, path: str) -> int:
        return (self.kv_heads or self.heads) if re.search(r"attention/(key|value)/", path) else self.heads


class LlamaEmbeddings(nn.Module):
    """Words, and the rotation at their places."""

    config: LlamaConfig

    def embed(self, input_ids):
        """`[batch, tokens]` to `[batch, tokens, width]`; places change nothing of it."""
        c = self.config
        return layers.Embed(c.vocabulary, c.width, c.dtype, c.param_dtype, name="word")(input_ids)

    def positions(self, x, position_ids):
        """The rotation of `x [batch, tokens, width]` at `position_ids [batch or 1, tokens]`, for `layers.rotate`."""
        return self.config.rotary.at(position_ids, self.config.stack.of_head)

    @nn.compact
    def __call__(self, input_ids, position_ids):
        x = self.embed(input_ids)
        return x, self.positions(x, position_ids)


class Llama(nn.Module):
    """The backbone.

    It is called as `GPT2` is, and gives what that gives: `last_hidden_state [batch, tokens, width]` (after the last
    norm), `features [batch, width]` (that of the last token that is no padding), and on request `hidden_states`. As in
    transformers, positions count from the first place, padding included, unless `position_ids` say otherwise.

    With `past_key_values`, at first `config.cache(...)`, the tokens follow those that it holds. With `document_ids
    [batch, tokens]`, a token sees those tokens alone that have its number.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        past_key_values: tuple[Past, ...] | None = None,
        document_ids: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c, past = self.config, past_key_values
        if position_ids is None:
            position_ids = (0 if past is None else past[0].length) + jnp.arange(input_ids.shape[1])[None]
        x, rotation = LlamaEmbeddings(c, name="embeddings")(input_ids, position_ids)
        return decoded(
            *(c, x, input_ids, attention_mask, past, document_ids, train, output_hidden_states),
            rotation=rotation,
            window=c.window,
        )
