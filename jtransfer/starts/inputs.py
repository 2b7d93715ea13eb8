"""A backbone for a dataset, and what makes its inputs from the dataset: the checkpoint's own processor or tokenizer."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer.checkpoints.backbone import Backbone, load
from jtransfer.data import keys, marks, preprocess
from jtransfer.data.coded import Coded, Scale
from jtransfer.data.dataset import FOUND, each
from jtransfer.data.streams import ahead
from jtransfer.devices import sharding
from jtransfer.errors import InputError, first_line
from jtransfer.models import Architecture, check_images
from jtransfer.storage.arrays import aligned

log = logging.getLogger("jtransfer")

BLOCK, BYTES = 256, 1 << 24
"""The most rows that are prepared at once, and the most bytes of these unless it is one row."""

OF_ONE = ("revision", "subfolder", "include")
"""Options of `load` that say what is read of one checkpoint; others beside it are loaded without."""

TOKENS = 16
"""The length of texts is rounded up to a multiple of this."""

Arrays = dict[str, np.ndarray]
Prepare = Callable[[Any], Arrays]
"""From n inputs of a dataset to arrays `[n, ...]` by Hugging Face's names; names and other axes never change."""


@dataclass(frozen=True)
class Pictures:
    """Makes `pixel_values` of images.

    Attributes:
        make: From images to `pixel_values`.
        scale: The values that `make` gives bytes, if its results are values of bytes; None if they never are.
        identity: A text that differs wherever `make` gives some image other values.
        square: From parts of images to `pixel_values`: they are resized, whatever their aspect ratio. None where `make`
            does so.
    """

    make: Callable[[Any], Arrays]
    scale: Scale | None = None
    identity: str = ""
    square: Callable[[Any], Arrays] | None = None

    @property
    def of_parts(self) -> "Pictures":
        """What makes `pixel_values` of images that were cut out of others at random."""
        return Pictures(self.square or self.make)

    def __call__(self, images: Any) -> Arrays:
        """`pixel_values` `[n, height, width, channels]` of n images."""
        return self.make(images)


@dataclass(frozen=True)
class Texts:
    """Makes `input_ids`, and the other inputs that go with them, of texts or pairs of texts.

    Attributes:
        tokenizer: The tokenizer of the checkpoint, a `data.text.Tokenizer`.
        tokens: Number of tokens that every text is padded or cut to.
        answers: Whether inputs are pairs of a prompt and an answer, for a tokenizer as `data.answers.answering` makes.
    """

    tokenizer: Any
    tokens: int
    answers: bool = False

    @property
    def identity(self) -> str:
        """A text that differs wherever some text becomes other tokens."""
        return f"{self.tokenizer.identity} {self.tokens}"

    def __call__(self, inputs: list) -> Arrays:
        """Arrays `[n, tokens]` by the names of the model's inputs, of n texts or pairs of texts."""
        return self.tokenizer.read(*columns_of(inputs), length=self.tokens)[0]

    def labels(self, inputs: list, labels: np.ndarray, where: str) -> np.ndarray:
        """Labels of words or answers in n texts, or second texts of pairs, as labels of their tokens.

        Args:
            inputs: n texts or pairs of texts.
            labels: `[n, words, 3]` or `[n, answers, 2]`; see `data.marks`.
            where: The data, for errors.

        Returns:
            `[n, tokens]` or `[n, answers, 2]` int32.

        Raises:
            InputError: a label outside its text, or a tokenizer that does not tell of which characters its tokens are.
        """
        columns = columns_of(inputs)
        marks.check(where, columns[1] or columns[0], labels)
        places = self.tokenizer.places(*columns, length=self.tokens)
        return (marks.spans_of_tokens if labels.shape[2] == 2 else marks.tags_of_tokens)(places, labels)

    def labels_of_answers(self, inputs: list) -> np.ndarray:
        """The tokens of the answers to n prompts, and `LEFT_OUT` in all other places, `[n, tokens]` int32."""
        found = np.full((len(inputs), self.tokens), marks.LEFT_OUT, np.int32)
        for row, (ids, types, _) in zip(found, self.tokenizer.rows(*columns_of(inputs), self.tokens), strict=True):
            at = slice(self.tokens - len(ids), None) if self.tokenizer.side == "left" else slice(len(ids))
            row[at] = np.where(np.array(types) == 1, ids, marks.LEFT_OUT)
        return found

    def cut(self, inputs: list) -> int:
        """How many of some texts are longer than `tokens`."""
        return sum(was_cut for _, _, was_cut in self.tokenizer.rows(*columns_of(inputs), self.tokens))


