"""Which output of a source head has the name of a class of the target."""

from types import SimpleNamespace

import pytest

from jtransfer.checkpoints import Backbone
from jtransfer.errors import InputError
from jtransfer.starts.teachers import source_columns


def columns(source, target):
    data = SimpleNamespace(name="pictures", classes=target)
    return source_columns("zero_shot", data, Backbone("net", None, {}, source))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("cat", "dog"), ("dog", "cat"), [1, 0]),
        (("Golden  Retriever", "tench"), ("tench", "golden_retriever"), [1, 0]),
        (("goldfish, Carassius auratus", "tench, Tinca tinca"), ("tinca_tinca", "goldfish"), [1, 0]),
        (("bass", "great white shark"), ("Great White Shark, Carcharodon", "bass"), [1, 0]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("crane, bird", "Crane", "crane"), ("crane",), [2]),
        (("crane, bird", "Crane"), ("crane",), [1]),
        (("missile", "bow", "missile"), ("missile",), [0]),
        (tuple("0123456789"), tuple("9876543210"), list(range(9, -1, -1))),
    ],
    ids=["equal", "case and spaces", "synonyms", "its synonyms", "letters", "as it is", "whole", "twice", "digits"],
)
def test_an_equal_name_comes_before_one_that_differs_in_case_alone_and_that_before_a_synonym(source, target, expected):
    assert columns(source, target) == expected


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (("cat", "dog", "toad"), ("Cat", "load", "DOG"), "has no class 'load' of pictures, and 2 of all 3; did you"),
        (("Cat", "dog"), ("cat", "CAT"), "has one output, 'Cat', for the classes 'cat' and 'CAT' of pictures"),
        (tuple(map(str, range(1000))), tuple("0123456789"), "numbers its 1,000 outputs and does not name them"),
    ],
    ids=["missing", "two for one", "numbers"],
)
def test_a_head_that_does_not_name_every_class_is_refused_with_how_many_it_names(source, target, said):
    with pytest.raises(InputError) as refused:
        columns(source, target)
    assert said in str(refused.value) and "\n" not in str(refused.value)
