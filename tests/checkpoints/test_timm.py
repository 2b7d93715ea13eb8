"""A ViT in timm's names gives timm's logits. timm's forward pass stands here written anew, on its tensors.

timm is not needed. Models of timm 1.0.31 itself, of each of these variants, loaded with logits equal to 1e-5.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints
from jtransfer.errors import InputError

CLOSE = {"atol": 1e-4, "rtol": 0}
WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 24, 2, 4, 40, 5
PATCH, IMAGE = 4, (12, 16)

CLS = ("cls_token", "patch_embed", "norm.", "head.")
AVERAGED = ("patch_embed", "norm.", "head.")
VARIANTS = {
    "a class token": ({"has": CLS}, {}),
    "no bias on queries, and pre-logits": ({"has": (*CLS, "pre_logits"), "bias": False}, {}),
    "distilled": ({"has": (*CLS, "dist_token", "head_dist"), "placed": 2}, {"pool": "distilled"}),
    "DeiT III": ({"has": (*CLS, "ls"), "placed": 0}, {}),
    "DINOv2 with registers": (
        {"has": (*CLS, "ls", "reg_token"), "placed": 0, "registers": 3, "gated": True},
        {"gated": True},
    ),
    "averaged": ({"has": AVERAGED, "placed": 0}, {"pool": "avg"}),
    "averaged beside registers": (
        {"has": ("patch_embed", "fc_norm", "head.", "reg_token"), "placed": 0, "registers": 2},
        {"pool": "avg"},
    ),
    "MAE fine-tuned": ({"has": ("cls_token", "patch_embed", "fc_norm", "head.")}, {"pool": "avg"}),
    "attention pooling": ({"has": (*AVERAGED, "attn_pool"), "placed": 0}, {"pool": "map"}),
    "the tower of CLIP": ({"has": ("cls_token", "norm_pre", "norm.", "head.")}, {"epsilon": 1e-5}),
}


def shapes_of(has, width=WIDTH, image=IMAGE, placed=1, registers=0, bias=True, gated=False):
    """Shapes of the tensors of a ViT in timm's names.

    Args:
        has: Beginnings of names that not all ViTs have.
        placed: Tokens before the patches that have a position.
        registers: Their number.
        bias: Whether query, key and value have one.
        gated: Whether the first layer of the MLP is two in one.
    """
    places = placed + image[0] * image[1] // PATCH**2
    shapes = {"pos_embed": (1, places, width), "patch_embed.proj.weight": (width, 3, PATCH, PATCH)}
    shapes |= {"cls_token": (1, 1, width), "dist_token": (1, 1, width), "reg_token": (1, registers, width)}
    shapes |= {"patch_embed.proj.bias": (width,), "attn_pool.latent": (1, 1, width)}
    dense = {"head": (CLASSES, width), "head_dist": (CLASSES, width), "pre_logits.fc": (width, width)}
    dense |= {"attn_pool.q": (width, width), "attn_pool.kv": (2 * width, width), "attn_pool.proj": (width, width)}
    dense |= {"attn_pool.mlp.fc1": (HIDDEN, width), "attn_pool.mlp.fc2": (width, HIDDEN)}
    norms = ["norm_pre", "norm", "fc_norm", "attn_pool.norm"]
    for b in (f"blocks.{i}" for i in range(DEPTH)):
        norms += [f"{b}.norm1", f"{b}.norm2"]
        dense |= {f"{b}.attn.qkv": (3 * width, width), f"{b}.attn.proj": (width, width)}
        dense |= {f"{b}.mlp.fc1": ((1 + gated) * HIDDEN, width), f"{b}.mlp.fc2": (width, HIDDEN)}
        shapes |= {f"{b}.ls1.gamma": (width,), f"{b}.ls2.gamma": (width,)} if "ls" in has else {}
    shapes |= {f"{name}.{end}": (width,) for name in norms for end in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items() if bias or "qkv" not in name}
    always = ("pos_embed", "patch_embed.proj.weight", "blocks.")
    return {name: shape for name, shape in shapes.items() if name.startswith((*always, *has))}


def timm_forward(tensors, images, pool="token", epsilon=1e-6, gated=False):
    """Images `[batch, height, width, 3]` to logits, as `timm.models.VisionTransformer` goes about it."""
    torch = pytest.importorskip("torch")
    f, t = torch.nn.functional, {name: torch.from_numpy(x) for name, x in tensors.items()}

    def linear(name, x):
        return f.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))

    def norm(name, x):
        return f.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], epsilon)

    def attend(*parts):
        query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in parts)
        return f.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = f.conv2d(x, t["patch_embed.proj.weight"], t.get("patch_embed.proj.bias"), PATCH).flatten(2).transpose(1, 2)
    first = [t[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token", "reg_token") if name in t]
    if t["pos_embed"].shape[1] == x.shape[1]:
        x = torch.cat([*first, x + t["pos_embed"]], 1)
    else:
        x = torch.cat([*first, x], 1) + t["pos_embed"]
    x = norm("norm_pre", x) if "norm_pre.weight" in t else x
    for b in (f"blocks.{i}" for i in range(DEPTH)):
        y = attend(*linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x)).chunk(3, -1))
        x = x + linear(f"{b}.attn.proj", y) * t.get(f"{b}.ls1.gamma", 1)
        y = linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x))
        y = f.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1] if gated else f.gelu(y)
        x = x + linear(f"{b}.mlp.fc2", y) * t.get(f"{b}.ls2.gamma", 1)
    x = norm("norm", x) if "norm.weight" in t else x
    if pool == "distilled":
        return ((linear("head", x[:, 0]) + linear("head_dist", x[:, 1])) / 2).numpy()
    if pool == "map":
        query = linear("attn_pool.q", t["attn_pool.latent"].expand(len(x), -1, -1))
        y = linear("attn_pool.proj", attend(query, *linear("attn_pool.kv", x).chunk(2, -1)))
        x = (y + linear("attn_pool.mlp.fc2", f.gelu(linear("attn_pool.mlp.fc1", norm("attn_pool.norm", y)))))[:, 0]
    else:
        x = x[:, 0] if pool == "token" else x[:, sum(part.shape[1] for part in first) :].mean(1)
    x = norm("fc_norm", x) if "fc_norm.weight" in t else x
    x = torch.tanh(linear("pre_logits.fc", x)) if "pre_logits.fc.weight" in t else x
    return linear("head", x).numpy()


@pytest.fixture(scope="module", params=VARIANTS, ids=[name.replace(" ", "-") for name in VARIANTS])
def checkpoint(request, random_like, tmp_path_factory):
    """A directory, images, and the logits of timm's forward pass."""
    options, forward = VARIANTS[request.param]
    tensors, directory = random_like(shapes_of(**options)), tmp_path_factory.mktemp("timm")
    batch = np.random.default_rng(5).standard_normal((2, *IMAGE, 3)).astype(np.float32)
    values = {"architecture": "vit_tiny_patch4_clip_12" if "epsilon" in forward else "vit_tiny_patch4_12"}
    values |= {"num_classes": CLASSES, "global_pool": forward.get("pool", "token").replace("distilled", "token")}
    values |= {"pretrained_cfg": {"input_size": [3, *IMAGE]}, "model_args": {"num_heads": HEADS}}
    write(directory, tensors, values)
    return directory, batch, timm_forward(tensors, batch, **forward)


