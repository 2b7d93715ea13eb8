"""EfficientNet and MobileNetV2 in Hugging Face's layout: their configs say multipliers, ours the table that results."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.resnet import BATCH_NORM, CONSTANTS, IGNORED
from jtransfer.checkpoints.families.values import sides, typed
from jtransfer.checkpoints.names import CONV, DENSE, POINTWISE, Names, Row, repeated
from jtransfer.errors import InputError
from jtransfer.kinds import shown
from jtransfer.models import EfficientNetConfig, Head

ONLY_HERE = ("momentum", "dtype", "param_dtype")
"""Options that no config of Hugging Face has to say: they change no output."""

MOST_BLOCKS = 1000

BLOCK = (
    Row("expansion.expand_conv", "expand/conv", CONV),
    Row("expansion.expand_bn", "expand/norm", BATCH_NORM),
    Row("depthwise_conv.depthwise_conv", "depthwise/conv", CONV),
    Row("depthwise_conv.depthwise_norm", "depthwise/norm", BATCH_NORM),
    Row("squeeze_excite.reduce", "squeeze/reduce", POINTWISE),
    Row("squeeze_excite.expand", "squeeze/expand", POINTWISE),
    Row("projection.project_conv", "project/conv", CONV),
    Row("projection.project_bn", "project/norm", BATCH_NORM),
)

MOBILE_DEPTHS, MOBILE_WIDTHS = (1, 2, 3, 4, 3, 3, 1), (16, 24, 32, 64, 96, 160, 320)
MOBILE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Of MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2); its config scales the widths."""


