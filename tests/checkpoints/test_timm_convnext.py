"""A ConvNeXt in timm's names gives timm's logits. timm's forward pass stands here written anew, on its tensors."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints
from jtransfer.checkpoints import export
from jtransfer.errors import InputError
from jtransfer.models import ConvNextConfig

CLOSE = {"atol": 1e-4, "rtol": 0}
CLASSES, IMAGE, DEPTHS, WIDTHS = 5, (19, 27), (1, 2), (6, 8)
VARIANTS = {
    "convnext_tiny": {},
    "convnext_nano": {"conv_mlp": True},
    "convnext_xxlarge": {"epsilon": 1e-5},
    "test_convnext": {"epsilon": 1e-5, "approximate": "tanh"},
    "convnextv2_tiny": {"grn": (-1,)},
    "convnextv2_nano": {"grn": (1, -1, 1, 1), "conv_mlp": True},
    "convnextv2_base": {"grn": (1, 1, 1, -1)},
}


def shapes_of(conv_mlp=False, grn=(), **_):
    """Shapes of the tensors of a ConvNeXt in timm's names; those of `grn` have `-1` for the channels."""
    kernels = {"stem.0": (WIDTHS[0], 3, 4, 4), "stages.1.downsample.1": (WIDTHS[1], WIDTHS[0], 2, 2)}
    norms = {"stem.1": WIDTHS[0], "stages.1.downsample.0": WIDTHS[0], "head.norm": WIDTHS[1]}
    shapes, ones = {}, (1, 1) if conv_mlp else ()
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        for block in (f"stages.{stage}.blocks.{i}" for i in range(depth)):
            kernels[f"{block}.conv_dw"], norms[f"{block}.norm"] = (width, 1, 7, 7), width
            kernels[f"{block}.mlp.fc1"] = (4 * width, width, *ones)
            kernels[f"{block}.mlp.fc2"] = (width, 4 * width, *ones)
            if grn:
                vector = tuple(4 * width if side == -1 else side for side in grn)
                shapes |= {f"{block}.mlp.grn.weight": vector, f"{block}.mlp.grn.bias": vector}
            else:
                shapes[f"{block}.gamma"] = (width,)
    kernels["head.fc"] = (CLASSES, WIDTHS[1])
    shapes |= {f"{name}.weight": shape for name, shape in kernels.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in kernels.items()}
    return shapes | {f"{name}.{end}": (width,) for name, width in norms.items() for end in ("weight", "bias")}


def timm_forward(tensors, images, conv_mlp=False, grn=(), epsilon=1e-6, approximate="none"):
    """Images `[batch, height, width, 3]` to logits, as `timm.models.ConvNeXt` goes about it, channels last."""
    torch = pytest.importorskip("torch")
    f, t = torch.nn.functional, {name: torch.from_numpy(x) for name, x in tensors.items()}

    def conv(name, x, **options):
        return f.conv2d(x.permute(0, 3, 1, 2), t[f"{name}.weight"], t[f"{name}.bias"], **options).permute(0, 2, 3, 1)

    def norm(name, x):
        return f.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], epsilon)

    def linear(name, x):
        return f.linear(x, t[f"{name}.weight"].flatten(1), t[f"{name}.bias"])

    x = norm("stem.1", conv("stem.0", torch.from_numpy(images), stride=4))
    for stage, depth in enumerate(DEPTHS):
        if stage:
            x = conv(f"stages.{stage}.downsample.1", norm(f"stages.{stage}.downsample.0", x), stride=2)
        for block in (f"stages.{stage}.blocks.{i}" for i in range(depth)):
            y = norm(f"{block}.norm", conv(f"{block}.conv_dw", x, padding=3, groups=x.shape[-1]))
            y = f.gelu(linear(f"{block}.mlp.fc1", y), approximate=approximate)
            if grn:
                length = y.norm(dim=(1, 2), keepdim=True)
                scale = t[f"{block}.mlp.grn.weight"].flatten() * length / (length.mean(-1, keepdim=True) + 1e-6)
                y = t[f"{block}.mlp.grn.bias"].flatten() + (scale + 1) * y
            x = x + linear(f"{block}.mlp.fc2", y) * t.get(f"{block}.gamma", 1)
    return linear("head.fc", norm("head.norm", x.mean((1, 2)))).numpy()


def write(directory, tensors, **values):
    """A checkpoint as timm saves it."""
    save_file(tensors, directory / "model.safetensors")
    described = {"architecture": "convnext_tiny", "num_classes": CLASSES, "pretrained_cfg": {"input_size": [3, *IMAGE]}}
    (directory / "config.json").write_text(json.dumps(described | {"global_pool": "avg"} | values))


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request, random_like, tmp_path_factory):
    """A directory, the name of its architecture, images, and the logits of timm's forward pass."""
    options, directory = VARIANTS[request.param], tmp_path_factory.mktemp("timm")
    tensors = random_like(shapes_of(**options))
    batch = np.random.default_rng(5).standard_normal((2, *IMAGE, 3)).astype(np.float32)
    write(directory, tensors, architecture=request.param)
    return directory, request.param, batch, timm_forward(tensors, batch, **options)


def test_logits_are_those_of_timm(checkpoint):
    directory, _, batch, logits = checkpoint
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(checkpoints.load(str(directory))({"pixel_values": batch})["logits"], logits, **CLOSE)


