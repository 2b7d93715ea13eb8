"""What the tests of checkpoints in other layouts share."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints
from jtransfer.checkpoints import hub, layouts
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.models import ConvNextConfig, Head, Headed, ResNetConfig, SwinConfig, ViTConfig, of_config, shapes_of


@pytest.fixture(scope="session")
def random_like():
    """`make(shapes)`: float32 arrays away from every initial value, so that nothing is hidden by zeros and ones."""

    def make(shapes):
        rng = np.random.default_rng(0)
        return {name: rng.normal(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}

    return make


@pytest.fixture(scope="session")
def described():
    """`read(path)`: a checkpoint with its config read and no tensor yet."""
    return lambda path: layouts.read(hub.find(str(path)), "", None, None)


@pytest.fixture(scope="session")
def assert_written_back(described):
    """`check(path)`: from the loaded tree, the table of a layout makes the tensors of the file, to the bit."""

    def check(path, but=()):
        source = described(path)
        theirs = {name: x.read() for name, x in source.tensors.items() if not source.names.ignores(name)}
        ours = source.names.write(checkpoints.load(str(path), sharding="host").params)
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - set(but):
            assert ours[name].shape == theirs[name].shape and ours[name].tobytes() == theirs[name].tobytes(), name

    return check


SMALL = {"image": (16, 16), "widths": (4, 8), "depths": (1, 1)}
CONFIGS = {
    "vit": ViTConfig(image=(8, 8), patch=4, width=8, depth=2, heads=2, hidden=16),
    "convnext": ConvNextConfig(**SMALL),
    "efficientnet": FAMILIES["efficientnet"].read({"image_size": 64, "depth_coefficient": 0.1}, {}),
    "mobilenet_v2": FAMILIES["mobilenet_v2"].read({"image_size": 16, "depth_multiplier": 0.5}, {}),
    "resnet": ResNetConfig(**SMALL, stem=4),
    "swin": SwinConfig(image=(16, 16), width=4, depths=(1, 1), heads=(2, 2), window=2),
}
"""By the model type of Hugging Face in which a small checkpoint is written."""


def _dense(**sizes):
    return {f"{name}.weight": size for name, size in sizes.items()} | {f"{n}.bias": s[:1] for n, s in sizes.items()}


def _in_timm():
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "norm.weight": (8,), "norm.bias": (8,)}
    shapes |= _dense(**{"patch_embed.proj": (8, 3, 4, 4), "head": (3, 8)})
    for b in ("blocks.0.", "blocks.1."):
        shapes |= {f"{b}{norm}.{end}": (8,) for norm in ("norm1", "norm2") for end in ("weight", "bias")}
        layers = {"attn.qkv": (24, 8), "attn.proj": (8, 8), "mlp.fc1": (16, 8), "mlp.fc2": (8, 16)}
        shapes |= _dense(**{b + name: size for name, size in layers.items()})
    return shapes, {
        "architecture": "vit_tiny_patch4_8",
        "model_args": {"num_heads": 2},
        "pretrained_cfg": {"input_size": [3, 8, 8]},
    }


def _in_open_clip():
    shapes = {"visual.class_embedding": (8,), "visual.positional_embedding": (5, 8), "visual.proj": (8, 6)}
    shapes |= {"visual.conv1.weight": (8, 3, 4, 4), "token_embedding.weight": (20, 8), "positional_embedding": (7, 8)}
    shapes |= {"text_projection": (8, 6), "logit_scale": ()}
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
    for b in (f"{tower}transformer.resblocks.{i}." for tower in ("", "visual.") for i in (0, 1)):
        norms += [f"{b}ln_1", f"{b}ln_2"]
        shapes |= {f"{b}attn.in_proj_weight": (24, 8), f"{b}attn.in_proj_bias": (24,)}
        layers = {"attn.out_proj": (8, 8), "mlp.c_fc": (16, 8), "mlp.c_proj": (8, 16)}
        shapes |= _dense(**{b + name: size for name, size in layers.items()})
    shapes |= {f"{norm}.{end}": (8,) for norm in norms for end in ("weight", "bias")}
    vision = {"head_width": 4, "patch_size": 4, "image_size": 8}
    return shapes, {"model_cfg": {"embed_dim": 6, "vision_cfg": vision, "text_cfg": {"heads": 2}}}


def _in_npz():
    shapes = {"cls": (1, 1, 8), "embedding/kernel": (4, 4, 3, 8), "embedding/bias": (8,)}
    shapes |= {"Transformer/posembed_input/pos_embedding": (1, 5, 8), "head/kernel": (8, 3), "head/bias": (3,)}
    norms = ["Transformer/encoder_norm"]
    for b in (f"Transformer/encoderblock_{i}/" for i in (0, 1)):
        norms += [f"{b}LayerNorm_0", f"{b}LayerNorm_2"]
        attention = f"{b}MultiHeadDotProductAttention_1/"
        for name in ("query", "key", "value"):
            shapes |= {f"{attention}{name}/kernel": (8, 2, 4), f"{attention}{name}/bias": (2, 4)}
        shapes |= {f"{attention}out/kernel": (2, 4, 8), f"{attention}out/bias": (8,)}
        for name, size in {"Dense_0": (8, 16), "Dense_1": (16, 8)}.items():
            shapes |= {f"{b}MlpBlock_3/{name}/kernel": size, f"{b}MlpBlock_3/{name}/bias": size[1:]}
    return shapes | {f"{norm}/{end}": (8,) for norm in norms for end in ("scale", "bias")}, {}


def _convnext_in_timm():
    kernels = {"stem.0": (4, 3, 4, 4), "stages.1.downsample.1": (8, 4, 2, 2), "head.fc": (3, 8)}
    norms = {"stem.1": 4, "stages.1.downsample.0": 4, "head.norm": 8}
    shapes = {}
    for b, width in (("stages.0.blocks.0.", 4), ("stages.1.blocks.0.", 8)):
        kernels |= {
            f"{b}conv_dw": (width, 1, 7, 7),
            f"{b}mlp.fc1": (4 * width, width),
            f"{b}mlp.fc2": (width, 4 * width),
        }
        norms[f"{b}norm"], shapes[f"{b}gamma"] = width, (width,)
    shapes |= {f"{norm}.{end}": (width,) for norm, width in norms.items() for end in ("weight", "bias")}
    return shapes | _dense(**kernels), {"architecture": "convnext_tiny", "pretrained_cfg": {"input_size": [3, 16, 16]}}


def _efficientnet_in_timm():
    convolutions = {"conv_stem": (4, 3, 3, 3), "blocks.0.0.conv_dw": (4, 1, 3, 3), "blocks.0.0.conv_pw": (4, 4, 1, 1)}
    norms = {"bn1": 4, "blocks.0.0.bn1": 4, "blocks.0.0.bn2": 4, "bn2": 6}
    for b in (f"blocks.{i}.0." for i in range(1, 7)):
        sizes = {"conv_pw": (8, 4, 1, 1), "conv_dw": (8, 1, 3, 3), "conv_pwl": (4, 8, 1, 1)}
        convolutions |= {b + name: size for name, size in sizes.items()}
        norms |= {f"{b}bn1": 8, f"{b}bn2": 8, f"{b}bn3": 4}
    convolutions["conv_head"] = (6, 4, 1, 1)
    shapes = {f"{name}.weight": size for name, size in convolutions.items()} | _dense(classifier=(3, 6))
    ends = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{norm}.{end}": (width,) for norm, width in norms.items() for end in ends}
    return shapes, {"architecture": "efficientnet_lite0", "pretrained_cfg": {"input_size": [3, 8, 8]}}


def _swin_in_timm():
    shapes = _dense(**{"patch_embed.proj": (4, 3, 4, 4), "head.fc": (3, 8)})
    shapes["layers.1.downsample.reduction.weight"] = (8, 16)
    norms = {"patch_embed.norm": 4, "layers.1.downsample.norm": 16, "norm": 8}
    for b, width in (("layers.0.blocks.0.", 4), ("layers.1.blocks.0.", 8)):
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        shapes |= _dense(**{b + name: size for name, size in sizes.items()})
        shapes[f"{b}attn.relative_position_bias_table"], norms[f"{b}norm1"], norms[f"{b}norm2"] = (9, 2), width, width
    shapes |= {f"{norm}.{end}": (width,) for norm, width in norms.items() for end in ("weight", "bias")}
    return shapes, {"architecture": "swin_tiny_patch4_window7_224", "pretrained_cfg": {"input_size": [3, 16, 16]}}


def _dinov3_in_timm():
    shapes = {"cls_token": (1, 1, 8), "reg_token": (1, 2, 8), "norm.weight": (8,), "norm.bias": (8,)}
    shapes |= _dense(**{"patch_embed.proj": (8, 3, 4, 4), "head": (3, 8)})
    for b in ("blocks.0.", "blocks.1."):
        shapes |= {f"{b}{name}": (8,) for name in ("gamma_1", "gamma_2")}
        shapes |= {f"{b}{norm}.{end}": (8,) for norm in ("norm1", "norm2") for end in ("weight", "bias")}
        shapes |= _dense(**{f"{b}attn.proj": (8, 8), f"{b}mlp.fc1": (16, 8), f"{b}mlp.fc2": (8, 16)})
        shapes[f"{b}attn.qkv.weight"] = (24, 8)
    return shapes, {
        "architecture": "vit_small_patch16_dinov3",
        "model_args": {"num_heads": 2},
        "pretrained_cfg": {"input_size": [3, 8, 8]},
    }


def _in_allennlp():
    options = {
        "char_cnn": {
            "activation": "relu",
            "embedding": {"dim": 2},
            "filters": [[1, 2], [2, 3]],
            "max_characters_per_token": 50,
            "n_highway": 1,
        },
        "lstm": {
            "cell_clip": 3,
            "dim": 4,
            "n_layers": 1,
            "proj_clip": 3,
            "projection_dim": 3,
            "use_skip_connections": True,
        },
    }
    shapes = {"char_embed": (261, 2), "CNN_proj/W_proj": (5, 3), "CNN_proj/b_proj": (3,)}
    shapes |= {"CNN/W_cnn_0": (1, 1, 2, 2), "CNN/b_cnn_0": (2,), "CNN/W_cnn_1": (1, 2, 2, 3), "CNN/b_cnn_1": (3,)}
    shapes |= {f"CNN_high_0/{x}": (5, 5) if x[0] == "W" else (5,) for x in ("W_carry", "b_carry", "W_transform")}
    shapes["CNN_high_0/b_transform"] = (5,)
    for cell in ("RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell", "RNN_1/RNN/MultiRNNCell/Cell0/LSTMCell"):
        shapes |= {f"{cell}/W_0": (6, 16), f"{cell}/B": (16,), f"{cell}/W_P_0": (4, 3)}
    return shapes, options


def _in_fastai():
    shapes = {"0.encoder.weight": (7, 4), "1.decoder.bias": (7,)}
    for i, (width, own) in enumerate(((4, 6), (6, 4))):
        shapes |= {f"0.rnns.{i}.weight_hh_l0_raw": (4 * own, own), f"0.rnns.{i}.module.weight_ih_l0": (4 * own, width)}
        shapes |= {f"0.rnns.{i}.module.bias_{kind}_l0": (4 * own,) for kind in ("ih", "hh")}
    return shapes, {}


FOREIGN = {
    ("allennlp", "elmo"): _in_allennlp,
    ("fastai", "awd_lstm"): _in_fastai,
    ("timm", "vit"): _in_timm,
    ("timm", "convnext"): _convnext_in_timm,
    ("timm", "dinov3_vit"): _dinov3_in_timm,
    ("timm", "efficientnet"): _efficientnet_in_timm,
    ("timm", "swin"): _swin_in_timm,
    ("open_clip", "clip"): _in_open_clip,
    ("npz", "vit"): _in_npz,
}


@pytest.fixture(scope="session")
def write_checkpoint(random_like):
    """`write(directory, layout, kind)`: a small checkpoint with three classes, by default a ViT or a CLIP.

    `write.foreign` are the layouts beside Hugging Face's and ours, each with an architecture that is written in it;
    `write.model_types` those of Hugging Face's.
    """

    def write(directory, layout, kind=""):
        directory.mkdir(parents=True, exist_ok=True)
        kind = kind or ("clip" if layout == "open_clip" else "vit")
        if make := FOREIGN.get((layout, kind)):
            shapes, values = make()
            tensors = random_like(shapes)
        else:
            config, family = CONFIGS[kind], FAMILIES[kind]
            model = of_config(config)
            tree = random_like({p: x.shape for p, x in shapes_of(Headed(model, Head(3)), config.inputs).items()})
            tensors = family.names(config, "classification").write(tree)
            name = next(name for name, head in family.heads.items() if head == "classification")
            values = family.write(config) | {"id2label": {"0": "a", "1": "b", "2": "c"}, "architectures": [name]}
            size = {"height": config.image[0], "width": config.image[1]}
            processor = {"image_processor_type": "ViTImageProcessor", "size": size}
        if layout == "allennlp":
            h5py = pytest.importorskip("h5py")
            with h5py.File(directory / "weights.hdf5", "w") as file:
                for name, x in tensors.items():
                    file[name] = x
            (directory / "options.json").write_text(json.dumps(values))
            return directory
        if layout == "npz":
            np.savez(directory / "vit.npz", **tensors)
            return directory
        if layout == "jtransfer":
            checkpoints.save(directory, model, tree, ("a", "b", "c"))
            (directory / "jtransfer.json").unlink()  # what lies there may be changed
            return directory
        if layout == "huggingface":
            (directory / "preprocessor_config.json").write_text(json.dumps(processor))
        save_file(tensors, directory / "model.safetensors")
        name = "open_clip_config.json" if layout == "open_clip" else "config.json"
        (directory / name).write_text(json.dumps(values))
        return directory

    write.foreign, write.model_types = set(FOREIGN), tuple(CONFIGS)
    return write


@pytest.fixture(scope="session")
def split():
    """`split(directory, parts)`: a directory's `model.safetensors` becomes shards and an index, as others have it."""

    def split(directory, parts=3):
        from safetensors.numpy import load_file

        tensors = load_file(directory / "model.safetensors")
        index = {}
        for i in range(parts):
            file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
            part = dict(sorted(tensors.items())[i::parts])
            save_file(part, directory / file, {"format": "pt"})
            index |= dict.fromkeys(part, file)
        (directory / "model.safetensors").unlink()
        about = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(about))
        return directory

    return split
