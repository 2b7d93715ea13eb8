"""Swin V1 and DINOv3 in timm's names give the outputs of transformers, whose weights the file has in timm's layout.

timm is not needed. On random weights and images, what timm 1.0.31 itself gave was this to 5e-6, of the largest state
and in logits: swin_tiny_patch4_window7_224, swin_small_patch4_window7_224, swin_base_patch4_window12_384,
vit_small_patch16_dinov3, vit_small_plus_patch16_dinov3_qkvb, vit_tiny_patch16_dinov3_qkvb (by the class token).
"""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jtransfer as jt
from jtransfer.checkpoints import export
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
CLASSES = 5
TINY = {"patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
DINOV3 = TINY | {"image_size": 12, "num_register_tokens": 2, "query_bias": False, "value_bias": False}
SWIN = {"image_size": 44, "patch_size": 4, "embed_dim": 6, "depths": [2, 1], "num_heads": [1, 3], "window_size": 3}
DINOV3_NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.patch_embeddings", "patch_embed.proj"),
    (r"(model\.)?layer\.", "blocks."),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.([qv])_proj\.bias", r"attn.\1_bias"),
    (r"attention\.([qkv])_proj", r"attn.\1"),
    (r"layer_scale(\d)\.lambda1", r"gamma_\1"),
    (r"up_proj", "fc1"),
    (r"down_proj", "fc2"),
)
GATED_NAMES = ((r"gate_proj", "fc1_g"), (r"up_proj", "fc1_x"))
SWIN_NAMES = (
    (r"swin\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"swin\.embeddings\.norm", "patch_embed.norm"),
    (r"swin\.encoder\.layers", "layers"),
    (r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.(self\.|relative_position_bias\.)?relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.(self\.query|q_proj)", "attn.q"),
    (r"attention\.(self\.key|k_proj)", "attn.k"),
    (r"attention\.(self\.value|v_proj)", "attn.v"),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"swin\.layernorm", "norm"),
    (r"classifier", "head.fc"),
)


def renamed(state, names):
    """Tensors of transformers as timm has them: other names, and queries, keys and values in one."""
    found = {}
    for name, x in state.items():
        for pattern, other in names:
            name = re.sub(pattern, other, name)
        found[name] = x.numpy()
    for name in [name for name in found if re.search(r"attn\.q\.", name)]:
        parts = [found.pop(name.replace("attn.q.", f"attn.{part}.")) for part in "qkv"]
        found[name.replace("attn.q.", "attn.qkv.")] = np.concatenate(parts)
    return {name: x for name, x in found.items() if "mask_token" not in name}


def make(case, randomised):
    """A model of transformers, its tensors in timm's names, and timm's config."""
    if case == "swin":
        peer = randomised(transformers.SwinForImageClassification(transformers.SwinConfig(**SWIN, num_labels=CLASSES)))
        return peer, renamed(peer.state_dict(), SWIN_NAMES), {"architecture": "swin_tiny_patch4_window7_224"}
    options = {"query_bias": True, "value_bias": True, "use_gated_mlp": True, "hidden_act": "silu"}
    options = options if case == "gated" else {}
    peer = randomised(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**DINOV3 | options)))
    tensors = renamed(peer.state_dict(), (*(GATED_NAMES if options else ()), *DINOV3_NAMES))
    rng = np.random.default_rng(2)
    tensors |= {"head.weight": rng.normal(size=(CLASSES, 16)).astype("f"), "head.bias": np.ones(CLASSES, "f")}
    values = {"architecture": "vit_small_plus_patch16_dinov3_qkvb" if options else "vit_small_patch16_dinov3"}
    return peer, tensors, values | {"model_args": {"num_heads": 2, "num_classes": CLASSES}}


@pytest.fixture(scope="module", params=["swin", "dinov3", "gated"])
def checkpoint(request, randomised, tmp_path_factory):
    """A directory in timm's layout, and the model of transformers that it is of."""
    directory = tmp_path_factory.mktemp(request.param)
    peer, tensors, values = make(request.param, randomised)
    save_file(tensors, directory / "model.safetensors")
    side = peer.config.image_size
    values |= {"global_pool": "avg", "pretrained_cfg": {"input_size": [3, side, side]}}
    (directory / "config.json").write_text(json.dumps(values))
    return directory, peer


def pixels(side):
    return np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)


