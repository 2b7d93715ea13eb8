"""AWD-LSTM (Merity et al. 2017, arXiv:1708.02182): the language model that ULMFiT transfers.

    embeddings/word/embedding
    encoder/block_0/lstm/{input,hidden}/{kernel,bias}

ULMFiT (Howard and Ruder 2018, arXiv:1801.06146) reads `features`, the last state beside the largest and the mean of
all (concat pooling, section 3.3).
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture, of_texts
from jtransfer.models.heads import Head
from jtransfer.models.lstm import LSTM


@dataclass(frozen=True)
class AWDLSTMConfig(Architecture):
    """The architecture.

    Attributes:
        vocabulary: Number of tokens there are.
        width: Of the embeddings, and of the output of the last layer.
        hidden: Width of the outputs of all other layers.
        layers: Number of layers.
        longest: Tokens of the longest text that is read as a whole. Nothing in the model depends on it; fastai's
            classifier reads 1400.
        pad_token: The token that pads texts that it generates.
        eos_tokens: The tokens that end a text.
        word_dropout: Share of the words of the vocabulary whose embedding is zero in a training step, wherever they
            stand; the others are scaled up.
        embedding_dropout: Rate after the embeddings; as the two below, a value that is dropped is so for all tokens of
            a text (variational dropout, Gal and Ghahramani 2016, arXiv:1512.05287).
        hidden_dropout: Rate between layers.
        dropout: Rate after the last layer.
        weight_dropout: Rate on the recurrent kernels; see `lstm.Recurrent`.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    vocabulary: int = 60_000
    width: int = 400
    hidden: int = 1152
    layers: int = 3
    longest: int = 1400
    pad_token: int | None = None
    eos_tokens: tuple[int, ...] = ()
    word_dropout: float = 0.0
    embedding_dropout: float = 0.0
    hidden_dropout: float = 0.0
    dropout: float = 0.0
    weight_dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if min(self.vocabulary, self.width, self.hidden, self.layers, self.longest) < 1:
            raise InputError("awd_lstm: vocabulary, width, hidden, layers and longest must be at least 1")

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return of_texts(self.longest, "input_ids", "attention_mask")

    tied = True
    generates = True
    recurrent = True
    masks_padding = True

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": self.vocabulary}

    @property
    def language_head(self) -> Head:
        return Head(self.vocabulary, reads="last_hidden_state", tied=True)

    @property
    def depth(self) -> int:  # and no field, as the layers differ in width
        return self.layers

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the output of each layer."""
        return (*[self.hidden] * (self.layers - 1), self.width)

    def cache(self, batch: int, size: int) -> dict[str, dict[str, jax.Array]]:
        """The state before the first token, zeros, whatever the `size`."""
        zeros = [jnp.zeros((batch, width), self.dtype) for width in self.widths]
        return {f"block_{i}": {"hidden": x, "cell": x} for i, x in enumerate(zeros)}


class AWDEmbeddings(nn.Module):
    """Words, of which some are dropped as a whole."""

    config: AWDLSTMConfig

    def embed(self, input_ids):
        """`[batch, tokens]` to `[batch, tokens, width]`."""
        c = self.config
        return layers.Embed(c.vocabulary, c.width, c.dtype, c.param_dtype, name="word")(input_ids)

    @nn.compact
    def __call__(self, input_ids, train):
        c, x = self.config, self.embed(input_ids)
        # One draw for each word of the vocabulary: a word is there or not, in all its places.
        words = nn.Dropout(c.word_dropout)(jnp.ones((c.vocabulary,), c.dtype), deterministic=not train)
        x = x * words.at[input_ids].get(mode="clip")[..., None]
        return nn.Dropout(c.embedding_dropout, broadcast_dims=(1,))(x, deterministic=not train)


class AWDBlock(nn.Module):
    """A layer: from `x` and a state to its outputs, to these before any is dropped, and to the state after them."""

    config: AWDLSTMConfig
    width: int
    rate: float

    @nn.compact
    def __call__(self, x, state, mask, train):
        c = self.config
        raw, state = LSTM(self.width, c.weight_dropout, c.dtype, c.param_dtype, name="lstm")(x, state, mask, train)
        return nn.Dropout(self.rate, broadcast_dims=(1,))(raw, deterministic=not train), raw, state


class AWDEncoder(nn.Module):
    """The layers, each with the state of its name."""

    config: AWDLSTMConfig

    @nn.compact
    def __call__(self, x, states, mask, train):
        c, found, after = self.config, [x], {}
        for i, width in enumerate(c.widths):
            block = AWDBlock(c, width, c.dropout if i == c.layers - 1 else c.hidden_dropout, name=f"block_{i}")
            x, raw, after[f"block_{i}"] = block(x, states[f"block_{i}"], mask, train)
            found.append(x)
        return x, raw, after, found


class AWDLSTM(nn.Module):
    """The backbone.

    Called with `input_ids [batch, tokens]` and, if there is padding on either side, `attention_mask` of that shape, it
    returns `last_hidden_state [batch, tokens, width]`, `raw_hidden_state`, which is it before dropout, `features
    [batch, 3 * width]` and, on request, `hidden_states`: the embeddings, and the outputs of each layer. Features are
    pooled before dropout, as in fastai, where the dropout behind the last layer is that of the language model's head.

    With `past_key_values`, at first `config.cache(...)`, the tokens follow those that were read before, and the outputs
    have the later ones.
    """

    config: AWDLSTMConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        past_key_values: dict[str, dict[str, jax.Array]] | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c, past = self.config, past_key_values
        x = AWDEmbeddings(c, name="embeddings")(input_ids, train)
        states = c.cache(len(input_ids), 0) if past is None else past
        x, raw, states, hidden_states = AWDEncoder(c, name="encoder")(x, states, attention_mask, train)
        outputs = {"last_hidden_state": x, "raw_hidden_state": raw, "features": concat_pooled(raw, attention_mask)}
        outputs |= {"past_key_values": states} if past is not None else {}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})


def concat_pooled(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The last, the largest and the mean of `x [batch, tokens, width]` over the tokens of each text, side by side.

    ULMFiT's equation 4 and fastai's `masked_concat_pool`. Behind padding `x` is that of the last token, on the left of
    a text anything. A text without tokens has zeros as its mean and its largest.
    """
    if mask is None:
        return jnp.concatenate([x[:, -1], x.max(1), x.mean(1)], axis=-1)
    kept = mask[..., None] > 0
    most = jnp.where(kept.any(1), jnp.where(kept, x, jnp.finfo(x.dtype).min).max(1), 0)
    mean = jnp.where(kept, x, 0).sum(1) / jnp.maximum(kept.sum(1), 1)
    return jnp.concatenate([x[:, -1], most, mean.astype(x.dtype)], axis=-1)
