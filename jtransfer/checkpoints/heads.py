"""A head as the `config.json` of our own layout has it: the fields of `Head` that differ from their defaults.

    "classes": ["cat", "dog"]                                     one layer on the features, two outputs
    "classes": ["O", "B"], "head": {"reads": "last_hidden_state"}
    "classes": [], "head": {"classes": 30522, "hidden": "gelu", "norm": 1e-12, "reads": "last_hidden_state", ...}

A file without "head" has one layer on the features for its classes, or no head where it has none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jtransfer.checkpoints.families.values import typed
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown
from jtransfer.models import Architecture, Head
from jtransfer.models.heads import READS
from jtransfer.models.layers import ACTIVATIONS

MOST_CLASSES = 1_000_000
KEY = "head"
WITHOUT_CLASSES = ("masked_lm", "causal_lm", "span", "projection")
"""Kinds whose number of outputs is no number of classes."""


def write(head: Head | None, classes: tuple[str, ...]) -> dict[str, Any]:
    """The keys of `config.json` that say a head and the names of its classes.

    Raises:
        InputError: so many names for another number of outputs.
    """
    head = head or (Head(len(classes)) if classes else None)
    said = {"classes": list(classes)}
    if head is None or head == Head(len(classes)):
        return said
    if classes and len(classes) != head.classes:
        raise InputError(f"a head with {head.classes} outputs cannot have {len(classes)} names of classes")
    values = {field.name: getattr(head, field.name) for field in dataclasses.fields(head)}
    differ = {name: value for name, value in values.items() if value != _defaults().get(name)}
    return said | {KEY: {name: value for name, value in differ.items() if not (classes and name == "classes")}}


def read(values: Mapping[str, Any], names: tuple[str, ...], config: Architecture) -> Head | None:
    """The head that a `config.json` says; None where it says none.

    Args:
        values: Of the file.
        names: Of the classes.
        config: Of the model under the head.

    Raises:
        InputError: a key or a value that no head has, or that the model has no place for.
    """
    said = values.get(KEY)
    if said is None:
        return Head(len(names)) if names else None
    if not isinstance(said, Mapping):
        raise InputError(f"config.json: {KEY} is {shown(said)}; expected an object of options of a head")
    defaults = {"classes": len(names) or None} | _defaults()
    if unknown := next((key for key in said if key not in defaults), None):
        raise InputError(f"config.json: {KEY} has no option '{unknown}'; {nearest(unknown, defaults)}")
    head = Head(**defaults | {name: typed(said, name, defaults[name]) for name in said})
    for name, known in {"reads": READS, "hidden": ("", *ACTIVATIONS)}.items():
        if (found := getattr(head, name)) not in known:
            raise InputError(f"config.json: {KEY}: unknown {name} '{found}'; {nearest(found, known)}")
    if head.classes is None or head.classes > MOST_CLASSES or (names and head.classes != len(names)):
        expected = f"the number of classes, {len(names)}" if names else f"a number up to {MOST_CLASSES:,}"
        raise InputError(f"config.json: {KEY}: classes is {shown(head.classes)}; expected {expected}")
    if head.tied and head.classes != (words := config.tables.get("input_ids")):
        raise InputError(
            f"config.json: {KEY} is tied to the table of words and has {head.classes} outputs; the model has "
            f"{words or 'no'} words"
        )
    return head


def named(head: Head | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a head's classes: those given where they are as many, else numbers; none where it has no classes."""
    number = head.classes if head and head.kind not in WITHOUT_CLASSES else 0
    return names if len(names) == number else tuple(map(str, range(number)))


def _defaults():
    """By the names of the options of a head that have one."""
    fields = dataclasses.fields(Head)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
