"""ELMo (Peters et al. 2018, arXiv:1802.05365): words from their characters, under a language model of each direction.

    embeddings/{character/embedding, conv_0, ..., highway_0/{transform, carry}, ..., projection}
    encoder/block_0/forward/{input/kernel, cell/{state/{kernel, bias}, projection/kernel}}, .../backward/...

A text begins and ends with a boundary, which is a word of one character of its own. Every text starts from states of
zero: nothing is carried from one call to the next, as AllenNLP's stateful encoder does unless it is told not to.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers, lstm
from jtransfer.models.architecture import Architecture
from jtransfer.models.heads import NEIGHBOURS, Head

ACTIVATIONS = ("relu", "tanh")
LETTERS = 50
"""Characters of every word, with its begin, its end and what fills it up."""
TEXT_BEGIN, TEXT_END, WORD_BEGIN, WORD_END, FILLER = 257, 258, 259, 260, 261
"""Characters that are no bytes: ends of a text and of a word, and what fills a word up. A byte b is character b + 1."""
CHARACTERS = 262
"""Rows of the table of characters, of which row 0 is that of padding."""
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class ElmoConfig(Architecture):
    """The architecture; the defaults are those of the paper.

    Attributes:
        character_width: Width of the embedding of a character.
        filters: Number of filters of each convolution over characters; that at place i is i + 1 characters wide.
        highways: Number of highway layers on the convolutions.
        activation: After the maximum over the places of a word: "relu" or "tanh".
        width: Of a word's embedding, and of the state of each direction; what comes out has both, twice the width.
        hidden: Width of the memory of a cell, from which its state is projected.
        depth: Number of LSTM layers of each direction.
        cell_clip: Bound of the values of the memory; 0 for none.
        projection_clip: Bound of the values of the state; 0 for none.
        positions: The most words of a text. The model itself has no such bound.
        vocabulary: Words that the language model tells apart; 0 for a model without one.
        dropout: Rate on the input of every layer of the language model.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    character_width: int = 16
    filters: tuple[int, ...] = (32, 32, 64, 128, 256, 512, 1024)
    highways: int = 2
    activation: str = "relu"
    width: int = 512
    hidden: int = 4096
    depth: int = 2
    cell_clip: float = 3.0
    projection_clip: float = 3.0
    positions: int = 512
    vocabulary: int = 793_471
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        least = min(self.character_width, self.width, self.hidden, self.depth, self.positions, *(self.filters or (0,)))
        if least < 1 or min(self.highways, self.vocabulary, self.cell_clip, self.projection_clip) < 0:
            raise InputError(
                "elmo: filters, character_width, width, hidden, depth and positions must be at least 1; highways, "
                "vocabulary, cell_clip and projection_clip not negative"
            )
        if len(self.filters) > LETTERS:
            raise InputError(f"elmo: there are {len(self.filters)} filters; expected {LETTERS} at most, as words have")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"elmo: unknown activation '{self.activation}'; {nearest(self.activation, ACTIVATIONS)}")

    right_padded = True
    masks_padding = True

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        words = jax.ShapeDtypeStruct((1, min(self.positions, 8)), jnp.int32)
        letters = jax.ShapeDtypeStruct((*words.shape, LETTERS), jnp.int32)
        return {"input_ids": letters, "attention_mask": words, "word_ids": words}

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": CHARACTERS} | ({"word_ids": self.vocabulary} if self.vocabulary else {})

    @property
    def longest(self) -> int:
        return self.positions

    @property
    def language_head(self) -> Head | None:
        return Head(self.vocabulary, reads=NEIGHBOURS) if self.vocabulary else None

    @property
    def types(self) -> dict[str, str]:
        """Of the computation and of the parameters of every layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


class Highway(nn.Module):
    """`g relu(W x + b) + (1 - g) x` with `g = sigmoid(W' x + b')` (Srivastava et al. 2015, arXiv:1505.00387).

    b' starts at -2, so that most of x is carried over.
    """

    config: ElmoConfig

    @nn.compact
    def __call__(self, x):
        c, width = self.config, x.shape[-1]
        carry = layers.Dense(width, bias_init=nn.initializers.constant(-2), name="carry", **c.types)
        transform, gate = layers.Dense(width, name="transform", **c.types), nn.sigmoid(carry(x))
        return gate * nn.relu(transform(x)) + (1 - gate) * x


class ElmoEmbeddings(nn.Module):
    """Words from their characters: `[batch, words, LETTERS]` to `[batch, words, width]`."""

    config: ElmoConfig

    @nn.compact
    def __call__(self, ids):
        c = self.config
        x = layers.Embed(CHARACTERS, c.character_width, **c.types, name="character")(ids.reshape(-1, LETTERS))
        activate, found = layers.ACTIVATIONS[c.activation], []
        for i, filters in enumerate(c.filters):
            y = nn.Conv(filters, (i + 1,), padding="VALID", **c.types, name=f"conv_{i}")(x)
            found.append(activate(y.max(1)))
        x = jnp.concatenate(found, axis=-1)
        for i in range(c.highways):
            x = Highway(c, name=f"highway_{i}")(x)
        return layers.Dense(c.width, name="projection", **c.types)(x).reshape(*ids.shape[:2], c.width)


def _forget(key, shape, dtype):
    """A bias of the four gates at the start: 1 for the third, which keeps the memory, and else 0."""
    return jnp.zeros(shape, dtype).at[shape[0] // 2 : shape[0] * 3 // 4].set(1)


class ProjectedCell(nn.Module):
    """One step of an LSTM whose state is projected and bounded, without peepholes (Sak et al. 2014, arXiv:1402.1128).

    The gates stand in TensorFlow's order: input, new memory, forget, output. Where the mask is 0, memory and state stay
    and the output is 0.
    """

    config: ElmoConfig

    @nn.compact
    def __call__(self, carry, given):
        c, (memory, state), (x, mask) = self.config, carry, given
        gates = x + layers.Dense(4 * c.hidden, bias_init=_forget, name="state", **c.types)(state)
        enter, new, keep, leave = jnp.split(gates, 4, axis=-1)
        after = _bounded(nn.sigmoid(enter) * jnp.tanh(new) + nn.sigmoid(keep) * memory, c.cell_clip)
        projection = layers.Dense(c.width, use_bias=False, name="projection", **c.types)
        out, there = _bounded(projection(nn.sigmoid(leave) * jnp.tanh(after)), c.projection_clip), mask[:, None]
        return (jnp.where(there, after, memory), jnp.where(there, out, state)), jnp.where(there, out, 0)


def _bounded(x, clip):
    return jnp.clip(x, -clip, clip) if clip else x


class ElmoDirection(nn.Module):
    """An LSTM over `x [batch, words, width]` and its mask `[batch, words]`, from the first word on or from the last."""

    config: ElmoConfig
    backward: bool

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        scanned = nn.scan(
            ProjectedCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            reverse=self.backward,
            unroll=lstm.unroll(),
        )
        start = jnp.zeros((len(x), c.hidden), c.dtype), jnp.zeros((len(x), c.width), c.dtype)
        # What the gates take of the words is one product for all of them, outside of the loop over words.
        given = layers.Dense(4 * c.hidden, use_bias=False, name="input", **c.types)(x)
        return scanned(c, name="cell")(start, (given, mask))[1]


class ElmoBlock(nn.Module):
    """A layer of both directions: two states `[batch, words, width]` to two; `skip` adds what went in."""

    config: ElmoConfig
    skip: bool

    def residual(self, x, y, branch):
        """What a direction goes on with: `y`, the output of the layer, and `x`, its input."""
        return x + y

    @nn.compact
    def __call__(self, states, mask, train):
        dropped = [nn.Dropout(self.config.dropout)(x, deterministic=not train) for x in states]
        found = [
            ElmoDirection(self.config, name == "backward", name=name)(x, mask)
            for name, x in zip(DIRECTIONS, dropped, strict=True)
        ]
        pairs = zip(states, found, DIRECTIONS, strict=True)
        return tuple(self.residual(*pair) for pair in pairs) if self.skip else tuple(found)


class ElmoEncoder(nn.Module):
    """The layers: `x [batch, words, width]` and its mask to the states of both directions after each."""

    config: ElmoConfig

    @nn.compact
    def __call__(self, x, mask, train):
        states, found = (x, x), []
        for i in range(self.config.depth):
            states = ElmoBlock(self.config, i > 0, name=f"block_{i}")(states, mask, train)
            found.append(states)
        return found


class Elmo(nn.Module):
    """The backbone.

    Called with `input_ids [batch, words, LETTERS]` (0 throughout for padding, which stands on the right) it returns
    `last_hidden_state [batch, words, 2 width]`, the states of both directions after the last layer, `features [batch,
    2 width]`, their mean over the words, and `neighbours [batch, words, 2, width]`: for each word the state of the
    forward direction before it and that of the backward direction behind it, which know all of the text but the word.
    `hidden_states`, on request, are the embeddings of the words, twice side by side, and the states after each layer.
    States of padding are 0. `word_ids` are what the language model is asked for, and change nothing here.
    """

    config: ElmoConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        word_ids: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c = self.config
        if input_ids.ndim != 3 or input_ids.shape[2] != LETTERS:
            raise InputError(
                f"elmo: input_ids have shape {list(input_ids.shape)}; expected [batch, words, {LETTERS}], the "
                "characters of every word"
            )
        mask = (input_ids > 0).any(-1)
        mask = mask if attention_mask is None else mask & (attention_mask > 0)
        ids, around = bounded(input_ids, mask)
        x = ElmoEmbeddings(c, name="embeddings")(ids)
        x = jnp.where(around[..., None], x, 0)
        after = ElmoEncoder(c, name="encoder")(x, around, train)
        states = [jnp.concatenate(both, axis=-1) for both in ((x, x), *after)]
        states = [jnp.where(mask[..., None], one[:, 1:-1], 0) for one in states]
        before, behind = after[-1]
        outputs = {
            "last_hidden_state": states[-1],
            "features": states[-1].sum(1) / jnp.maximum(mask.sum(1), 1)[:, None].astype(x.dtype),
            "neighbours": jnp.stack([before[:, :-2], behind[:, 2:]], axis=2),
        }
        return outputs | ({"hidden_states": states} if output_hidden_states else {})


def bounded(ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Words between the begin and the end of their text, and their mask.

    Args:
        ids: `[batch, words, LETTERS]`.
        mask: `[batch, words]`, true for words, all of which stand left of the padding.

    Returns:
        `[batch, words + 2, LETTERS]` and `[batch, words + 2]`: each text begins at 0, and ends behind its last word.
    """
    words, begin, end = ids.shape[1], *map(_boundary, (TEXT_BEGIN, TEXT_END))
    place, counts = jnp.arange(words + 2), mask.sum(1)[:, None]
    around = jnp.pad(jnp.where(mask[..., None], ids, 0), ((0, 0), (1, 1), (0, 0)))
    around = jnp.where((place == 0)[None, :, None], begin, around)
    around = jnp.where((place == counts + 1)[..., None], end, around)
    return around.astype(ids.dtype), place <= counts + 1


def _boundary(character):
    return jnp.full(LETTERS, FILLER).at[:3].set(jnp.array([WORD_BEGIN, character, WORD_END]))