def write(directory, tensors, values):
    """A checkpoint as timm saves it."""
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(values))


def test_logits_are_those_of_timm(checkpoint):
    directory, batch, logits = checkpoint
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(checkpoints.load(str(directory))({"pixel_values": batch})["logits"], logits, **CLOSE)


def test_the_table_gives_the_file_back_bit_for_bit(checkpoint, assert_written_back):
    assert_written_back(checkpoint[0])


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (384, 6), (1152, 16), (1408, 16), (1536, 24)])
def test_a_file_alone_has_the_usual_number_of_heads_and_says_so(width, heads, tmp_path, described, caplog):
    shapes = shapes_of(CLS, width, image=(12, 12))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "vit.safetensors")
    with caplog.at_level("WARNING", "jtransfer"):
        config = described(tmp_path / "vit.safetensors").config
    assert (config.heads, config.image) == (heads, (12, 12))
    assert f"{heads} heads are taken for width {width}" in caplog.text


def test_an_architecture_with_an_unusual_number_of_heads_is_known_by_its_name(tmp_path, described, caplog):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(AVERAGED, 768, placed=0).items()}
    values = {"architecture": "vit_base_patch16_gap_224", "pretrained_cfg": {"input_size": [3, *IMAGE]}}
    write(tmp_path, tensors, values)
    with caplog.at_level("WARNING", "jtransfer"):
        assert described(tmp_path).config.heads == 16
    assert not caplog.text


