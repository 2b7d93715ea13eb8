"""Entities in tags of words, as `B-PER I-PER O`, and how many are found: the counts of CoNLL's script and of seqeval.

An entity begins at a tag `B-` or `S-`, and at an `I-` or `E-` that follows `O`, another type, or the end of an entity
(`E-`, `S-`); it goes on with `I-` and `E-` of its type. So `I-PER I-PER` after `O` is an entity, as in conlleval.
(Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050.)
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jtransfer.errors import InputError

OUTSIDE = "O"
PARTS = ("B", "I", "E", "S")


class Entity(NamedTuple):
    """The type of an entity, its first word, and the word after its last."""

    kind: str
    start: int
    end: int


def wrong(tags: Iterable[str]) -> str:
    """The first of some tags that does not say where an entity begins; "" where all do."""
    return next((tag for tag in tags if tag != OUTSIDE and not (tag[:1] in PARTS and tag[1:2] == "-")), "")


def check(tags: Iterable[str], what: str) -> None:
    """Refuse tags that do not say where an entity begins.

    Raises:
        InputError: it names the first of these tags.
    """
    if tag := wrong(tags):
        raise InputError(f"{what} needs tags as 'B-PER', 'I-PER' and 'O'; found '{tag}'")


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities in the tags of a text, in their order.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC"])
    [Entity(kind='PER', start=0, end=2), Entity(kind='LOC', start=3, end=4)]
    """
    found: list[Entity] = []
    open_at, before, kind_before = -1, OUTSIDE, ""
    for i, tag in enumerate([*tags, OUTSIDE]):
        part, _, kind = tag.partition("-")
        goes_on = open_at >= 0 and part in ("I", "E") and kind == kind_before and before in ("B", "I")
        if open_at >= 0 and not goes_on:
            found.append(Entity(kind_before, open_at, i))
            open_at = -1
        if part != OUTSIDE and not goes_on:
            open_at = i
        before, kind_before = part, kind
    return found


def scores(predicted: Iterable[Sequence[str]], true: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of all entities of some texts, by name; an entity is right as a whole or not at all.

    0 where there is nothing to divide by, as in scikit-learn.

    Args:
        predicted: Tags of each text.
        true: As many tags of each.
    """
    right = found = there = 0
    for own, other in zip(predicted, true, strict=True):
        one, two = set(entities(own)), set(entities(other))
        right, found, there = right + len(one & two), found + len(one), there + len(two)
    return {
        "entity_precision": right / found if found else 0.0,
        "entity_recall": right / there if there else 0.0,
        "entity_f1": 2 * right / (found + there) if found + there else 0.0,
    }
