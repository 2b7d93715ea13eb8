"""NaFlex SigLIP 2 on photographs of any sides: pixels, texts and logits are those of transformers, in curves too.

Outputs and gradients on given patches are compared with transformers in test_clip.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jtransfer as jt
from jtransfer import checkpoints, cli
from jtransfer.checkpoints import export
from jtransfer.data import naflex, sources
from jtransfer.errors import InputError
from jtransfer.evaluate import features
from jtransfer.models.naflex import resized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5} | {chr(97 + i): 6 + i for i in range(26)}
TOWER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24}
SIDES = ((40, 40), (19, 61), (61, 19), (8, 300), (300, 8), (1, 1), (5, 7), (97, 64))


def photos(sides=SIDES):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*both, 3), np.uint8)) for both in sides]


@pytest.fixture(scope="module")
def theirs(randomised):
    """A model of transformers and its processor, of patches of 8 pixels, at most 12 of them."""
    tokenizer = transformers.Siglip2Tokenizer(WORDS, [], model_max_length=20, padding_side="right")
    tokenizer.model_input_names = ["input_ids"]
    images = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=12)
    text = TOWER | {"vocab_size": len(WORDS), "max_position_embeddings": 20}
    config = transformers.Siglip2Config(text_config=text, vision_config=TOWER | {"patch_size": 8, "num_patches": 9})
    return randomised(transformers.Siglip2Model(config)), transformers.Siglip2Processor(images, tokenizer)


@pytest.fixture(scope="module")
def directory(theirs, tmp_path_factory):
    """Where both are saved."""
    path = tmp_path_factory.mktemp("naflex")
    for part in theirs:
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(directory):
    return jt.load(str(directory))


def test_positions_are_resized_as_pytorch_does_with_antialias():
    grid = np.random.default_rng(0).standard_normal((5, 5, 7)).astype(np.float32)
    shapes = [(5, 5), (1, 1), (3, 8), (12, 2), (2, 4)]
    found = resized(jnp.asarray(grid), jnp.asarray(shapes), 25)
    for ours, shape in zip(found, shapes, strict=True):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(grid).permute(2, 0, 1)[None], shape, mode="bilinear", antialias=True
        )[0].permute(1, 2, 0)
        patches = shape[0] * shape[1]
        np.testing.assert_allclose(ours[:patches], expected.reshape(patches, -1), atol=1e-5)
        np.testing.assert_array_equal(ours[patches:], np.broadcast_to(ours[0], (25 - patches, 7)))


@pytest.mark.parametrize(
    "options",
    [{}, {"patch_size": 8, "max_num_patches": 100}, {"patch_size": 14, "max_num_patches": 1}, {"resample": 3}],
)
def test_patches_are_those_of_transformers_to_the_bit(options):
    processor, images = transformers.Siglip2ImageProcessorPil(**options), photos()
    values = json.loads(processor.to_json_string())
    ours, expected = naflex.processor(values, values["patch_size"], 3), processor(images, return_tensors="np")
    for one in (ours, naflex.processor(ours.values, values["patch_size"], 3)):
        found = one(images)
        assert found.keys() == expected.keys()
        for name, x in found.items():
            np.testing.assert_array_equal(x, expected[name], err_msg=name)


@pytest.mark.parametrize("named", ["Siglip2Tokenizer", "GemmaTokenizer"])  # as files on the hub have it
def test_logits_of_photographs_and_texts_are_those_of_transformers(named, theirs, directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": named, "model_input_names": ["input_ids"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    peer, _ = theirs
    tokenizer, texts = transformers.AutoTokenizer.from_pretrained(tmp_path), ["A Photo", "a dog and a cat"]
    batch = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=20)
    batch |= transformers.Siglip2ImageProcessorPil.from_pretrained(tmp_path)(photos(), return_tensors="pt")
    ours = jt.load(str(tmp_path))
    found = ours.preprocess(images=photos(), text=texts)
    np.testing.assert_array_equal(found["input_ids"], batch["input_ids"])
    with torch.no_grad():
        expected = peer(**batch).logits_per_image
    np.testing.assert_allclose(ours(found)["logits_per_image"], expected, atol=1e-4)


def test_layers_are_averaged_over_patches_alone(backbone):
    inputs = backbone.preprocess(images=photos())
    rows, layer = np.arange(len(SIDES)), "hidden_-1.mean"
    found = features.extract(backbone, rows, lambda some: {k: x[some] for k, x in inputs.items()}, [layer])[layer]
    outputs = backbone(inputs, output_hidden_states=True)["vision_model_output"]["hidden_states"][-1]
    counts = inputs["pixel_attention_mask"].sum(1)
    expected = [np.asarray(x[:count]).mean(0) for x, count in zip(outputs, counts, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_goes_out_and_comes_back_to_the_bit_with_its_processor_in_our_layout_too(backbone, directory, tmp_path):
    export.to_huggingface(tmp_path / "theirs", backbone)
    again = transformers.Siglip2Model.from_pretrained(tmp_path / "theirs").state_dict()
    expected = transformers.Siglip2Model.from_pretrained(directory).state_dict()
    assert again.keys() == expected.keys() and all(torch.equal(again[name], x) for name, x in expected.items())
    values = backbone.tower("vision").preprocess.values
    checkpoints.save(tmp_path / "ours", backbone.model, backbone.params, preprocessor=values)
    images = photos()
    for place in ("theirs", "ours"):
        own = jt.load(str(tmp_path / place)).tower("vision")
        found, expected = own.preprocess(images), backbone.tower("vision").preprocess(images)
        assert all(np.array_equal(found[name], x) for name, x in expected.items())
        assert jax.tree.all(jax.tree.map(np.array_equal, own.params, backbone.tower("vision").params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_shapes": [[3, 5]]}, "spatial_shapes[0] is [3, 5], but pixel_attention_mask counts 12 patches"),
        ({"spatial_shapes": [[0, 5]]}, "spatial_shapes[0] is [0, 5]"),
        ({"spatial_shapes": [[3, 4], [3, 4]]}, "spatial_shapes have shape [2, 2]; expected [1, 2]"),
        ({"pixel_attention_mask": np.full((1, 12), 2)}, "pixel_attention_mask holds 2; expected 1 for a token"),
        ({"pixel_attention_mask": np.ones((1, 11), int)}, "pixel_attention_mask have shape [1, 11]; expected [1, 12]"),
        ({"pixel_values": np.zeros((1, 40, 40, 3))}, "[1, 40, 40, 3]; expected [batch, patches, 192]"),
        ({"spatial_shapes": None}, "needs spatial_shapes"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused_in_one_line(change, message, backbone):
    batch = backbone.tower("vision").preprocess(photos(((40, 40),))) | {"spatial_shapes": [[3, 4]]}
    batch["pixel_attention_mask"] = np.ones((1, 12), int)
    for one in (backbone.tower("vision"), backbone):
        with pytest.raises(InputError) as refused:
            one(batch | change)
        assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 16}, "'patch_size' is 16; the model's patches are 8x8"),
        ({"max_num_patches": 0}, "'max_num_patches' is 0; expected a whole number from 1"),
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' makes images of one size"),
        ({"do_resize": False}, "image 0 is 19x61; expected whole patches of 8x8, 12 at most"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' is [0.5, 0.5]; expected 3 numbers"),
    ],
)
def test_a_processor_that_cannot_be_is_refused_in_one_line(values, message, directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = json.loads((tmp_path / "processor_config.json").read_text())
    own["image_processor"] |= values
    (tmp_path / "processor_config.json").write_text(json.dumps(own))
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path)).tower("vision").preprocess(photos(((19, 61),)))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_another_size_is_refused_with_where_the_number_of_patches_is_said(directory):
    for options in ({"image": 32}, {"channels": 1}):
        with pytest.raises(InputError, match="images of any sides as they are; .* max_num_patches of preprocessor"):
            jt.load(str(directory), **options)


def test_a_config_that_cannot_be_is_refused_in_one_line(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = json.loads((directory / "config.json").read_text())
    own["vision_config"]["num_patches"] = 10
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match="naflex_vit: 10 learned positions are no square of patches"):
        jt.load(str(tmp_path))


@pytest.fixture
def folder(tmp_path):
    """Thirty photographs of three colours, each of its own sides."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 120, (*rng.integers(10, 70, 2), 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    return f"folder:{tmp_path}"


