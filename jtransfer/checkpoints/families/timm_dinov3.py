"""The vision transformer of DINOv3 in timm's names, beside timm's `config.json`.

    cls_token    reg_token    patch_embed.proj    norm    head
    blocks.0.{norm1, attn.{qkv, q_bias, v_bias, proj}, gamma_1, norm2, mlp.{fc1 or fc1_g and fc1_x, fc2}, gamma_2}

All sizes but the number of heads are in the shapes. `features` are the class token, which DINOv3 was trained with; a
head reads what `global_pool` says, and that is the average of the patches where nothing else is said.
"""

import re

from jtransfer.checkpoints.families.timm_network import Made, Network, Shapes
from jtransfer.checkpoints.families.timm_vit import GATED, MLP
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, fused, patches, repeated
from jtransfer.errors import InputError
from jtransfer.models import DINOv3ViTConfig

NAMED = r"vit_.*_dinov3(_qkvb)?"
"""Architectures of which the below was read from timm 1.0; others of timm's `Eva` are other networks."""

HEADS = {4096: 32}
"""By width, of 7B; all others have heads of 64 units."""

TOLD = (
    "img_size|patch_size|in_chans|num_classes|embed_dim|depth|num_heads|mlp_ratio|swiglu_mlp|swiglu_align_to|qkv_bias|"
    "init_values|num_reg_tokens|dynamic_img_size|head_init_scale|rope_temperature|rope_(shift|jitter|rescale)_coords|"
    ".*drop.*rate"
)
"""Arguments in `model_args` that the tensors say too, that are read below, or that only training needs."""

ONLY = {
    "global_pool": ("avg", "token", ""),
    "class_token": (True,),
    "qkv_fused": (True,),
    "use_abs_pos_emb": (False,),
    "use_rot_pos_emb": (True,),
    "use_fc_norm": (False,),
    "use_post_norm": (False,),
    "rope_type": ("dinov3",),
    "rope_grid_offset": (0,),
    "rope_grid_indexing": ("ij",),
    "rope_rotate_half": (True,),
}
"""Arguments that are refused but for these values, and null."""

IGNORED = ((r"mask_token", "stands for masked patches in pre-training"),)
BLOCK = (
    Row("norm1", "norm_1", NORM),
    Row("attn.qkv", ("attention/query", "attention/key", "attention/value"), {".weight": fused(3)[".weight"]}),
    Row("attn.q_bias", "attention/query/bias", LEAF),
    Row("attn.v_bias", "attention/value/bias", LEAF),
    Row("attn.proj", "attention/out", DENSE),
    Row("gamma_1", "scale_1", LEAF),
    Row("norm2", "norm_2", NORM),
    Row("gamma_2", "scale_2", LEAF),
)


def _config(shapes: Shapes, made: Made) -> DINOv3ViTConfig:
    architecture, args = made.architecture, made.args
    if not re.fullmatch(NAMED, architecture):
        raise InputError(f"config.json: architecture is '{architecture}'; expected vit_*_dinov3 or vit_*_dinov3_qkvb")
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    gated, biased = "blocks.0.mlp.fc1_g.weight" in shapes, "blocks.0.attn.q_bias" in shapes
    return DINOv3ViTConfig(
        image=made.image or (256, 256),
        channels=channels,
        patch=patch,
        width=width,
        depth=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        heads=typed(args, "num_heads", HEADS.get(width, max(1, width // 64))),
        hidden=shapes["blocks.0.mlp.fc2.weight"][1],
        registers=shapes.get("reg_token", (1, 0))[1],
        theta=float(typed(args, "rope_temperature", 100.0)),
        shift=typed(args, "rope_shift_coords", 0.0),
        jitter=typed(args, "rope_jitter_coords", 0.0),
        rescale=typed(args, "rope_rescale_coords", 0.0),
        query_bias=biased,
        value_bias=biased,
        gated=gated,
        activation="silu" if gated else "gelu",
        layer_scale=typed(args, "init_values", 1e-5),
    )


def _names(config: DINOv3ViTConfig, shapes: Shapes) -> Names:
    mlp = tuple(Row(*row) for row in (GATED if config.gated else MLP))
    rows = (
        Row("cls_token", "embeddings/cls", LEAF),
        Row("reg_token", "embeddings/registers", LEAF),
        Row("patch_embed.proj", "embeddings/patch", patches(config.patch, config.channels)),
        *repeated((*BLOCK, *mlp), "blocks.{}.", "encoder/block_{}/"),
        Row("norm", "encoder/norm", NORM),
        Row("head", "source_head", DENSE),
    )
    return Names(rows, ignored=IGNORED)


def _reads(config, shapes, made):
    return "features" if made.args["global_pool"] == "token" else "patches"


NETWORK = Network("blocks.0.gamma_1", _config, _names, TOLD, ONLY, reads=_reads)
