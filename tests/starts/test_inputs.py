"""A backbone for a dataset: which tower, what its inputs are made of, and what does not go together."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints, starts
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.data.coded import Coded, Scale, take
from jtransfer.data.dataset import Dataset, Lazy, floats
from jtransfer.data.sources import load
from jtransfer.errors import InputError
from jtransfer.models import CLIPConfig, CLIPTextConfig, ViTConfig, complete, of_config
from jtransfer.starts.inputs import Pictures, example, gathered, within

TOWER = {"width": 16, "depth": 1, "heads": 2}
VIT = ViTConfig(image=(16, 16), patch=8, **TOWER)
CLIP = CLIPConfig(
    ViTConfig(image=(16, 16), patch=8, patch_bias=False, embedding_norm=True, norm_pooled=True, hidden=64, **TOWER),
    CLIPTextConfig(vocabulary=20, positions=24, eos_token=4, hidden=64, **TOWER),
    projection=6,
)
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
CLIP_WORDS = ["a", "b", "c</w>", "<|startoftext|>", "<|endoftext|>"]


def write(directory, model_type, model):
    tree = jax.jit(lambda key: complete(of_config(model), key, {}, model.inputs))(jax.random.key(0))
    save_file(FAMILIES[model_type].names(model, "").write(tree), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(FAMILIES[model_type].write(model)))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return str(directory)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vit"), "vit", VIT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    (directory / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(CLIP_WORDS)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return write(directory, "clip", CLIP)


def texts(*rows):
    read = lambda chosen: [rows[row] for row in chosen]  # noqa: E731
    labels = np.arange(len(rows)) % 2
    return Dataset("mine", Lazy(len(rows), read, ""), labels, ("a", "b"), np.arange(len(rows)), np.arange(0), "text")


def pictures(*shapes):
    arrays = [np.full(shape, 10 * i, np.uint8) for i, shape in enumerate(shapes, 1)]
    read = lambda chosen: [arrays[row] for row in chosen]  # noqa: E731
    rows = np.arange(len(shapes))
    return Dataset("mine", Lazy(len(shapes), read, ""), rows % 2, ("a", "b"), rows, rows[:0])


def test_images_of_any_size_go_through_the_checkpoints_own_processor(vit):
    data = pictures((20, 30, 3), (16, 16, 3), (40, 9, 1))
    backbone, prepare = starts.load_for(vit, {"dtype": "float32", "tokens": 0}, data)
    (name, pixels), *others = prepare(data.inputs[:]).items()
    assert (name, others, pixels.shape) == ("pixel_values", [], (3, 16, 16, 3))
    np.testing.assert_array_equal(pixels, backbone.preprocess(data.inputs[:])["pixel_values"])
    np.testing.assert_allclose(pixels[:, 8, 8, 0], (np.array([10, 20, 30]) / 255 - 0.5) / 0.25, atol=1e-6)


def test_images_from_0_to_1_are_what_the_same_bytes_are(vit):
    data = load("digits")
    _, prepare = starts.load_for(vit, {}, data)
    bytes_of = [(255 * x).round().astype(np.uint8) for x in data.inputs[:5]]
    np.testing.assert_array_equal(prepare(data.inputs[:5])["pixel_values"], prepare(bytes_of)["pixel_values"])


def test_rows_are_prepared_block_by_block_to_the_same_arrays(vit):
    data = load("digits")
    _, prepare = starts.load_for(vit, {}, data)
    rows = np.arange(600)[::-2]
    whole = prepare(data.inputs[rows])
    np.testing.assert_array_equal(gathered(prepare, data.inputs, rows)["pixel_values"], whole["pixel_values"])
    assert example(whole)["pixel_values"] == jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    assert [within(whole), within(whole, 500), within(whole, 300, 3072 * 7 + 1), within(whole, 300, 5)] == [
        256,
        500,
        7,
        1,
    ]


def test_pictures_of_any_size_are_decoded_one_at_a_time(vit):
    """A batch of photographs of twelve megapixels would be gigabytes."""
    asked, data = [], pictures((300, 200, 3), *[(16, 16, 3)] * 9)
    _, prepare = starts.load_for(vit, {}, data)
    counted = Lazy(10, lambda rows: asked.append(len(rows)) or data.inputs[rows], "")
    found = gathered(prepare, counted, np.arange(10), coded=True)["pixel_values"]
    assert max(asked) == 1
    np.testing.assert_array_equal(take(found, np.arange(10)), prepare(data.inputs[:])["pixel_values"])


@pytest.mark.parametrize("odd", [None, 3, 300, 599], ids=["bytes alone", "first block", "second", "last"])
@pytest.mark.parametrize(
    "scale",
    [Scale(), Scale(1 / 255, (0.5,), (0.5,)), Scale(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), Scale(1.0)],
    ids=["0 to 1", "-1 to 1", "ImageNet", "0 to 255"],
)
def test_images_that_are_made_of_bytes_are_kept_as_bytes_and_taken_as_the_same_floats(scale, odd):
    """A curve keeps all rows that it uses, so what they take counts; ImageNet's are four times their bytes."""
    codes = np.random.default_rng(0).integers(0, 256, (600, 8, 8, len(scale.mean))).astype(np.uint8)
    codes[0, :2, :, 0] = np.arange(16).reshape(2, 8)
    mean, std = (np.array(of, np.float32) for of in (scale.mean, scale.std))
    images = ((codes * scale.factor).astype(np.float32) - mean) / std
    if odd is not None:
        images[odd, 0, 0] = 0.1234
    whole = gathered(Pictures(lambda x: {"pixel_values": x}, scale), images, np.arange(600), coded=True)["pixel_values"]
    assert isinstance(whole, Coded) == (odd is None)
    if odd is None:
        np.testing.assert_array_equal(whole.codes, codes)
    np.testing.assert_array_equal(jax.jit(take)(whole, np.arange(600)[::-1]), images[::-1])


