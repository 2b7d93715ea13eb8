"""A backbone for a dataset, and what makes its inputs of the dataset's: the checkpoint's own processor or tokenizer."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jtransfer.checkpoints.backbone import Backbone, load
from jtransfer.data import preprocess
from jtransfer.data.coded import Coded, Scale
from jtransfer.data.dataset import each
from jtransfer.errors import InputError
from jtransfer.models import check_images
from jtransfer.storage.arrays import aligned

log = logging.getLogger("jtransfer")

BLOCK, BYTES = 256, 1 << 24
"""Rows that are prepared at once, and bytes that they may take then; one row is always."""

TOKENS = 16
"""What the length of texts is rounded up to a multiple of."""

Arrays = dict[str, np.ndarray]
Prepare = Callable[[Any], Arrays]
"""From inputs of a dataset to arrays `[n, ...]` by Hugging Face's names, with the same names and axes for all rows."""


@dataclass(frozen=True)
class Pictures:
    """Makes `pixel_values` of images.

    Attributes:
        make: Does it.
        scale: That it brings bytes to, wherever it is given or makes these; None where there are none.
        identity: What tells it from any other that makes other values of some image.
    """

    make: Callable[[Any], Arrays]
    scale: Scale | None = None
    identity: str = ""

    def __call__(self, images: Any) -> Arrays:
        return self.make(images)


@dataclass(frozen=True)
class Texts:
    """Makes `input_ids`, and what else goes with them, of texts or pairs of texts.

    Attributes:
        tokenizer: The checkpoint's own, a `data.text.Tokenizer`.
        tokens: That every text is padded or cut to.
    """

    tokenizer: Any
    tokens: int

    @property
    def identity(self) -> str:
        """What tells it from any other that makes other tokens of some text."""
        return f"{self.tokenizer.identity} {self.tokens}"

    def __call__(self, inputs: list) -> Arrays:
        return self.tokenizer.read(*_columns(inputs), length=self.tokens)[0]

    def cut(self, inputs: list) -> int:
        """How many of some texts are longer than `tokens`."""
        return sum(was_cut for _, _, was_cut in self.tokenizer.rows(*_columns(inputs), self.tokens))


def load_for(
    name: str, options: Mapping[str, Any], data: Any, tower: bool = True, **more: Any
) -> tuple[Backbone, Prepare]:
    """A backbone that takes a dataset's inputs, and what makes its own of them.

    Args:
        name: Of the backbone.
        options: For `load`, empty ones left to its defaults; and `tokens`, the length of all texts in tokens, 0 for
            that of the longest in the data, rounded up to a multiple of 16 and never more than the model takes.
        data: A `data.sources.Dataset`, or whatever has `name`, `kind` and `inputs`.
        tower: Whether of a dual encoder the tower for this kind of data is returned, instead of both.
        **more: For `load` too.

    Returns:
        The backbone, and its `Prepare`: for images the checkpoint's own processor (for a backbone in our own layout
        that keeps none, one that resizes them and brings them to 0..1), for texts a `Texts`.

    Raises:
        InputError: the backbone takes another kind of data, or images of another shape.
    """
    others, kind = (("tokens",), "texts") if data.kind == "image" else (("image", "channels", "positions"), "images")
    if unused := [key for key in others if options.get(key)]:
        raise InputError(f"config.load.{unused[0]} is of {kind}, {data.name} holds {data.kind}s; leave it out")
    backbone = load(name, **options_of(options), **more)
    one = tower_for(backbone, data)
    return one if tower else backbone, prepare_for(one, options, data)


def prepare_for(backbone: Backbone, options: Mapping[str, Any], data: Any) -> Prepare:
    """What makes the inputs of a backbone, of a dual encoder a tower, of a dataset's: see `load_for`.

    Raises:
        InputError: as `load_for`.
    """
    if data.kind == "text":
        return _for_texts(backbone, data, options.get("tokens", 0))
    return _for_images(backbone, data)


def options_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options for `load` in a config's section of that name, empty ones left to its defaults."""
    return {key: value for key, value in section.items() if value and key != "tokens"}


def tower_for(backbone: Backbone, data: Any) -> Backbone:
    """Of a dual encoder the tower for a dataset's kind of data; any other backbone as it is."""
    if {"pixel_values", "input_ids"} <= backbone.config.inputs.keys():
        return backbone.tower("text" if data.kind == "text" else "vision")
    return backbone