def test_a_class_token_without_position_can_not_be_written_where_it_has_learned_one(tmp_path, random_like, described):
    write(tmp_path, random_like(shapes_of(CLS, placed=0)), {"model_args": {"num_heads": 4, "img_size": list(IMAGE)}})
    params, names = checkpoints.load(str(tmp_path), sharding="host").params, described(tmp_path).names
    assert not np.any(params["embeddings/positions"][:, :1])
    with pytest.raises(InputError, match="no positions of class tokens"):
        names.write(params | {"embeddings/positions": params["embeddings/positions"] + 1})


def test_preprocessing_is_that_of_timm_for_evaluation(tmp_path, described):
    own = {"input_size": [3, 12, 12], "interpolation": "bilinear", "crop_pct": 0.9, "mean": [0.1, 0.2, 0.3]}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(CLS, image=(12, 12)).items()}
    for mode, size in (("center", {"shortest_edge": 13}), ("squash", {"height": 13, "width": 13})):
        write(tmp_path, tensors, {"model_args": {"num_heads": 4}, "pretrained_cfg": own | {"crop_mode": mode}})
        found = described(tmp_path).origin.values["preprocessor"]
        assert found["size"] == size and found["crop_size"] == 12
        assert found["resample"] == 2 and found["image_mean"] == [0.1, 0.2, 0.3] and found["image_std"][0] == 0.229


@pytest.mark.parametrize(
    ("values", "shapes", "said"),
    [
        ({"architecture": "vit_base_patch16_siglip_224"}, {}, "SigLIP's image tower"),
        ({"architecture": "vit_base_patch16_rpn_224"}, {}, "norms behind its branches"),
        ({"model_args": {"qk_norm": True}}, {}, "'qk_norm' means a network that is none of ours"),
        ({"model_args": {"act_layer": "gelo"}}, {}, "unknown act_layer 'gelo'; did you mean 'gelu'"),
        ({"global_pool": "max"}, {}, "global_pool 'max' is not supported"),
        ({"model_args": {"num_heads": 5}}, {}, "width 64 is not a multiple of heads 5"),
        ({}, {"patch_embed.proj.weight": (40, 3, 4, 4)}, "no shape tells the heads of width 40"),
        ({}, {"norm_pre.weight": (64,)}, "does not tell its activation"),
        ({}, {"pos_embed": (1, 12, 64)}, "has 12 positions"),
        ({}, {"patch_embed.proj.weight": (64, 3, 4, 2)}, "expected square ones"),
        ({}, {"blocks.0.attn.qkv.weight": None}, "only plain ViTs load"),
        ({}, {"blocks.0.attn.q_norm.weight": (6,)}, "'blocks.0.attn.q_norm.weight' belongs to no leaf"),
        ({}, {"norm.weight": None}, "'norm.weight' is missing for encoder/norm/scale"),
    ],
)
def test_a_vit_that_ours_cannot_be_is_refused_by_what_tells_it(values, shapes, said, tmp_path):
    shapes = {name: shape for name, shape in (shapes_of(CLS, 64, image=(12, 12)) | shapes).items() if shape}
    write(tmp_path, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, values)
    with pytest.raises(InputError, match=said) as error:
        checkpoints.load(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
