"""Images and what is said of them, by the number of the step."""

import json

import numpy as np
import pytest

from jtransfer.data import pairs, sources
from jtransfer.data.pairs import glyph_names
from jtransfer.data.sources import open_pairs
from jtransfer.errors import InputError
from jtransfer.starts import vocabularies


def taken(stream, steps, start=0):
    batches = (
        batch | {"images": batch["images"][np.arange(len(batch["images"]))]} for batch, _ in stream.batches(start)
    )
    return [next(batches) for _ in range(steps)]


def test_every_pair_comes_once_an_epoch_with_a_caption_of_its_own_drawn_anew(captioned):
    name = "tfds:things?caption=name+words"
    stream = open_pairs(name, 4, 0, data_dir=captioned, templates=("{}", "a picture of {}"))
    captions = dict(zip(range(12), sources.load(name, captioned).captions[np.arange(12)], strict=True))
    images = {image.tobytes(): row for row, image in enumerate(np.stack(stream.images[np.arange(12)]))}
    epochs = [taken(stream, 3, start) for start in (0, 3, 6)]
    drawn = []
    for epoch in epochs:
        rows = [images[image.tobytes()] for batch in epoch for image in batch["images"]]
        texts = [text for batch in epoch for text in batch["texts"]]
        assert sorted(rows) == list(range(12))
        assert all(text.removeprefix("a picture of ") in captions[row] for row, text in zip(rows, texts, strict=True))
        drawn.append(dict(zip(rows, texts, strict=True)))
    assert len({tuple(sorted(one.items())) for one in drawn}) == 3
    assert {text.startswith("a picture of") for one in drawn for text in one.values()} == {True, False}


def test_rows_of_some_classes_alone_are_trained_on_and_of_others_held_out(captioned):
    stream = open_pairs("tfds:things?caption=name&only=kind:0&test_only=kind:1", 6, 0, data_dir=captioned)
    texts = [text for batch in taken(stream, 2) for text in batch["texts"]]
    assert {int(text.split()[1]) % 2 for text in texts} == {0} and len(set(texts)) == 6
    assert stream.held_out.names == ("thing 1", "thing 3")
    dataset = sources.load("tfds:things?label=kind&test_only=kind:1", captioned)
    assert dataset.labels[dataset.test].tolist() == [1, 1] and len(dataset.pool) == 12
    with pytest.raises(InputError, match=r"'kind' has no class '2'"):
        open_pairs("tfds:things?caption=name&only=kind:2", 6, 0, data_dir=captioned)


def test_a_run_that_starts_again_and_one_of_two_processes_see_the_same(captioned):
    name = "tfds:things?caption=name+words"
    whole = taken(open_pairs(name, 4, 1, data_dir=captioned), 5)
    later = taken(open_pairs(name, 4, 1, data_dir=captioned), 2, start=3)
    halves = [taken(open_pairs(name, 4, 1, np.array(part), captioned), 5) for part in ([0, 1], [2, 3])]
    assert [batch["texts"] for batch in later] == [batch["texts"] for batch in whole[3:]]
    for batch, one, two in zip(whole, *halves, strict=True):
        assert batch["texts"] == one["texts"] + two["texts"]
        np.testing.assert_array_equal(batch["images"], one["images"] + two["images"])


def test_characters_are_called_by_their_names_and_letters_alone_never_by_a_digit():
    for name, digits in (("glyph_captions", True), ("letter_captions", False)):
        stream = open_pairs(name, 64, 0)
        batch = taken(stream, 1)[0]
        assert np.shape(batch["images"]) == (64, 8, 8, 1)
        words = {word for text in [*batch["texts"], *stream.held_out.names] for word in text.strip(".").split()}
        named = words & {*pairs.WORDS, *pairs.WORDS.values(), "digit", "number"}
        assert bool(named) == digits
        assert len(stream.held_out.names) == (62 if digits else 52)
    assert glyph_names("A")[1] == "capital letter A" and glyph_names("a")[1] == "small letter a"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyph_caption", r"unknown pairs 'glyph_caption'; did you mean 'glyph_captions'"),
        ("tfds:things", r"tfds:things: expected images with captions, as in tfds:things\?caption=FEATURE"),
        ("tfds:alike?caption=name+words", r"the captions of the first 4 rows of tfds:alike\S+ are all the same"),
    ],
)
def test_pairs_that_teach_nothing_are_refused_in_one_line(captioned, name, message):
    with pytest.raises(InputError, match=message):
        open_pairs(name, 2, 0, data_dir=captioned)


