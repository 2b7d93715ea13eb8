"""ConvNeXt and ConvNeXt V2 in timm's names, beside timm's `config.json`.

    stem.{0, 1}    stages.1.downsample.{0, 1}    head.{norm, fc}
    stages.0.blocks.0.{conv_dw, norm, mlp.{fc1, grn, fc2}, gamma}

All sizes are in the shapes. What no shape tells is told by the architecture's name; other networks that have these
names are refused by the argument of timm that makes them.
"""

import re
from typing import Any

from jtransfer.checkpoints.families.convnext import response_norm
from jtransfer.checkpoints.families.timm_network import Made, Network, Shapes
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import CONV, DENSE, LEAF, NORM, POINTWISE, Names, Row
from jtransfer.errors import InputError
from jtransfer.models import ConvNextConfig
from jtransfer.models.convnext import KERNEL

NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"convnext_xxlarge", {"norm_eps": 1e-5}),
    (r"test_convnext[23]?", {"norm_eps": 1e-5, "act_layer": "gelu_tanh"}),
    (r"convnext(v2)?_.*", {}),
)
"""What no shape tells, by patterns of architectures, the first of which decides, as of timm 1.0."""

TOLD = (
    "in_chans|num_classes|depths|dims|patch_size|conv_mlp|use_grn|ls_init_value|norm_eps|act_layer|head_init_scale|"
    ".*drop.*rate"
)
"""Arguments in `model_args` that the tensors say too, that are read below, or that only training needs."""

ONLY = {
    "global_pool": ("avg", ""),
    "output_stride": (32,),
    "stem_type": ("patch",),
    "kernel_sizes": (KERNEL, [KERNEL] * 4),
    "conv_bias": (True,),
    "norm_layer": ("layernorm", "layernorm2d"),
    "head_norm_first": (False,),
    "head_hidden_size": (),
}
"""Arguments that are refused but for these values, and null."""

PRESENT = {
    r"stem\.[23]\..*": "stem_type: convolutions that overlap",
    r"norm_pre\..*": "head_norm_first: a norm before the pooling",
    r"head\.pre_logits\..*": "head_hidden_size: a head of two layers",
}
ABSENT = {"stem.0.bias": "conv_bias: convolutions without a bias", "stem.1.bias": "norm_layer: norms without a bias"}
"""Arguments of timm that make other networks, by the names of tensors that are then there, or missing."""


def _check(shapes):
    """Refuse the tensors of other networks."""
    found = [(name, what) for name in shapes for pattern, what in PRESENT.items() if re.fullmatch(pattern, name)]
    missing = [(name, what) for name, what in ABSENT.items() if name not in shapes]
    for place, (name, what) in [("is there", x) for x in found] + [("is missing", x) for x in missing]:
        raise InputError(f"'{name}' {place}, which means timm's {what}; that is not supported")
    for name, shape in shapes.items():
        if name.endswith(".conv_dw.weight") and tuple(shape[2:]) != (KERNEL, KERNEL):
            raise InputError(f"'{name}' has shape {list(shape)}; of timm's kernel_sizes only {KERNEL} is supported")


def _config(shapes: Shapes, made: Made) -> ConvNextConfig:
    _check(shapes)
    architecture, args = made.architecture, made.args
    usual = next((options for pattern, options in NETWORKS if re.fullmatch(pattern, architecture)), None)
    if usual is None:
        raise InputError(f"config.json: architecture is '{architecture}'; expected convnext_* or convnextv2_*")
    usual = {"norm_eps": 1e-6, "act_layer": "gelu"} | usual
    epsilon = typed(args, "norm_eps", usual["norm_eps"])
    blocks = {tuple(map(int, found.groups())) for name in shapes if (found := re.match(BLOCKS, name))}
    stages = range(1 + max(stage for stage, _ in blocks))
    width, channels, stride, _ = shapes["stem.0.weight"]
    return ConvNextConfig(
        image=made.image or (224, 224),
        channels=channels,
        stride=stride,
        widths=tuple(shapes.get(f"stages.{i}.blocks.0.conv_dw.weight", (width,))[0] for i in stages),
        depths=tuple(sum(stage == i for stage, _ in blocks) for i in stages),
        activation=made.activation(usual["act_layer"]),
        grn="stages.0.blocks.0.mlp.grn.weight" in shapes,
        layer_scale=1e-6 if "stages.0.blocks.0.gamma" in shapes else 0.0,
        epsilon=epsilon,
        inner_epsilon=epsilon,
        drop_path=typed(args, "drop_path_rate", 0.0),
    )


BLOCKS = r"stages\.(\d+)\.blocks\.(\d+)\."


def _names(config: ConvNextConfig, shapes: Shapes) -> Names:
    theirs, ours, first = "stages.{}.blocks.{}", "stage_{}/block_{}", "stages.0.blocks.0.mlp"
    dense = POINTWISE if len(shapes.get(f"{first}.fc1.weight", ())) == 4 else DENSE
    vector = shapes.get(f"{first}.grn.weight", ())
    rows = (
        Row("stem.0", "stem/conv", CONV),
        Row("stem.1", "stem/norm", NORM),
        Row("stages.{}.downsample.0", "stage_{}/block_0/downsample/norm", NORM),
        Row("stages.{}.downsample.1", "stage_{}/block_0/downsample/conv", CONV),
        Row(f"{theirs}.conv_dw", f"{ours}/conv", CONV),
        Row(f"{theirs}.norm", f"{ours}/norm", NORM),
        Row(f"{theirs}.mlp.fc1", f"{ours}/mlp/up", dense),
        Row(f"{theirs}.mlp.grn", f"{ours}/mlp/grn", response_norm(*(-1 if side > 1 else 1 for side in vector))),
        Row(f"{theirs}.mlp.fc2", f"{ours}/mlp/down", dense),
        Row(f"{theirs}.gamma", f"{ours}/scale", LEAF),
        Row("head.norm", "norm", NORM),
        Row("head.fc", "source_head", DENSE),
    )
    return Names(rows)


NETWORK = Network("stages.0.blocks.0.conv_dw.weight", _config, _names, TOLD, ONLY, head="head.fc.weight")
