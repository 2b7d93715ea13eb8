"""Our ViT, DeiT, DINOv2, DINOv3, Swin and encoder of ViT-MAE are those of transformers: checkpoints in, outputs,
gradients and checkpoints out."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jtransfer import checkpoints
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.models import apply

CLOSE = {"atol": 1e-4, "rtol": 0}
CLASSES = 5
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "layer_norm_eps": 0.05,
    "num_labels": CLASSES,
}
ODD = {"image_size": (27, 21), "patch_size": 5, "num_channels": 2}
"""No multiple of the patch, not square, neither colours nor grey."""
STAGES = {"embed_dim": 6, "depths": [2, 2], "num_heads": [1, 3], "window_size": 3, "num_channels": 2, "patch_size": 4}
"""Of a Swin, which has as many states as the others."""

VARIANTS = {
    "vit": ("ViTForImageClassification", {"intermediate_size": 60, **ODD, "qkv_bias": False}),
    "vit pooled": (
        "ViTModel",
        {"intermediate_size": 40, "image_size": 16, "patch_size": 8, "hidden_act": "quick_gelu"},
    ),
    "deit": ("DeiTForImageClassification", {"intermediate_size": 60, **ODD, "hidden_act": "gelu_pytorch_tanh"}),
    "deit pooled": ("DeiTModel", {"intermediate_size": 60, "image_size": (16, 24), "patch_size": 8, "qkv_bias": False}),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", {"intermediate_size": 36, **ODD, "hidden_act": "relu"}),
    "dinov2": ("Dinov2ForImageClassification", {**ODD, "image_size": 23, "mlp_ratio": 3, "hidden_act": "gelu_new"}),
    "dinov2 swiglu": ("Dinov2Model", {**ODD, "image_size": 20, "use_swiglu_ffn": True, "qkv_bias": False}),
    "registers": ("Dinov2WithRegistersModel", {**ODD, "image_size": 20, "num_register_tokens": 3}),
    "registers swiglu": (
        "Dinov2WithRegistersForImageClassification",
        {"image_size": 28, "patch_size": 14, "num_register_tokens": 2, "use_swiglu_ffn": True, "mlp_ratio": 2},
    ),
    "dinov3": (
        "DINOv3ViTModel",
        {**ODD, "intermediate_size": 60, "num_register_tokens": 3, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "dinov3 gated": (
        "DINOv3ViTModel",
        {
            **ODD,
            "image_size": (25, 21),
            "intermediate_size": 28,
            "num_register_tokens": 0,
            "hidden_act": "silu",
            "use_gated_mlp": True,
            "rope_theta": 30.0,
            "query_bias": False,
            "key_bias": True,
            "value_bias": False,
            "mlp_bias": False,
        },
    ),
    # 10 by 12 patches and 5 by 6: windows and merges are filled up, and each stage has shifted ones.
    "swin": ("SwinForImageClassification", {**STAGES, "image_size": (37, 45), "mlp_ratio": 2.5, "qkv_bias": False}),
    # 8 by 8 patches, which shift, and 4 by 4, of which a window is the whole.
    "swin with positions": (
        "SwinModel",
        {
            **STAGES,
            "depths": [2, 1],
            "image_size": 32,
            "window_size": 4,
            "use_absolute_embeddings": True,
            "hidden_act": "gelu_new",
        },
    ),
    "mae": ("ViTMAEModel", {"intermediate_size": 60, **ODD, "mask_ratio": 0.0, "qkv_bias": False}),
    "mae pre-training": (
        "ViTMAEForPreTraining",
        {
            "intermediate_size": 60,
            "image_size": 24,
            "patch_size": 8,
            "mask_ratio": 0.0,
            "hidden_act": "silu",
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 20,
        },
    ),
}


def build(transformers, architecture, options):
    """A model of transformers with the config of its model type."""
    model = getattr(transformers, architecture)
    small = {"num_labels": CLASSES, "layer_norm_eps": 0.05} if architecture.startswith("Swin") else SMALL
    return model(model.config_class(**small | options))


def their_outputs(torch, peer, pixels):
    """The outputs of a torch model as its user sees them, those of its backbone among them, by name."""
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    backbone = peer if type(peer).__name__ == "DINOv3ViTModel" else getattr(peer, peer.base_model_prefix, peer)
    # The encoder of ViT-MAE shuffles its patches by noise; in this order they stay where they are.
    kept = {"noise": torch.arange(1e3).expand(len(pixels), -1)[:, : patches(peer)]} if is_mae(peer) else {}
    outputs = dict(backbone(pixels, output_hidden_states=True, **kept))
    return outputs if backbone is peer or is_mae(peer) else outputs | dict(peer(pixels))


def is_mae(peer):
    return peer.config.model_type == "vit_mae"


def patches(peer):
    return getattr(peer, peer.base_model_prefix, peer).embeddings.patch_embeddings.num_patches


def predicted(outputs):
    """What a cross-entropy is taken of: the class token where there is no head."""
    if "logits" in outputs:
        return outputs["logits"]
    return outputs["pooler_output"] if "pooler_output" in outputs else outputs["last_hidden_state"][:, 0]


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, randomised, tmp_path_factory):
    """A variant saved by transformers and loaded by us; on two batches, the outputs and every gradient of both."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peer = randomised(build(transformers, *VARIANTS[request.param])).requires_grad_(True)
    directory = tmp_path_factory.mktemp("vit")
    peer.save_pretrained(directory)
    backbone = checkpoints.load(str(directory))
    names = FAMILIES[peer.config.model_type].names(backbone.config, backbone.origin.kind)

    # Compiling takes longer than running, so it is done without optimisations.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, pixels, labels):
        def loss(params):
            outputs = apply(backbone.whole, params, {"pixel_values": pixels}, output_hidden_states=True)
            if is_mae(peer):  # whose peer has none
                del outputs["pooler_output"]
            return optax.softmax_cross_entropy_with_integer_labels(predicted(outputs), labels).mean(), outputs

        gradients, outputs = jax.grad(loss, has_aux=True)(params)
        return outputs, gradients

    rng, batches = np.random.default_rng(1), []
    for size in (3, 3):
        pixels = rng.standard_normal((size, *backbone.config.image, backbone.config.channels)).astype(np.float32)
        labels = rng.integers(0, CLASSES, size)
        peer.zero_grad()
        theirs = their_outputs(torch, peer, pixels)
        torch.nn.functional.cross_entropy(predicted(theirs), torch.from_numpy(labels)).backward()
        gradients = {}
        for name, parameter in peer.named_parameters():
            for path, layout, part in names.targets(name) if parameter.grad is not None else ():
                gradients[path] = layout.load(parameter.grad.numpy().copy())[part]
        batches.append((*run(backbone.params, pixels, labels), theirs, gradients, pixels))
    return SimpleNamespace(peer=peer, directory=directory, backbone=backbone, names=names, batches=batches)