def zero_shot(backbone, folder):
    """The share of the test rows that the names of classes classify, from outputs of the whole model."""
    dataset = sources.load(folder)
    found = backbone.preprocess(
        images=dataset.inputs[dataset.test], text=[f"a photo of a {x}." for x in dataset.classes]
    )
    return (np.asarray(backbone(found)["logits_per_image"]).argmax(1) == dataset.labels[dataset.test]).mean()


def test_a_folder_of_any_sides_is_evaluated_by_labels_and_by_names(backbone, directory, folder, tmp_path):
    config = f"configs/evaluate.py:backbone={directory},data={folder},protocols=prototypes+zero_shot"
    assert cli.main(["evaluate", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    found = {row["protocol"]: row["metrics"]["accuracy"] for row in rows}
    assert found == {"prototypes": 1.0, "zero_shot": pytest.approx(zero_shot(backbone, folder))}


@pytest.mark.slow
def test_a_curve_on_a_folder_of_any_sides_knows_the_colours(backbone, directory, folder, tmp_path):
    flags = ["--config.methods=zero_shot,probe,logistic,lora(rank=2)", "--config.shots=2", "--config.seeds=2"]
    flags += [f"--config.backbone={directory}", f"--config.data={folder}", "--config.steps=20"]
    assert cli.main(["curve", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    found = {row["method"]: row["test_accuracy"] for row in rows}
    assert found.pop("zero_shot") == pytest.approx(zero_shot(backbone, folder))
    assert found.keys() == {"probe", "logistic", "lora(rank=2)"} and min(found.values()) > 0.8


def test_raw_pixels_and_pairs_are_refused_in_one_line(directory, folder, tmp_path, capsys):
    flags = [f"--config.backbone={directory}", f"--workdir={tmp_path / 'run'}"]
    curve = ["curve", "--config=configs/quickstart.py", *flags, f"--config.data={folder}", "--config.methods=pixels"]
    curve += ["--config.shots=1"]
    assert cli.main(curve) == 2
    assert "'pixels' reads images of one size, but the backbone takes any sides" in capsys.readouterr().err
    assert cli.main(["train", "--config=configs/clip/glyphs.py", *flags]) == 2
    assert "a tower of images of any sides (NaFlex) is not trained on pairs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
