"""What a checkpoint's processor and tokenizer make, and what is said of what cannot be made."""

import io
import json
import logging
import os
import re
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from jtransfer.checkpoints.layouts import Origin
from jtransfer.data import images, preprocess, text
from jtransfer.data.images import Crop, Fixed, Shortest
from jtransfer.errors import InputError
from jtransfer.models import Architecture, ViTConfig

VIT = {"image_processor_type": "ViTImageProcessor", "size": 8}
GREY = np.tile(np.arange(8, dtype=np.uint8)[:, None] * 30, (1, 8))
"""8x8, brighter towards the bottom."""

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cat", "##s"]


def config_of(**answers):
    """A config with these answers, and those of a model that has no more."""
    return type("Config", (Architecture,), answers)()


def takes(**inputs):
    return config_of(inputs=inputs, longest=12)


def pixels(*shape):
    return jax.ShapeDtypeStruct((1, *shape), np.float32)


def of(directory, config, values=None, layout="huggingface"):
    return preprocess.of("mine", Origin(epath.Path(directory), values or {"model_type": "bert"}, layout), config)


@pytest.fixture
def vit(tmp_path):
    """`preprocess` of a model of 8x8 colours, from the values of a processor file."""

    def make(values=VIT, shape=(8, 8, 3)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        return of(tmp_path, takes(pixel_values=pixels(*shape)))

    return make


@pytest.fixture
def bert(tmp_path):
    """`preprocess` of a model of ten words and at most 12 tokens."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return of(tmp_path, takes(input_ids=None, attention_mask=None, token_type_ids=None))


@pytest.fixture
def clip(tmp_path):
    """`preprocess` of a model of both."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return of(tmp_path, takes(pixel_values=pixels(8, 8, 3), input_ids=None, attention_mask=None))


def test_grey_arrays_become_three_equal_channels(vit):
    one = vit()([GREY, GREY[..., None]])["pixel_values"]
    expected = np.repeat(GREY[..., None], 3, -1) / np.float32(127.5) - 1
    np.testing.assert_allclose(one, [expected, expected], atol=1e-6)


def test_a_list_and_one_array_of_the_same_images_give_the_same(vit):
    array = np.random.default_rng(0).integers(0, 256, (3, 20, 12, 3), np.uint8)
    listed = vit()([Image.fromarray(array[0]), array[1], array[2]])["pixel_values"]
    np.testing.assert_array_equal(vit()(array)["pixel_values"], listed)


def test_a_model_of_one_channel_takes_luma_normalised_by_the_average_of_the_channels(vit):
    grey = vit(VIT | {"image_mean": [0.1, 0.2, 0.6], "image_std": [0.1, 0.2, 0.3]}, (8, 8, 1))
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    found = grey([GREY, red])["pixel_values"]
    assert found.shape == (2, 8, 8, 1)
    np.testing.assert_allclose(found[0, ..., 0], (GREY / 255 - 0.3) / 0.2, atol=1e-6)
    np.testing.assert_allclose(found[1], (round(0.299 * 200) / 255 - 0.3) / 0.2, atol=1e-6)


def test_what_lies_beyond_a_small_image_is_black(vit):
    cropped = vit(VIT | {"do_resize": False, "do_center_crop": True, "crop_size": 8, "do_normalize": False})
    found = cropped([np.full((3, 2, 3), 255, np.uint8)])["pixel_values"][0, ..., 0]
    expected = np.zeros((8, 8))
    expected[3:6, 3:5] = 1
    np.testing.assert_array_equal(found, expected)


def test_sizes_scale_with_the_model_and_round_down():
    def steps(values, *size):
        return images.processor(values, "BitImageProcessor", (*size, 3)).steps

    assert steps({}, 224, 224) == (Shortest(224), Crop(224, 224))
    assert steps({"size": 256}, 224, 224) == (Shortest(256), Crop(224, 224))
    assert steps({"size": 256}, 384, 384) == (Shortest(438), Crop(384, 384))  # 438.9
    assert steps({"size": 256}, 512, 224) == (Shortest(585), Crop(512, 224))  # 585.1, so that the crop is filled
    assert steps({"size": {"height": 256, "width": 240}}, 448, 112) == (Fixed(512, 120), Crop(448, 112))
    convnext = {"image_processor_type": "ConvNextImageProcessor", "size": 224}
    assert steps(convnext, 224, 224) == (Shortest(256), Crop(224, 224))
    assert steps(convnext, 384, 384) == (Shortest(438), Crop(384, 384))
    assert steps(convnext | {"size": 384}, 384, 384) == (Fixed(384, 384),)
    assert steps({"image_processor_type": "ViTImageProcessor"}, 64, 96) == (Fixed(64, 96),)


def test_a_model_of_another_size_than_its_processor_is_told(vit, caplog):
    with caplog.at_level(logging.WARNING, "jtransfer"):
        assert vit(shape=(16, 8, 3))([GREY])["pixel_values"].shape == (1, 16, 8, 3)
    assert "takes images of 16x8, its own processor gives 8x8" in caplog.text
    caplog.clear()
    vit(shape=(8, 8, 3))
    assert not caplog.text


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("a photo", "images are given as str; expected a list of PIL images or arrays"),
        (Image.fromarray(GREY), "images are given as Image; expected a list of PIL images or arrays"),
        ([], "there are no images"),
        (["a photo"], "image 0 is of type str; expected a PIL image or a uint8 array"),
        ([GREY, None], "image 1 is of type NoneType"),
        (GREY, "images have shape [8, 8]; expected a list of PIL images or arrays, or one array [n, "),
        ([GREY / 255], "image 0 has dtype float64; expected uint8 (0..255): for 0..1, "),
        ([np.zeros((3, 8, 8), np.uint8)], "image 0 has shape [3, 8, 8]; expected [height, width, 3]"),
        ([np.zeros((8, 8, 2), np.uint8)], "image 0 has shape [8, 8, 2]; expected [height, width, 3]"),
        ([np.zeros((0, 8, 3), np.uint8)], "image 0 has shape [0, 8, 3]; expected [height, width, 3]"),
        ([Image.fromarray(GREY.astype(np.uint16))], "image 0 has mode 'I;16', more than 8 bits"),
        ([Image.fromarray(GREY.astype(np.float32))], "image 0 has mode 'F', more than 8 bits"),
        ([Image.new("RGB", (0, 5))], "image 0 has no pixels: 5x0"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(vit, wrong, message):
    with pytest.raises(InputError, match=re.escape(message)):
        vit()(wrong)


def test_a_truncated_file_is_refused_by_its_number(vit):
    file = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(file, "PNG")
    damaged = Image.open(io.BytesIO(file.getvalue()[:9000]))
    with pytest.raises(InputError, match=r"image 1 cannot be read \(.*truncated"):
        vit()([GREY, damaged])


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"image_processor_type": "VitProcessor"},
            "'VitProcessor' is unknown; did you mean 'ViTImageProcessor'?",
        ),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "did you mean 'SiglipImageProcessor'?"),
        ({"size": 8}, "image processor '' is unknown; choose one of BitImageProcessor, "),
        (VIT | {"do_pad": True}, "'do_pad' is not supported"),
        (VIT | {"size": "8"}, "'size' is '8'; expected whole numbers of pixels"),
        (VIT | {"size": None}, "'size' is None; expected whole numbers of pixels"),
        (VIT | {"size": {"height": 8, "width": -8}}, "'size' is {'height': 8, 'width': -8}; expected whole numbers"),
        (VIT | {"size": {"longest_edge": 8}}, "'size' has longest_edge; expected height and width, or shortest_edge"),
        (VIT | {"size": {"shortest_edge": 8}}, "without 'do_center_crop' gives images of many shapes"),
        (VIT | {"resample": 17}, "17 is not a valid Resampling"),
        (VIT | {"image_mean": [0.5]}, "'image_mean' is [0.5]; expected 3 numbers"),
        (VIT | {"image_std": [0.5, 0, 0.5]}, "'image_std' is [0.5, 0, 0.5]"),
        (VIT | {"image_std": "grey"}, "could not convert string to float"),
        (VIT | {"rescale_factor": None}, "TypeError"),
        (VIT | {"do_center_crop": True}, "'crop_size'"),
        ({"image_processor_type": "BitImageProcessor", "size": 10**9, "crop_size": 8}, "sizes must lie in 1..16384"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 8, "crop_pct": 0}, "ZeroDivisionError"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 8, "width": 8}},
            "'shortest_edge' alone",
        ),
    ],
)
def test_a_processor_file_that_cannot_be_used_is_refused_in_one_line_with_its_name(vit, tmp_path, values, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        vit(values)
    assert str(caught.value).startswith(f"{tmp_path / 'preprocessor_config.json'}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_resizes_nothing_takes_images_of_the_models_size_alone(vit):
    as_is = vit(VIT | {"do_resize": False})
    assert as_is([GREY])["pixel_values"].shape == (1, 8, 8, 3)
    with pytest.raises(
        InputError, match=re.escape("image 1 is [8, 5, 3]; expected [8, 8, 3]: nothing is resized here")
    ):
        as_is([GREY, GREY[:, :5]])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / 'preprocessor_config.json'))} is not there"):
        of(tmp_path, takes(pixel_values=pixels(8, 8, 3)))
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / 'tokenizer.json'))} is not there, nor vocab.txt"):
        of(tmp_path, takes(input_ids=None))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config.json: expected a JSON object"):
        of(tmp_path, takes(pixel_values=pixels(8, 8, 3)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: this is no tokenizer that can be read"):
        of(tmp_path, takes(input_ids=None))


def test_layouts_without_a_processor_file_bring_its_values(tmp_path):
    values = {"preprocessor": {"image_processor_type": "ViTImageProcessor", "size": {"height": 4, "width": 4}}}
    found = of(tmp_path / "vit.npz", takes(pixel_values=pixels(4, 4, 3)), values, "npz")([GREY])["pixel_values"]
    assert found.shape == (1, 4, 4, 3)


def test_our_own_layout_takes_floats_of_its_shape_as_they_are_and_resizes_bytes(tmp_path):
    own = of(tmp_path, ViTConfig(image=(8, 8), channels=1, patch=4, width=8, depth=1, heads=1), layout="jtransfer")
    floats = np.linspace(-1, 2, 2 * 8 * 8).reshape(2, 8, 8, 1)
    np.testing.assert_array_equal(own(floats)["pixel_values"], floats.astype(np.float32))
    np.testing.assert_array_equal(own(list(floats[..., 0]))["pixel_values"], floats.astype(np.float32))
    np.testing.assert_array_equal(own([GREY])["pixel_values"][0, ..., 0], GREY.astype(np.float32) / 255)
    larger = np.asarray(Image.fromarray(GREY).resize((20, 12)))
    resized = np.asarray(Image.fromarray(larger).resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(own([larger, GREY])["pixel_values"][0, ..., 0], resized / 255, atol=1e-6)
    for wrong, message in [
        (floats[:, :7], "image 0 has dtype float64; expected uint8"),
        (floats.astype(int), "image 0 has dtype int64; expected uint8"),
        ("a text", "images are given as str; expected a list of PIL images or arrays"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            own(wrong)


def test_texts_become_words_with_marks_and_padding(bert):
    found = bert(["A red cat", "blue cats"])
    assert found["input_ids"].tolist() == [[2, 5, 6, 8, 3] + [0] * 7, [2, 7, 8, 9, 3] + [0] * 7]
    assert found["attention_mask"].tolist() == [[1] * 5 + [0] * 7] * 2
    assert found["token_type_ids"].tolist() == [[0] * 12] * 2
    assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"truncation_side": "left"}, {"model_max_length": 5}])
def test_a_tokenizer_of_other_settings_is_another_whatever_it_makes_of_some_texts(bert, tmp_path, settings):
    def again():
        return of(tmp_path, takes(input_ids=None, attention_mask=None, token_type_ids=None))

    assert again().identity == bert.identity
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | settings))
    assert again().identity != bert.identity
    assert again()(["a cat"], length=4)["input_ids"].tolist() == bert(["a cat"], length=4)["input_ids"].tolist()