def test_every_byte_becomes_the_same_float_on_the_device_and_off_it():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected, coded = every.astype(np.float32) / 255, Coded(jax.numpy.asarray(every), Scale())
    np.testing.assert_array_equal(floats(every), expected)
    np.testing.assert_array_equal(jax.jit(take)(coded, np.arange(1)), expected)
    np.testing.assert_array_equal(jax.vmap(take, (None, 0))(coded, np.zeros((3, 1), int))[1], expected)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.01, 1.01])
def test_values_that_no_byte_stands_for_are_kept_as_they_are(odd):
    assert Scale().encode(np.full((1, 2, 2, 1), odd, np.float32)) is None


def test_of_a_dual_encoder_the_tower_for_the_data_is_taken(clip):
    image, prepare = starts.load_for(clip, {}, pictures((16, 16, 3)))
    assert image.config == CLIP.vision and set(prepare([np.zeros((16, 16, 3), np.uint8)])) == {"pixel_values"}
    data = texts("a", "b")
    text, prepare = starts.load_for(clip, {}, data)
    assert text.config == CLIP.text and set(prepare(data.inputs[:])) == {"input_ids", "attention_mask"}
    both, prepare = starts.load_for(clip, {}, data, tower=False)
    assert both.config == CLIP and set(prepare(data.inputs[:])) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("words", "tokens"), [(3, 16), (14, 16), (15, 32), (37, 40), (60, 40)])
def test_texts_are_as_long_as_the_longest_rounded_up_to_sixteen_but_no_longer_than_the_model(bert, words, tokens):
    data = texts("good", " ".join(["film"] * words), "bad plot")
    backbone, prepare = starts.load_for(bert, {}, data)
    arrays = prepare(data.inputs[:])
    assert {name: x.shape for name, x in arrays.items()} == dict.fromkeys(backbone.config.inputs, (3, tokens))
    # All rows have this length, whichever are asked for; [CLS] and [SEP] are counted.
    assert prepare(data.inputs[[0]])["input_ids"].shape == (1, tokens)
    assert arrays["attention_mask"].sum(1).tolist() == [3, min(words + 2, tokens), 4]
    assert prepare.cut(data.inputs[:]) == (words + 2 > tokens)
    ours = backbone.preprocess(data.inputs[:], length=tokens)
    assert all((ours[name] == x).all() for name, x in arrays.items())


