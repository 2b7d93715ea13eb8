"""Whatever is wrong with a checkpoint is one clear line, found before anything large is allocated."""

import json
import resource
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from jtransfer import checkpoints, cli
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed, ViT, ViTConfig, of_config, shapes_of
from jtransfer.models.bert import BertConfig
from jtransfer.models.clip import CLIPConfig, CLIPTextConfig
from jtransfer.models.convnext import ConvNextConfig
from jtransfer.models.gpt2 import GPT2Config
from jtransfer.models.resnet import ResNetConfig

CONFIG = ViTConfig(image=(8, 12), patch=4, width=8, depth=2, heads=2, hidden=12, epsilon=1e-3)
FUZZ = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def random_tree(model, inputs):
    rng = np.random.default_rng(0)
    return {path: rng.random(leaf.shape, np.float32) for path, leaf in shapes_of(model, inputs).items()}


@pytest.fixture(scope="module")
def tensors():
    """A small ViT with three classes in Hugging Face's names."""
    tree = random_tree(Headed(ViT(CONFIG), Head(3)), CONFIG.inputs)
    return FAMILIES["vit"].names(CONFIG, "classification").write(tree)


@pytest.fixture(scope="module")
def values():
    """Its `config.json`."""
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    return FAMILIES["vit"].write(CONFIG) | labels | {"architectures": ["ViTForImageClassification"]}


@pytest.fixture
def directory(tmp_path, tensors, values):
    """The whole checkpoint, for a test to damage."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def refusal(directory):
    """The one line with which a checkpoint is refused; None if it loads. Anything but an `InputError` is a failure."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        checkpoints.load(str(directory))
        line = None
    except InputError as error:
        line = str(error)
        assert line.strip() and "\n" not in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "300 MB more than before"
    return line


def test_the_whole_checkpoint_loads(directory):
    assert refusal(directory) is None


@FUZZ
@given(st.data())
def test_a_file_cut_anywhere_is_refused(directory, tensors, data):
    whole = save(tensors)
    (directory / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert "model.safetensors" in refusal(directory)


@FUZZ
@given(st.integers(0, 2**64 - 1))
def test_a_header_of_any_other_length_is_refused(directory, tensors, length):
    whole = save(tensors)
    if length != int.from_bytes(whole[:8], "little"):
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", length) + whole[8:])
        assert "model.safetensors" in refusal(directory)


@FUZZ
@given(st.data())
def test_a_changed_byte_in_the_header_is_refused_or_means_the_same(directory, tensors, data):
    whole = bytearray(save(tensors))
    length = int.from_bytes(whole[:8], "little")
    whole[data.draw(st.integers(8, 7 + length))] = data.draw(st.integers(0, 255))
    (directory / "model.safetensors").write_bytes(whole)
    refusal(directory)


def rewrite(directory, change):
    """Change the header of the weights as an object."""
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F33"}, "'classifier.weight' has the unknown dtype 'F33'; expected one of F64, F32"),
        ({"dtype": "F16"}, r"'classifier.weight' F16\[3, 8\] cannot be 96 bytes long"),
        ({"dtype": "I32"}, "'classifier.weight' is int32, expected a floating-point type"),
        ({"dtype": 7}, "unknown dtype '7'"),
        ({"dtype": ["F32"]}, "unknown dtype"),
        ({"shape": [8, 3]}, r"'classifier.weight' has shape \[3, 8\] for source_head/kernel, expected \[8, 3\]"),
        ({"shape": [3, 8, 1]}, r"'classifier.weight' has shape \[1, 8, 3\] for source_head/kernel"),
        ({"shape": [3, 10**12]}, "cannot be 96 bytes long"),
        ({"shape": [-3, -8]}, "'classifier.weight' needs dtype, shape and data_offsets"),
        ({"shape": [3.0, 8]}, "needs dtype, shape and data_offsets"),
        ({"data_offsets": [0, 10**15]}, "cannot be 1000000000000000 bytes long"),
        ({"data_offsets": [96, 0]}, "needs dtype, shape and data_offsets"),
        ({"data_offsets": [100, 196]}, "starts at byte|ends at byte"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(directory, entry, message):
    rewrite(directory, lambda header: header["classifier.weight"].update(entry))
    with pytest.raises(InputError, match=message):
        checkpoints.load(str(directory))


def test_a_duplicated_key_is_refused(directory):
    rewrite(directory, lambda header: json.dumps(header)[:-1] + ', "classifier.bias": {}}')
    assert "key 'classifier.bias' stands there twice" in refusal(directory)


def test_bytes_that_belong_to_no_tensor_are_refused(directory):
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"1234")
    assert "4 bytes belong to no tensor" in refusal(directory)


def test_all_offenders_of_both_sides_are_in_one_line_with_the_nearest_names(directory, tensors):
    wrong = dict(tensors)
    wrong["vit.layernorm.wieght"] = wrong.pop("vit.layernorm.weight")
    wrong["vit.encoder.layer.1.output.dense.weight"] = wrong["vit.encoder.layer.1.output.dense.weight"].T.copy()
    wrong["vit.extra"] = np.zeros(3, np.float32)
    save_file(wrong, directory / "model.safetensors")
    line = refusal(directory)
    assert "'layernorm.weight' is missing for encoder/norm/scale (did you mean 'vit.layernorm.wieght'?)" in line
    assert "'vit.layernorm.wieght' belongs to no leaf (did you mean 'layernorm.weight'?)" in line
    assert "'vit.extra' belongs to no leaf" in line
    assert (
        "'vit.encoder.layer.1.output.dense.weight' has shape [8, 12] for encoder/block_1/mlp/down/kernel, "
        "expected [12, 8]" in line
    )


def shard(directory, tensors, change=dict):
    """Split the weights over two files with an index, whose map `change` may alter."""
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {name: file for file, part in halves.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(index)}))