def test_every_output_is_that_of_transformers(case):
    for ours, _, theirs, _, _ in case.batches:
        assert theirs.keys() - {"hidden_states", "reshaped_hidden_states", "mask", "ids_restore"} <= ours.keys()
        for name in ours.keys() & theirs.keys() - {"hidden_states"}:
            np.testing.assert_allclose(ours[name], theirs[name].detach(), **CLOSE, err_msg=name)


def test_hidden_states_are_the_stream_before_the_first_block_and_after_each(case):
    for ours, _, theirs, _, _ in case.batches:
        assert len(ours["hidden_states"]) == 1 + 2
        for one, other in zip(ours["hidden_states"], theirs["hidden_states"], strict=True):
            np.testing.assert_allclose(one.reshape(other.shape), other.detach(), **CLOSE)


def test_the_gradient_of_every_weight_is_that_of_transformers(case):
    for _, ours, _, theirs, _ in case.batches:
        assert ours.keys() == theirs.keys()
        for path, gradient in theirs.items():
            largest = np.abs(gradient).max()
            # A bias of the keys adds the same to all scores of a query, so its gradient is zero.
            assert largest > 1e-4 or path.endswith("key/bias"), path
            np.testing.assert_allclose(ours[path], gradient, atol=1e-3 * max(largest, 1e-3), rtol=0, err_msg=path)


def test_the_tree_in_their_names_is_the_file_to_the_bit(case):
    file = load_file(case.directory / "model.safetensors")
    prefixed = any(name.startswith(case.names.prefix) for name in file)
    written = case.names.write(case.backbone.params, case.names.prefix if prefixed else "")
    kept = {name: tensor for name, tensor in written.items() if not case.names.ignores(name)}
    assert kept.keys() == {name for name in file if not case.names.ignores(name)}
    for name, tensor in kept.items():
        assert tensor.dtype == file[name].dtype
        np.testing.assert_array_equal(tensor, file[name], err_msg=name)