def rounded(channels: float, divisor: int, least: int) -> int:
    """The nearest multiple of `divisor`, at least `least`, and no more than a tenth below `channels`."""
    near = max(least, int(channels + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * channels else near


def _read(values, names):
    coefficient, divisor = typed(values, "width_coefficient", 2.0), typed(values, "depth_divisor", 8)

    def widths(key, default):
        return tuple(rounded(width * coefficient, divisor, divisor) for width in typed(values, key, default))

    outs, ins = (
        widths("out_channels", (16, 24, 40, 80, 112, 192, 320)),
        widths("in_channels", (32, 16, 24, 40, 80, 112, 192)),
    )
    stem, top = (rounded(width * coefficient, divisor, divisor) for width in (32, 1280))
    if ins != (follow := (stem, *outs[:-1])):
        raise InputError(f"config.json: in_channels are {list(ins)} when scaled; expected {list(follow)}, as they join")
    if (hidden := typed(values, "hidden_dim", 2560)) != top:
        raise InputError(f"config.json: hidden_dim is {hidden}; expected {top}, 1280 scaled by width_coefficient")
    if (pooling := typed(values, "pooling_type", "mean")) != "mean":
        raise InputError(f"config.json: pooling_type is {shown(pooling)}; only 'mean' is supported")
    repeats = typed(values, "num_block_repeats", (1, 2, 2, 3, 3, 4, 1))
    deepen = typed(values, "depth_coefficient", 3.1)
    depths = tuple(math.ceil(deepen * repeat) for repeat in repeats)
    strides = typed(values, "strides", MOBILE_STRIDES)
    expansions = typed(values, "expand_ratios", (1, 6, 6, 6, 6, 6, 6))
    columns = {"out_channels": outs, "strides": strides, "expand_ratios": expansions}
    for key, column in columns.items():
        if len(column) != len(depths):
            raise InputError(f"config.json: {len(column)} {key} do not fit {len(depths)} num_block_repeats")
    if not 1 <= sum(depths) <= MOST_BLOCKS:
        raise InputError(f"config.json claims {sum(depths)} blocks; expected 1 to {MOST_BLOCKS}")
    inside = tuple(zip(ins, outs, strides, expansions, depths, strict=True))
    if any(before == out and stride == 1 for before, out, stride, _, _ in inside):
        raise InputError(
            "config.json: a stage keeps width and resolution in its first block, where transformers adds no input"
        )
    of_blocks = [(out if i else before, ratio) for before, out, _, ratio, depth in inside for i in range(depth)]
    share = typed(values, "squeeze_expansion_ratio", 0.25)
    act = activation(typed(values, "hidden_act", "swish"))
    return EfficientNetConfig(
        image=sides(values, "image_size", 600),
        channels=typed(values, "num_channels", 3),
        stem=stem,
        depths=depths,
        widths=outs,
        sides=typed(values, "kernel_sizes", (3, 3, 5, 3, 5, 5, 3)),
        strides=strides,
        expanded=tuple(width * ratio if ratio != 1 else 0 for width, ratio in of_blocks),
        squeezed=tuple(max(1, int(width * share)) for width, _ in of_blocks),
        top=top,
        activation=act,
        squeeze_activation=act,
        padding="after",
        even=tuple(block for block in typed(values, "depthwise_padding", ()) if block < len(of_blocks)),
        drop_path=typed(values, "drop_connect_rate", 0.2),
        epsilon=typed(values, "batch_norm_eps", 1e-3),
        # TensorFlow's momentum, what is kept. Transformers gives the number to PyTorch, where it is what is replaced.
        momentum=typed(values, "batch_norm_momentum", 0.99),
    )


def _written(config) -> Iterator[dict[str, Any]]:
    """Values of `config.json` that may mean a config: what is scaled and rounded there can be said in several ways."""
    before = (config.stem, *config.widths[:-1])
    firsts = [sum(config.depths[:stage]) for stage in range(len(config.depths))]
    inputs = [
        before[stage] if i == 0 else config.widths[stage]
        for stage, depth in enumerate(config.depths)
        for i in range(depth)
    ]
    shares = (0.25, max(squeezed / width for squeezed, width in zip(config.squeezed, inputs, strict=True)))
    coefficient = config.top / 1280
    for divisor, share in product((8, 4, 2, 1), shares):
        yield {
            "image_size": list(config.image),
            "num_channels": config.channels,
            "width_coefficient": coefficient,
            "depth_coefficient": 1.0,
            "depth_divisor": divisor,
            "kernel_sizes": list(config.sides),
            "in_channels": [32, *(round(width / coefficient) for width in config.widths[:-1])],
            "out_channels": [round(width / coefficient) for width in config.widths],
            "depthwise_padding": list(config.even),
            "strides": list(config.strides),
            "num_block_repeats": list(config.depths),
            "expand_ratios": [
                max(1, config.expanded[first] // width) for first, width in zip(firsts, before, strict=True)
            ],
            "squeeze_expansion_ratio": share,
            "hidden_act": THEIR_ACTIVATIONS.get(config.activation, ""),
            "hidden_dim": config.top,
            "pooling_type": "mean",
            "drop_connect_rate": config.drop_path,
            "batch_norm_eps": config.epsilon,
            "batch_norm_momentum": config.momentum,
        }


def _read_mobile(values, names):
    multiplier, divisor = typed(values, "depth_multiplier", 1.0), typed(values, "depth_divisible_by", 8)
    least, ratio = typed(values, "min_depth", 8), typed(values, "expand_ratio", 6.0)
    if (stride := typed(values, "output_stride", 32)) != 32:
        raise InputError(f"config.json: output_stride is {stride}; only 32 is supported, without dilation")

    def scaled(width):
        return rounded(round(width * multiplier), divisor, least)

    stem, widths = scaled(32), tuple(map(scaled, MOBILE_WIDTHS))
    if stem == widths[0]:
        raise InputError(
            f"config.json: the first block keeps the width {stem}, where transformers adds no input; "
            "expected a larger depth_multiplier or a smaller min_depth"
        )
    inputs = [
        widths[stage] if i else widths[stage - 1]
        for stage, depth in enumerate(MOBILE_DEPTHS)
        for i in range(depth)
        if stage
    ]
    keeps = typed(values, "finegrained_output", True) and multiplier < 1
    return EfficientNetConfig(
        image=sides(values, "image_size", 224),
        channels=typed(values, "num_channels", 3),
        stem=stem,
        depths=MOBILE_DEPTHS,
        widths=widths,
        sides=(3,) * len(MOBILE_DEPTHS),
        strides=MOBILE_STRIDES,
        expanded=(
            0 if typed(values, "first_layer_is_expansion", True) else stem,
            *(rounded(round(width * ratio), divisor, least) for width in inputs),
        ),
        squeezed=(0,) * sum(MOBILE_DEPTHS),
        top=1280 if keeps else scaled(1280),
        activation=activation(typed(values, "hidden_act", "relu6")),
        padding="same" if typed(values, "tf_padding", True) else "both",
        epsilon=typed(values, "layer_norm_eps", 1e-3),
        momentum=0.997,  # transformers gives it to PyTorch, where it is what is replaced
    )


def _written_mobile(config) -> Iterator[dict[str, Any]]:
    """As `_written`."""
    multipliers = (1.0, config.widths[-1] / 320, config.stem / 32, config.top / 1280)
    expansions = (6.0, config.expanded[-1] / config.widths[-2] if len(config.widths) > 1 else 6.0)
    roundings = ((8, 8), (4, 8), (4, 4), (2, 2), (1, 1))
    for multiplier, (divisor, least), expansion, keeps in product(multipliers, roundings, expansions, (True, False)):
        yield {
            "image_size": list(config.image),
            "num_channels": config.channels,
            "depth_multiplier": multiplier,
            "depth_divisible_by": divisor,
            "min_depth": least,
            "expand_ratio": expansion,
            "output_stride": 32,
            "first_layer_is_expansion": not config.expanded[0],
            "finegrained_output": keeps,
            "hidden_act": THEIR_ACTIVATIONS.get(config.activation, ""),
            "tf_padding": config.padding == "same",
            "layer_norm_eps": config.epsilon,
        }


def _write(
    config: EfficientNetConfig,
    ways: Callable[..., Iterable[Mapping[str, Any]]],
    again: Callable[..., EfficientNetConfig],
    model_type: str,
) -> dict[str, Any]:
    """The first of some ways to say a config that is read as this config again.

    Raises:
        InputError: there is none, with the options in which the nearest differs.
    """
    mine, nearest = vars(config), None
    unread = () if any(config.squeezed) else ("gate", "squeeze_activation")
    for values in ways(config):
        try:
            back = vars(again(values, {}))
        except InputError:
            continue
        differs = [key for key in mine if key not in (*ONLY_HERE, *unread) and mine[key] != back[key]]
        if not differs:
            return {"model_type": model_type, **values}
        nearest = differs if nearest is None or len(differs) < len(nearest) else nearest
    said = ", ".join(f"{key}={mine[key]!r}" for key in nearest or ("stem", "widths", "top"))
    raise InputError(f"a model with {said} cannot be written as model_type '{model_type}'")


def _names(config, kind):
    numbered = ((stage, i) for stage, depth in enumerate(config.depths) for i in range(depth))
    blocks = (
        repeated(BLOCK, f"encoder.blocks.{number}.", f"stage_{stage}/block_{i}/")
        for number, (stage, i) in enumerate(numbered)
    )
    rows = (
        Row("embeddings.convolution", "stem/conv", CONV),
        Row("embeddings.batchnorm", "stem/norm", BATCH_NORM),
        *(row for rows in blocks for row in rows),
        Row("encoder.top_conv", "top/conv", CONV),
        Row("encoder.top_bn", "top/norm", BATCH_NORM),
        Row("classifier", "source_head", DENSE),
    )
    return Names(rows, "efficientnet.", IGNORED, CONSTANTS)


def _mobile_names(config, kind):
    def layer(theirs, ours):
        return (
            Row(f"{theirs}.convolution", f"{ours}/conv", CONV),
            Row(f"{theirs}.normalization", f"{ours}/norm", BATCH_NORM),
        )

    parts = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
    numbered = [(stage, i) for stage, depth in enumerate(config.depths) for i in range(depth)]
    blocks = [("conv_stem", "stage_0/block_0")]
    blocks += [(f"layer.{n}", f"stage_{stage}/block_{i}") for n, (stage, i) in enumerate(numbered[1:])]
    rows = (
        *layer("conv_stem.first_conv", "stem"),
        *(
            row
            for theirs, ours in blocks
            for part, own in parts.items()
            for row in layer(f"{theirs}.{part}", f"{ours}/{own}")
        ),
        *layer("conv_1x1", "top"),
        Row("classifier", "source_head", DENSE),
    )
    return Names(rows, "mobilenet_v2.", IGNORED, CONSTANTS)


def _head(values, kind, classes):
    return Head(classes)


FAMILIES = {
    "efficientnet": Family(
        heads={"EfficientNetForImageClassification": "classification", "EfficientNetModel": ""},
        read=_read,
        head=_head,
        names=_names,
        write=partial(_write, ways=_written, again=_read, model_type="efficientnet"),
        interpolates="bicubic",  # it has no positions, and takes what its processor gives
    ),
    "mobilenet_v2": Family(
        heads={"MobileNetV2ForImageClassification": "classification", "MobileNetV2Model": ""},
        read=_read_mobile,
        head=_head,
        names=_mobile_names,
        write=partial(_write, ways=_written_mobile, again=_read_mobile, model_type="mobilenet_v2"),
        interpolates="bicubic",
    ),
}
