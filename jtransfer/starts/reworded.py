"""A pretrained language model of words with the vocabulary of other texts, as fastai's `match_embeds` makes it.

    {"embeddings/word/embedding": [V, width], "source_head/bias": [V]}  ->  [V', width], [V']

A word that the model knows keeps its rows. A word that it does not know begins with the mean of all rows (Howard and
Ruder 2018, arXiv:1801.06146, section 3.2; fastai's `text/learner.py`).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from etils import epath

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data.tokenizer_files import content
from jtransfer.errors import InputError
from jtransfer.methods.intercepted import under_those_of
from jtransfer.models import Architecture, Head, Headed, of_config, shapes_of
from jtransfer.starts import texts

log = logging.getLogger("jtransfer")

FOLLOW = ("vocabulary", "padding", "eos_tokens")
"""Options of an architecture that `texts.fitting` sets where they have their defaults."""


def reworded(
    backbone: Backbone, name: str, stream: Any, kept: epath.Path | None = None, absent: bool = False
) -> Backbone:
    """A backbone that reads the words of other texts.

    Every leaf that has a row or an output for each word changes: the table, and what the language model has beside it.
    An unknown word and the end of a text keep their rows, whatever they are called. How many words are known is logged.

    Args:
        backbone: With the head of a language model, or without.
        name: As of `texts.unpretrained`, and `stream`, `kept` and `absent`.
        stream: See `name`.
        kept: See `name`.
        absent: See `name`.

    Raises:
        InputError: a backbone or a tokenizer that does not read whole words, or as `texts.tokenizer_of`.
        Damaged: as `texts.tokenizer_of`.
    """
    what, config = f"config.tokenizer '{name}'", backbone.config
    if "input_ids" not in config.inputs:
        return backbone  # which is refused with the data
    before = _roles(f"{what}: backbone '{backbone.name}'", tokenizer_files(backbone))
    files, made = texts.tokenizer_of(name, stream, config, kept, absent)
    after = _roles(what, files)
    alike = {after[role]: before[role] for role in after.keys() & before.keys()}
    known, rows = backbone.preprocess.words(), np.full(made.size, -1)
    for word, number in made.words().items():
        rows[number] = known.get(word, known.get(alike.get(word), -1))
    rows[rows >= config.vocabulary] = -1  # words that were added to the tokenizer alone
    log.warning(
        "%s: of %d words backbone '%s' knows %d; the others begin with the mean of all its rows",
        *(what, len(rows), backbone.name, (rows >= 0).sum()),
    )
    defaults = {field.name: field.default for field in fields(config) if field.name in FOLLOW}
    fresh = replace(config, **defaults)
    new = replace(fresh, **texts.fitting(fresh, made, files))
    new = new if new.pad_token is None else replace(new, pad_token=made.pad)
    params = {path: _read(backbone.params[path], rows, axis) for path, axis in _axes(backbone).items()}
    return replace(
        backbone,
        model=under_those_of(backbone.model, of_config(new)),
        params=params,
        head=_head(backbone, new),
        origin=replace(backbone.origin, options=None, tokenizer=files),
    )


def _roles(what: str, files: Mapping[str, bytes]) -> dict[str, str]:
    """The tokens of a tokenizer of words that stand for an unknown word and for the end of a text."""
    model = json.loads(files.get("tokenizer.json", b"{}")).get("model") or {}
    if (kind := model.get("type", "of another kind")) != "WordLevel":
        raise InputError(
            f"{what} has a tokenizer {kind}; a backbone takes other words where both are whole words, as of "
            "words(size=20000); leave config.tokenizer out"
        )
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    found = {"unknown": model.get("unk_token"), "end": content(settings.get("eos_token"))}
    return {role: token for role, token in found.items() if token}


def _head(backbone: Backbone, config: Architecture) -> Any:
    """The head of a language model over the words of a config; any other head as it is."""
    head, own = backbone.head, backbone.config.language_head
    if isinstance(head, Head) and own and replace(head, follows=False).kind == own.kind:
        return replace(head, classes=config.language_head.classes)
    return head


def _axes(backbone: Backbone) -> dict[str, int | None]:
    """For every leaf its axis of the words; None for a leaf without one."""
    config = replace(backbone.config, vocabulary=backbone.config.vocabulary + 1)
    model, head = under_those_of(backbone.model, of_config(config)), _head(backbone, config)
    wider = shapes_of(Headed(model, head) if head else model, config.inputs)
    found = {}
    for path, leaf in backbone.params.items():
        other = wider[path].shape
        found[path] = next((axis for axis, size in enumerate(leaf.shape) if size != other[axis]), None)
    return found


def _read(leaf: np.ndarray, rows: np.ndarray, axis: int | None) -> np.ndarray:
    """The rows of a leaf along an axis, of which -1 is their mean."""
    if axis is None:
        return leaf
    mean = np.mean(leaf, axis, dtype=np.float64, keepdims=True).astype(leaf.dtype)
    return np.take(np.concatenate([leaf, mean], axis), np.where(rows < 0, leaf.shape[axis], rows), axis)
