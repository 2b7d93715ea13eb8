"""Words of a corpus, the rows that word2vec is trained on, and how often words stand together."""

import gc
import itertools
import pickle
import tracemalloc
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
    ids, texts = found[:]
    assert [names[i] for i in ids] == ["the", "cat", "the", "a", "cat", "a", "dog", "the", "dog", "cat"]
    assert texts.tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
    ids, texts = found[1:4]
    assert [names[i] for i in ids] == ["cat", "the", "a"] and texts.tolist() == [0, 0, 1]
    assert found.counts(len(vocabulary)).tolist() == [0, 0, 3, 3, 2, 2]


def test_the_file_of_a_corpus_goes_with_it_and_not_with_a_copy():
    corpus = words.written([np.array([2, 3], np.int32)])
    copy = pickle.loads(pickle.dumps(corpus))
    assert copy[:][0].tolist() == [2, 3]
    del copy
    gc.collect()
    file = corpus.file
    assert file.exists()
    del corpus
    gc.collect()
    assert not file.exists()


def test_a_window_ends_where_its_text_ends_and_a_word_outside_has_none():
    texts = np.array([[0, 0, 0, 1, 1, -1, -1]])
    found = bounds(texts, np.array([[2, 1, 2]]), 2)
    assert found.tolist() == [[[0, 2], [3, 4], [3, 4]]]
    assert bounds(texts, np.array([[1, 2, 2]]), 2)[0, 0].tolist() == [1, 2]
    assert bounds(np.array([[0, 0, 0, 0, -1, -1, -1]]), np.array([[1, 1, 1]]), 2)[0, 2].tolist() == [1, 0]


def walk(batch=3, seed=0, subsample=0.0, texts=5, **more):
    rng = np.random.default_rng(9)
    corpus = words.written(rng.integers(2, 30, (texts, 10)).astype(np.int32))
    return Walk(corpus, NearWords(2, 5, subsample, 4, 6, 1, True), corpus.counts(30), batch, seed, **more)


@pytest.mark.parametrize("part", [50, 12])  # of 12 words, and the last of 2
def test_every_word_is_a_centre_once_an_epoch_with_its_own_neighbours(part):
    one = walk(batch=13, part=part)  # an epoch is 13 rows of 4 words, the last of 2
    assert one.rows_of(2) == 13
    found, (ids, _) = one(2), one.corpus[:]
    centres, there = found["output_ids"][:, :4], found["windows"][..., 0] <= found["windows"][..., 1]
    assert Counter(centres[there].tolist()) == Counter(ids.tolist())
    for row, place in itertools.product(range(13), range(4)):
        first, last = found["windows"][row, place]
        for near in found["input_ids"][row, first : last + 1]:
            assert near >= 2
        assert found["input_ids"][row, place + 2] == centres[row, place]
    assert not np.array_equal(one(0)["input_ids"], one(1)["input_ids"])


@pytest.mark.parametrize("part", [50, 12])
def test_a_step_is_told_by_its_number_alone_and_a_share_is_part_of_it(part):
    one = walk(subsample=0.05, part=part)
    later = pickle.loads(pickle.dumps(one))
    for step in (9, 2):
        for name, x in one(step).items():
            np.testing.assert_array_equal(x, later(step)[name])
            np.testing.assert_array_equal(x[[2, 0]], later(step, np.array([2, 0]))[name])
    assert not np.array_equal(one(3)["output_ids"], walk(seed=1, subsample=0.05)(3)["output_ids"])


def test_a_walk_takes_memory_for_parts_of_a_corpus_and_not_for_all_of_it():
    def peak(texts):
        one = walk(batch=256, subsample=0.05, texts=texts, part=5000)
        tracemalloc.start()
        for step in range(one.rows_of(0) // 256):
            one(step)
        kept = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return kept

    assert peak(20_000) < 1.1 * peak(4_000) < 4 * 200_000  # of corpora of 200,000 and 40,000 words


def test_the_rows_of_a_corpus_of_one_part_are_what_they_were_when_it_was_held_in_memory():
    one = walk(subsample=0.05)
    ids, _ = one.corpus[:]
    draw = np.random.default_rng([0, 2, 1])
    left = draw.random(50, np.float32) < kept(one.counts, 0.05)[ids]
    order = draw.permutation(-(-left.sum() // 4))
    step = one.rows_of(0) // 3 + 1  # all of whose rows are of the second epoch
    found, before = one(step), 3 * step - one.rows_of(0)
    for row in range(3):
        centres = ids[left][4 * order[before + row] :][:4]
        np.testing.assert_array_equal(found["output_ids"][row, : len(centres)], centres)


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
    ids, texts = corpus[:]
    expected = Counter()
    for i, j in itertools.permutations(range(len(corpus)), 2):
        if abs(i - j) <= 3 and texts[i] == texts[j]:
            expected[int(ids[i]), int(ids[j])] += 1 / abs(i - j)
    found = count(corpus, 3, 30)
    assert [tuple(pair) for pair in found.words.tolist()] == sorted(expected)
    np.testing.assert_allclose(found.x, [expected[pair] for pair in sorted(expected)], rtol=1e-6)