def test_shards_load_as_the_single_file_does(directory, tensors):
    whole = checkpoints.load(str(directory))
    shard(directory, tensors)
    parts = checkpoints.load(str(directory))
    assert parts.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "outside", ["../b.safetensors", "/etc/passwd", "sub/b.safetensors", "..", "", "..\\b.safetensors"]
)
def test_an_index_that_points_outside_the_directory_is_refused(directory, tensors, outside):
    shard(directory, tensors, lambda index: index | {"classifier.bias": outside})
    assert f"'{outside}' points outside the directory" in refusal(directory)


def test_a_missing_shard_a_tensor_in_none_and_one_in_two_are_named(directory, tensors):
    shard(directory, tensors, lambda index: index | {"classifier.bias": "c.safetensors"})
    assert "shard 'c.safetensors' is missing" in refusal(directory)
    save_file({"classifier.bias": tensors["classifier.bias"]}, directory / "c.safetensors")
    assert "'classifier.bias' stands in 'c.safetensors' and in another shard" in refusal(directory)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    index = {name: "a.safetensors" if file == "c.safetensors" else file for name, file in index.items()}
    index["vit.more"] = "a.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "vit.more are in none of the shards" in refusal(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1, "a": 2}}', "[" * 9999])
def test_an_index_that_is_none_is_refused(directory, tensors, text):
    shard(directory, tensors)
    (directory / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**12) | st.just(2**70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@FUZZ
@given(st.data())
def test_any_value_in_the_config_is_refused_or_loads(directory, values, data):
    key = data.draw(st.sampled_from(sorted(values)))
    (directory / "config.json").write_text(json.dumps(values | {key: data.draw(JSON)}))
    refusal(directory)


TOWER = {"width": 8, "depth": 1, "heads": 2, "hidden": 12}
OTHERS = {
    "dinov2": ViTConfig(image=(8, 8), patch=4, pool="cls_mean", layer_scale=1.0, **TOWER | {"hidden": 32}),
    "bert": BertConfig(vocabulary=20, positions=16, **TOWER),
    "gpt2": GPT2Config(vocabulary=20, positions=16, **TOWER),
    "convnext": ConvNextConfig(image=(16, 16), widths=(4, 8), depths=(1, 1)),
    "resnet": ResNetConfig(block="basic", stem=4, widths=(4, 8), depths=(1, 1)),
    "clip": CLIPConfig(
        ViTConfig(image=(8, 8), patch=4, patch_bias=False, embedding_norm=True, norm_pooled=True, **TOWER),
        CLIPTextConfig(vocabulary=20, positions=16, eos_token=19, **TOWER),
        projection=6,
    ),
}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A small checkpoint of each other family, its directory and the values of its config."""
    made = {}
    for model_type, config in OTHERS.items():
        directory, family = tmp_path_factory.mktemp(model_type), FAMILIES[model_type]
        tree = random_tree(of_config(config), config.inputs)
        save_file(family.names(config, "").write(tree), directory / "model.safetensors")
        made[model_type] = directory, family.write(config) | {"architectures": [None]}
        (directory / "config.json").write_text(json.dumps(made[model_type][1]))
        assert refusal(directory) is None
    return made


@pytest.mark.parametrize("model_type", OTHERS)
@settings(FUZZ, max_examples=12)
@given(st.data())
def test_any_value_in_the_config_of_any_family_is_refused_or_loads(others, model_type, data):
    directory, values = others[model_type]
    values = json.loads(json.dumps(values))
    section = values[data.draw(st.sampled_from(["text_config", "vision_config"]))] if model_type == "clip" else values
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(JSON)
    (directory / "config.json").write_text(json.dumps(values))
    refusal(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vitt"}, "config.json: unknown model_type 'vitt'; did you mean 'vit'?"),
        ({"num_hidden_layers": 10**9}, "claims 1000000000 blocks, but the file has 40 tensors"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776; expected a whole number from 1 to 1,000,000,000"),
        ({"intermediate_size": 10**9}, "expected [8, 1000000000]"),
        ({"image_size": 4 * 10**5}, "400000 x 400000 x 3, which are 480,000,000,000 values each"),
        (
            {"image_size": 4 * 10**9},
            "image_size is 4000000000; expected a whole number from 1 to 1,000,000,000, or two",
        ),
        ({"hidden_act": "gellu"}, "unknown activation 'gellu'; did you mean 'gelu'?"),
        ({"id2label": None, "num_labels": 10**12}, "num_labels is 1000000000000; expected a whole number"),
        ({"id2label": None, "num_labels": 10**7}, "claims 10000000 classes; expected at most 1000000"),
        ({"num_attention_heads": 3}, "width 8 is not a multiple of heads 3"),
    ],
)
def test_an_unknown_or_absurd_config_is_refused(directory, values, change, message):
    (directory / "config.json").write_text(json.dumps(values | change))
    assert message in refusal(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_reason_and_the_command_that_converts(directory, name):
    (directory / "model.safetensors").rename(directory / name)
    line = refusal(directory)
    assert f"{name} is pickled, and reading a pickle runs whatever code is in it" in line
    assert f"architectures[0]).from_pretrained('{directory}').save_pretrained('DIR')" in line


def test_the_command_line_says_it_in_one_line_and_exits_with_2(directory, tmp_path, capsys):
    (directory / "model.safetensors").write_bytes(b"12345678901234567890")
    arguments = ["--config=configs/quickstart.py", f"--config.backbone={directory}"]
    assert cli.main(["curve", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jtransfer: error: ") and "truncated" in said and said.count("\n") == 1