def test_a_shorter_length_may_be_asked_for_and_what_it_cuts_is_counted(bert):
    data = texts("good", "very good film", "the very very good film", "not a very good film")
    _, prepare = starts.load_for(bert, {"tokens": 5}, data)
    assert prepare(data.inputs[:])["input_ids"].shape == (4, 5)
    assert prepare.cut(data.inputs[:]) == 2
    with pytest.raises(InputError, match=r"config.load.tokens is 41; backbone '.*' takes 40 at most"):
        starts.load_for(bert, {"tokens": 41}, data)
    with pytest.raises(InputError, match="1 tokens are too few for the special ones alone"):
        starts.load_for(bert, {"tokens": 1}, data)


def test_pairs_are_told_apart_by_their_types(bert):
    data = texts(("good film", "bad plot"), ("good", "very bad"))
    _, prepare = starts.load_for(bert, {}, data)
    assert prepare(data.inputs[:])["token_type_ids"][:, :8].tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
    ]


def test_another_kind_of_data_is_refused_in_one_line(bert, vit):
    with pytest.raises(InputError, match="^config.data: mine holds texts, the model takes pixel_values$"):
        starts.load_for(vit, {}, texts("good"))
    with pytest.raises(InputError, match="^config.data: images of mine are images, the model takes input_ids, "):
        starts.load_for(bert, {}, pictures((16, 16, 3)))


def test_a_backbone_without_a_processor_takes_images_of_its_own_shape_as_they_are_and_resizes_others(vit):
    _, resizing = starts.load_for("glyphs-vit", {}, pictures((16, 16, 3)))
    found = resizing([np.full((16, 16, 3), 51, np.uint8)])["pixel_values"]
    np.testing.assert_allclose(found, np.full((1, 8, 8, 1), 0.2), atol=1e-6)
    _, prepare = starts.load_for("glyphs-vit", {}, pictures((8, 8, 1)))
    np.testing.assert_allclose(prepare([np.full((8, 8, 1), 51, np.uint8)])["pixel_values"], 0.2)
    digits = load("digits")
    np.testing.assert_array_equal(prepare(digits.inputs[:3])["pixel_values"], digits.inputs[:3])


@pytest.mark.parametrize("tokens", [0, 5])
def test_what_is_cut_is_said_of_the_dataset_and_not_of_a_row_of_it(bert, tokens, caplog):
    rows = ["the very very very good film"] * 300 + ["good"]
    rows += ["film " * 60] * 2
    _, prepare = starts.load_for(bert, {"tokens": tokens}, texts(*rows))
    prepare(rows[:1])
    said = [record.getMessage() for record in caplog.records]
    length, cut = (5, 302) if tokens else (40, 2)
    assert said == [f"mine: {cut} of 303 texts are longer than {length} tokens and are cut"]


def test_a_text_anywhere_in_a_dataset_that_the_model_has_no_row_for_is_refused_before_training(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "more")
    settings = {"tokenizer_class": "BertTokenizer", "additional_special_tokens": ["<user>"]}
    (tmp_path / "more" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"text 299: input_ids\[1\] is \d+ \('<user>', which was added"):
        starts.load_for(str(tmp_path / "more"), {}, texts(*["good"] * 299, "<user> film", "film"))


def test_what_a_checkpoint_says_of_its_inputs_is_known_by_its_files(tmp_path):
    config = FAMILIES["clip"].write(CLIP)
    tree = complete(of_config(CLIP), jax.random.key(0), {}, CLIP.inputs)
    save_file(FAMILIES["clip"].names(CLIP, "").write(tree), tmp_path / "model.safetensors")
    for name, values in (("config.json", config), ("preprocessor_config.json", PROCESSOR), ("tokenizer.json", {})):
        (tmp_path / name).write_text(json.dumps(values))
    backbone = checkpoints.load(str(tmp_path))
    parts = backbone, backbone.tower("vision"), backbone.tower("text")

    def changed(name):
        """Of which parts another content of a file is seen."""
        before = [part.fingerprints for part in parts]
        (tmp_path / name).write_text(json.dumps({"changed": name}))
        after = [part.fingerprints for part in parts]
        assert [x["backbone"] for x in before] == [x["backbone"] for x in after] == [x.fingerprint for x in parts]
        return [one["preprocessing"] != other["preprocessing"] for one, other in zip(before, after, strict=True)]

    assert changed("preprocessor_config.json") == [True, True, False]
    assert changed("tokenizer.json") == changed("tokenizer_config.json") == [True, False, True]
    assert changed("README.md") == [False, False, False]
