"""Answers are normalised, compared and chosen as by the scripts of SQuAD; expected values are worked out by hand."""

import numpy as np
import pytest

from jtransfer.objectives import answers, parts
from jtransfer.objectives.answers import Window, best_spans, best_threshold, normalised, overlap, scored


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat's hat.", "cats hat"),  # the apostrophe goes before the article is looked for
        ("  a   blank\tand\na line ", "blank and line"),
        ("theatre an anthem A", "theatre anthem"),
        ("U.S.A.", "usa"),
        ("an-other", "another"),
        ("the", ""),
        ("«Zürich» 1,000", "«zürich» 1000"),  # punctuation is that of ASCII
    ],
)
def test_small_letters_no_punctuation_no_articles_single_blanks(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answer", "true", "f1"),
    [
        ("in new york", "new york", 0.8),  # 2 of 3 and 2 of 2: 2 * 2 / 5
        ("to be or not to be", "to be", 0.5),  # a word counts as often as both have it: 2 * 2 / 8
        ("york", "london", 0.0),
        ("", "", 1.0),
        ("", "york", 0.0),
        ("york", "", 0.0),
    ],
)
def test_f1_is_of_words_with_their_number(answer, true, f1):
    assert overlap(answer, true) == pytest.approx(f1)


def test_the_best_true_answer_counts_and_none_is_right_where_there_is_none():
    found = scored(
        ["The Eiffel tower!", "in Paris", "", "Paris", ""],
        [["eiffel tower", "tower"], ["Paris", "in France"], [], [], ["Paris", "the"]],
    )
    np.testing.assert_allclose(found.exact, [1, 0, 1, 0, 0])
    np.testing.assert_allclose(found.f1, [1, 2 / 3, 1, 0, 0])


def test_a_question_whose_true_answers_are_articles_alone_has_none():
    assert scored([""], [["the"]]).exact == 1


def test_the_threshold_is_that_of_the_best_mean_and_the_first_of_equal_ones():
    # By rising null: an answer worth 1, a wrong one where there is none, an answer worth 0.5, none said where none is.
    scores, nulls = np.array([1.0, 0.0, 0.5, 1.0]), np.array([-3.0, -1.0, 2.0, 5.0])
    answerable, said = np.array([True, False, True, False]), np.array([True, True, True, False])
    # Sums: 2 (nothing answered), 3, 2, 2.5, 2.5; the best is 3 of 4 at -3.
    assert best_threshold(scores, nulls, answerable, said) == (0.75, -3.0)
    # If the first answer is wrong too nothing gets above the two without an answer, and the threshold stays 0.
    assert best_threshold(np.array([0.0, 0.0, 0.5, 1.0]), nulls, answerable, said) == (0.5, 0.0)


def window(starts, ends, question=2, own=None):
    """A window of `[CLS]`, the rest of a question and passage tokens of three characters and a blank."""
    count = len(starts) - question
    places = np.array([[-1, -1]] * question + [[4 * i, 4 * i + 3] for i in range(count)])
    own = np.ones(len(starts), bool) if own is None else np.array(own, bool)
    return Window(np.array(starts, float), np.array(ends, float), places, own)


def test_spans_stand_in_the_passage_in_order_and_within_the_longest_answer():
    one = window([1, 9, 3, 0, 5, 0], [2, 9, 4, 0, 1, 6])
    spans, null = best_spans([one])
    assert null == 3  # 1 + 2, of the first token
    # Tokens 2..5 of the passage are at 0, 4, 8 and 12. 5 + 6 from 8 to 15, 3 + 6 from 0, 3 + 4 ...
    assert [tuple(span) for span in spans[:3]] == [(8, 15, 11), (0, 15, 9), (0, 3, 7)]
    assert all(span.start < span.end for span in spans)
    short, _ = best_spans([one], longest=2)
    assert [tuple(span) for span in short[:2]] == [(8, 15, 11), (0, 3, 7)]
    few, _ = best_spans([one], count=1)
    assert few == []  # the best start and the best end are of the question


def test_of_two_windows_the_least_null_counts_and_a_start_where_most_is_around_it():
    left = window([1, 0, 0, 0, 7], [1, 0, 0, 0, 7], own=[0, 0, 1, 1, 0])
    right = window([3, 0, 2, 0, 0], [-4, 0, 3, 0, 0])
    spans, null = best_spans([left, right])
    assert null == -1
    assert spans[0] == (0, 11, 7)  # 0 + 7: the token at 8 ends an answer on the left, and begins none there


def test_without_unanswerable_questions_the_null_score_is_of_no_matter():
    given, true = ["rome", "oslo"], [["Rome"], ["Oslo, Norway"]]
    found = parts.of_answers(given, np.array([9.0, -9.0]), true)
    assert (found["exact_match"], found["f1"]) == (0.5, pytest.approx(5 / 6))


def test_with_unanswerable_questions_none_is_said_above_zero_or_above_the_best_threshold():
    given, true = ["rome", "oslo", "bern"], [["Rome"], [], []]
    found = parts.of_answers(given, np.array([1.0, 3.0, -2.0]), true)
    # At 0: "", "", "bern", of which the second is right. At 1, the best, "rome", "" and "bern": two are.
    assert found["exact_match"] == found["f1"] == pytest.approx(1 / 3)
    # By rising null the sums are 2, 1 (bern), 2 (rome), 1 (oslo): nothing is better than no answer at all.
    assert (found["best_f1"], found["best_threshold"]) == (pytest.approx(2 / 3), 0.0)


def test_shares_of_scores_are_a_softmax():
    np.testing.assert_allclose(answers.shares([1000.0, 1000.0]), [0.5, 0.5])
