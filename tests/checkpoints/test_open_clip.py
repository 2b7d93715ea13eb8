"""A CLIP in open_clip's names gives what transformers gives for the same weights in its own."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints
from jtransfer.errors import InputError

CLOSE = {"atol": 1e-4, "rtol": 0}
RENAMED = {
    r"text_model\.embeddings\.token_embedding\.weight": "token_embedding.weight",
    r"text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"text_model\.final_layer_norm\.(\w+)": r"ln_final.\1",
    r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.weight": "visual.conv1.weight",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"vision_model\.pre_layrnorm\.(\w+)": r"visual.ln_pre.\1",
    r"vision_model\.post_layernorm\.(\w+)": r"visual.ln_post.\1",
    r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)": r"\1.\2.attn.out_proj.\3",
    r"(text|vision)_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.(\w+)": r"\1.\2.ln_\3.\4",
    r"(text|vision)_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(\w+)": r"\1.\2.mlp.c_fc.\3",
    r"(text|vision)_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(\w+)": r"\1.\2.mlp.c_proj.\3",
    r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)": r"\1.\2.attn.in_proj_\3",
    r"logit_scale": "logit_scale",
}
BLOCKS = {"text.": "transformer.resblocks.", "vision.": "visual.transformer.resblocks."}


def in_open_clip(tensors):
    """Tensors of transformers' CLIP in the names and layouts of open_clip."""
    renamed = {"text_projection": tensors["text_projection.weight"].T}
    renamed |= {"visual.proj": tensors["visual_projection.weight"].T}
    renamed |= {"attn_mask": np.triu(np.full((9, 9), -np.inf, np.float32), 1)}
    for name, x in tensors.items():
        for pattern, new in RENAMED.items():
            if re.fullmatch(pattern, name):
                new = re.sub(pattern, new, name)
                tower = new[: new.find(".") + 1]
                parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                x = np.concatenate(parts) if "q_proj" in name else x
                renamed[BLOCKS.get(tower, tower) + new.removeprefix(tower)] = x
    return {name: np.array(x, order="C") for name, x in renamed.items()}


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def checkpoint(request, tmp_path_factory):
    """A directory, a batch, and what transformers gives for it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    common = {"num_hidden_layers": 2, "hidden_act": request.param}
    vision = {"image_size": 12, "patch_size": 4, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}
    text = {"vocab_size": 50, "max_position_embeddings": 9, "hidden_size": 18, "num_attention_heads": 3}
    text |= {"intermediate_size": 30, "bos_token_id": 48, "eos_token_id": 2}
    config = transformers.CLIPConfig(vision_config=common | vision, text_config=common | text, projection_dim=10)
    torch.manual_seed(0)
    peer = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0.1, 0.3)
    directory = tmp_path_factory.mktemp("open_clip")
    save_file(in_open_clip({name: x.numpy() for name, x in peer.state_dict().items()}), directory / FILE)
    vision_cfg = {"image_size": 12, "layers": 2, "width": 24, "head_width": 6, "patch_size": 4}
    text_cfg = {"context_length": 9, "vocab_size": 50, "width": 18, "heads": 3, "layers": 2}
    model = {"embed_dim": 10, "vision_cfg": vision_cfg, "text_cfg": text_cfg, "quick_gelu": request.param != "gelu"}
    write(directory, {"model_cfg": model, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
    ids = np.array([[3, 7, 49, 0, 0], [5, 9, 11, 2, 49], [49, 4, 4, 4, 4]], np.int32)
    pixels = np.random.default_rng(5).standard_normal((2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = peer(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), input_ids=torch.from_numpy(ids).long())
    compared = ("image_embeds", "text_embeds", "logits_per_image")
    return directory, {"pixel_values": pixels, "input_ids": ids}, {name: theirs[name].numpy() for name in compared}


FILE = "open_clip_model.safetensors"


def write(directory, values):
    """The config beside the tensors."""
    (directory / "open_clip_config.json").write_text(json.dumps(values))


def test_embeddings_and_similarities_are_those_of_transformers(checkpoint):
    directory, batch, theirs = checkpoint
    ours = checkpoints.load(str(directory))(batch)
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, err_msg=name, **CLOSE)


def test_the_table_gives_the_file_back_bit_for_bit(checkpoint, assert_written_back):
    assert_written_back(checkpoint[0])


def test_the_file_can_be_named_itself_where_there_are_several(checkpoint, described, tmp_path):
    directory, _, _ = checkpoint
    for name in (FILE, "other.safetensors"):
        (tmp_path / name).write_bytes((directory / FILE).read_bytes())
    (tmp_path / "open_clip_config.json").write_text((directory / "open_clip_config.json").read_text())
    assert described(tmp_path / FILE).config == described(directory).config
    with pytest.raises(InputError, match="name the file itself"):
        described(tmp_path)


def test_text_under_a_prefix_averaged_patches_and_another_end_of_text_are_read(checkpoint, described, tmp_path):
    directory, _, _ = checkpoint
    tensors = {name: x.read() for name, x in described(directory).tensors.items()}
    texts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")
    tensors = {f"text.{name}" if name.startswith(texts) else name: x for name, x in tensors.items()}
    save_file(tensors | {"logit_bias": np.array(-3, np.float32)}, tmp_path / FILE)
    values = json.loads((directory / "open_clip_config.json").read_text())
    values["model_cfg"]["vision_cfg"] |= {"pool_type": "avg", "act_kwargs": {"approximate": "tanh"}}
    values["model_cfg"]["text_cfg"] |= {"pool_type": "eos", "eos_id": 5, "no_causal_mask": True}
    values["model_cfg"]["text_cfg"] |= {"norm_kwargs": {"eps": 1e-3}}
    write(tmp_path, values)
    backbone = checkpoints.load(str(tmp_path), sharding="host")
    vision, text = backbone.config.vision, backbone.config.text
    assert (vision.pool, vision.norm_pooled, text.pool, text.eos_token) == ("patches", False, "eos", 5)
    assert (text.causal, text.epsilon, vision.epsilon) == (False, 1e-3, 1e-5)
    assert backbone.params["logit_bias"] == -3
    np.testing.assert_array_equal(backbone.params["text/embeddings/positions"][0], tensors["text.positional_embedding"])


def test_preprocessing_is_that_of_open_clip_for_inference(checkpoint, described):
    found = described(checkpoint[0]).origin.values["preprocessor"]
    assert found["size"] == {"shortest_edge": 12} and found["crop_size"] == 12
    assert found["resample"] == 3 and found["image_mean"] == [0.1, 0.2, 0.3] and found["image_std"][0] == 0.26862954


@pytest.mark.parametrize(
    ("tower", "options", "said"),
    [
        (
            "vision_cfg",
            {"timm_model_name": "vit_base_patch16_siglip_224"},
            "'timm_model_name', that is a tower of timm",
        ),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "'hf_model_name', that is a tower of transformers"),
        ("vision_cfg", {"attentional_pool": True}, "'attentional_pool', that is CoCa"),
        ("text_cfg", {"qk_norm": True}, "text_cfg has 'qk_norm', which is not supported"),
        ("text_cfg", {"pool_type": "argmin"}, "pool_type 'argmin'; did you mean 'argmax'"),
        ("vision_cfg", {"image_size": 16}, "is not of \\[16, 16\\] pixels in patches of 4x4"),
    ],
)
def test_another_kind_of_model_is_refused_by_what_tells_it(tower, options, said, checkpoint, tmp_path):
    directory, _, _ = checkpoint
    (tmp_path / FILE).write_bytes((directory / FILE).read_bytes())
    values = json.loads((directory / "open_clip_config.json").read_text())
    values["model_cfg"][tower] |= options
    write(tmp_path, values)
    with pytest.raises(InputError, match=said) as error:
        checkpoints.load(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_without_its_config_it_is_refused(checkpoint, tmp_path):
    (tmp_path / FILE).write_bytes((checkpoint[0] / FILE).read_bytes())
    with pytest.raises(InputError, match=r"open_clip_config\.json is missing"):
        checkpoints.load(str(tmp_path))