def test_the_second_text_of_a_pair_has_type_one(bert):
    found = bert(["red", "a cat"], ["blue cats", "[MASK] dog"])
    assert found["input_ids"][:, :8].tolist() == [[2, 6, 3, 7, 8, 9, 3, 0], [2, 5, 8, 3, 4, 1, 3, 0]]
    assert found["token_type_ids"][:, :8].tolist() == [[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 0]]


def test_padding_goes_to_the_shortest_of_a_few_lengths_that_holds_all(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    config = config_of(inputs=dict.fromkeys(["input_ids", "attention_mask"]), longest=100)
    texts = of(tmp_path, config)

    def length(*counts):
        return texts(["cat " * n for n in counts])["input_ids"].shape[1]

    assert [length(1), length(14, 2), length(15), length(30), length(31, 1)] == [16, 16, 32, 32, 64]
    assert [length(62), length(63), length(98), length(99)] == [64, 100, 100, 100]


def test_a_length_and_a_side_may_be_asked_for(bert):
    found = bert(["red", "a red blue cat"], length=5, side="left")
    assert found["input_ids"].tolist() == [[0, 0, 2, 6, 3], [2, 5, 6, 7, 3]]
    assert found["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    with pytest.raises(InputError, match=r"length=13: expected 1..12, as the model takes"):
        bert(["red"], length=13)
    assert bert(["red"], length=2)["input_ids"].tolist() == [[2, 3]]
    with pytest.raises(InputError, match=r"2 tokens are too few for the special ones alone"):
        bert(["red"], ["blue"], length=2)
    assert bert(["red"], length=2)["input_ids"].tolist() == [[2, 3]]
    with pytest.raises(InputError, match=r"2 tokens are too few for the special ones alone"):
        bert(["red"], ["blue"], length=2)
    with pytest.raises(InputError, match="did you mean 'left'"):
        bert(["red"], side="lef")


def test_texts_that_are_cut_are_counted_once(bert, caplog):
    with caplog.at_level(logging.WARNING, "jtransfer"):
        ids = bert(["cat " * 20, "cat", "cat " * 11])["input_ids"]
        bert(["cat " * 20])
    assert ids[0].tolist() == [2, *[8] * 10, 3]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "2 of 3 texts were cut off; this is said once"
    ]


def test_texts_are_cut_to_the_smallest_limit_that_a_file_names(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10}))
    config = takes(input_ids=None)
    assert of(tmp_path, config)(["cat " * 20])["input_ids"].shape == (1, 10)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    assert of(tmp_path, config)(["cat " * 20])["input_ids"].shape == (1, 7)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    (tmp_path / "sentence_bert_config.json").unlink()
    assert of(tmp_path, config)(["cat " * 20])["input_ids"].shape == (1, 12)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("a cat",), "texts are given as str; expected a list of strings"),
        (([],), "there are no texts"),
        (([b"a cat"],), "texts: number 0 is of type bytes; expected a string"),
        ((["a", GREY],), "texts: number 1 is of type ndarray; expected a string"),
        ((GREY,), "texts: number 0 is of type list; expected a string"),
        ((["a"], "b"), "pairs are given as str"),
        ((["a"], ["b", "c"]), "there are 1 texts, but 2 pairs"),
        ((["red \ud800"],), "the texts cannot be tokenized"),
    ],
)
def test_what_is_no_text_is_refused(bert, wrong, message):
    with pytest.raises(InputError, match=re.escape(message)):
        bert(*wrong)


