"""Labels of words and answers: read from CoNLL and SQuAD files, and brought from characters to tokens."""

import json
import re

import numpy as np
import pytest

import jtransfer as jt
from jtransfer.data import marks, sources
from jtransfer.data.dataset import wrong_labels
from jtransfer.errors import InputError
from jtransfer.starts import load_for

SENTENCES = """-DOCSTART- -X- -X- O

Anna NNP B-NP B-PER
visits VBZ B-VP O
Kyoto NNP B-NP B-LOC

Unbelievably\tRB\tO
, , O O
Bob\tNNP\tB-PER
"""
PASSAGE = "Kyoto lies in Japan, as does Nara in Japan."
ASKED = [
    ("where", "Where is Kyoto?", [("Japan", 14), ("in Japan", 11)]),
    ("what", "What lies there?", [("Kyoto ", 0)]),
    ("who", "Who lives there?", []),
    ("else", "What else?", [("Nara", 29)]),
    ("last", "What is said last?", [("Japan.", 37)]),
]


def squad(asked=ASKED, passage=PASSAGE):
    rows = [
        {"id": name, "question": question, "answers": [{"text": text, "answer_start": at} for text, at in answers]}
        for name, question, answers in asked
    ]
    return json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": passage, "qas": rows}]}]})


def read(name, *reads):
    return sources.load(name, reads=reads)


def test_conll_has_a_class_for_every_word_and_words_are_joined_to_texts(tmp_path):
    file = tmp_path / "ner.txt"
    file.write_text(SENTENCES + SENTENCES)
    data = read(f"conll:{file}", "tags")
    assert data.targets == "tags" and data.classes == ("B-LOC", "B-PER", "O") and data.outputs == 3
    assert data.inputs[[0, 1]] == ["Anna visits Kyoto", "Unbelievably , Bob"]
    text, own = data.inputs[[1]][0], data.labels[1]
    assert [(text[start:end], data.classes[tag]) for start, end, tag in own] == [
        ("Unbelievably", "O"),
        (",", "O"),
        ("Bob", "B-PER"),
    ]
    assert sorted([*data.pool, *data.test]) == [0, 1, 2, 3] and len(data.test) == 1


def test_a_directory_has_a_file_for_training_and_one_for_testing(tmp_path):
    (tmp_path / "train.txt").write_text(SENTENCES)
    (tmp_path / "test.txt").write_text("Oslo B-LOC\nis O\nnice B-NEW\n")
    data = read(f"conll:{tmp_path}", "tags")
    assert (data.pool.tolist(), data.test.tolist()) == ([0, 1], [2])
    assert data.classes == ("B-LOC", "B-NEW", "B-PER", "O") and data.labels[2, :, 2].tolist() == [0, 3, 1]


def test_squad_has_every_answer_of_a_question_and_questions_without_one(tmp_path):
    file = tmp_path / "qa.json"
    file.write_text(squad())
    data = read(f"squad:{file}", "spans")
    assert data.targets == "spans" and len(data.inputs) == 5
    assert data.inputs[[0]] == [("Where is Kyoto?", PASSAGE)]
    said = [[PASSAGE[start:end] for start, end in own if start >= 0] for own in data.labels]
    assert said == [["Japan", "in Japan"], ["Kyoto"], [], ["Nara"], ["Japan."]]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("conll", "Anna\n", "line 1 is 'Anna'; expected a word and its tag, or a blank"),
        ("conll", "Anna O\nBob O\n", "every word has the tag 'O'; expected two tags at least"),
        ("conll", "\n\n", "there are no sentences in it"),
        ("squad", "[", "no JSON"),
        ("squad", '{"rows": []}', "no list 'data' of objects, as SQuAD has it"),
        ("squad", '{"data": []}', "there are no questions in it"),
        ("squad", '{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}', "'context' is int; expected a text"),
        ("squad", squad([("a", "b", [("Nara", 14)])]), "has the answer 'Nara' at 14, where .* 'Japa'; it stands at 29"),
        ("squad", squad([("a", "b", [("Oslo", 0)])]), "has the answer 'Oslo' at 0, .* its passage does not have it"),
        ("squad", squad([("a", "b", [("", 0)])]), "has the answer '' at 0"),
    ],
)
def test_a_file_that_cannot_be_read_so_is_refused_in_one_line(tmp_path, kind, text, said):
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as refused:
        read(f"{kind}:{file}", "tags", "spans")
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_path_that_leads_to_no_two_files_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="nothing: no such file or directory"):
        read(f"conll:{tmp_path}/nothing", "tags")
    (tmp_path / "train.txt").write_text(SENTENCES)
    with pytest.raises(InputError, match="expected one file whose name begins with 'test'; there is train.txt"):
        read(f"conll:{tmp_path}", "tags")
    with pytest.raises(InputError, match="has a class for every word; expected one class a row"):
        read(f"conll:{tmp_path / 'train.txt'}", "classes")


@pytest.fixture(scope="module")
def tokenizer(bert):
    return jt.load(str(bert)).preprocess


