"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"): a causal transformer of text.

    embeddings/{word/embedding, position/embedding}
    encoder/block_0/{norm_1, attention/{qkv, out}, norm_2, mlp/{up, down}}
    encoder/norm

Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.models.decoding import Decoder, decoded
from jtransfer.models.transformer import Past, Stack


@dataclass(frozen=True)
class GPT2Config(Decoder):
    """The architecture.

    Attributes:
        vocabulary: Number of tokens there are.
        positions: Tokens that the model takes at most.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        scale_scores: Whether attention scores are divided by the root of the head width.
        scale_by_depth: Whether those of block i are also divided by i + 1 (Mistral's GPT-2).
        tied: Whether a head of language modelling reads the table of words.
        pad_token: The token that pads, which `features` pass over; None where only the mask says what is padding.
        eos_tokens: The tokens that end a text.
        embedding_dropout: Rate after the embeddings; `dropout` on both branches of a block, `attention_dropout` on the
            attention weights.
        remat: Recompute each block in the backward pass.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    vocabulary: int = 50257
    positions: int = 1024
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    epsilon: float = 1e-5
    activation: str = "gelu_tanh"
    scale_scores: bool = True
    scale_by_depth: bool = False
    tied: bool = True
    pad_token: int | None = None
    eos_tokens: tuple[int, ...] = (50256,)
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if min(self.vocabulary, self.positions, self.depth) < 1:
            raise InputError("gpt2: vocabulary, positions and depth must be at least 1")
        _ = self.stack  # which checks the rest

    @property
    def tables(self) -> dict[str, int]:
        return super().tables | {"position_ids": self.positions}

    @property
    def stack(self) -> Stack:
        """The blocks."""
        factor = 1.0 if self.scale_scores else (self.width / self.heads) ** 0.5
        return Stack.of(self, fused_qkv=True, score_factor=factor, score_by_depth=self.scale_by_depth)


class GPT2Embeddings(nn.Module):
    """Words and learned positions."""

    config: GPT2Config

    def _table(self, number, name):
        c = self.config
        return layers.Embed(number, c.width, c.dtype, c.param_dtype, name=name)

    def embed(self, input_ids):
        """`[batch, tokens]` to `[batch, tokens, width]`, before positions."""
        return self._table(self.config.vocabulary, "word")(input_ids)

    def positions(self, x, position_ids):
        """Add the learned positions to `x [batch, tokens, width]`; None counts from 0."""
        ids = jnp.arange(x.shape[1])[None] if position_ids is None else position_ids
        return x + self._table(self.config.positions, "position")(ids)

    @nn.compact
    def __call__(self, input_ids, position_ids, train):
        x = self.positions(self.embed(input_ids), position_ids)
        return nn.Dropout(self.config.embedding_dropout)(x, deterministic=not train)


class GPT2(nn.Module):
    """The backbone.

    Called with `input_ids [batch, tokens]` and, if there is padding on either side, `attention_mask` of that shape, it
    returns `last_hidden_state [batch, tokens, width]` (after the last LayerNorm), `features [batch, width]` (that of
    the last token that is no padding) and, on request, `hidden_states`: the stream before the first block, after each
    but the last, and `last_hidden_state`. As in transformers, positions count from the first place, padding included,
    unless `position_ids` say otherwise.

    With `past_key_values`, at first `config.cache(...)`, the tokens follow those that it holds; `attention_mask` then
    covers its whole size, `features` are those of the last token, and the outputs have the longer `past_key_values`.

    With `document_ids [batch, tokens]`, a token sees those tokens alone that have its number.
    """

    config: GPT2Config

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
        if past is not None and position_ids is None:
            position_ids = past[0].length + jnp.arange(input_ids.shape[1])[None]
        x = GPT2Embeddings(c, name="embeddings")(input_ids, position_ids, train)
        return decoded(c, x, input_ids, attention_mask, past, document_ids, train, output_hidden_states)
