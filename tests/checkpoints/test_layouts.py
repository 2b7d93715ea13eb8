"""Which layout a checkpoint is in is told by its files; one that is in none is refused with a list of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed, ViT, ViTConfig, shapes_of

CONFIG = ViTConfig(image=(8, 12), patch=4, width=8, depth=2, heads=2, hidden=12, epsilon=1e-3)


@pytest.fixture
def huggingface(tmp_path):
    """A directory in Hugging Face's layout."""
    shapes = shapes_of(Headed(ViT(CONFIG), Head(3)), CONFIG.inputs)
    tree = {path: np.ones(x.shape, np.float32) for path, x in shapes.items()}
    save_file(FAMILIES["vit"].names(CONFIG, "classification").write(tree), tmp_path / "model.safetensors")
    values = FAMILIES["vit"].write(CONFIG) | {"architectures": ["ViTForImageClassification"], "num_labels": 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_a_file_of_hugging_face_is_read_with_the_config_beside_it(huggingface, described):
    (huggingface / "model.safetensors").rename(huggingface / "mine.safetensors")
    (huggingface / "other.safetensors").write_bytes((huggingface / "mine.safetensors").read_bytes())
    assert described(huggingface / "mine.safetensors").config == CONFIG


def test_a_head_can_be_left_out_or_made_anew_in_every_layout(huggingface, tmp_path):
    for head, classes, expected in (("", None, None), (None, 7, 7), (None, None, 3), ("classification", None, 3)):
        backbone = checkpoints.load(str(huggingface), head=head, classes=classes, sharding="host")
        assert (backbone.head and backbone.head.classes) == expected
        assert any(path.startswith("source_head/") for path in backbone.params) == bool(expected)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors": ["a", "b"]}, "config.json is missing, and names such as 'a', 'b'"),
        ({"model.safetensors": ["a"], "config.json": {"x": 1}}, "expected 'model_type'.* the layouts are those of"),
        (
            {"model.safetensors": ["a"], "config.json": {"architecture": "resnet50", "pretrained_cfg": {}}},
            "only ViT, DINOv3",
        ),
        ({"config.json": {}, "pytorch_model.bin": None}, "is pickled"),
        ({"readme.txt": None}, "no config.json, and no weights"),
    ],
)
def test_a_directory_in_no_layout_is_refused(files, said, tmp_path):
    for name, content in files.items():
        if name.endswith(".safetensors"):
            save_file({key: np.zeros(2, np.float32) for key in content}, tmp_path / name)
        else:
            (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=said) as error:
        checkpoints.load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"), [("model.h5", "expected a .safetensors, .npz or .hdf5 file"), ("m.pt", "is pickled")]
)
def test_a_file_of_another_kind_is_refused(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(InputError, match=said):
        checkpoints.load(str(tmp_path / name))