def test_the_first_token_of_a_word_has_its_class_as_in_transformers(bert, tokenizer):
    transformers = pytest.importorskip("transformers")
    words = [["the", "cat", "sat"], ["uncatty", "the", "cat"], ["cat"]]
    tags = [[1, 2, 0], [2, 0, 1], [1]]
    texts, rows = zip(*[marks.joined(*row) for row in zip(words, tags, strict=True)], strict=True)
    found = marks.tags_of_tokens(tokenizer.places(list(texts), length=8), marks.array(rows, 3))
    theirs = transformers.AutoTokenizer.from_pretrained(bert)
    encoded = theirs(words, is_split_into_words=True, padding="max_length", max_length=8, truncation=True)
    for row, own in enumerate(found):
        ids = encoded.word_ids(row)
        first = [i is not None and i not in ids[:place] for place, i in enumerate(ids)]
        expected = [tags[row][i] if new else marks.LEFT_OUT for i, new in zip(ids, first, strict=True)]
        assert own.tolist() == expected


def offsets(*rows, length=9):
    """`[CLS]` and the tokens of a text, `[SEP]` and padding."""
    return np.array([[(-1, -1), *row, (-1, -1), *[(-2, -2)] * (length - len(row) - 2)] for row in rows], np.int32)


def test_an_answer_has_its_first_and_last_token_and_none_where_it_was_cut_off():
    places = offsets([(0, 2), (2, 5), (6, 10), (10, 11)])
    asked = {(0, 5): (1, 2), (0, 1): (1, 1), (3, 8): (2, 3), (6, 11): (3, 4), (8, 14): None, (20, 22): None}
    for characters, tokens in asked.items():
        (found,) = marks.spans_of_tokens(places, np.array([[characters]]))
        assert tuple(found[0]) == (tokens or (marks.LEFT_OUT,) * 2), characters
    left = places.copy()
    left[0, 1:3] = -1  # of which the beginning was cut off
    assert marks.spans_of_tokens(left, np.array([[(3, 8), (6, 8)]])).tolist() == [[[-100, -100], [3, 3]]]


def test_a_question_without_an_answer_asks_for_the_first_token_after_the_padding():
    none = np.array([[(-1, -1), (-1, -1)]])
    assert marks.spans_of_tokens(offsets([(0, 2)]), none).tolist() == [[[0, 0], [-100, -100]]]
    assert marks.spans_of_tokens(offsets([(0, 2)])[:, ::-1], none).tolist() == [[[6, 6], [-100, -100]]]


def test_of_a_word_without_a_token_none_counts():
    places = offsets([(0, 2), (5, 5), (6, 9)])
    found = marks.tags_of_tokens(places, np.array([[(0, 2, 1), (3, 5, 2), (6, 9, 0), (-1, -1, -1)]]))
    assert found.tolist() == [[-100, 1, -100, 0, *[-100] * 5]]


def test_a_tokenizer_of_transformers_and_one_that_cleans_say_where_tokens_are_or_that_they_do_not(bert):
    transformers = pytest.importorskip("transformers")
    from jtransfer.data import tokenizer_calls as calls

    theirs = transformers.AutoTokenizer.from_pretrained(bert)
    encode, place = calls.by_transformers(theirs, "here")
    texts, pairs = ["the cat", "sat"], ["uncatty cat", "the cat sat"]
    ours = jt.load(str(bert)).preprocess
    for second in (None, pairs):
        assert place(texts, second, 9) == ours.place(texts, second, 9)
    with pytest.raises(InputError, match="here: the tokenizer does not tell of which characters its tokens are"):
        calls.cleaned(encode, str.lower, "here")[1](texts, None, 9)


def test_a_label_beyond_its_text_is_refused_and_shows_the_text(tmp_path, bert):
    file = tmp_path / "qa.json"
    file.write_text(squad())
    data = read(f"squad:{file}", "spans")
    _, prepare = load_for(str(bert), {}, data)
    prepare.labels(data.inputs[[0]], data.labels[:1], "mine")
    with pytest.raises(InputError, match="mine: a label ends at character 99 of a text of 43, 'Kyoto lies"):
        prepare.labels(data.inputs[[0]], np.array([[(3, 99)]]), "mine")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros((1, 2, 4), np.int32), r"labels \[1, 2, 4\] int32; expected whole numbers \[n, words, 3\]"),
        (np.zeros((1, 2, 2), np.float32), r"labels \[1, 2, 2\] float32"),
        (np.array([[(5, 5)]]), r"the mark \[5, 5\] in row 0; expected its first character before its end"),
        (np.array([[(-3, 5)]]), r"the mark \[-3, 5\] in row 0"),
        (np.array([[(0, 2, 7)]]), r"classes from 7 to 7 of words; expected 0..1, of its classes"),
        (np.array([[(0, 2, 1), (-1, -1, -1)]]), ""),
        (np.array([[(-1, -1)]]), ""),
    ],
)
def test_marks_of_a_user_that_are_none_are_told_in_words(labels, said):
    found = wrong_labels(labels, 1, ("a", "b"))
    assert re.match(said, found) if said else found == ""
