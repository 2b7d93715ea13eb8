"""What `jt.load` gives: a callable backbone whose leaves lie where they were asked to."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jtransfer as jt
from jtransfer import checkpoints
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed, ViT, ViTConfig, complete
from jtransfer.tree import nested

CONFIG = ViTConfig(image=(8, 12), patch=4, width=16, depth=2, heads=2, hidden=32)
IMAGES = np.random.default_rng(0).random((3, 8, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tree():
    """The leaves of a small ViT with three classes."""
    return jax.jit(lambda key: complete(Headed(ViT(CONFIG), Head(3)), key, {}, CONFIG.inputs))(jax.random.key(0))


@pytest.fixture(scope="module")
def own(tmp_path_factory, tree):
    """It in our own layout."""
    directory = tmp_path_factory.mktemp("own")
    named = {path.replace("source_head/", "head/"): leaf for path, leaf in tree.items()}
    checkpoints.save(directory, ViT(CONFIG), named, ("a", "b", "c"))
    return str(directory)


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory, tree):
    """It in Hugging Face's."""
    import json

    from safetensors.numpy import save_file

    directory, family = tmp_path_factory.mktemp("huggingface"), FAMILIES["vit"]
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "architectures": ["ViTForImageClassification"]}
    (directory / "config.json").write_text(json.dumps(family.write(CONFIG) | labels))
    save_file(family.names(CONFIG, "classification").write(tree), directory / "model.safetensors")
    return str(directory)


def test_a_backbone_is_called_with_a_batch_and_gives_its_outputs_by_name(own):
    backbone = jt.load(own)
    outputs = backbone({"pixel_values": IMAGES})
    assert outputs.keys() == {"last_hidden_state", "pooler_output", "features", "logits"}
    assert outputs["logits"].shape == (3, 3) and outputs["last_hidden_state"].shape == (3, 7, 16)
    assert len(backbone({"pixel_values": IMAGES}, output_hidden_states=True)["hidden_states"]) == 3
    alone = backbone.model.apply({"params": nested(backbone.params)}, IMAGES)
    np.testing.assert_allclose(alone["features"], outputs["features"], atol=1e-6)
    assert backbone.config == CONFIG and backbone.classes == ("a", "b", "c")


def test_the_same_weights_have_the_same_fingerprint_in_any_layout_and_dtype_of_file(own, huggingface):
    one, other = jt.load(own), jt.load(huggingface)
    assert one.fingerprint == other.fingerprint
    assert one.params.keys() == other.params.keys()
    assert jt.load(own, head="").fingerprint != one.fingerprint


def test_an_input_that_the_model_does_not_take_is_refused(own):
    with pytest.raises(InputError, match="takes pixel_values, not 'input_ids'"):
        jt.load(own)({"input_ids": np.zeros((1, 3), np.int32)})


def test_leaves_are_read_into_the_dtype_that_was_asked_for(huggingface):
    half = jt.load(huggingface, dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype for leaf in half.params.values()} == {jnp.dtype("bfloat16")}
    whole = jt.load(huggingface)({"pixel_values": IMAGES})["features"]
    outputs = half({"pixel_values": IMAGES})
    assert outputs["features"].dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs["features"].astype("f"), whole, atol=0.1)


def test_leaves_go_where_their_sharding_says_and_no_device_holds_more_than_its_part(huggingface):
    if len(jax.devices()) < 2:
        pytest.skip("needs several (simulated) devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def sharding(path, shape):
        return NamedSharding(mesh, PartitionSpec("data") if path.endswith("mlp/up/kernel") else PartitionSpec())

    backbone, plain = jt.load(huggingface, sharding=sharding), jt.load(huggingface)
    kernel = backbone.params["encoder/block_1/mlp/up/kernel"]
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(8, 32), (8, 32)]
    for path, leaf in plain.params.items():
        np.testing.assert_array_equal(backbone.params[path], leaf, err_msg=path)


def test_on_the_host_leaves_are_views_of_the_mapped_file(huggingface):
    host = jt.load(huggingface, sharding="host").params
    assert all(isinstance(leaf, np.ndarray) for leaf in host.values())
    kernel = host["encoder/block_1/mlp/up/kernel"]
    assert not kernel.flags.owndata and not kernel.flags.writeable
    np.testing.assert_array_equal(kernel, jt.load(huggingface).params["encoder/block_1/mlp/up/kernel"])


def test_another_number_of_classes_starts_at_a_head_of_zeros_and_says_so(huggingface, caplog):
    with caplog.at_level(logging.WARNING, "jtransfer"):
        backbone = jt.load(huggingface, classes=5)
    assert backbone.fresh == ("source_head/bias", "source_head/kernel") and "freshly initialised" in caplog.text
    assert not np.any(backbone({"pixel_values": IMAGES})["logits"]) and backbone.classes == tuple("01234")