def test_tokens_that_were_added_later_have_their_numbers(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": 11, "dog": 10}))
    ids = of(tmp_path, takes(input_ids=None))(["a dog<new>[MASK]"])["input_ids"]
    assert ids[0, :7].tolist() == [2, 5, 10, 11, 4, 3, 0]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"dog": 12}))
    with pytest.raises(InputError, match=r"added_tokens.json: 'dog' cannot be added as number 12"):
        of(tmp_path, takes(input_ids=None))


def test_the_words_of_a_tokenizer_of_another_kind_are_not_taken_for_berts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertweetTokenizer"}))
    with pytest.raises(InputError, match=r"there is no tokenizer.json, and BertweetTokenizer needs transformers"):
        of(tmp_path, takes(input_ids=None))


def test_a_model_that_reads_its_last_token_has_all_texts_padded_to_the_full_length_without_a_mask(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    config = config_of(inputs=dict.fromkeys(["input_ids", "attention_mask"]), longest=64, pool="last")
    siglip = of(tmp_path, config)
    found = siglip(["a cat"])
    assert found.keys() == {"input_ids"} and found["input_ids"].shape == (1, 64)
    with pytest.raises(InputError, match=r"length=16: expected 64"):
        siglip(["a cat"], length=16)


def test_a_token_to_pad_with_that_is_no_word_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    config = config_of(inputs={"input_ids": None}, longest=12, tables={"input_ids": len(WORDS)})
    message = r"vocab.txt: padding: input_ids\[0\] is 10 \('<pad>', which was added to the tokenizer alone"
    with pytest.raises(InputError, match=message):
        of(tmp_path, config)(["a"])
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]"]))
    with pytest.raises(InputError, match=r"vocab.txt: the vocabulary has no token to pad with, as \[PAD\], <pad>"):
        of(tmp_path, config)


