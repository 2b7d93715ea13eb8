"""What a curve learns from without a backbone: the pixels of an image, or how often each word is in a text."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.checkpoints import Backbone
from jtransfer.curves.arms import Examples
from jtransfer.errors import InputError
from jtransfer.models import Pixels, PixelsConfig
from jtransfer.models.architecture import Architecture

PIXELS, WORDS = "pixels", "words"
RAW = {"image": PIXELS, "text": WORDS}
"""By the kind of data, the method that trains a linear head on its inputs as they are."""


@dataclass(frozen=True)
class WordCountsConfig(Architecture):
    """The number of words in the vocabulary, and the number of tokens of a text."""

    vocabulary: int
    tokens: int

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return dict.fromkeys(("input_ids", "attention_mask"), jax.ShapeDtypeStruct((1, self.tokens), jnp.int32))


class WordCounts(nn.Module):
    """`features` `[batch, vocabulary]` count each token of a text, padding left out. There are no parameters."""

    config: WordCountsConfig

    @nn.compact
    def __call__(self, input_ids, attention_mask=None, train=False, **others):
        counted = jnp.ones(input_ids.shape) if attention_mask is None else attention_mask
        rows = jnp.arange(len(input_ids))[:, None]
        counts = jnp.zeros((len(input_ids), self.config.vocabulary), jnp.float32)
        return {"features": counts.at[rows, input_ids].add(counted.astype(jnp.float32))}


def representation(name: str, examples: Examples, backbone: Backbone) -> Backbone:
    """The inputs of some examples as the features of a backbone without parameters.

    Args:
        name: A value of `RAW`.
        examples: The examples.
        backbone: Whose tokenizer made the inputs, if they are texts.

    Raises:
        InputError: images whose sides differ.
    """
    if name == PIXELS:
        if len(shape := examples.example["pixel_values"].shape) != 4:
            raise InputError(f"config.methods: '{PIXELS}' reads images of one size, but the backbone takes any sides")
        _, height, width, channels = shape
        return Backbone(name, Pixels(PixelsConfig((height, width), channels)), {})
    (_, tokens), vocabulary = examples.example["input_ids"].shape, backbone.config.tables["input_ids"]
    return Backbone(name, WordCounts(WordCountsConfig(vocabulary, tokens)), {})
