"""Long passages are read in windows that overlap, by their own tokens, and answers are found in them again."""

import json

import numpy as np
import pytest

import jtransfer as jt
from jtransfer.data.marks import NONE
from jtransfer.errors import InputError
from jtransfer.starts.passages import windows

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "where", *(f"w{i}" for i in range(20)), "##s"]
PASSAGE = " ".join(f"w{i}" for i in range(10))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A WordPiece tokenizer over a model of one small block."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    peer = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=96, **sizes)
    transformers.BertModel(peer).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    return jt.load(str(directory)).preprocess


def words(made, row):
    named = {i: word for word, i in made.tokenizer.words().items()}
    return " ".join(named[i] for i in made.rows[row][0])


def test_windows_begin_a_stride_apart_until_the_passage_ends(tokenizer):
    made = windows(tokenizer, [("who", PASSAGE), ("where", "w1 w2")], 8, 3)  # four tokens of the passage in each
    assert [words(made, row) for row in range(len(made))] == [
        "[CLS] who [SEP] w0 w1 w2 w3 [SEP]",
        "[CLS] who [SEP] w3 w4 w5 w6 [SEP]",
        "[CLS] who [SEP] w6 w7 w8 w9 [SEP]",
        "[CLS] where [SEP] w1 w2 [SEP]",
    ]
    assert made.of.tolist() == [0, 0, 0, 1] and made.cut == 0
    assert made[np.array([3])]["attention_mask"].sum() == 6 and made[[0]]["input_ids"].shape == (1, 8)
    np.testing.assert_array_equal(made[[0]]["token_type_ids"][0], [0, 0, 0, 1, 1, 1, 1, 1])


def test_without_a_stride_the_first_window_is_read_alone_and_the_cut_is_counted(tokenizer):
    made = windows(tokenizer, [("who", PASSAGE), ("where", "w1 w2")], 8)
    assert len(made) == 2 and made.cut == 1


def test_windows_are_those_of_transformers_with_the_same_overlap(tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tokenizer.where).rpartition("/")[0])
    for stride in (1, 2, 3, 4):
        options = {
            "max_length": 9,
            "stride": 5 - stride,
            "truncation": "only_second",
            "return_overflowing_tokens": True,
        }
        expected = theirs(["who"], [PASSAGE], return_offsets_mapping=True, **options)
        made = windows(tokenizer, [("who", PASSAGE)], 9, stride)
        assert [list(ids) for ids, _, _ in made.rows] == expected["input_ids"]
        for row, places in enumerate(expected["offset_mapping"]):
            own = [place for place, of in zip(places, expected.sequence_ids(row), strict=True) if of == 1]
            assert made.places[row][made.places[row][:, 0] >= 0].tolist() == [list(place) for place in own]


def test_a_token_is_of_the_window_with_the_most_around_it(tokenizer):
    made = windows(tokenizer, [("who", PASSAGE)], 8, 2)  # w0..3, w2..5, w4..7, w6..9
    own = [[f"w{i}" for i in range(10) if made.own[row][made.places[row][:, 0] == 3 * i].any()] for row in range(4)]
    # w2 has min(2, 1) around it in the first and min(0, 3) in the second, w3 has 0 and 1; w9 is of one alone.
    assert own == [["w0", "w1", "w2"], ["w3", "w4"], ["w5", "w6"], ["w7", "w8", "w9"]]


def test_an_answer_is_labelled_in_the_windows_that_have_all_of_it(tokenizer):
    made = windows(tokenizer, [("who", PASSAGE), ("where", "w1 w2")], 8, 3)
    marks = np.array([[[9, 14]], [[NONE, NONE]]])  # "w3 w4", and no answer
    assert PASSAGE[9:14] == "w3 w4"
    assert made.labels(marks)[:, 0].tolist() == [[0, 1], [3, 5], [0, 1], [0, 1]]


def test_answers_come_back_as_texts_of_the_passage(tokenizer):
    made = windows(tokenizer, [("who", PASSAGE), ("where", "w1 w2")], 8, 3)
    starts, ends = np.zeros((2, 4, 8))
    starts[1, 4], ends[1, 5], ends[0, 6], starts[3, 3], ends[3, 4] = 5, 5, 3, 2, 2
    starts[:, 7] = ends[:, 7] = 99  # of the end, or of padding
    found = made.answered(starts, ends)
    assert [made.text(i, spans) for i, (spans, _) in enumerate(found)] == ["w4 w5", "w1 w2"]
    assert [null for _, null in found] == [0, 0]
    of_second = made.answered(starts[3:], ends[3:], since=3)
    assert of_second[0] == found[1]


def test_a_question_of_more_than_64_tokens_is_cut_and_one_without_room_refused(tokenizer):
    made = windows(tokenizer, [(" ".join(["who"] * 70), PASSAGE)], 80)
    assert words(made, 0).count("who") == 64
    with pytest.raises(
        InputError, match="no place for a passage beside the question 'who who who.*expected 8 at least"
    ):
        windows(tokenizer, [("who who who who", PASSAGE)], 5)


def test_answers_that_are_not_in_their_passage_are_named_by_id_or_left_out_up_to_a_share(tmp_path):
    from jtransfer.data import sources

    def question(i, text, start):
        return {"id": f"q{i}", "question": "who?", "answers": [{"text": text, "answer_start": start}]}

    asked = [question(0, "bob", 0), *(question(i, "rome", 13) for i in range(1, 12))]
    file = tmp_path / "qa.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "anna went to rome", "qas": asked}]}]}))
    with pytest.raises(InputError, match="question 'q0' has the answer 'bob' at 0, .* its passage does not have it"):
        sources.open_stream(f"squad:{file}", 2, 0, reads=("spans",))
    stream = sources.open_stream(f"squad:{file}", 2, 0, reads=("spans",), damaged=0.2)
    assert stream.damaged == 1 and len(stream.pool[1]) + len(stream.held_out[2]) == 11
    with pytest.raises(InputError, match="config.damaged=0.05 allows 0"):
        sources.open_stream(f"squad:{file}", 2, 0, reads=("spans",), damaged=0.05)
