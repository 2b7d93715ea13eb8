"""What Swin has of its own: windows that a stage is smaller than, that shift, and that a method reaches into.

Outputs, gradients and exports are compared with transformers in test_vit.py.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods, models
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.evaluate import features
from jtransfer.models import layers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
CLASSES = 5
SMALL = {
    "image_size": [37, 26],
    "patch_size": 4,
    "embed_dim": 6,
    "depths": [2, 1],
    "num_heads": [1, 3],
    "window_size": 3,
    "num_labels": CLASSES,
}


@pytest.fixture(scope="module")
def make(randomised):
    """`make(**options)`: a model of transformers, every weight random."""
    return lambda **options: randomised(
        transformers.SwinForImageClassification(transformers.SwinConfig(**SMALL | options))
    )


@pytest.fixture(scope="module")
def peer(make):
    return make()


@pytest.fixture(scope="module")
def directory(peer, tmp_path_factory):
    """Where it is saved."""
    path = tmp_path_factory.mktemp("swin")
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(directory):
    return jt.load(str(directory))


def pixels(*sides):
    return np.random.default_rng(0).standard_normal((2, *sides, 3)).astype(np.float32)


def theirs(peer, images):
    with torch.no_grad():
        return peer(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()


def logits(model, tree, images, **options):
    """Of ours, compiled as a whole: operation by operation takes longer."""
    return jax.jit(lambda tree: models.apply(model, tree, images, **options)["logits"])(tree)


def test_a_stage_smaller_than_a_window_is_one_window_with_the_inner_part_of_the_table(make, tmp_path):
    """Transformers takes no such image; given the inner part of each table, it does."""
    peer, images = make(window_size=5, image_size=24, depths=[1, 2]), pixels(24, 24)
    peer.save_pretrained(tmp_path)
    backbone = jt.load(str(tmp_path))
    for block in peer.swin.encoder.layers[1].blocks:  # of 3 by 3 patches
        attention = block.attention
        whole = attention.relative_position_bias.relative_position_bias_table.reshape(9, 9, -1)
        inner = type(attention.relative_position_bias)(attention.num_attention_heads, (3, 3))
        inner.relative_position_bias_table.data = whole[2:-2, 2:-2].reshape(25, -1)
        attention.relative_position_bias = inner
    np.testing.assert_allclose(backbone({"pixel_values": images})["logits"], theirs(peer, images), **CLOSE)


def test_stochastic_depth_drops_the_attention_branch_and_leaves_the_mlp_as_in_transformers(make, tmp_path):
    surely = 1 - 1e-6
    peer, images = make(drop_path_rate=surely, depths=[1, 1]), pixels(37, 26)
    peer.save_pretrained(tmp_path)
    backbone = jt.load(str(tmp_path))
    trained = logits(backbone.whole, backbone.params, images, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(trained - theirs(peer, images)).max() > 0.01
    np.testing.assert_allclose(trained, theirs(peer.train(), images), **CLOSE)


@pytest.mark.parametrize("sides", [(24, 32), (25, 31)])
def test_images_of_another_size_are_those_of_transformers_filled_up_to_whole_patches(sides, peer, directory):
    images = pixels(*sides)
    loaded = jt.load(str(directory), image=sides)
    np.testing.assert_allclose(loaded({"pixel_values": images})["logits"], theirs(peer, images), **CLOSE)


def test_images_of_another_size_have_positions_resized_as_transformers_interpolates(make, tmp_path):
    peer, images = make(use_absolute_embeddings=True, image_size=32), pixels(24, 40)
    peer.save_pretrained(tmp_path)
    loaded = jt.load(str(tmp_path), image=(24, 40))
    with torch.no_grad():
        expected = peer(torch.from_numpy(images).permute(0, 3, 1, 2), interpolate_pos_encoding=True).logits
    np.testing.assert_allclose(loaded({"pixel_values": images})["logits"], expected, **CLOSE)


def test_feature_maps_are_the_stages_before_patches_are_merged(peer, backbone):
    images = pixels(37, 26)
    with torch.no_grad():
        outputs = peer.swin(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
    ours = backbone({"pixel_values": images})["feature_maps"]
    for one, other in zip(ours, outputs.reshaped_hidden_states[1:], strict=True):
        np.testing.assert_allclose(one, other.permute(0, 2, 3, 1), **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_a_bias_on_the_cpu_agrees_with_the_fused_form_of_other_platforms(masked):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(4, 9, 3, 8)).astype("f") for _ in range(3))
    bias, mask = rng.normal(size=(3, 9, 9)).astype("f"), rng.random((4, 1, 9, 9)) < 0.7 if masked else None
    ours = layers.attend(query, key, value, mask, bias)
    assert np.abs(ours - layers.attend(query, key, value, mask)).max() > 0.1
    with layers.compiling_for("tpu"):
        fused = layers.attend(query, key, value, mask, bias)
    np.testing.assert_allclose(ours, fused, atol=1e-6)


def test_keys_that_a_method_puts_before_those_of_a_window_leave_its_bias_in_place(backbone):
    images = pixels(37, 26)

    def prefixed(call, args, kwargs, context):
        if context.method_name != "attend":
            return call(*args, **kwargs)
        query, key, value, mask = args
        mask = jnp.ones((1, 1, 1, key.shape[1]), bool) if mask is None else mask
        key, value = (jnp.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0)), constant_values=1) for x in (key, value))
        return call(query, key, value, jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (2, 0))))  # which nothing looks at

    with nn.intercept_methods(prefixed):
        longer = logits(backbone.whole, backbone.params, images)
    np.testing.assert_allclose(longer, backbone({"pixel_values": images})["logits"], atol=1e-5)


def test_a_low_rank_path_beside_every_dense_layer_merges_into_the_kernels(backbone):
    images, target = pixels(37, 26), ".*(attention/.*|mlp/.*|reduction)"
    model = models.Classifier(backbone.model, 3)
    adapted = methods.adapt(methods.lora(rank=2, target=target), model, backbone.without_head().params, (37, 26, 3))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    layers_of = {path.removesuffix("/lora/a") for path in tree if path.endswith("/lora/a")}
    assert "stage_1/block_0/merge/reduction" in layers_of and len(layers_of) == 3 * 6 + 1
    tree |= {path: jnp.full_like(leaf, 0.1) for path, leaf in tree.items() if path.endswith(("lora/b", "head/kernel"))}
    apart = logits(adapted.model, tree, images)
    merged = logits(model, methods.lora(rank=2, target=target).merge(tree), images)
    np.testing.assert_allclose(merged, apart, **CLOSE)


def test_an_adapter_of_peft_gives_its_outputs(directory, backbone, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1", "reduction"], init_lora_weights=False)
    base = transformers.SwinForImageClassification.from_pretrained(directory)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path)
    ours = jt.load_adapter(backbone, str(tmp_path))
    images = pixels(37, 26)
    expected = theirs(adapted, images)
    assert np.abs(expected - backbone({"pixel_values": images})["logits"]).max() > 0.01
    np.testing.assert_allclose(ours({"pixel_values": images})["logits"], expected, **CLOSE)


def test_the_last_norm_of_states_of_another_width_is_refused(backbone):
    images = {"pixel_values": pixels(37, 26)}
    assert features.widths_of(backbone, ["hidden_-3.mean", "hidden_-2.mean.normed"], images) == {
        "hidden_-3.mean": 6,
        "hidden_-2.mean.normed": 12,
    }
    with pytest.raises(InputError, match=r"'hidden_-3.mean.normed': .* are 6 wide, the final normalisation 12"):
        features.widths_of(backbone, ["hidden_-3.mean.normed"], images)


def test_another_number_of_classes_starts_at_zero(directory):
    loaded = jt.load(str(directory), classes=3)
    assert sorted(loaded.fresh) == ["source_head/bias", "source_head/kernel"]
    assert loaded.params["source_head/kernel"].shape == (12, 3) and not loaded.params["source_head/kernel"].any()


def test_an_index_of_places_in_an_older_file_is_left_out_and_the_decoder_of_masked_pre_training(make, tmp_path, peer):
    transformers.SwinForMaskedImageModeling(transformers.SwinConfig(**SMALL, encoder_stride=8)).save_pretrained(
        tmp_path
    )
    assert jt.load(str(tmp_path)).head is None
    names = FAMILIES["swin"].names(models.SwinConfig(), "classification")
    assert names.ignores("swin.encoder.layers.0.blocks.1.attention.self.relative_position_index")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": [4, 2]}, "patch_size is [4, 2]; expected a square patch"),
        ({"depths": [2, 1, 1]}, "swin: heads (1, 3) do not fit the depths of 3 stages"),
        ({"num_heads": [1, 5]}, "width 12 is not a multiple of heads 5"),
        ({"num_heads": "many"}, "num_heads is 'many'; expected a list of whole numbers from 1"),
        ({"use_absolute_embeddings": True}, "image (37, 26) has no whole patches of side 4; positions need them"),
        ({"window_size": 4}, "relative_position_bias_table' has shape [25, 1]"),
        ({"mlp_ratio": 0.01}, "hidden must be at least 1"),
        ({"hidden_act": "gelo"}, "unknown activation 'gelo'; did you mean 'gelu'"),
        ({"depths": [10**9, 1]}, "claims 1000000001 blocks"),
        ({"embed_dim": 12}, "of another shape"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(wrong, message, directory, tmp_path):
    values = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | wrong))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_images_of_another_shape_are_refused_with_both(backbone):
    with pytest.raises(InputError, match=r"shape \[1, 37, 26, 4\]; expected \[batch, height, width, 3\]"):
        backbone({"pixel_values": np.zeros((1, 37, 26, 4), np.float32)})
    with pytest.raises(InputError, match="36x26x3.*37x26x3.*image="):
        backbone({"pixel_values": np.zeros((1, 36, 26, 3), np.float32)})


@pytest.mark.parametrize(
    ("width", "depths", "heads", "window"),
    [(96, (2, 2, 6, 2), (3, 6, 12, 24), 7), (192, (2, 2, 18, 2), (6, 12, 24, 48), 12)],
    ids=["tiny", "large at 384"],
)
def test_at_full_size_the_table_fills_every_leaf_in_its_shape(width, depths, heads, window):
    values = {"embed_dim": width, "depths": list(depths), "num_heads": list(heads), "window_size": window}
    with torch.device("meta"):
        peer = transformers.SwinForImageClassification(transformers.SwinConfig(**values, num_labels=1000))
    family = FAMILIES["swin"]
    config = family.read(values, {})
    names, model = family.names(config, "classification"), models.of_config(config)
    found = {}
    for name, x in peer.state_dict().items():
        for target in names.targets(name):
            found[target.path] = target.layout.load(np.broadcast_to(np.float32(0), x.shape))[0].shape
    shapes = models.shapes_of(models.Headed(model, models.Head(1000)), config.inputs)
    assert found == {path: leaf.shape for path, leaf in shapes.items()}
