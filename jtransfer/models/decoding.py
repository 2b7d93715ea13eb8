"""What decoders share: their answers as an architecture, and what they do with embedded tokens.

Their blocks stand behind a causal mask, with the tokens of before or without.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.models.architecture import Architecture, of_texts
from jtransfer.models.heads import Head
from jtransfer.models.transformer import Encoder, Past, Stack, causal_mask, document_mask


class Decoder(Architecture):
    """An `Architecture` that continues texts, by the fields `vocabulary`, `positions`, `tied` and `dtype` of a config.

    Attributes:
        stack: The blocks.
    """

    final_norm = "encoder/norm"
    generates = True
    masks_padding = True
    masks_documents = True
    stack: Stack

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return of_texts(self.positions, "input_ids", "attention_mask", "position_ids")

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": self.vocabulary}

    @property
    def longest(self) -> int:
        return self.positions

    @property
    def language_head(self) -> Head:
        return Head(self.vocabulary, reads="last_hidden_state", tied=self.tied, bias=False)

    def cache(self, batch: int, size: int) -> tuple[Past, ...]:
        stack = self.stack
        place = jnp.zeros((batch, size, stack.kv_heads or stack.heads, stack.of_head), self.dtype)
        return (Past(place, place, jnp.zeros((), jnp.int32)),) * self.depth


def decoded(
    config: Any,
    x: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    past: tuple[Past, ...] | None,
    document_ids: jax.Array | None,
    train: bool,
    output_hidden_states: bool,
    rotation: tuple[jax.Array, jax.Array] | None = None,
    window: int = 0,
) -> dict[str, Any]:
    """The outputs of a decoder, whose blocks are made as `encoder` in the module that calls this.

    Args:
        config: With `stack`, `positions` and `pad_token`.
        x: The embedded tokens `[batch, tokens, width]`.
        input_ids: The tokens `[batch, tokens]`.
        attention_mask: 0 for padding, over the tokens, or with a `past` over its whole size.
        past: As `config.cache` makes it, or None.
        document_ids: As of `transformer.document_mask`, or None.
        train: Whether dropout is on.
        output_hidden_states: Whether the states before and after the blocks are among the outputs.
        rotation: Of queries and keys, as of `Encoder`.
        window: As of `causal_mask`.

    Returns:
        `last_hidden_state`, `features` (of the last token that is no padding), and as asked `hidden_states` and the
        longer `past_key_values`.

    Raises:
        InputError: more tokens than the model has positions.
    """
    tokens = input_ids.shape[1]
    start, size = (0, tokens) if past is None else (past[0].length, past[0].key.shape[1])
    if size > config.positions:
        name = type(config).__name__.removesuffix("Config").lower()
        raise InputError(f"{name}: {size} tokens are too many; the model has {config.positions} positions")
    mask = causal_mask(tokens, attention_mask, start, size, window)
    mask = mask if document_ids is None else mask & document_mask(document_ids)
    x, hidden_states, *longer = Encoder(config.stack, name="encoder")(x, mask, train, past, rotation)
    if past is None:
        last = _last_token(config.pad_token, input_ids, attention_mask)
        outputs = {"features": jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]}
    else:
        outputs = {"features": x[:, -1], "past_key_values": longer[0]}
    outputs |= {"hidden_states": [*hidden_states[:-1], x]} if output_hidden_states else {}
    return {"last_hidden_state": x} | outputs


def _last_token(pad_token, input_ids, attention_mask):
    """The place of each row's last token that is no padding, as `GPT2ForSequenceClassification` finds it."""
    if pad_token is not None:
        real = input_ids != pad_token
    else:
        real = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
    return jnp.argmax(jnp.arange(input_ids.shape[1]) * (real != 0), axis=-1)
