"""What DINOv3's ViT has of its own: places of patches that turn queries and keys, and that training moves.

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
from jtransfer.models.dinov3 import PatchPlaces

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
SMALL = {
    "image_size": [24, 40],
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_register_tokens": 2,
    "pos_embed_shift": 0.3,
    "pos_embed_jitter": 1.5,
}
TINY = {"image": (24, 40), "patch": 8, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def peer(randomised):
    """A model of transformers, every weight random."""
    return randomised(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL)))


@pytest.fixture(scope="module")
def directory(peer, tmp_path_factory):
    """Where it is saved."""
    path = tmp_path_factory.mktemp("dinov3")
    peer.save_pretrained(path)
    return path


def pixels(*sides):
    return np.random.default_rng(0).standard_normal((2, *sides, 3)).astype(np.float32)


def theirs(peer, images):
    with torch.no_grad():
        return peer(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state


def states(backbone, images, **options):
    """Of ours, compiled as a whole: operation by operation takes longer."""
    run = jax.jit(lambda tree: models.apply(backbone.model, tree, images, **options)["last_hidden_state"])
    return run(backbone.params)


@pytest.mark.parametrize("share", [0.1, 0.8])
def test_training_moves_and_stretches_the_places_as_transformers_does(share, peer, directory, monkeypatch):
    backbone, images = jt.load(str(directory)), pixels(24, 40)

    def uniform(key, shape, minval, maxval):
        return jnp.full(shape, minval + share * (maxval - minval))

    monkeypatch.setattr(jax.random, "uniform", uniform)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda x, low, high: x.fill_(low + share * (high - low)))
    peer.train()
    expected = theirs(peer, images)
    assert (expected - theirs(peer.eval(), images)).abs().max() > 0.1
    trained = states(backbone, images, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(trained, expected, **CLOSE)


def drawn(**options):
    """Places of 400 steps of training over those of evaluation, `[400, patches, 2]`."""
    module = PatchPlaces(models.DINOv3ViTConfig(**TINY | {"image": (32, 48)} | options))
    keys = jax.random.split(jax.random.key(0), 400)
    return jax.vmap(lambda key: module.apply({}, deterministic=False, rngs={"dropout": key}))(keys), module.apply(
        {}, deterministic=True
    )


def test_one_factor_for_both_axes_or_one_for_each_is_log_uniform_and_a_shift_is_uniform():
    places, still = drawn(rescale=4.0)
    factors = np.log(places / still) / np.log(4)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], factors.shape), atol=1e-5)
    spread = 1 / np.sqrt(3)  # of uniform draws from -1 to 1
    assert np.abs(factors).max() < 1 + 1e-5 and abs(factors.std() - spread) < 0.05 and abs(factors.mean()) < 0.1
    places, still = drawn(rescale=0.0, jitter=4.0)
    factors = (np.log(places / still) / np.log(4))[:, 0]
    assert np.abs(factors).max() < 1 + 1e-5 and abs(np.corrcoef(factors.T)[0, 1]) < 0.15
    places, still = drawn(rescale=0.0, shift=0.5)
    shifts = (places - still)[:, 0] / 0.5
    assert np.abs(shifts).max() < 1 + 1e-5 and (abs(shifts.std(0) - spread) < 0.05).all()
    places, still = drawn(rescale=0.0)
    assert (places == still).all()


def test_places_are_moved_only_where_a_method_trains_the_embeddings():
    model, images, found = models.Classifier(models.build("dinov3_vit", **TINY), 3), pixels(24, 40), {}
    for text in ("finetune", "top_blocks(1)"):
        adapted = methods.adapt(methods.parse(text), model, {}, (24, 40, 3))

        @jax.jit
        def features(key, adapted=adapted):
            tree, _ = adapted.start(jax.random.key(0), {})
            return models.apply(adapted.model, tree, images, train=True, rngs={"dropout": key})["features"]

        one, other = (features(jax.random.key(seed)) for seed in (1, 2))
        found[text] = bool((one != other).any())
    assert found == {"finetune": True, "top_blocks(1)": False}


def test_tokens_that_a_method_puts_before_the_patches_are_not_turned_and_leave_the_patches_at_their_places(directory):
    backbone, images = jt.load(str(directory)), pixels(24, 40)

    def prompted(call, args, kwargs, context):
        if context.method_name != "tokens":
            return call(*args, **kwargs)
        x, _ = args
        more = jnp.concatenate([x[:, :1], jnp.ones((len(x), 2, x.shape[-1])), x[:, 1:]], axis=1)
        place = jnp.arange(more.shape[1])
        return more, ((place < 1) | (place > 2))[None, None, None]  # which nothing looks at

    plain = backbone({"pixel_values": images})["last_hidden_state"]
    with nn.intercept_methods(prompted):
        longer = states(backbone, images)
    np.testing.assert_allclose(np.delete(longer, [1, 2], axis=1), plain, atol=1e-5)


def test_images_of_any_size_are_those_of_transformers_as_there_are_no_positions_to_resize(peer, directory):
    images = pixels(32, 16)
    backbone = jt.load(str(directory), image=(32, 16))
    np.testing.assert_allclose(backbone({"pixel_values": images})["last_hidden_state"], theirs(peer, images), **CLOSE)


def test_grey_images_count_as_all_colours_alike(peer, directory):
    images = pixels(24, 40)[..., :1]
    grey = jt.load(str(directory), channels=1)({"pixel_values": images})["last_hidden_state"]
    np.testing.assert_allclose(grey, theirs(peer, np.repeat(images, 3, axis=-1)), **CLOSE)


def test_half_precision_turns_by_angles_of_whole_precision(directory, peer):
    images = pixels(24, 40)
    half = jt.load(str(directory), dtype="bfloat16", param_dtype="bfloat16")({"pixel_values": images})
    assert half["features"].dtype == jnp.bfloat16
    expected = theirs(peer, images)[:, 0].numpy()
    np.testing.assert_allclose(half["features"].astype(np.float32), expected, atol=0.05 * np.abs(expected).max())


def test_pixels_are_those_of_a_resizing_in_floats_to_less_than_one_of_255(directory, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    values = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 24}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    backbone = jt.load(str(tmp_path))
    assert backbone.config.image == (32, 24)
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 3)).astype(np.uint8)
    floats = torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(floats, (32, 24), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    off = (backbone.preprocess([image])["pixel_values"][0] - (resized.numpy() - mean) / std) * std * 255
    assert np.abs(off).max() < 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": [8, 4]}, "patch_size is [8, 4]; expected a square patch"),
        ({"num_attention_heads": 8}, "width 16 is not a multiple of 4 x heads 8"),
        ({"pos_embed_jitter": 0.5}, "jitter is 0.5; expected 0 for none, or 1 and more"),
        ({"pos_embed_rescale": "twice"}, "pos_embed_rescale is 'twice'; expected a number"),
        ({"layerscale_value": 0.0}, "theta and layer_scale must be above 0"),
        ({"rope_theta": 0.0}, "theta and layer_scale must be above 0"),
        ({"hidden_act": "gelo"}, "unknown activation 'gelo'; did you mean 'gelu'"),
        ({"key_bias": True}, "'layer.0.attention.k_proj.bias' is missing for encoder/block_0/attention/key/bias"),
        ({"use_gated_mlp": True}, "'layer.0.mlp.gate_proj.weight' is missing"),
        ({"num_register_tokens": 3}, "'embeddings.register_tokens' has shape [1, 2, 16]"),
        ({"num_hidden_layers": 10**9}, "claims 1000000000 blocks"),
        ({"image_size": 4}, "has no patch of side 8"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(wrong, message, directory, tmp_path):
    values = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | wrong))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_head_which_transformers_does_not_have_is_refused_with_what_to_do(directory):
    with pytest.raises(InputError, match="there is no head; .*no head here has classes"):
        jt.load(str(directory), classes=4)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "hidden", "gated"),
    [(384, 12, 6, 1536, False), (1280, 32, 20, 5120, True), (4096, 40, 32, 8192, True)],
    ids=["vits16", "vith16plus", "vit7b16"],
)
def test_at_full_size_the_table_fills_every_leaf_in_its_shape(width, depth, heads, hidden, gated):
    values = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    values |= {"intermediate_size": hidden, "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu"}
    values |= {"num_register_tokens": 4}
    with torch.device("meta"):
        peer = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**values))
    family = FAMILIES["dinov3_vit"]
    config = family.read(values, {})
    names, model = family.names(config, ""), models.of_config(config)
    found = {}
    for name, x in peer.state_dict().items():
        assert names.ignores(name) == name.endswith("mask_token")
        for target in names.targets(name):
            found[target.path] = target.layout.load(np.broadcast_to(np.float32(0), x.shape))[0].shape
    assert found == {path: leaf.shape for path, leaf in models.shapes_of(model, config.inputs).items()}