def test_outputs_are_those_of_the_weights_in_transformers_and_the_head_reads_what_timm_pools(checkpoint):
    directory, peer = checkpoint
    backbone, images = jt.load(str(directory)), pixels(peer.config.image_size)
    with torch.no_grad():
        expected = peer(torch.from_numpy(images).permute(0, 3, 1, 2))
    outputs = backbone({"pixel_values": images})
    if "swin" in directory.name:
        np.testing.assert_allclose(outputs["logits"], expected.logits, **CLOSE)
        return
    states, head = expected.last_hidden_state.numpy(), backbone.params["source_head/kernel"]
    np.testing.assert_allclose(outputs["last_hidden_state"], states, **CLOSE)
    np.testing.assert_allclose(outputs["features"], states[:, 0], **CLOSE)
    np.testing.assert_allclose(outputs["logits"], states[:, 3:].mean(1) @ head + 1, **CLOSE)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"global_pool": "token"}))
    assert jt.load(str(directory), sharding="host").head.reads == "features"


def test_the_table_gives_the_file_back_to_the_bit_and_transformers_reads_the_export(checkpoint, tmp_path):
    directory, peer = checkpoint
    export.to_huggingface(tmp_path, jt.load(str(directory), head=None if "swin" in directory.name else ""))
    again, expected = type(peer).from_pretrained(tmp_path).state_dict(), peer.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], x) for name, x in expected.items() if "mask_token" not in name)


def test_it_is_written_back_to_the_bit(checkpoint, assert_written_back):
    assert_written_back(checkpoint[0])


SWIN_CASES = [
    ({"architecture": "swinv2_tiny_window8_256"}, {}, "architecture is 'swinv2_tiny_window8_256'; expected swin_*"),
    ({"model_args": {"head_dim": 4}}, {}, "head_dim is 4; it is not supported"),
    ({"model_args": {"always_partition": True}}, {}, "always_partition is True; only False is supported"),
    ({"model_args": {"qk_norm": True}}, {}, "model_args: 'qk_norm' means a network that is none of ours"),
    ({"global_pool": "max"}, {}, "global_pool is 'max'; only 'avg' is supported"),
    ({}, {"layers.1.blocks.0.attn.relative_position_bias_table": (25, 2)}, "of timm's window_size only one square"),
    ({}, {"layers.0.blocks.0.attn.relative_position_bias_table": (15, 2)}, "of timm's window_size only one square"),
    ({"pretrained_cfg": {"input_size": [3, 16, 8]}}, {}, "[4, 2] patches in stage 0, where timm shifts windows of 2"),
    ({}, {"layers.0.blocks.0.attn.q_norm.weight": (4,)}, "'layers.0.blocks.0.attn.q_norm.weight' belongs to no leaf"),
]
DINOV3_CASES = [
    ({"architecture": "vit_small_patch16_lingbot"}, {}, "'vit_small_patch16_lingbot'; expected vit_*_dinov3"),
    ({"model_args": {"rope_type": "mixed"}}, {}, "rope_type is 'mixed'; only 'dinov3' is supported"),
    ({"model_args": {"qkv_fused": False}}, {}, "qkv_fused is False; only True is supported"),
    ({"model_args": {"scale_mlp": True}}, {}, "model_args: 'scale_mlp' means a network that is none of ours"),
    ({"global_pool": "map"}, {}, "global_pool is 'map'; only 'avg' is supported"),
    ({"model_args": {"num_heads": 3}}, {}, "width 8 is not a multiple of 4 x heads 3"),
    ({}, {"reg_token": (1, 2, 7)}, "'reg_token' has shape [1, 2, 7]"),
    ({}, {"pos_embed": (1, 4, 8)}, "'pos_embed' belongs to no leaf"),
]


@pytest.mark.parametrize(
    ("architecture", "values", "shapes", "said"),
    [("swin", *case) for case in SWIN_CASES] + [("dinov3_vit", *case) for case in DINOV3_CASES],
)
def test_a_network_that_ours_cannot_be_is_refused_by_what_tells_it(
    architecture, values, shapes, said, write_checkpoint, tmp_path
):
    write_checkpoint(tmp_path, "timm", architecture)
    own = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | values))
    tensors = load_file(tmp_path / "model.safetensors") | {name: np.ones(x, "f") for name, x in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path))
    line = str(refused.value)
    assert said in line and "\n" not in line and line.startswith(str(tmp_path))
