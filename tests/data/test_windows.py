"""Words of a corpus, the rows that word2vec is trained on, and how often words stand together."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from jtransfer.data import words
from jtransfer.data.cooccurrence import count
from jtransfer.data.windows import Walk, alias, bounds, kept
from jtransfer.errors import InputError
from jtransfer.objectives.word_vectors import NearWords

TEXTS = ["The cat sat on the mat.", "A cat, a dog; the end!", "dog don't  cat"]


class Lines(list):
    """Texts by rows."""

    def __getitem__(self, rows):
        return [list.__getitem__(self, row) for row in rows]


def made(lower=True, least=1, most=100):
    return words.of_texts(Lines(TEXTS), np.arange(3), least, most, lower, "lines")


def test_words_are_runs_of_letters_or_of_marks_the_frequent_first_and_ties_by_letters():
    vocabulary = made()
    assert vocabulary.words[:6] == ("cat", "the", "a", "dog", "!", "'")
    assert {"don", "t", ".", ",", ";", "mat"} <= set(vocabulary.words)
    assert made(least=2).words == ("cat", "the", "a", "dog")
    assert made(most=4).words == ("cat", "the")
    assert "The" in made(lower=False).words
    assert words.read(vocabulary.files) == vocabulary


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(InputError, match=r"lines: no word is there 9 times in 3 texts; set least to a smaller number"):
        made(least=9)


def test_words_that_are_not_known_are_left_out_and_their_neighbours_stand_together():
    vocabulary = made(least=2)
    found = words.corpus(vocabulary, Lines(TEXTS), np.arange(3))
    names = ["", "", *vocabulary.words]
    assert [names[i] for i in found.ids] == ["the", "cat", "the", "a", "cat", "a", "dog", "the", "dog", "cat"]
    assert found.texts.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]


def test_a_window_ends_where_its_text_ends_and_a_word_outside_has_none():
    texts = np.array([[0, 0, 0, 1, 1, -1, -1]])
    found = bounds(texts, np.array([[2, 1, 2]]), 2)
    assert found.tolist() == [[[0, 2], [3, 4], [3, 4]]]
    assert bounds(texts, np.array([[1, 2, 2]]), 2)[0, 0].tolist() == [1, 2]
    assert bounds(np.array([[0, 0, 0, 0, -1, -1, -1]]), np.array([[1, 1, 1]]), 2)[0, 2].tolist() == [1, 0]


def walk(batch=3, seed=0, subsample=0.0, length=50):
    rng = np.random.default_rng(9)
    corpus = words.Corpus(rng.integers(2, 30, length).astype(np.int32), np.repeat(np.arange(5), 10).astype(np.int32))
    windows = NearWords(2, 5, subsample, 4, 6, 1, True)
    return Walk(corpus, windows, np.bincount(corpus.ids, minlength=30), batch, seed)


def test_every_word_is_a_centre_once_an_epoch_with_its_own_neighbours():
    one = walk(batch=13)  # an epoch is 13 rows of 4 words, the last of 2
    found, ids = one(2), one.corpus.ids
    centres, there = found["output_ids"][:, :4], found["windows"][..., 0] <= found["windows"][..., 1]
    assert Counter(centres[there].tolist()) == Counter(ids.tolist())
    for row, place in itertools.product(range(13), range(4)):
        first, last = found["windows"][row, place]
        for near in found["input_ids"][row, first : last + 1]:
            assert near >= 2
        assert found["input_ids"][row, place + 2] == centres[row, place]
    assert not np.array_equal(one(0)["input_ids"], one(1)["input_ids"])


def test_a_step_is_told_by_its_number_alone_and_a_share_is_part_of_it():
    one = walk(subsample=0.05)
    later = pickle.loads(pickle.dumps(walk(subsample=0.05)))
    for step in (7, 2):
        for name, x in one(step).items():
            np.testing.assert_array_equal(x, later(step)[name])
            np.testing.assert_array_equal(x[[2, 0]], later(step, np.array([2, 0]))[name])
    assert not np.array_equal(one(3)["output_ids"], walk(seed=1, subsample=0.05)(3)["output_ids"])


def test_frequent_words_are_left_out_by_word2vecs_formula():
    counts = np.array([0, 0, 900, 90, 10])
    expected = [1, 1, (np.sqrt(0.9 / 0.01) + 1) * 0.01 / 0.9, (np.sqrt(0.09 / 0.01) + 1) * 0.01 / 0.09, 1]
    np.testing.assert_allclose(kept(counts, 0.01), np.minimum(1, expected), rtol=1e-6)
    assert kept(counts, 0).tolist() == [1] * 5


def test_numbers_are_drawn_in_proportion_to_their_weights():
    weights = np.array([0.0, 1, 2, 5, 0.5])
    drawn = np.bincount(alias(weights)(np.random.default_rng(0), (200_000,)), minlength=5) / 200_000
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.004)
    assert drawn[0] == 0


@pytest.mark.parametrize("chunk", [7, 1000])
def test_words_stand_together_as_often_as_a_loop_over_all_places_counts(chunk, monkeypatch):
    monkeypatch.setattr("jtransfer.data.cooccurrence.CHUNK", chunk)
    corpus = walk().corpus
    expected = Counter()
    for i, j in itertools.permutations(range(len(corpus)), 2):
        if abs(i - j) <= 3 and corpus.texts[i] == corpus.texts[j]:
            expected[int(corpus.ids[i]), int(corpus.ids[j])] += 1 / abs(i - j)
    found = count(corpus, 3, 30)
    assert [tuple(pair) for pair in found.words.tolist()] == sorted(expected)
    np.testing.assert_allclose(found.x, [expected[pair] for pair in sorted(expected)], rtol=1e-6)