def test_a_checkpoint_of_the_base_model_loads_with_a_fresh_head(huggingface, tmp_path, tree, caplog):
    import json
    from pathlib import Path

    from safetensors.numpy import save_file

    values = json.loads((Path(huggingface) / "config.json").read_text()) | {"architectures": ["ViTModel"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    bare = {path: leaf for path, leaf in tree.items() if not path.startswith("source_head/")}
    tensors = FAMILIES["vit"].names(CONFIG, "").write(bare)
    assert "layernorm.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    assert "logits" not in jt.load(str(tmp_path))({"pixel_values": IMAGES})
    backbone = jt.load(str(tmp_path), head="classification", classes=4)
    assert backbone({"pixel_values": IMAGES})["logits"].shape == (3, 4)
    assert "freshly initialised" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyphs-vi", "run 'hf download glyphs-vi --local-dir DIR'.*did you mean 'glyphs-vit'"),
        ("google/vit-base-patch16-224", "not in the hub's cache.*'hf download google/vit-base-patch16-224"),
        ("./nowhere/at all", "neither embedded nor a file or directory"),
    ],
)
def test_a_name_that_is_nowhere_says_what_to_download_and_where_to_put_it(monkeypatch, name, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message) as refused:
        jt.load(name)
    assert "\n" not in str(refused.value)


def test_a_repository_of_pickles_alone_is_refused_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path))
    there = SimpleNamespace(siblings=[SimpleNamespace(rfilename="pytorch_model.bin")])
    monkeypatch.setattr("huggingface_hub.model_info", lambda name, **_: there)
    told = r"'some/body': its repository has no safetensors, .*whatever code.*\('some/body'\).save_pretrained\('DIR'\)"
    with pytest.raises(InputError, match=told):
        jt.load("some/body")
    with pytest.raises(InputError, match=r"^adapter 'some/body': .* AutoPeftModel .*from_pretrained\('some/body'\)"):
        jt.load_adapter(jt.load("glyphs-vit"), "some/body")


def test_a_cache_with_the_config_alone_is_told_from_a_repository_without_weights(monkeypatch, tmp_path):
    cached = tmp_path / "models--some--body" / "snapshots" / ("0" * 40)
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    (tmp_path / "models--some--body" / "refs").mkdir()
    (tmp_path / "models--some--body" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'some/body': the hub's cache has no weights of it, .*'hf download some/body"):
        jt.load("some/body")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "bicubc"}, "positions: unknown 'bicubc'; did you mean 'bicubic'"),
        ({"dtype": "bf16"}, "dtype: unknown 'bf16'; did you mean 'bfloat16'|dtype: unknown 'bf16'; choose one of"),
        ({"param_dtype": "int8"}, "param_dtype: unknown 'int8'"),
        ({"classes": 0}, "classes=0: expected a whole number above 0"),
        ({"classes": "3"}, "classes='3': expected a whole number above 0"),
        ({"image": (8,)}, "expected height and width"),
        ({"image": -8}, "expected a whole number above 0"),
        ({"head": True}, "head=True: expected the name of a kind of head"),
        ({"sharding": "hots"}, "sharding='hots': expected a jax Sharding, a function of path and shape, or 'host'"),
    ],
)
def test_options_that_are_of_no_use_are_refused(huggingface, options, message):
    with pytest.raises(InputError, match=message):
        jt.load(huggingface, **options)


def test_class_names_come_in_the_order_of_their_numbers(huggingface, tmp_path):
    import json
    import shutil

    shutil.copytree(huggingface, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["id2label"] = {str(i): f"c{i}" for i in sorted(range(12), key=str)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert jt.load(str(tmp_path), classes=12).classes == tuple(f"c{i}" for i in range(12))


def test_classes_of_a_checkpoint_without_a_head_make_one_or_are_refused(huggingface, tmp_path, caplog):
    import json
    import shutil

    shutil.copytree(huggingface, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text()) | {"architectures": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert jt.load(str(tmp_path)).head is None and "the head in the file is left out" in caplog.text
    assert jt.load(str(tmp_path), classes=7)({"pixel_values": IMAGES})["logits"].shape == (3, 7)
    named = jt.load(str(tmp_path), head="classification").params["source_head/kernel"]
    np.testing.assert_array_equal(named, jt.load(huggingface).params["source_head/kernel"])


def test_an_unknown_head_is_refused_with_what_there_is(huggingface):
    with pytest.raises(InputError, match="vit has no head 'sequence'; choose one of"):
        jt.load(huggingface, head="sequence")


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("glyphs-vit", "nonsense", "no head 'nonsense'; choose one of classification"),
        ("glyphs-vit", "clasification", "no head 'clasification'; did you mean 'classification'"),
        ("glyphs-clip", "classification", "glyphs-clip has no head; say how many classes a new one is to have"),
    ],
)
def test_a_head_that_is_named_is_there_or_refused(name, head, message):
    with pytest.raises(InputError, match=message):
        jt.load(name, head=head, sharding="host")
    assert jt.load("glyphs-vit", head="classification", sharding="host").head.classes == 62


def test_a_preprocessor_is_looked_for_only_when_it_is_used(huggingface):
    backbone = jt.load(huggingface)
    with pytest.raises(InputError, match="preprocessor_config.json"):
        backbone.preprocess(IMAGES)
