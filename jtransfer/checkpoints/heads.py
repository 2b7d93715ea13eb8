"""A head as the `config.json` of our own layout has it: the fields of `Head` that differ from their defaults.

    "classes": ["cat", "dog"]                                     one layer on the features, two outputs
    "classes": ["O", "B"], "head": {"reads": "last_hidden_state"}
    "classes": [], "head": {"classes": 30522, "hidden": "gelu", "norm": 1e-12, "reads": "last_hidden_state", ...}

    "classes": [], "tasks": {"digits": {"classes": ["0", "1"]}, "ink": {"classes": [], "head": {"classes": 1}}}

A file without "head" has one layer on the features for its classes, or no head where it has none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jtransfer import kinds
from jtransfer.checkpoints.families.values import typed, words
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown
from jtransfer.models import Architecture, Head, Heads
from jtransfer.models.heads import READS
from jtransfer.models.layers import ACTIVATIONS

MOST_CLASSES = 1_000_000
KEY, SEVERAL = "head", "tasks"
WITHOUT_CLASSES = ("masked_lm", "pretraining", "causal_lm", "bilm", "span", "projection")
"""Kinds whose number of outputs is no number of classes."""


def write(head: Head | Heads | None, classes: tuple[str, ...]) -> dict[str, Any]:
    """The keys of `config.json` that say a head and the names of its classes, or several, which have their own names.

    Raises:
        InputError: so many names for another number of outputs.
    """
    if isinstance(head, Heads):
        each = zip(head.each, head.classes, strict=True)
        return {"classes": [], SEVERAL: {name: write(one, own) for (name, one), own in each}}
    head = head or (Head(len(classes)) if classes else None)
    head = dataclasses.replace(head, start=0.0) if head else head  # which says nothing of a head that has its leaves
    said = {"classes": list(classes)}
    if head is None or head == Head(len(classes)):
        return said
    if classes and len(classes) != head.classes:
        raise InputError(f"a head with {head.classes} outputs cannot have {len(classes)} names of classes")
    values = {field.name: getattr(head, field.name) for field in dataclasses.fields(head)}
    differ = {name: value for name, value in values.items() if value != _defaults().get(name)}
    return said | {KEY: {name: value for name, value in differ.items() if not (classes and name == "classes")}}


def read(values: Mapping[str, Any], names: tuple[str, ...], config: Architecture) -> Head | Heads | None:
    """The head that a `config.json` says, or several; None where it says none.

    Args:
        values: Of the file.
        names: Of the classes.
        config: Of the model under the head.

    Raises:
        InputError: a key or a value that no head has, or that the model has no place for.
    """
    if SEVERAL in values:
        return _read_several(values, names, config)
    said = values.get(KEY)
    if said is None:
        return Head(len(names)) if names else None
    if not isinstance(said, Mapping):
        raise InputError(f"config.json: {KEY} is {shown(said)}; expected an object of options of a head")
    defaults = {"classes": len(names) or None} | _defaults()
    if unknown := next((key for key in said if key not in defaults), None):
        raise InputError(f"config.json: {KEY} has no option '{unknown}'; {nearest(unknown, defaults)}")
    head = Head(
        **defaults | {name: typed(said, name, defaults[name]) for name in said if name not in ("texts", "drops")}
    )
    if "drops" in said:
        kinds.check(said["drops"], kinds.several(kinds.SHARE, 2, 2), f"config.json: {KEY}: drops")
        head = dataclasses.replace(head, drops=tuple(said["drops"]))
    if "texts" in said:
        head = dataclasses.replace(head, texts=_texts(said["texts"], head, config))
    for name, known in {"reads": READS, "hidden": ("", *ACTIVATIONS)}.items():
        if (found := getattr(head, name)) not in known:
            raise InputError(f"config.json: {KEY}: unknown {name} '{found}'; {nearest(found, known)}")
    if head.classes is None or head.classes > MOST_CLASSES or (names and head.classes != len(names)):
        expected = f"the number of classes, {len(names)}" if names else f"a number up to {MOST_CLASSES:,}"
        raise InputError(f"config.json: {KEY}: classes is {shown(head.classes)}; expected {expected}")
    words = config.tables.get("input_ids", 0)
    if head.tied and head.classes != (words or None):
        raise InputError(
            f"config.json: {KEY} is tied to the table of words and has {head.classes} outputs; the model has "
            f"{words or 'no'} words"
        )
    return head


def _texts(texts, head, config):
    """The tokens of one text for each class, all of one length, that a model of images and texts reads."""
    what, words = f"config.json: {KEY}: texts", config.tables.get("input_ids", 0)
    most = MOST_CLASSES * config.text_tower.longest
    kinds.check(texts, kinds.several(kinds.whole(0, max(words - 1, 0)), 1, most), what)
    if head.reads != "image_embeds" or not config.towers or len(texts) % (head.classes or 1):
        raise InputError(f"{what} are {len(texts):,} tokens; expected as many for each class, of a dual encoder")
    return tuple(texts)


def _read_several(values, names, config):
    said = values[SEVERAL]
    if not (isinstance(said, Mapping) and said and all(isinstance(own, Mapping) for own in said.values())):
        raise InputError(f"config.json: {SEVERAL} is {shown(said)}; expected an object of heads by name")
    if names or KEY in values:
        raise InputError(f"config.json: {SEVERAL} have classes of their own; expected no '{KEY}' and no classes beside")
    heads, classes = [], []
    for name, own in said.items():
        if not is_name(name):
            raise InputError(f"config.json: {SEVERAL}: {shown(name)} is no name; expected letters, digits and _")
        try:
            if unknown := next((key for key in own if key not in ("classes", KEY)), None):
                raise InputError(f"unknown key '{unknown}'; {nearest(unknown, ('classes', KEY))}")
            classes.append(words(own, "classes"))
            heads.append((name, read(own, classes[-1], config)))
        except InputError as error:
            raise InputError(f"config.json: {SEVERAL}: {name}: {str(error).removeprefix('config.json: ')}") from None
        if heads[-1][1] is None:
            raise InputError(f"config.json: {SEVERAL}: {name} has no classes; expected some, or '{KEY}'")
    return Heads(tuple(heads), tuple(classes))


def is_name(text: str) -> bool:
    """Whether one of several heads may be called so: it is a part of a path, and of the names of metrics."""
    return text.isidentifier() and text.isascii()


def named(head: Head | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a head's classes: those given where they are as many, else numbers; none where it has no classes."""
    number = head.classes if isinstance(head, Head) and head.kind not in WITHOUT_CLASSES else 0
    return names if len(names) == number else tuple(map(str, range(number)))


def _defaults():
    """By the names of the options of a head that have one."""
    fields = dataclasses.fields(Head)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