def test_a_model_of_both_takes_images_texts_or_both(clip):
    assert clip(images=[GREY]).keys() == {"pixel_values"}
    assert clip(text=["a cat"]).keys() == {"input_ids", "attention_mask"}
    both = clip(images=[GREY] * 2, text=["a cat", "red", "blue"])
    assert both["pixel_values"].shape == (2, 8, 8, 3) and both["input_ids"].shape == (3, 12)
    with pytest.raises(InputError, match=r"give images=..., text=..., or both"):
        clip()
    with pytest.raises(InputError, match="image 0 is of type str"):
        clip(["a cat"])


def test_of_a_model_of_both_only_the_files_that_are_used_need_be_there(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    clip = of(tmp_path, takes(pixel_values=pixels(8, 8, 3), input_ids=None))
    assert clip(images=[GREY])["pixel_values"].shape == (1, 8, 8, 3)
    with pytest.raises(InputError, match=r"tokenizer.json is not there"):
        clip(text=["a cat"])


def test_a_token_without_a_row_in_the_models_table_is_refused_by_its_text_and_its_name(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    settings = {"tokenizer_class": "BertTokenizer", "additional_special_tokens": ["<user>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    inputs = dict.fromkeys(["input_ids", "attention_mask", "token_type_ids"])
    config = config_of(inputs=inputs, longest=12, tables={"input_ids": len(WORDS), "token_type_ids": 1})
    texts = of(tmp_path, config)
    assert texts(["a cat"])["input_ids"][0, :4].tolist() == [2, 5, 8, 3]
    message = (
        r"text 1: input_ids\[2\] is 10 \('<user>', which .* resize .*; the model's table has 10 rows: expected 0..9"
    )
    with pytest.raises(InputError, match=message):
        texts(["a cat", "a <user>"])
    with pytest.raises(InputError, match=r"text 0: token_type_ids\[3\] is 1; the model's table has 1 rows"):
        texts(["a"], ["cat"])


def replacements(*contents):
    return [{"type": "Replace", "pattern": {"String": "a"}, "content": content} for content in contents]


def whole(normalizer=None, splitter=None):
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1, "a": 2}, "unk_token": "[UNK]"}
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model}
    return spec | {"normalizer": normalizer, "pre_tokenizer": splitter, "post_processor": None, "decoder": None}


def template(*names, ids=()):
    pieces = [{"SpecialToken" if name == "X" else "Sequence": {"id": name, "type_id": 0}} for name in names]
    special = {"X": {"id": "X", "ids": list(ids), "tokens": ["a"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}


LIGATURE = "\ufdfa"
"""Which NFKD makes a phrase of 18 letters."""


@pytest.mark.parametrize(
    ("part", "listed", "steps", "said"),
    [
        ("normalizer", "normalizers", replacements(*["aa"] * 40), "its normalizer makes a text more than 100 times"),
        ("normalizer", "normalizers", replacements("a" * 1_000_000), "makes a text more than 100 times"),
        ("normalizer", "normalizers", [{"type": "Prepend", "prepend": "aa"}] * 5, "makes a text more than 100 times"),
        ("normalizer", "normalizers", [*replacements(LIGATURE), {"type": "NFKD"}] * 3, "more than 100 times"),
        ("normalizer", "normalizers", [{"type": "ByteLevel"}] * 8, "more than 100 times"),
        (
            "normalizer",
            "normalizers",
            [{"type": "Sequence", "normalizers": replacements("aaaa", "a" * 30)}],
            "than 100",
        ),
        ("normalizer", "normalizers", [{"type": "Lowercase"}] * 1000, "its normalizer has 1,000 steps"),
        ("pre_tokenizer", "pretokenizers", [{"type": "Whitespace"}] * 1000, "its pre_tokenizer has 1,000 steps"),
        ("post_processor", "processors", [template(*"AAAAA")] * 3, "its post_processor makes a text more than 100"),
        ("post_processor", "processors", [template("X", "A", ids=[0] * 1000)], "more than 100 times"),
        ("decoder", "decoders", replacements("a" * 1000), "its decoder makes a text more than 100 times"),
    ],
)
def test_steps_that_would_fill_the_memory_are_refused(tmp_path, part, listed, steps, said):
    spec = whole() | {part: {"type": "Sequence", listed: steps}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=f"tokenizer.json: .*{said}"):
        of(tmp_path, takes(input_ids=None))


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("part", ["splitter", "normalizer"])
@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(a?){23}b", "a?" * 30 + "b", "b|(.*a){20}", "(a*)*\\1", "a*" * 20, "x" * 20_000]
)
def test_a_pattern_that_could_take_for_ever_is_refused_before_any_text(tmp_path, pattern, part):
    step = split(pattern) if part == "splitter" else split(pattern) | {"type": "Replace", "content": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole(**{part: step})))
    with pytest.raises(InputError, match=r"tokenizer.json: its .* could take for ever to match"):
        of(tmp_path, takes(input_ids=None))


PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\s\p{L}\p{N}]+|\s+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[0-9][0-9][0-9]",
    r"\s{1,}|\n|.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_of_tokenizers_in_use_are_taken(tmp_path, pattern):
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole(splitter=split(pattern))))
    assert of(tmp_path, takes(input_ids=None))(["a"])["input_ids"][0, 0] == 2