def test_a_pair_without_a_caption_is_left_out_before_the_first_step(captioned, caplog):
    """A row deep in the data must not end a run, nor every run that starts again."""
    name, some = "tfds:silent?caption=name+words", {"damaged": 0.25}
    whole = taken(open_pairs(name, 4, 0, data_dir=captioned, **some), 6)
    assert all(text.strip() for batch in whole for text in batch["texts"])
    assert caplog.text.count("the caption of row 3 of tfds:silent?caption=name+words is empty; left out") == 1
    images = {image.tobytes() for batch in whole for image in batch["images"]}
    assert len(images) == 3 and len({tuple(batch["texts"]) for batch in whole}) > 1
    (later,) = taken(open_pairs(name, 4, 0, data_dir=captioned, **some), 1, start=5)
    halves = [taken(open_pairs(name, 4, 0, np.array(part), captioned, **some), 6)[5] for part in ([0, 1], [2, 3])]
    assert later["texts"] == whole[5]["texts"] == halves[0]["texts"] + halves[1]["texts"]


def test_a_file_of_arrays_holds_pairs_with_no_label_and_rows_of_fewer_captions(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    captions = np.array([["a", "b"], ["c", ""], ["d", "e"], ["f", "g"], ["h", " "]])
    np.savez(tmp_path / "own.npz", images=images, captions=captions)
    stream = open_pairs(f"npz:{tmp_path / 'own.npz'}", 3, 0)
    seen = [pair for batch in taken(stream, 9) for pair in zip(batch["images"], batch["texts"], strict=True)]
    for image, text in seen:
        (row,) = [row for row in range(5) if np.array_equal(image, images[row])]
        assert text in captions[row] and text.strip()
    assert {text for _, text in seen} == set("abcde"), "the last rows are held out"
    assert stream.held_out.names == ("f", "h")
    crops = taken(open_pairs(f"npz:{tmp_path / 'own.npz'}", 3, 0, crop=(0.3, 0.5)), 1)[0]["images"]
    assert all(crop.dtype == np.uint8 and crop.size < 48 for crop in crops)
    np.savez(tmp_path / "two.npz", images=images, captions=captions, test_images=images[:2], test_captions=["a", "x"])
    assert open_pairs(f"npz:{tmp_path / 'two.npz'}", 4, 0).held_out.names == ("a", "x")


def test_two_pairs_are_too_few_to_train_and_test_on(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.zeros((2, 4, 4)), captions=["a", "b"])
    with pytest.raises(InputError, match="own.npz: 2 images; expected three at least, of which two are held out"):
        open_pairs(f"npz:{tmp_path / 'own.npz'}", 2, 0)


def pairs_of(one, two, grey=0.0):
    return {"test_images": np.full((2, 4, 4), grey), "test_captions": [one, two]}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "key 'captions' is missing; found images"),
        ({"caption": ["a"] * 3}, "unknown key 'caption'; did you mean 'captions'"),
        ({"captions": ["a"] * 2}, "'images' has 3 rows and 'captions' has 2; expected as many"),
        (
            {"captions": [1, 2, 3]},
            r"'captions' has shape \[3\] and dtype int64; expected strings, \[n\] or \[n, captions\]",
        ),
        (
            {"captions": ["a", "", ""], **pairs_of("x", "y")},
            "row 1 of .* is empty; in all 2 of the 3 rows",
        ),
        (
            {"captions": [*"abc"], **pairs_of("x", "x")},
            "rows that .* holds out are all called 'x'; two names are needed",
        ),
        ({"captions": [*"abc"], **pairs_of("", " ")}, "rows that .* holds out are all without a caption"),
        (
            {"captions": [*"abc"], **pairs_of("x", "y", 200.0)},
            "'test_images' are floats from 200 to 200; expected 0 to 1, or uint8",
        ),
        ({"captions": ["a"] * 3, "test_images": np.zeros((1, 4, 4))}, "'test_images' is there, but 'test_captions' is"),
    ],
)
def test_a_file_of_arrays_without_pairs_is_refused(tmp_path, keys, message):
    np.savez(tmp_path / "own.npz", images=np.zeros((3, 4, 4), np.float32), **keys)
    with pytest.raises(InputError, match=message):
        open_pairs(f"npz:{tmp_path / 'own.npz'}", 2, 0)