def load_for(
    name: str,
    options: Mapping[str, Any],
    data: Any,
    tower: bool = True,
    joined: bool = False,
    change: Callable[[Backbone], Backbone] = lambda backbone: backbone,
    **more: Any,
) -> tuple[Backbone, Prepare]:
    """A backbone for a dataset, and what makes its inputs from the dataset's.

    Args:
        name: Name of the backbone, as `load` takes it.
        options: Options of `load`, empty ones left to its defaults; and `tokens`, the length of all texts in tokens, 0
            for the length of the longest text, rounded up to a multiple of 16 and never more than the model takes.
        data: A `data.sources.Dataset`, or an object with `name`, `kind` and `inputs`.
        tower: Whether the backbone returned for a dual encoder is its tower for this kind of data; if not, it is both.
        joined: Whether texts will be joined, as in `prepare_for`.
        change: What becomes of the backbone before its inputs are made, as `reworded.reworded`.
        **more: More options of `load`.

    Returns:
        The backbone, and its `Prepare`: for images the checkpoint's own processor (for a backbone in our own layout
        that keeps none, a processor that resizes images and brings them to 0..1), for texts a `Texts`.

    Raises:
        InputError: an option for another kind of data, a backbone that `load` refuses or that takes another kind of
            data or images of another shape, or more tokens than it takes.
    """
    others, kind = (("tokens",), "texts") if data.kind == "image" else (("image", "channels", "positions"), "images")
    if unused := [key for key in others if options.get(key)]:
        raise InputError(f"config.load.{unused[0]} is of {kind}, {data.name} holds {data.kind}s; leave it out")
    backbone = change(load(name, **options_of(options), **more))
    one = tower_for(backbone, data)
    return one if tower else backbone, prepare_for(one, options, data, joined)


def prepare_for(backbone: Backbone, options: Mapping[str, Any], data: Any, joined: bool = False) -> Prepare:
    """What makes the inputs of a backbone from a dataset's, as `load_for` returns it.

    Args:
        backbone: A backbone that is no dual encoder, or one tower.
        options: Options as `load_for` takes them; only `tokens` is read.
        data: An object with `name`, `kind` and `inputs`.
        joined: Whether texts will be joined in rows of `tokens`, or of all that the model takes: none is cut then, and
            their own lengths are of no matter.

    Raises:
        InputError: the backbone takes another kind of data, images of another shape, or fewer tokens.
    """
    if data.kind == "text":
        if "input_ids" not in backbone.config.inputs:
            taken = ", ".join(backbone.config.inputs)
            raise InputError(f"config.data: {data.name} holds texts, the model takes {taken}")
        tokenizer, tokens = backbone.preprocess, options.get("tokens", 0)
        return texts_for(tokenizer, f"backbone '{backbone.name}'", data, tokens, joined)
    return _for_images(backbone, data)


def labelling(prepare: Prepare, data: Any) -> Callable[[Any, np.ndarray], np.ndarray]:
    """What makes the labels of a batch, for inputs by rows `[n]` and their labels: those of parts of texts become those
    of tokens, those of prompts are the tokens of their answers, and others stay as they are.

    Args:
        prepare: Makes the model's inputs of these inputs.
        data: An object with `name`, `kind` and `targets`.

    Raises:
        InputError: labels of parts of texts, for inputs that are no texts. A call raises it as `Texts.labels` does.
    """
    answers = isinstance(prepare, Texts) and prepare.answers
    if data.targets not in marks.KINDS and not answers:
        return lambda inputs, labels: labels
    if getattr(prepare, "labelled", False):
        return lambda inputs, labels: marks.ends(labels)
    if not isinstance(prepare, Texts):
        raise InputError(f"config.data: {data.name} has {FOUND[data.targets]}, and holds {data.kind}s; expected texts")

    tags, name = data.targets == "tags", data.name  # and not the data, as workers are sent this

    def of_tokens(inputs, labels):
        form = (prepare.tokens,) if tags or answers else labels.shape[1:]
        found = np.empty((len(labels), *form), np.int32)
        for start in range(0, len(labels), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(labels)))
            own = inputs[rows]
            found[rows] = prepare.labels_of_answers(own) if answers else prepare.labels(own, labels[rows], name)
        return found

    return of_tokens


