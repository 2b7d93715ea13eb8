"""EfficientNet, EfficientNet-Lite, MobileNetV2 and MobileNetV3 in timm's names, beside timm's `config.json`.

    conv_stem    bn1    blocks.0.0.{conv_dw, bn1, se.{conv_reduce, conv_expand}, conv_pw, bn2}
    blocks.1.0.{conv_pw, bn1, conv_dw, bn2, se.{conv_reduce, conv_expand}, conv_pwl, bn3}
    conv_head    bn2    classifier
    blocks.6.0.{conv, bn1}    conv_head    classifier                           MobileNetV3

All sizes are in the shapes. Strides, activations and paddings are in none: the architecture's name tells them.
"""

import re
from typing import Any

from jtransfer.checkpoints.families.resnet import BATCH_NORM, CONSTANTS, IGNORED
from jtransfer.checkpoints.families.timm_network import Made, Network, Shapes
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import CONV, DENSE, POINTWISE, Names, Row, repeated
from jtransfer.errors import InputError
from jtransfer.models import EfficientNetConfig

V3 = {"activation": "hard_swish", "gate": "hard_sigmoid", "squeeze_activation": "relu"}
EFFICIENT, LARGE, SMALL = (1, 2, 2, 2, 1, 2, 1), (1, 2, 2, 2, 1, 2), (2, 2, 2, 1, 2)
"""Strides of the stages."""

NETWORKS: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    (r"(tf_)?efficientnet_(b[0-8]|l2)", EFFICIENT, {}),
    (r"(tf_)?efficientnet_lite[0-4]", EFFICIENT, {"activation": "relu6"}),
    (r"mobilenetv2_\d{3}d?", EFFICIENT, {"activation": "relu6"}),
    (r"(tf_)?mobilenetv3_large_\d{3}", LARGE, V3 | {"relu_stages": 3}),
    (r"(tf_)?mobilenetv3_small_\d{3}", SMALL, V3 | {"relu_stages": 2}),
    (r"tf_mobilenetv3_large_minimal_\d{3}", LARGE, {"activation": "relu"}),
    (r"tf_mobilenetv3_small_minimal_\d{3}", SMALL, {"activation": "relu"}),
)
"""What no shape tells, by patterns of architectures, as of timm 1.0."""

KNOWN = "(tf_)efficientnet_b0..b8, _l2, _lite0..4, mobilenetv2_*, (tf_)mobilenetv3_large_* or _small_*"

TOLD = r"num_classes|in_chans|global_pool|bn_eps|bn_momentum|pad_type|img_size|.*drop.*rate|weight_init"
"""Arguments in `model_args` that the tensors say too, that are read below, or that only training needs."""

SQUEEZE = (
    Row("se.conv_reduce", "squeeze/reduce", POINTWISE),
    Row("se.conv_expand", "squeeze/expand", POINTWISE),
)
SEPARABLE = (
    Row("conv_dw", "depthwise/conv", CONV),
    Row("bn1", "depthwise/norm", BATCH_NORM),
    Row("conv_pw", "project/conv", CONV),
    Row("bn2", "project/norm", BATCH_NORM),
    *SQUEEZE,
)
INVERTED = (
    Row("conv_pw", "expand/conv", CONV),
    Row("bn1", "expand/norm", BATCH_NORM),
    Row("conv_dw", "depthwise/conv", CONV),
    Row("bn2", "depthwise/norm", BATCH_NORM),
    Row("conv_pwl", "project/conv", CONV),
    Row("bn3", "project/norm", BATCH_NORM),
    *SQUEEZE,
)


