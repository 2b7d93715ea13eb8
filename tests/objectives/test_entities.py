"""Entities are told from tags and counted as by conlleval and seqeval; expected values are worked out by hand."""

import numpy as np
import pytest

from jtransfer.data.marks import LEFT_OUT
from jtransfer.errors import InputError
from jtransfer.objectives import entities, parts


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-PER O I-PER", [("PER", 0, 2), ("PER", 3, 4)]),  # an entity may begin by I-
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # another type begins another one
        ("B-PER I-PER E-PER I-PER", [("PER", 0, 3), ("PER", 3, 4)]),
        ("S-PER I-PER O", [("PER", 0, 1), ("PER", 1, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_where_entities_begin_and_end(tags, expected):
    assert entities.entities(tags.split()) == expected


def test_an_entity_is_right_as_a_whole():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    said = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "O"]]
    found = entities.scores(said, true)  # LOC alone, of three found and three there
    assert found == {"entity_precision": 1 / 3, "entity_recall": 1 / 3, "entity_f1": 1 / 3}
    assert entities.scores([["O"]], [["O"]])["entity_f1"] == 0


def test_words_that_do_not_count_are_left_out_of_both_sides():
    classes = ("B-X", "I-X", "O")
    labels = np.array([[LEFT_OUT, 0, LEFT_OUT, 1, 2], [LEFT_OUT, 2, 0, LEFT_OUT, LEFT_OUT]])
    predicted = np.array([[0, 0, 2, 1, 2], [0, 2, 0, 1, 1]])
    assert parts.of_tags(predicted, labels, classes)["entity_f1"] == 1


def test_tags_without_a_beginning_are_refused_by_name():
    entities.check(("O", "B-PER", "I-PER"), "entity_f1")
    with pytest.raises(InputError, match="entity_f1 needs tags as 'B-PER', 'I-PER' and 'O'; found 'PER'"):
        entities.check(("O", "PER"), "entity_f1")
