"""Whatever stands in a config of a checkpoint is of its type and within bounds, or one line names the key."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import jtransfer as jt
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.families.values import labels, typed
from jtransfer.errors import InputError
from jtransfer.models import Headed, of_config, shapes_of
from jtransfer.models.bert import BertConfig
from jtransfer.models.gpt2 import GPT2Config
from jtransfer.models.resnet import ResNetConfig
from jtransfer.models.vit import ViTConfig

TOWER = {"width": 8, "depth": 1, "heads": 2, "hidden": 12}
CONFIGS = {
    "vit": ViTConfig(image=(8, 8), patch=4, **TOWER),
    "bert": BertConfig(vocabulary=20, positions=16, **TOWER),
    "gpt2": GPT2Config(vocabulary=20, positions=16, **TOWER),
    "resnet": ResNetConfig(block="basic", stem=4, widths=(4, 8), depths=(1, 1)),
}
KINDS = {"vit": "classification", "bert": "sequence", "gpt2": "sequence", "resnet": "classification"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint of each family with a head of three classes: its directory and the values of its config."""
    made = {}
    for model_type, config in CONFIGS.items():
        directory, family = tmp_path_factory.mktemp(model_type), FAMILIES[model_type]
        values = family.write(config)
        head = family.head(values, KINDS[model_type], 3)
        shapes = shapes_of(Headed(of_config(config), head), config.inputs)
        tree = {path: np.full(x.shape, 0.1, np.float32) for path, x in shapes.items()}
        save_file(family.names(config, KINDS[model_type]).write(tree), directory / "model.safetensors")
        architecture = next(name for name, kind in family.heads.items() if kind == KINDS[model_type])
        made[model_type] = directory, values | {"architectures": [architecture], "num_labels": 3}
    return made


def refusal(saved, family, /, **changed):
    directory, values = saved[family]
    (directory / "config.json").write_text(json.dumps(values | changed))
    with pytest.raises(InputError) as error:
        jt.load(str(directory), sharding="host")
    line = str(error.value)
    assert "\n" not in line and "Error" not in line and len(line) < 600
    return line


WRONG = ["12", None, [4], {}, -1, 0.5, 10**12, True, 2**80]
SIZES = [("bert", "hidden_size"), ("gpt2", "n_embd"), ("vit", "num_attention_heads"), ("resnet", "embedding_size")]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(("model_type", "key"), SIZES)
def test_a_size_that_is_none_is_named_with_what_was_expected(saved, model_type, key, value):
    line = refusal(saved, model_type, **{key: value})
    assert f"config.json: {key} is " in line and "expected a whole number from 1 to 1,000,000,000" in line


@pytest.mark.parametrize(
    ("model_type", "key", "value", "expected"),
    [
        ("bert", "layer_norm_eps", "1e-5", "a number of at least 0"),
        ("bert", "layer_norm_eps", -1e-5, "a number of at least 0"),
        ("gpt2", "layer_norm_epsilon", float("nan"), "a number of at least 0"),
        ("vit", "layer_norm_eps", float("inf"), "a number of at least 0"),
        ("bert", "hidden_dropout_prob", 1.0, "a number from 0 to below 1"),
        ("gpt2", "attn_pdrop", -0.1, "a number from 0 to below 1"),
        ("bert", "type_vocab_size", -2, "a whole number from 0"),
        ("bert", "pad_token_id", "0", "a whole number from 0"),
        ("gpt2", "n_inner", 1.5, "a whole number from 1"),
        ("gpt2", "eos_token_id", [1, "2"], "a list of whole numbers"),
        ("gpt2", "scale_attn_weights", 1, "true or false"),
        ("bert", "tie_word_embeddings", "yes", "true or false"),
        ("vit", "qkv_bias", None, "true or false"),
        ("vit", "hidden_act", ["gelu"], "a word"),
        ("bert", "hidden_act", {"a": 1}, "a word"),
        ("resnet", "hidden_sizes", 4, "a list of whole numbers"),
        ("resnet", "depths", [1, None], "a list of whole numbers"),
        ("resnet", "layer_type", 3, "a word"),
        ("vit", "image_size", [8, "8"], "a whole number from 1 to 1,000,000,000, or two"),
        ("resnet", "image_size", [1, 2, 3], "a whole number from 1 to 1,000,000,000, or two"),
        ("vit", "patch_size", 0, "a whole number from 1"),
        ("bert", "architectures", "BertModel", "a list of words"),
        ("vit", "architectures", [3], "a list of words"),
        ("vit", "model_type", 7, "a word"),
        ("bert", "num_labels", "three", "a whole number from 1"),
    ],
)
def test_any_other_value_of_a_wrong_type_is_named_too(saved, model_type, key, value, expected):
    line = refusal(saved, model_type, **{key: value})
    assert f"{key} is " in line and f"expected {expected}" in line


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["cat", "dog"], "id2label is ['cat', 'dog']; expected an object from numbers to names"),
        ("cat", "id2label is 'cat'; expected an object"),
        ({"zero": "cat"}, "id2label has the key 'zero'; expected the numbers from 0 to 0"),
        ({"0": "a", "00": "b"}, "id2label has the key '00'; expected the numbers from 0 to 1"),
        ({"1": "a", "2": "b", "3": "c"}, "id2label has the key '3'; expected the numbers from 0 to 2, each once"),
        ({"0": "a", "1": ["b"], "2": "c"}, "id2label[1] is ['b']; expected a name"),
        ({"0": "a"}, "'classifier.weight' has shape [8, 3] for source_head/kernel, expected [8, 1]"),
    ],
)
def test_names_of_classes_are_an_object_from_0_on(saved, found, said):
    assert said in refusal(saved, "vit", id2label=found)