def _config(shapes: Shapes, made: Made) -> EfficientNetConfig:
    architecture, args = made.architecture, made.args
    found = next(((s, options) for name, s, options in NETWORKS if re.fullmatch(name, architecture)), None)
    if found is None:
        raise InputError(
            f"config.json: architecture is '{architecture}', whose strides and activations are not known here; "
            f"expected {KNOWN}"
        )
    (strides, options), tensorflow = found, architecture.startswith("tf_")
    padding = typed(args, "pad_type", "same" if tensorflow else "")
    if padding not in ("", "same"):
        raise InputError(f"config.json: model_args: pad_type is '{padding}'; only 'same' and '' are supported")
    stages = [_stage(shapes, i) for i in range(len(strides))]
    blocks = [block for stage in stages for block in stage]
    return EfficientNetConfig(
        image=made.image or (224, 224),
        channels=_shape(shapes, "conv_stem.weight")[1],
        stem=_shape(shapes, "conv_stem.weight")[0],
        depths=tuple(map(len, stages)),
        widths=tuple(stage[0][0] for stage in stages),
        sides=tuple(stage[0][1] for stage in stages),
        strides=strides,
        expanded=tuple(expanded for _, _, expanded, _ in blocks),
        squeezed=tuple(squeezed for _, _, _, squeezed in blocks),
        top=_shape(shapes, f"{_top(shapes, len(strides))}.weight")[0],
        pooler=_shape(shapes, "conv_head.weight")[0] if "bn2.weight" not in shapes else 0,
        padding=padding or "both",
        drop_path=typed(args, "drop_path_rate", 0.0),
        epsilon=typed(args, "bn_eps", 1e-3 if tensorflow else 1e-5),
        momentum=1 - typed(args, "bn_momentum", 0.1),
        **options,
    )


def _stage(shapes, stage):
    """Width, side of the kernel, and widths inside of each block of a stage."""
    numbers = {int(found[1]) for name in shapes if (found := re.match(rf"blocks\.{stage}\.(\d+)\.", name))}
    blocks = []
    for i in range(max(numbers, default=0) + 1):
        block = f"blocks.{stage}.{i}"
        expands = f"{block}.conv_pwl.weight" in shapes
        inside = _shape(shapes, f"{block}.conv_dw.weight")
        width = _shape(shapes, f"{block}.conv_pwl.weight" if expands else f"{block}.conv_pw.weight")[0]
        squeezed = shapes.get(f"{block}.se.conv_reduce.weight", (0,))[0]
        blocks.append((width, inside[2], inside[0] if expands else 0, squeezed))
    return blocks


def _shape(shapes, name):
    """The shape of a convolution that must be there."""
    if len(found := shapes.get(name, ())) != 4:
        what = f"has shape {list(found)}" if name in shapes else "is missing"
        raise InputError(f"'{name}' {what}; expected a convolution, as in timm's EfficientNet and MobileNetV2 and V3")
    return found


def _top(shapes, stages):
    """The name of the convolution after the last block."""
    return "conv_head" if "bn2.weight" in shapes else f"blocks.{stages}.0.conv"


def _names(config: EfficientNetConfig, shapes: Shapes) -> Names:
    stages = len(config.depths)
    blocks = (
        repeated(
            INVERTED if f"blocks.{i}.0.conv_pwl.weight" in shapes else SEPARABLE,
            f"blocks.{i}.{{}}.",
            f"stage_{i}/block_{{}}/",
        )
        for i in range(stages)
    )
    rows = (
        Row("conv_stem", "stem/conv", CONV),
        Row("bn1", "stem/norm", BATCH_NORM),
        *(row for rows in blocks for row in rows),
        Row(_top(shapes, stages), "top/conv", CONV),
        Row(f"blocks.{stages}.0.bn1" if config.pooler else "bn2", "top/norm", BATCH_NORM),
        *([Row("conv_head", "pooler", POINTWISE)] if config.pooler else []),
        Row("classifier", "source_head", DENSE),
    )
    return Names(rows, ignored=IGNORED, constants=CONSTANTS)


NETWORK = Network("conv_stem.weight", _config, _names, TOLD, {"global_pool": ("avg", "")}, head="classifier.weight")
