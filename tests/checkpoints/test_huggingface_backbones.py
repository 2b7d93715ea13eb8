"""A Hugging Face checkpoint is a backbone like any other: in a curve, in training, and in what training exports."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import cli, config
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.cli import inspection
from jtransfer.curves import run as curves
from jtransfer.errors import InputError
from jtransfer.models import ViTConfig, complete, of_config
from jtransfer.models.bert import BertConfig
from jtransfer.models.clip import CLIPConfig, CLIPTextConfig

TOWER = {"width": 16, "depth": 1, "heads": 2}
VIT = ViTConfig(image=(16, 16), patch=8, **TOWER)
CLIP = CLIPConfig(
    ViTConfig(image=(16, 16), patch=8, patch_bias=False, embedding_norm=True, norm_pooled=True, **TOWER),
    CLIPTextConfig(vocabulary=20, positions=16, eos_token=19, **TOWER),
    projection=6,
)
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
FILE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(methods=("probe", "lora"), shots=(1,), seeds=1, batch=8, steps=2))
"""


def write(directory, model_type, model, processor=True):
    """A checkpoint in Hugging Face's layout, with an image processor or without."""
    tree = jax.jit(lambda key: complete(of_config(model), key, {}, model.inputs))(jax.random.key(0))
    save_file(FAMILIES[model_type].names(model, "").write(tree), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(FAMILIES[model_type].write(model)))
    if processor:
        (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return str(directory)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "curve.py"
    path.write_text(FILE)
    return str(path)


def prepared(file, *overrides):
    return curves.prepare(config.load("curve", file, [f"--config.{override}" for override in overrides])[1])


def pixels_of(curve):
    """Of the rows that a curve uses, as its backbone takes them."""
    return curve.examples.on_device["inputs"]["pixel_values"][:]


@pytest.mark.parametrize(("model_type", "model"), [("vit", VIT), ("clip", CLIP)])
def test_a_curve_gives_it_the_images_of_its_own_processor_and_takes_the_vision_tower(file, tmp_path, model_type, model):
    curve = prepared(file, f"backbone={write(tmp_path, model_type, model)}")
    pixels = pixels_of(curve)
    # 797 test rows; one of each class to train on and one to validate on.
    assert pixels.shape == (797 + 20, 16, 16, 3) and pixels.dtype == np.float32
    # The darkest and the lightest ink of the digits, normalised.
    assert pixels.min() == pytest.approx(-2, abs=1e-6)
    assert pixels.max() == pytest.approx(2, abs=1e-2)
    assert {"embeddings/cls", "head/kernel"} <= curve.arms[0].adapted.shapes.keys()
    assert not any(path.startswith(("text/", "vision/")) for path in curve.arms[0].adapted.shapes)


def test_a_curve_takes_another_size_and_grey_images(file, tmp_path):
    curve = prepared(file, f"backbone={write(tmp_path, 'vit', VIT)}", "load.image=8", "load.channels=1")
    assert pixels_of(curve).shape == (817, 8, 8, 1)
    assert curve.arms[0].adapted.shapes["embeddings/positions"].shape == (1, 2, 16)
    assert curve.arms[0].adapted.shapes["embeddings/patch/kernel"].shape == (64, 16)


def test_inspection_counts_it(file, tmp_path):
    probe, lora = inspection.of_curve(prepared(file, f"backbone={write(tmp_path, 'vit', VIT)}"))
    assert probe["trainable"] == 16 * 10 + 10 < lora["trainable"] < lora["parameters"]


def test_without_a_processor_it_is_refused_before_anything_compiles(file, tmp_path):
    with pytest.raises(InputError, match="preprocessor_config.json is not there"):
        prepared(file, f"backbone={write(tmp_path, 'vit', VIT, processor=False)}")


def test_a_model_of_text_is_refused_for_images(file, tmp_path):
    bert = BertConfig(vocabulary=20, positions=16, **TOWER)
    with pytest.raises(InputError, match="images of digits are images, the model takes input_ids, attention_mask"):
        prepared(file, f"backbone={write(tmp_path, 'bert', bert)}")


def test_it_trains_from_the_command_line_and_the_result_loads_again(tmp_path, capsys):
    (tmp_path / "vit").mkdir()
    backbone = write(tmp_path / "vit", "vit", VIT)
    (tmp_path / "train.py").write_text(
        "from ml_collections import ConfigDict\n\n"
        "def get_config():\n"
        f"    return ConfigDict(dict(data='digits', backbone={backbone!r}, method='lora(rank=2)', batch=16, steps=4,\n"
        "        log_every=2, eval_every=2, checkpoint_every=2))\n"
    )
    workdir = tmp_path / "run"
    assert cli.main(["train", f"--config={tmp_path / 'train.py'}", f"--workdir={workdir}"]) == 0, capsys.readouterr()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4] and all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("load", [{}, {"image": 8, "channels": 1}])
def test_what_a_run_leaves_makes_its_inputs_as_the_backbone_that_it_began_with(file, tmp_path, capsys, load):
    (tmp_path / "vit").mkdir()
    backbone, workdir = write(tmp_path / "vit", "vit", VIT), tmp_path / "run"
    (tmp_path / "train.py").write_text(
        "from ml_collections import ConfigDict\n\n"
        "def get_config():\n"
        f"    return ConfigDict(dict(data='digits', backbone={backbone!r}, method='finetune', batch=16, steps=1,\n"
        f"        log_every=1, eval_every=1, checkpoint_every=1, load={load!r}))\n"
    )
    assert cli.main(["train", f"--config={tmp_path / 'train.py'}", f"--workdir={workdir}"]) == 0, capsys.readouterr()
    before = prepared(file, f"backbone={backbone}", *(f"load.{key}={value}" for key, value in load.items()))
    after = prepared(file, f"backbone={workdir / 'model'}")
    before, after = map(pixels_of, (before, after))
    assert before.min() < -1
    np.testing.assert_array_equal(after, before)


DIGITS = {"id2label": {str(i): str(9 - i) for i in range(10)}}
SIDES = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDES |= {"intermediate_size": 24}
WITH_HEADS = {
    "ResNetForImageClassification": {"embedding_size": 6, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
    "DeiTForImageClassificationWithTeacher": SIDES,
    "CLIPForImageClassification": {"vision_config": SIDES},
}


@pytest.mark.parametrize("name", WITH_HEADS)
def test_zero_shot_is_what_its_own_head_says(file, tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    peer = kind(kind.config_class(**WITH_HEADS[name], **DIGITS)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0.1, 0.2)
        for key, buffer in peer.named_buffers():
            buffer.uniform_(0.5, 2) if "running" in key else None
    peer.save_pretrained(tmp_path / "base")
    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | size))
    curve = prepared(file, f"backbone={tmp_path / 'base'}", "methods=('zero_shot',)")
    (row,) = curves.run(curve, tmp_path / "run", lambda *_: None)
    images = pixels_of(curve)[curve.examples.places(curve.dataset.test)]
    labels = curve.dataset.labels[curve.dataset.test]
    logits = curve.backbone({"pixel_values": images})["logits"]
    assert np.ptp(logits, axis=0).min() > 1e-3
    assert row["test_accuracy"] == np.mean(9 - np.argmax(logits, axis=-1) == labels)
    assert row["flops_per_step"] > 0
