"""Texts for a model that is trained from scratch: a tokenizer, and the model that fits it."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from jtransfer.data import text, tokenizer_training
from jtransfer.data.tokenizer_files import content
from jtransfer.data.tokenizer_training import TokenizerRecipe
from jtransfer.errors import InputError
from jtransfer.models import Architecture, build, described
from jtransfer.starts import vocabularies
from jtransfer.starts.inputs import BLOCK, Texts, columns_of, texts_for
from jtransfer.storage import directories

FOLDER = "tokenizer"
"""The folder of a run's directory in which its tokenizer lies."""
EXAMPLES = "as 'wordpiece(size=8000)', 'bpe(size=8000)' or 'words(size=20000)', or a directory that has one"


def unpretrained(
    options: Mapping[str, Any],
    name: str,
    stream: Any,
    tokens: int,
    joined: bool,
    kept: epath.Path | None = None,
    absent: bool = False,
) -> tuple[nn.Module, Texts]:
    """A model of texts that starts at random, and what makes its inputs.

    A tokenizer is trained on the rows that are trained on. The model has as many words as the tokenizer has tokens, its
    padding and its ends, unless its options say otherwise than their defaults.

    Args:
        options: The section `model` of a config.
        name: The tokenizer: a recipe of `tokenizer_training.TOKENIZERS`, or as `vocabularies.files` takes it.
        stream: The data, with `name`, `inputs` and `rows`.
        tokens: The length of all texts in tokens; 0 for that of the longest.
        joined: Whether texts will be joined in rows.
        kept: The directory of the tokenizer that the run had before; None where there is none.
        absent: Whether the data are not here: what a recipe makes is then a tokenizer of its size without words.

    Raises:
        InputError: no tokenizer, a model that takes no texts or does not fit the tokenizer, data without rows or words,
            or as `texts_for`.
        Damaged: the kept tokenizer is not as it was written.
    """
    if not name:
        raise InputError(
            f"config.data: {stream.name} holds texts; name a config.backbone that has a tokenizer, or a "
            f"config.tokenizer, {EXAMPLES}"
        )
    config = build(**options).config
    if "input_ids" not in config.inputs:
        raise InputError(f"config.data: {stream.name} holds texts, the model takes {', '.join(config.inputs)}")
    files, made = tokenizer_of(name, stream, config, kept, absent)
    model = build(**options | fitting(config, made, files))
    made = dataclasses.replace(made, tables=model.config.tables)
    return model, texts_for(made, f"architecture '{options['architecture']}'", stream, tokens, joined)


def tokenizer_of(
    name: str, stream: Any, config: Architecture, kept: epath.Path | None = None, absent: bool = False
) -> tuple[dict[str, bytes], text.Tokenizer]:
    """The files of a tokenizer for a model, and what they make: the kept one, or one as it is named.

    Args:
        name: As of `unpretrained`, and `stream`, `kept` and `absent`.
        stream: See `name`.
        config: Of the model.
        kept: See `name`.
        absent: See `name`.

    Raises:
        InputError: no such tokenizer, or data without rows or words.
        Damaged: the kept tokenizer is not as it was written.
    """
    recipe = tokenizer_training.parse(name)
    if kept is not None:
        directories.verify(kept)
        files = text.files_in(kept)
    elif recipe is None:
        files = vocabularies.files(name, tuple(tokenizer_training.TOKENIZERS))
    else:
        recipe = _blank(recipe) if absent else recipe
        texts = partial(_texts, stream, name, recipe.rows)
        files = tokenizer_training.files(recipe, texts, config.generates, config.inputs, config.longest)
    made = read_by(files, config)
    if recipe is not None and made.size <= len(made.special):
        raise InputError(f"config.tokenizer '{name}': the texts of {stream.name} have no word to train on")
    return files, made


def read_by(files: Mapping[str, bytes], config: Architecture) -> text.Tokenizer:
    """What the files of a tokenizer, by name, make for a model.

    Raises:
        InputError: as `vocabularies.tokenizer`.
    """
    made = vocabularies.tokenizer(files, tuple(config.inputs), config.longest, config.pool == "last")
    return dataclasses.replace(made, tables=config.tables, side="right" if config.right_padded else made.side)


def _blank(recipe: TokenizerRecipe) -> TokenizerRecipe:
    return dataclasses.replace(recipe, train=lambda texts, special: tokenizer_training.blank(recipe, special))


def _texts(stream: Any, name: str, most: int) -> Iterator[str]:
    """The texts that a stream trains on, of pairs both: all of them, or `most` that are spread over all.

    Raises:
        InputError: the stream makes its inputs anew.
    """
    if stream.rows is None:
        raise InputError(
            f"config.tokenizer '{name}': {stream.name} makes its batches itself; expected data by rows, or a directory "
            "with a tokenizer"
        )
    rows = stream.rows
    if most and most < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    for start in range(0, len(rows), BLOCK):
        for column in columns_of(stream.inputs[rows[start : start + BLOCK]]):
            yield from column or ()


def fitting(config: Architecture, tokenizer: text.Tokenizer, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The options of a model that follow from a tokenizer, where they have their defaults.

    Raises:
        InputError: fewer words than the tokenizer has tokens, another padding, or ends that are none of its own.
    """
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    end = tokenizer.words().get(content(settings.get("eos_token")) or tokenizer_training.END)
    ends = () if end is None else (end,)
    follow = {"vocabulary": tokenizer.size, "padding": tokenizer.pad, "eos_tokens": ends}
    defaults, found = {field.name: field.default for field in dataclasses.fields(config)}, {}
    for key, value in follow.items():
        said = getattr(config, key, None)
        if key not in defaults or said is None:
            continue
        if said == defaults[key]:
            found[key] = value
        elif key == "vocabulary" and said < value:
            raise InputError(
                f"config.tokenizer has {value} tokens, config.model.vocabulary is {said}; expected {value} at least"
            )
        elif key == "padding" and said != value:
            raise InputError(
                f"config.tokenizer pads with {value}, config.model.padding is {said}; leave it out, or set it to None"
            )
        elif key == "eos_tokens" and not {*ends} <= {*said}:
            raise InputError(
                f"config.tokenizer ends texts with {end}, config.model.eos_tokens is {tuple(said)}; leave it out"
            )
    if config.generates and not (found.get("eos_tokens") or getattr(config, "eos_tokens", ())):
        raise InputError(
            f"config.tokenizer has no token that ends a text, as '{tokenizer_training.END}', which "
            f"{described(config)['architecture']} needs"
        )
    return found
