"""A refusal is one line of bounded length, whatever the words that it quotes."""

import time

import pytest

from jtransfer.errors import LONGEST, Damaged, InputError, nearest


@pytest.mark.parametrize("kind", [InputError, Damaged])
@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("array_record\n", "array_record "),
        ("a\r\n\tb", "a b"),
        ("a\u202eb", r"a\u202eb"),
        ("a\ud800", r"a\ud800"),
        ("two  spaces, as a path has them", "two  spaces, as a path has them"),
    ],
)
def test_words_of_a_file_start_no_line_and_move_no_cursor(kind, quoted, shown):
    assert str(kind(f"unknown '{quoted}'; choose")) == f"unknown '{shown}'; choose"


def test_a_message_that_is_too_long_keeps_the_thing_and_the_way_out():
    said = str(InputError(f"x.json: unknown '{'a' * 10**6}'; did you mean 'b'?"))
    assert len(said) < LONGEST + 10
    assert said.startswith("x.json: unknown 'aaa") and said.endswith("aaa'; did you mean 'b'?")


@pytest.mark.parametrize("name", [3, None, ["probe"]])
def test_what_is_no_name_at_all_is_answered_with_the_choices(name):
    assert nearest(name, ["finetune", "lora"]) == "choose one of finetune, lora"


def test_the_nearest_of_very_long_names_is_found_at_once():
    start = time.process_time()
    assert len(nearest("x" * 10**6, ["y" * 10**6, "x" * 10**6])) < 200
    assert time.process_time() - start < 1