def test_names_of_classes_come_in_the_order_of_their_numbers_and_none_are_numbered():
    assert labels({"id2label": {str(i): f"c{i}" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}})[9:] == ("c9", "c10")
    assert labels({}) == labels({"id2label": None}) == labels({"id2label": {}}) == ()


def test_a_key_that_is_not_there_is_its_default_and_a_list_becomes_a_tuple():
    assert typed({}, "depths", (3, 4)) == (3, 4) and typed({"depths": [1, 2]}, "depths", ()) == (1, 2)
    assert typed({"pad_token_id": None}, "pad_token_id", 0) is None
    assert typed({"eps": 0}, "eps", 1e-6) == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("width", "16", "width is '16'; expected a number from 0"),
        ("heads", None, "heads is None; expected a number from 0"),
        ("depth", 1.5, "depth is 1.5; expected a number from 0"),
        ("pool", ["cls"], "pool is ['cls']; expected a word"),
        ("image", [8, "8"], "image is [8, '8']; expected a list of whole numbers"),
        ("classes", "abc", "classes is 'abc'; expected a list of words"),
        ("architecture", ["vit"], "architecture is ['vit']; expected a word"),
    ],
)
def test_our_own_config_is_read_by_its_types_likewise(tmp_path, vit, backbone, key, value, said):
    from jtransfer.checkpoints import save

    save(tmp_path, vit, {path: x for path, x in backbone.items() if not path.startswith("source_head")})
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {key: value}))
    (tmp_path / "jtransfer.json").unlink()  # which would tell that it was changed
    with pytest.raises(InputError) as error:
        jt.load(str(tmp_path))
    assert said in str(error.value)


@pytest.mark.parametrize("head", [None, ""])
@pytest.mark.parametrize("foreign", ["head.fc.weight", "my_classifier.weight", "fc/kernel"])
def test_a_foreign_head_blocks_only_where_a_head_is_wanted(saved, foreign, head, tmp_path):
    from safetensors.numpy import load_file

    directory, values = saved["vit"]
    tensors = {name: x for name, x in load_file(directory / "model.safetensors").items() if "classifier" not in name}
    save_file(tensors | {foreign: np.zeros((7, 8), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values | {"architectures": ["ViTModel"]}))
    if head == "":
        assert jt.load(str(tmp_path), head="", sharding="host").head is None
        return
    with pytest.raises(InputError, match=f"'{foreign}' belongs to no leaf; it is of a head that is not known here"):
        jt.load(str(tmp_path), sharding="host")


def test_a_tensor_within_the_backbone_that_is_not_known_blocks_with_and_without_a_head(saved, tmp_path):
    from safetensors.numpy import load_file

    directory, values = saved["vit"]
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"vit.encoder.layer.0.gate.weight": np.zeros(8, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    for head in (None, ""):
        with pytest.raises(InputError, match="'vit.encoder.layer.0.gate.weight' belongs to no leaf"):
            jt.load(str(tmp_path), head=head, sharding="host")
