"""Kinds of values: what an error says that they must be."""

import pytest

from jtransfer import kinds


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (0, None, "a list"),
        (1, None, "a list of at least one item"),
        (2, None, "a list of at least 2 items"),
        (2, 2, "a list of 2 items"),
        (0, 3, "a list of 0 to 3 items"),
    ],
)
def test_the_length_of_a_list_is_said_by_the_bounds_that_it_has(least, most, said):
    kind = kinds.several(kinds.ANY, least, most)
    assert kind.expected == said
    assert [n for n in range(6) if kind.takes([0] * n)] == list(range(least, (most or 5) + 1))