def options_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load` in the section `load` of a config, without empty ones and without `tokens`."""
    return {key: value for key, value in section.items() if value and key != "tokens"}


def tower_for(backbone: Backbone, data: Any) -> Backbone:
    """The tower of a dual encoder for a dataset's kind of data; any other backbone unchanged."""
    if {"pixel_values", "input_ids"} <= backbone.config.inputs.keys():
        return backbone.tower("text" if data.kind == "text" else "vision")
    return backbone


def as_they_are(model: Any, data: Any) -> Prepare:
    """What makes `pixel_values` of images whose shape a model takes already.

    Raises:
        InputError: the data are texts, or images of another shape.
    """
    if data.kind == "text":
        raise InputError(f"config.data: {data.name} holds texts; name a config.backbone that has a tokenizer")
    shape = np.shape(data.inputs[np.arange(1)])[1:]
    check_images(model, f"images of {data.name}", shape)
    return Pictures(partial(preprocess.as_they_are, shape=shape), Scale())


def gathered(prepare: Prepare, inputs: Any, rows: np.ndarray, coded: bool = False) -> dict[str, np.ndarray | Coded]:
    """The prepared inputs of some rows, by name: `[rows, ...]`.

    There are as many threads as cores; each decodes one picture at a time, because pictures may have any size.

    Args:
        prepare: Makes the inputs.
        inputs: The dataset's inputs, indexed by rows.
        rows: Numbers of the rows.
        coded: Whether images are kept as bytes, `Coded`, if all of their values are exactly those of bytes.
    """
    first = inputs[rows[:1]]
    one = prepare(first)
    alone = isinstance(first, list) and not isinstance(prepare, Texts)
    step = 1 if alone else within(one)
    scale = prepare.scale if coded and isinstance(prepare, Pictures) else None
    whole = {key: aligned((len(rows), *x.shape[1:]), np.uint8 if scale else x.dtype) for key, x in one.items()}

    def fill(start: int) -> bool:
        made = one if alone and not start else prepare(inputs[rows[start : start + step]])
        for key, x in made.items():
            codes = scale.encode(x) if scale else x
            if codes is None:
                return False
            whole[key][start : start + step] = codes
        return True

    if not all(each(fill, range(0, len(rows), step))):
        return gathered(prepare, inputs, rows)
    return {key: Coded(x, scale) for key, x in whole.items()} if scale else whole


def of_all(
    call: Callable[[Any, jax.Array], jax.Array], inputs: Any, prepare: Prepare, batch: int, mesh: Mesh
) -> np.ndarray:
    """What a function makes of all inputs, `[rows, ...]`, whole in every process.

    Args:
        call: From prepared inputs by name, split over the mesh, and their row numbers to an array `[batch, ...]` that
            every process holds whole.
        inputs: Indexed by rows.
        prepare: Makes the function's inputs of them.
        batch: Number of rows at once, over all devices.
        mesh: The devices.
    """
    own, count = sharding.rows(mesh, batch), len(inputs)
    firsts = range(0, count, batch)
    # The last block is filled up, so that one program serves; the next ones are prepared meanwhile.
    blocks = (np.minimum(first + own, count - 1) for first in firsts)
    prepared = ahead({"rows": rows, **gathered(prepare, inputs, rows)} for rows in blocks)
    found: np.ndarray | None = None
    for first, block in zip(firsts, prepared, strict=True):
        arrays = sharding.assemble(block, batch, mesh)
        values = np.asarray(call(arrays, arrays.pop("rows")))
        if found is None:
            found = np.empty((count, *values.shape[1:]), values.dtype)
        found[first : first + batch] = values[: count - first]
    return found


def within(arrays: Mapping[str, Any], most: int = BLOCK, bytes_of_all: int = BYTES) -> int:
    """How many rows of prepared inputs fit into `bytes_of_all` bytes: 1 to `most`.

    Args:
        arrays: Prepared inputs `[n, ...]` of some rows, or their shapes.
        most: The largest answer.
        bytes_of_all: Bytes that all rows may take.
    """
    size = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in arrays.values())
    return min(max(bytes_of_all // size, 1), most)


def example(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one row of prepared inputs, as `methods.adapt` takes them."""
    return {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in arrays.items()}


def through(processor: Any) -> Pictures:
    """What makes `pixel_values` of a dataset's images by a processor.

    An array of floats in 0..1 that the processor does not take as it is becomes bytes first.
    """

    def prepare(images):
        if not isinstance(images, list) and not processor.takes(images):
            images = np.clip(np.asarray(images) * 255, 0, 255).round().astype(np.uint8)
        return processor(images)

    return Pictures(prepare, processor.scale, repr(processor), getattr(processor, "square", None))


def described_processor(
    values: Mapping[str, Any], architecture: Architecture, where: str = "config.preprocessor"
) -> Any:
    """The `images.Processor` that values describe, made to fit a model.

    Args:
        values: As of a `preprocessor_config.json`; without a type they are of a ViTImageProcessor.
        architecture: Of the model, or of a dual encoder with a tower of images.
        where: The values, for errors.

    Raises:
        InputError: values that cannot be used, or a model that takes no images of one size.
    """
    from jtransfer.data import images

    inputs = architecture.vision_tower.inputs
    if "pixel_values" not in inputs or len(inputs["pixel_values"].shape) != 4:
        raise InputError(f"{where} is of images of one size, the model takes {', '.join(inputs)}; leave it out")
    try:
        keys.check(where, values, keys.PREPROCESSOR)
        return images.processor(values, "ViTImageProcessor", inputs["pixel_values"].shape[1:])
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # of values of a wrong type
        raise InputError(f"{where}: {type(error).__name__}: {first_line(error)}") from None


def _for_images(backbone: Backbone, data: Any) -> Prepare:
    if "pixel_values" not in backbone.config.inputs or not hasattr(backbone.preprocess, "takes"):
        return as_they_are(backbone.model, data)
    prepare = through(backbone.preprocess)
    prepare(data.inputs[np.arange(1)])  # a checkpoint without a processor is refused here and now
    return prepare


def texts_for(tokenizer: Any, what: str, data: Any, tokens: int, joined: bool) -> Texts:
    """What makes the inputs of a model from texts; says how many are cut.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        what: The model, for errors.
        data: An object with `name` and `inputs`.
        tokens: The length of all texts in tokens, or of the rows that they are joined in; 0 for that of the longest
            text, or where they are joined for all that the model takes.
        joined: Whether texts will be joined: none is cut then, and their own lengths are of no matter.

    Raises:
        InputError: more tokens than the model takes, or a token that its table has no row for.
    """
    if tokens > tokenizer.limit:
        raise InputError(f"config.load.tokens is {tokens}; {what} takes {tokenizer.limit} at most")
    if joined:
        return Texts(tokenizer, tokens or tokenizer.limit)
    limit, longest, cut = tokens or tokenizer.limit, 1, 0
    for start in range(0, len(data.inputs), BLOCK):
        columns = columns_of(data.inputs[np.arange(start, min(start + BLOCK, len(data.inputs)))])
        rows = tokenizer.rows(*columns, limit, first=start)  # which refuses a token that the model has no row for
        longest, cut = max(longest, *(len(ids) for ids, _, _ in rows)), cut + sum(was_cut for _, _, was_cut in rows)
    if cut:
        log.warning("%s: %d of %d texts are longer than %d tokens and are cut", data.name, cut, len(data.inputs), limit)
    if not tokens and not tokenizer.whole:
        tokens = min(-(-longest // TOKENS) * TOKENS, tokenizer.limit)
    return Texts(tokenizer, tokens or tokenizer.limit)


def columns_of(inputs: list) -> tuple[list[str], list[str] | None]:
    """Texts, and the second of each where they are pairs."""
    if isinstance(inputs[0], str):
        return inputs, None
    return tuple(map(list, zip(*inputs, strict=True)))