def test_the_table_gives_the_file_back_bit_for_bit(checkpoint, assert_written_back):
    assert_written_back(checkpoint[0])


def test_it_leaves_for_the_class_of_transformers_that_computes_it_or_none_does(checkpoint, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory, architecture, batch, logits = checkpoint
    backbone = checkpoints.load(str(directory))
    if "epsilon" in VARIANTS[architecture]:
        with pytest.raises(InputError, match="inner_epsilon=1e-05 cannot be written as model_type 'convnext'"):
            export.to_huggingface(tmp_path / "theirs", backbone)
        return
    export.to_huggingface(tmp_path / "theirs", backbone)
    peer = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    assert peer.config.model_type == architecture.split("_")[0]
    with torch.no_grad():
        theirs = peer(torch.from_numpy(batch).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(theirs, logits, **CLOSE)
    expected = checkpoints.load(str(tmp_path / "theirs")).config
    assert expected == backbone.config and isinstance(expected, ConvNextConfig)


def test_what_no_shape_tells_can_be_among_the_arguments_and_preprocessing_is_timms(tmp_path, random_like):
    own = {"input_size": [3, 16, 16], "crop_pct": 0.95, "mean": [0.1, 0.2, 0.3]}
    args = {
        "norm_eps": 1e-3,
        "act_layer": "silu",
        "drop_path_rate": 0.1,
        "stem_type": "patch",
        "head_hidden_size": None,
    }
    write(tmp_path, random_like(shapes_of()), model_args=args, pretrained_cfg=own, label_names=list("abcde"))
    backbone = checkpoints.load(str(tmp_path), sharding="host")
    options = {"activation": "silu", "epsilon": 1e-3, "inner_epsilon": 1e-3, "drop_path": 0.1}
    expected = ConvNextConfig((16, 16), widths=WIDTHS, depths=DEPTHS, **options)
    assert backbone.config == expected and backbone.classes == tuple("abcde")
    values = backbone.origin.values["preprocessor"]
    assert (values["size"], values["crop_size"], values["resample"]) == ({"shortest_edge": 16}, 16, 3)
    assert values["image_mean"] == [0.1, 0.2, 0.3] and values["image_std"][0] == 0.229


def test_without_pretrained_cfg_the_network_loads_for_224_pixels_and_only_preprocessing_is_refused(
    tmp_path, random_like
):
    write(tmp_path, random_like(shapes_of()), pretrained_cfg=None)
    backbone = checkpoints.load(str(tmp_path), classes=3, sharding="host")
    assert backbone.config.image == (224, 224) and backbone.params["source_head/kernel"].shape == (WIDTHS[1], 3)
    with pytest.raises(InputError, match="config.json: pretrained_cfg, which says how images .* is not there"):
        _ = backbone.preprocess


@pytest.mark.parametrize(
    ("values", "shapes", "said"),
    [
        ({"architecture": "edgenext_small"}, {}, "architecture is 'edgenext_small'; expected convnext_"),
        ({"model_args": {"stem_type": "overlap"}}, {}, "stem_type is 'overlap'; only 'patch' is supported"),
        ({"model_args": {"output_stride": 16}}, {}, "output_stride is 16; only 32 is supported"),
        ({"model_args": {"head_hidden_size": 9}}, {}, "head_hidden_size is 9; it is not supported"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, {}, "norm_layer is 'rmsnorm'; only 'layernorm' is supported"),
        ({"model_args": {"qk_norm": True}}, {}, "model_args: 'qk_norm' means a network that is none of ours"),
        ({"model_args": {"act_layer": "gelo"}}, {}, "unknown act_layer 'gelo'; did you mean 'gelu'"),
        ({"model_args": {"norm_eps": "tiny"}}, {}, "norm_eps is 'tiny'; expected a number"),
        ({"global_pool": "max"}, {}, "global_pool is 'max'; only 'avg' is supported"),
        ({"pretrained_cfg": {"input_size": [3, 7, 7]}}, {}, "images of 7x7 are too small"),
        ({}, {"stem.2.weight": (6,)}, "'stem.2.weight' is there, which means timm's stem_type"),
        ({}, {"norm_pre.weight": (8,)}, "'norm_pre.weight' is there, which means timm's head_norm_first"),
        ({}, {"head.pre_logits.fc.weight": (8, 8)}, "which means timm's head_hidden_size"),
        ({}, {"stem.0.bias": None}, "'stem.0.bias' is missing, which means timm's conv_bias"),
        ({}, {"stem.1.bias": None}, "'stem.1.bias' is missing, which means timm's norm_layer"),
        ({}, {"stages.1.blocks.0.conv_dw.weight": (8, 1, 5, 5)}, "of timm's kernel_sizes only 7 is supported"),
        ({}, {"stem.0.weight": (6,)}, "describe no model together"),
        ({}, {"head.norm.weight": None}, "'head.norm.weight' is missing for norm/scale"),
        ({}, {"stages.0.blocks.0.extra.weight": (6,)}, "'stages.0.blocks.0.extra.weight' belongs to no leaf"),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused_by_what_tells_it(values, shapes, said, tmp_path):
    shapes = {name: shape for name, shape in (shapes_of() | shapes).items() if shape}
    write(tmp_path, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, **values)
    with pytest.raises(InputError, match=said) as error:
        checkpoints.load(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