def test_a_pattern_that_takes_long_after_all_is_one_line_at_the_first_text(tmp_path):
    """The library gives up after ten million steps, with a panic, which is no Exception."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole(splitter=split("a*a*a*a*$"))))
    texts = of(tmp_path, takes(input_ids=None))
    with pytest.raises(InputError, match=r"tokenizer.json: the texts cannot be tokenized \(.*retry-limit"):
        texts(["a" * 200 + "b"])


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        ({"a": 2**31, "[PAD]": 0}, "'a' has the number 2147483648; expected 0 to 1,048,575"),
        ({"a": -1, "[PAD]": 0}, "'a' has the number -1"),
        ({"a": 1.5, "[PAD]": 0}, "'a' has the number 1.5"),
        ({"a" * 20_000: 1, "[PAD]": 0}, "has 20,000 characters; expected words of at most 10,000"),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_a_vocabulary_with_numbers_or_words_that_cannot_be_is_refused(tmp_path, vocabulary, said, file):
    spec = whole() | {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[PAD]"}}
    (tmp_path / file).write_text(json.dumps(spec if file == "tokenizer.json" else vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(InputError, match=f"{file}: .*{said}"):
        of(tmp_path, takes(input_ids=None))


def test_lists_of_more_words_than_there_are_are_not_taken_apart(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\n" * 1_100_000)
    with pytest.raises(
        InputError, match=r"vocab.txt: its vocabulary has 1,100,000 words or merges; expected 1,048,576"
    ):
        of(tmp_path, takes(input_ids=None))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("pad_token", 3, "a token, or an object"),
        ("unk_token", {"text": "a"}, "a token, or an object"),
        ("pad_token", "x" * 100_000, "a token, or an object"),
        ("added_tokens_decoder", {"x": {"content": "a"}}, "an object of tokens by their numbers"),
        ("added_tokens_decoder", ["a"], "an object of tokens by their numbers"),
        ("extra_special_tokens", 3, "a list of tokens"),
        ("padding_side", "up", "one of 'left', 'right', found 'up'"),
        ("model_max_length", "512", "a number above 0, found '512'"),
        ("model_max_length", -1, "a number above 0"),
        ("model_input_names", ["attention_mask"], "a list with 'input_ids'"),
        ("clean", ["lower"], "a text of at most"),
        ("auto_map", 3, "an object or a list"),
        ("do_lower_case", "no", "True or False"),
    ],
)
def test_a_setting_of_another_type_is_named(tmp_path, key, value, expected):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", key: value}))
    with pytest.raises(InputError, match=f"tokenizer_config.json: {key}: expected {expected}"):
        of(tmp_path, takes(input_ids=None))


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("kind", ["RagTokenizer", "Wav2Vec2PhonemeCTCTokenizer", "BertJapaneseTokenizer", "os.system"])
def test_of_the_tokenizers_of_transformers_only_those_that_read_words_are_asked(tmp_path, kind, where, monkeypatch):
    """Others start programs, load dictionaries that a file names, or read further checkpoints."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "x.model").write_bytes(b"")
    values = {"tokenizer_class": kind}
    if where != "config.json":
        (tmp_path / where).write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"the tokenizer {kind} is not read here"):
        text.tokenizer(epath.Path(tmp_path), values if where == "config.json" else {}, ("input_ids",), 8, False)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "sentence_bert_config.json"])
