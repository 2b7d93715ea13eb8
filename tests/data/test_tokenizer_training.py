"""Tokenizers trained here are those of their texts, give transformers' ids, and are refused in one line."""

import json

import numpy as np
import pytest
from etils import epath

from jtransfer.data import pieces, text, tokenizer_training
from jtransfer.data.tokenizer_training import DECODER, ENCODER
from jtransfer.errors import InputError

NAMES = ("input_ids", "attention_mask", "token_type_ids")
RECIPES = (
    "wordpiece(size=400)",
    "bpe(size=400)",
    "words(size=400)",
    "words(size=300, lower=True, spaces=True)",
    "bytes",
)
ASKED = ["The low river, Ägypten's; played!", "", "a 🦊 <|endoftext|> [SEP] x\n\ny", "unheard-of words"]


def corpus():
    """200 texts of common and rare words."""
    rng = np.random.default_rng(0)
    words = [
        "the",
        "low",
        "lower",
        "lowest",
        "river",
        "rivers",
        "play",
        "played",
        "a",
        "Ägypten",
        "well-known",
        "don't",
    ]
    rare = [f"rare{i}" for i in range(40)]
    return [" ".join([*rng.choice(words, 12), rare[i % 40], "end."]) for i in range(200)]


def trained(name, generates):
    recipe = tokenizer_training.parse(name)
    names = NAMES[:2] if generates else NAMES
    return tokenizer_training.files(recipe, lambda: iter(corpus()), generates, names, 64)


def written(files, directory, generates):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return text.tokenizer(epath.Path(directory), {}, NAMES[:2] if generates else NAMES, 64, False)


@pytest.mark.parametrize("generates", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("name", RECIPES)
def test_transformers_reads_the_files_and_gives_the_same_ids_and_texts(name, generates, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = written(trained(name, generates), tmp_path, generates)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.model_max_length == ours.limit == 64 and len(theirs) == ours.size
    assert theirs.pad_token_id == ours.pad and [*theirs.model_input_names] == [*map(str, theirs(["a"]).keys())]
    pairs = None if generates else ASKED[::-1]
    found = theirs(ASKED, pairs, padding="max_length", truncation=True, max_length=64)
    expected = ours(ASKED, pairs, length=64)
    assert expected.keys() == {*found.keys()}
    for key, x in expected.items():
        np.testing.assert_array_equal(x, found[key], err_msg=key)
    rows = [ids for ids, _, _ in ours.rows(corpus()[:3])]
    assert ours.decode(rows) == theirs.batch_decode(rows, skip_special_tokens=True)


@pytest.mark.parametrize("name", RECIPES[:3])
def test_the_files_follow_from_the_texts_and_the_recipe_alone(name):
    assert trained(name, False) == trained(name, False)


def test_special_tokens_come_first_and_stand_around_the_texts_of_an_encoder(tmp_path):
    ours = written(trained("wordpiece(size=400)", False), tmp_path, False)
    assert [*ENCODER.values()] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [ours.words()[token] for token in ENCODER.values()] == [0, 1, 2, 3, 4] == [*ours.special]
    assert (ours.pad, ours.mask, ours.size) == (0, 4, max(ours.words().values()) + 1) and ours.size <= 400
    ((ids, types, _),) = ours.rows(["river"], ["play"])
    words = ours.words()
    assert ids == [2, words["river"], 3, words["play"], 3] and types == [0, 0, 0, 1, 1]


def test_a_decoder_has_one_special_token_and_bytes_know_every_text(tmp_path):
    ours = written(trained("bytes", True), tmp_path, True)
    assert {*DECODER.values()} == {"<|endoftext|>"} and (ours.size, ours.pad) == (257, 0)
    ((ids, _, _),) = ours.rows(["é🦊"])
    assert len(ids) == len("é🦊".encode()) and ours.decode([ids]) == ["é🦊"]


def test_words_that_are_rare_or_too_many_are_unknown(tmp_path):
    ours = written(trained("words(size=300, least=150)", False), tmp_path, False)
    assert "rare1" not in ours.words() and "river" in ours.words() and "." in ours.words()
    ((ids, _, _),) = ours.rows(["rare1 river"])
    assert ids[1] == ours.words()["[UNK]"] and ids[2] == ours.words()["river"]


def test_a_tokenizer_without_words_has_the_size_of_its_recipe():
    made = tokenizer_training.blank(tokenizer_training.parse("bpe(size=5000)"), ["<|endoftext|>"])
    assert made.get_vocab_size() == 5000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wordpeice(size=400)", "unknown tokenizer 'wordpeice'; did you mean 'wordpiece'"),
        ("bpe(size=10)", "tokenizer 'bpe': size: expected a whole number"),
        ("words(leest=3)", "tokenizer 'words' has no option 'leest'; did you mean 'least'"),
        ("bpe(size=400", "tokenizer 'bpe(size=400' is not of the form name"),
    ],
)
def test_a_recipe_that_is_none_is_refused_in_one_line(name, said):
    with pytest.raises(InputError) as error:
        tokenizer_training.parse(name)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/data/tokenizer", "my/model", "gs://bucket/x", "bert-base-uncased", "./bpe", "gpt2"])
def test_a_name_without_options_that_is_no_recipe_is_that_of_a_checkpoint(name):
    assert tokenizer_training.parse(name) is None


def words_of(ours, sentence):
    """The tokens of a text, joined where one goes on with the word of the one before it."""
    names = {number: token for token, number in ours.words().items()}
    ((ids, _, _),) = ours.rows([sentence])
    goes_on, behind = ours.joins
    found = []
    for before, token in zip([None, *ids], ids, strict=False):
        if before is not None and goes_on[token] and behind[before]:
            found[-1] += "+" + names[token]
        else:
            found.append(names[token])
    return found


def test_pieces_of_words_go_on_with_the_word(tmp_path):
    (tmp_path / "wp").mkdir()
    ours = written(trained("wordpiece(size=300)", False), tmp_path / "wp", False)
    found = words_of(ours, "played well-known xyz")
    assert found[0] == "[CLS]" and found[-1] == "[SEP]"
    assert [word.replace("+##", "") for word in found[1:-1]] == ["played", "well", "-", "known", "[UNK]"]


def test_bytes_go_on_behind_a_letter_and_not_behind_a_space_or_a_mark(tmp_path):
    ours = written(trained("bytes", True), tmp_path, True)
    joined = [word.replace("+", "") for word in words_of(ours, "low é-be 42")]
    assert joined == ["low", "Ġ", "Ã©", "-", "be", "Ġ", "42"]


def test_whole_words_never_go_on():
    goes_on, _ = pieces.joins({"[PAD]": 0, "play": 1, "ing": 2}, [0])
    assert not goes_on.any()


def test_no_key_of_the_settings_is_unknown_here(tmp_path, caplog):
    written(trained("bpe(size=400)", False), tmp_path, False)
    assert not caplog.records
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["mask_token"] == "[MASK]"