def test_the_names_that_modules_have_in_memory_are_those_of_the_same_leaves(case):
    paths = [target.path for name, _ in case.peer.named_parameters() for target in case.names.targets(name)]
    assert sorted(paths) == sorted(case.backbone.params)


def test_what_is_written_out_loads_in_transformers_with_the_same_outputs(case, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    backbone, family = case.backbone, FAMILIES[case.peer.config.model_type]
    architecture = next(name for name, kind in family.heads.items() if kind == backbone.origin.kind)
    values = family.write(backbone.config) | {"architectures": [architecture]}
    values |= {"id2label": dict(enumerate(backbone.classes))} if backbone.classes else {}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(case.names.write(backbone.params), tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, info = getattr(transformers, architecture).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert again.eval().config.model_type not in ("dinov3_vit", "swin") or not info["missing_keys"]
    for _, _, theirs, _, pixels in case.batches:
        outputs = their_outputs(torch, again, pixels)
        assert outputs.keys() == theirs.keys()
        for name in theirs.keys() - {"hidden_states", "reshaped_hidden_states"}:
            np.testing.assert_allclose(outputs[name].detach(), theirs[name].detach(), atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("variant", "head", "fresh"),
    [
        ("vit pooled", "classification", ["source_head/bias", "source_head/kernel"]),
        ("registers", "classification", ["source_head/bias", "source_head/kernel"]),
        ("deit distilled", "classification", ["source_head/bias", "source_head/kernel"]),
        (
            "deit",
            "distilled",
            [f"source_head/{head}/{leaf}" for head in ("cls", "distillation") for leaf in ("bias", "kernel")],
        ),
    ],
)
def test_a_head_that_the_checkpoint_has_not_starts_at_zero_and_is_named(variant, head, fresh, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    build(transformers, *VARIANTS[variant]).save_pretrained(tmp_path)
    backbone = checkpoints.load(str(tmp_path), head=head, classes=7)
    assert sorted(backbone.fresh) == fresh
    assert "freshly initialised" in caplog.text and fresh[0] in caplog.text
    assert not any(np.asarray(backbone.params[path]).any() for path in fresh)
    assert {backbone.params[path].shape[-1] for path in fresh} == {7}


def test_what_only_masked_pre_training_needs_is_left_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {"image_size": 16, "patch_size": 8, "encoder_stride": 8, "intermediate_size": 40}
    build(transformers, "ViTForMaskedImageModeling", options).save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    backbone = checkpoints.load(str(tmp_path))
    written = FAMILIES["vit"].names(backbone.config, "").write(backbone.params, "vit.")
    assert file.keys() - written.keys() == {"vit.embeddings.mask_token", "decoder.0.weight", "decoder.0.bias"}


def test_vit_b_16_at_full_size_gives_the_logits_and_tokens_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    peer = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)).eval()
    peer.save_pretrained(tmp_path)
    backbone = checkpoints.load(str(tmp_path))
    pixels = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
    ours = backbone({"pixel_values": pixels})
    with torch.no_grad():
        theirs = their_outputs(torch, peer, pixels)
    for name in ("last_hidden_state", "logits"):
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE, err_msg=name)


@pytest.mark.parametrize("architecture", ["Dinov2Model", "Dinov2WithRegistersModel"])
@pytest.mark.parametrize("side", [24, 72])
def test_dinov2_takes_the_images_that_its_processor_gives_with_the_positions_of_transformers(
    randomised, tmp_path, architecture, side
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"image_size": 40, "patch_size": 8, "num_attention_heads": 2, "hidden_size": 16}
    peer = randomised(build(transformers, architecture, options))
    peer.save_pretrained(tmp_path)
    square = {"height": side, "width": side}
    values = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": side}, "crop_size": square}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    backbone = checkpoints.load(str(tmp_path))
    assert backbone.config.image == (side, side)
    image = np.random.default_rng(0).integers(0, 256, (1, 50, 60, 3)).astype(np.uint8)
    batch = backbone.preprocess(image)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(batch["pixel_values"]).permute(0, 3, 1, 2)).last_hidden_state
    np.testing.assert_allclose(backbone(batch)["last_hidden_state"], theirs, atol=1e-4)