@pytest.mark.parametrize("what", ["pipe", "dangling", "directory"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, name, what):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    file = tmp_path / name
    {"pipe": lambda: os.mkfifo(file), "dangling": lambda: file.symlink_to("nowhere"), "directory": file.mkdir}[what]()
    with pytest.raises(InputError, match=rf"{name}: expected a JSON object") as error:
        of(tmp_path, takes(input_ids=None))
    assert "\n" not in str(error.value)


def test_code_of_a_checkpoint_is_never_looked_for(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole()))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    settings = {"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.MineTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="MineTokenizer is code of the checkpoint's own"):
        of(tmp_path, takes(input_ids=None))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "x.model").write_bytes(b"")
    with pytest.raises(InputError, match="MineTokenizer is code of the checkpoint's own"):
        of(tmp_path, takes(input_ids=None))


def test_keys_that_nobody_here_knows_are_said_by_name(tmp_path, caplog):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}", "fold_umlauts": True}))
    of(tmp_path, takes(input_ids=None))
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "nothing is done for fold_umlauts, which are not known here"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_mode", "clips"),
        ("tokenizer_kwargs", {"strip_sep_token": True}),
        ("tokenizer_kwargs", {"clean": "x"}),
    ],
)
def test_ways_of_open_clip_that_are_not_done_are_refused_by_name(tmp_path, key, value):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    values = {"model_cfg": {"text_cfg": {key: value}}}
    said = next(iter(value)) if isinstance(value, dict) else key
    with pytest.raises(InputError, match=said):
        of(tmp_path, takes(input_ids=None), values, "open_clip")


@pytest.mark.parametrize(
    ("text_cfg", "words"),
    [
        ({"hf_tokenizer_name": "bert"}, ["A", "red", "&", "cat"]),
        ({"hf_tokenizer_name": "bert", "tokenizer_kwargs": {"clean": "canonicalize"}}, ["a", "red", "cat"]),
    ],
)
def test_texts_of_an_open_clip_checkpoint_are_cleaned_as_its_config_says(tmp_path, text_cfg, words):
    there = [*WORDS, "A", "&"]
    (tmp_path / "vocab.txt").write_text("\n".join(there))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = of(tmp_path, takes(input_ids=None), {"model_cfg": {"text_cfg": text_cfg}}, "open_clip")
    ids = texts(["A  red &amp;amp;\tcat"])["input_ids"][0]
    assert [there[i] for i in ids if i] == ["[CLS]", *words, "[SEP]"]