def test_crops_are_parts_of_the_image_of_the_wanted_area(captioned):
    image = np.arange(60 * 80 * 3).reshape(60, 80, 3)
    for draws in np.random.default_rng(0).random((50, 4)):
        part = pairs.cropped(image, (0.5, 0.8), draws)
        assert 0.4 <= part.size / image.size <= 0.83
        top, left = divmod(int(part[0, 0, 0]) // 3, 80)
        np.testing.assert_array_equal(part, image[top : top + part.shape[0], left : left + part.shape[1]])
    name = "tfds:things?caption=name"
    one, two = (taken(open_pairs(name, 4, 0, data_dir=captioned, crop=(0.5, 0.8)), 1)[0]["images"] for _ in range(2))
    assert any(image.shape != (8, 8, 3) for image in one)
    assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))
    with pytest.raises(InputError, match=r"config.crop is \(2,\); expected the least and the largest share"):
        open_pairs(name, 4, 0, data_dir=captioned, crop=(2,))


def test_a_template_without_a_place_for_the_caption_is_refused():
    with pytest.raises(InputError, match=r"config.templates: 'a photo' has no \{\} for the caption"):
        open_pairs("glyph_captions", 2, 0, templates=("a photo",))


def test_bytes_are_tokens_and_any_text_can_be_read():
    files = vocabularies.files("bytes")
    tokenizer = vocabularies.tokenizer(files, ("input_ids",), 16, False)
    assert sorted(tokenizer.words().values()) == list(range(514))
    ids = tokenizer(["ab é", "日本"], length=16)["input_ids"]
    assert ids[0, 0] == 512 and ids[0, 5] == 513 and (ids[0, 5:] == 513).all()  # é is two bytes
    assert (ids[1, 1:7] < 512).all() and ids[1, 7] == 513


def test_the_merges_that_openai_published_give_the_tokens_of_transformers(shared_clip, tmp_path):
    from transformers import CLIPTokenizer

    files = vocabularies.files(str(shared_clip / "bpe_simple_vocab_16e6.txt.gz"))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    texts = ["a photo of a cat.", "Hello, wörld! it's 42 o'clock", "  two   spaces\n"]
    theirs, mine = CLIPTokenizer.from_pretrained(tmp_path), vocabularies.tokenizer(files, ("input_ids",), 77, False)
    assert sorted(mine.words().values()) == list(range(49408))
    ours = mine(texts, length=32)["input_ids"]
    np.testing.assert_array_equal(ours, theirs(texts, padding="max_length", max_length=32)["input_ids"])
    assert mine.decode(ours) == [theirs.decode(row, skip_special_tokens=True) for row in ours]
    assert ours[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 269]  # as published for "a photo of a cat."


@pytest.fixture(scope="session")
def shared_clip():
    """The folder with CLIP's vocabulary, where it is."""
    from pathlib import Path

    path = Path(__file__).parents[3] / "shared" / "clip"
    if not path.exists():
        pytest.skip("needs ../shared/clip")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [("byte", r"unknown 'byte', did you mean 'bytes'"), ("{}/config.json", r"is no gzip file of merges")],
)
def test_a_tokenizer_that_is_none_is_named(tmp_path, name, message):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=message):
        vocabularies.files(name.format(tmp_path))
