"""Swin V1 in timm's names, beside timm's `config.json`.

    patch_embed.{proj, norm}    layers.1.downsample.{norm, reduction}    norm    head.fc
    layers.0.blocks.0.{norm1, attn.{relative_position_bias_table, qkv, proj}, norm2, mlp.{fc1, fc2}}

All sizes are in the shapes. In training, stochastic depth drops the attention branch alone, as in transformers; timm
drops both.
"""

import math
import re

from jtransfer.checkpoints.families.timm_network import Made, Network, Shapes
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, fused, patches, repeated
from jtransfer.errors import InputError
from jtransfer.models import SwinConfig

NAMED = r"swin_.*"
"""Architectures of which the below was read from timm 1.0; swinv2_*, for one, is another network."""

TOLD = (
    "in_chans|num_classes|embed_dim|depths|num_heads|patch_size|window_size|mlp_ratio|qkv_bias|img_size|"
    "strict_img_size|dynamic_img_size|weight_init|.*drop.*rate"
)
"""Arguments in `model_args` that the tensors say too, that are read below, or that only training needs."""

ONLY = {"global_pool": ("avg", ""), "head_dim": (), "always_partition": (False,), "norm_layer": ("layernorm",)}
"""Arguments that are refused but for these values, and null."""

IGNORED = (
    (r".*\.relative_position_index", "follows from the side of the window"),
    (r".*\.attn_mask", "follows from the sides of window and image"),
)
BLOCK = (
    Row("norm1", "norm_1", NORM),
    Row("attn.relative_position_bias_table", "attention/positions", LEAF),
    Row("attn.qkv", ("attention/query", "attention/key", "attention/value"), fused(3)),
    Row("attn.proj", "attention/out", DENSE),
    Row("norm2", "norm_2", NORM),
    Row("mlp.fc1", "mlp/up", DENSE),
    Row("mlp.fc2", "mlp/down", DENSE),
)


def _config(shapes: Shapes, made: Made) -> SwinConfig:
    if not re.fullmatch(NAMED, made.architecture):
        raise InputError(f"config.json: architecture is '{made.architecture}'; expected swin_*, which is Swin V1")
    blocks = {tuple(map(int, found.groups())) for name in shapes if (found := re.match(BLOCKS, name))}
    stages = range(1 + max(stage for stage, _ in blocks))
    tables = [shapes.get(TABLE.format(stage), ()) for stage in stages]
    for stage, table in enumerate(tables):
        if len(table) != 2 or table[0] != tables[0][0] or math.isqrt(table[0]) ** 2 != table[0]:
            raise InputError(
                f"'{TABLE.format(stage)}' has shape {list(table)}, that of stage 0 {list(tables[0])}: of timm's "
                "window_size only one square for all stages is supported"
            )
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    image, window = made.image or (224, 224), (math.isqrt(tables[0][0]) + 1) // 2
    for stage in stages:
        sides = [-(-side // (patch * 2**stage)) for side in image]
        if min(sides) <= window < max(sides):
            raise InputError(
                f"config.json: images of {list(image)} have {sides} patches in stage {stage}, where timm shifts "
                f"windows of {window} along one side alone; that is not supported"
            )
    return SwinConfig(
        image=image,
        channels=channels,
        patch=patch,
        width=width,
        depths=tuple(sum(stage == i for stage, _ in blocks) for i in stages),
        heads=tuple(heads for _, heads in tables),
        window=window,
        mlp_ratio=shapes["layers.0.blocks.0.mlp.fc1.weight"][0] / width,
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
        drop_path=typed(made.args, "drop_path_rate", 0.1),
    )


BLOCKS = r"layers\.(\d+)\.blocks\.(\d+)\."
TABLE = "layers.{}.blocks.0.attn.relative_position_bias_table"


def _names(config: SwinConfig, shapes: Shapes) -> Names:
    rows = (
        Row("patch_embed.proj", "embeddings/patch", patches(config.patch, config.channels)),
        Row("patch_embed.norm", "embeddings/norm", NORM),
        Row("layers.{}.downsample.norm", "stage_{}/block_0/merge/norm", NORM),
        Row("layers.{}.downsample.reduction", "stage_{}/block_0/merge/reduction", DENSE),
        *repeated(BLOCK, "layers.{}.blocks.{}.", "stage_{}/block_{}/"),
        Row("norm", "norm", NORM),
        Row("head.fc", "source_head", DENSE),
    )
    return Names(rows, ignored=IGNORED)


NETWORK = Network("layers.0.blocks.0.norm1.weight", _config, _names, TOLD, ONLY, head="head.fc.weight")