def as_they_are(model: Any, data: Any) -> Prepare:
    """What makes `pixel_values` of images that have the shape already which a model takes.

    Raises:
        InputError: they are texts, or of another shape.
    """
    if data.kind == "text":
        raise InputError(f"config.data: {data.name} holds texts; name a config.backbone that has a tokenizer")
    shape = np.shape(data.inputs[np.arange(1)])[1:]
    check_images(model, f"images of {data.name}", shape)
    return Pictures(partial(preprocess.as_they_are, shape=shape), Scale())


def gathered(prepare: Prepare, inputs: Any, rows: np.ndarray, coded: bool = False) -> dict[str, np.ndarray | Coded]:
    """The prepared inputs of some rows, by name: `[rows, ...]`.

    Pictures are decoded by each of as many threads as there are cores, one at a time: their size is not bounded.

    Args:
        prepare: Makes them.
        inputs: Indexed by rows.
        rows: Their numbers.
        coded: Whether images are kept as bytes if all of them, to the bit, are the values of bytes.
    """
    first = inputs[rows[:1]]
    one = prepare(first)
    alone = isinstance(first, list) and not isinstance(prepare, Texts)
    step = 1 if alone else within(one)
    scale = prepare.scale if coded and isinstance(prepare, Pictures) else None
    whole = {key: aligned((len(rows), *x.shape[1:]), np.uint8 if scale else x.dtype) for key, x in one.items()}

    def fill(start: int) -> bool:
        for key, x in prepare(inputs[rows[start : start + step]]).items():
            codes = scale.encode(x) if scale else x
            if codes is None:
                return False
            whole[key][start : start + step] = codes
        return True

    if not all(each(fill, range(0, len(rows), step))):
        return gathered(prepare, inputs, rows)
    return {key: Coded(x, scale) for key, x in whole.items()} if scale else whole


def within(arrays: Mapping[str, Any], most: int = BLOCK, bytes_of_all: int = BYTES) -> int:
    """How many rows of prepared inputs, of which some are given, take so many bytes at most: 1 to `most`."""
    size = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in arrays.values())
    return min(max(bytes_of_all // size, 1), most)


def example(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one row of prepared inputs, as `methods.adapt` takes them."""
    return {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in arrays.items()}


def through(processor: Any) -> Pictures:
    """What makes `pixel_values` of a dataset's images by a processor, whatever of floats in 0..1 it needs as bytes."""

    def prepare(images):
        if not isinstance(images, list) and not processor.takes(images):
            images = np.clip(np.asarray(images) * 255, 0, 255).round().astype(np.uint8)
        return processor(images)

    return Pictures(prepare, processor.scale, repr(processor))


def _for_images(backbone: Backbone, data: Any) -> Prepare:
    if "pixel_values" not in backbone.config.inputs or not hasattr(backbone.preprocess, "takes"):
        return as_they_are(backbone.model, data)
    prepare = through(backbone.preprocess)
    prepare(data.inputs[np.arange(1)])  # a checkpoint without a processor is refused here and now
    return prepare


def _for_texts(backbone: Backbone, data: Any, tokens: int) -> Texts:
    if "input_ids" not in backbone.config.inputs:
        raise InputError(f"config.data: {data.name} holds texts, the model takes {', '.join(backbone.config.inputs)}")
    tokenizer = backbone.preprocess
    if tokens > tokenizer.limit:
        raise InputError(f"config.load.tokens is {tokens}; backbone '{backbone.name}' takes {tokenizer.limit} at most")
    limit, longest, cut = tokens or tokenizer.limit, 1, 0
    for start in range(0, len(data.inputs), BLOCK):
        columns = _columns(data.inputs[np.arange(start, min(start + BLOCK, len(data.inputs)))])
        rows = tokenizer.rows(*columns, limit, first=start)  # which refuses a token that the model has no row for
        longest, cut = max(longest, *(len(ids) for ids, _, _ in rows)), cut + sum(was_cut for _, _, was_cut in rows)
    if cut:
        log.warning("%s: %d of %d texts are longer than %d tokens and are cut", data.name, cut, len(data.inputs), limit)
    if not tokens and not tokenizer.whole:
        tokens = min(-(-longest // TOKENS) * TOKENS, tokenizer.limit)
    return Texts(tokenizer, tokens or tokenizer.limit)


def _columns(inputs: list) -> tuple[list[str], list[str] | None]:
    """Texts, and the second of each where they are pairs."""
    if isinstance(inputs[0], str):
        return inputs, None
    return tuple(map(list, zip(*inputs, strict=True)))
