"""ViT and DeiT in timm's names, beside timm's `config.json` or alone.

    cls_token    dist_token    reg_token    pos_embed    patch_embed.proj    norm or fc_norm    head    head_dist
    blocks.0.{norm1, attn.{qkv, proj}, ls1.gamma, norm2, mlp.{fc1, fc2}, ls2.gamma}

All sizes but the number of heads are in the shapes. What no tensor tells apart is refused by the architecture's name.
"""

import logging
import math
import re

from jtransfer.checkpoints.families.timm_network import Made, Network, Shapes
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, SAME, LayerKind, Names, Row, fused, padded, patches
from jtransfer.errors import InputError
from jtransfer.models import ViTConfig

log = logging.getLogger("jtransfer")

REFUSED = (
    (r".*siglip.*", "SigLIP's image tower", "its checkpoint of Hugging Face loads"),
    (r".*_rpn_.*", "a ViT with norms behind its branches", "none of that kind loads"),
)
"""Patterns of architectures whose tensors have the same names and mean another function."""

HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Of so400m, huge, giant and gigantic, by width; all others have heads of 64 units, but for these architectures."""
HEADS_OF = {"vit_base_patch16_gap_224": 16, "test_vit": 2, "test_vit2": 2, "test_vit3": 3}
NAMED = r"(vit|deit3?|flexivit|eva_large)_.*"
"""Architectures of which the above was read from timm 1.0."""

TOLD = (
    "img_size|patch_size|in_chans|num_classes|embed_dim|depth|num_heads|mlp_ratio|qkv_bias|init_values|class_token|"
    "reg_tokens|no_embed_class|fc_norm|global_pool|act_layer|dynamic_img_size|weight_init|.*drop.*rate"
)
"""Arguments in `model_args` that the tensors say too, that are read below, or that only training needs."""

MLP = (("mlp.fc1", "mlp/up", DENSE), ("mlp.fc2", "mlp/down", DENSE))
GATED = (("mlp.fc1_g", "mlp/gate", DENSE), ("mlp.fc1_x", "mlp/up", DENSE), ("mlp.fc2", "mlp/down", DENSE))
IGNORED = ((r"mask_token", "stands for masked patches in pre-training"),)


def _config(shapes: Shapes, made: Made) -> ViTConfig:
    architecture = made.architecture
    for pattern, what, instead in REFUSED:
        if re.fullmatch(pattern, architecture):
            raise InputError(f"'{architecture}' is {what}, which is not read from timm's names; {instead}")
    down = "blocks.0.mlp.w3.weight" if "blocks.0.mlp.w3.weight" in shapes else "blocks.0.mlp.fc2.weight"
    for name in ("pos_embed", "blocks.0.attn.qkv.weight", down):
        if name not in shapes:
            raise InputError(f"'{name}' is missing; of timm's models, only plain ViTs load")
    width, channels, patch, other = shapes["patch_embed.proj.weight"]
    if patch != other:
        raise InputError(f"'patch_embed.proj.weight' is of patches of {patch}x{other}; expected square ones")
    cls, registers = "cls_token" in shapes, shapes.get("reg_token", shapes.get("register_tokens", (0, 0)))[1]
    pool = _pool(shapes, made, cls)
    gated = any(name.startswith(("blocks.0.mlp.fc1_g", "blocks.0.mlp.w12")) for name in shapes)
    gated = gated or shapes.get("blocks.0.mlp.fc1.weight", (0,))[0] == 2 * shapes[down][1]
    clip = "norm_pre.weight" in shapes
    if clip and "_clip_" not in architecture:
        raise InputError(f"'norm_pre' is CLIP's, and the architecture '{architecture}' does not tell its activation")
    usual = "silu" if gated else "quick_gelu" if "_quickgelu_" in architecture else "gelu"
    return ViTConfig(
        image=_image(shapes["pos_embed"][1], cls + ("dist_token" in shapes), patch, made.image or (0, 0)),
        channels=channels,
        patch=patch,
        width=width,
        depth=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        heads=_heads(made, width),
        hidden=shapes[down][1],
        pool=pool,
        norm_pooled="fc_norm.weight" in shapes,
        pooler="pre_logits.fc.weight" in shapes,
        distilled="dist_token" in shapes,
        registers=registers,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        patch_bias="patch_embed.proj.bias" in shapes,
        embedding_norm=clip,
        epsilon=1e-5 if clip else 1e-6,
        activation=made.activation(usual),
        gated=gated,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in shapes else 0.0,
    )


def _pool(shapes, made, cls):
    """Our name of how the features come about, told by timm's arguments where the tensors leave it open."""
    if "attn_pool.latent" in shapes:
        if cls:
            raise InputError("attention pooling beside a class token is not supported")
        return "map"
    norm = "avg" if "fc_norm.weight" in shapes or not cls else "token"
    pool = typed(made.args, "global_pool", "") or norm
    if pool not in ("avg", "token") or (pool == "token" and not cls):
        raise InputError(f"global_pool '{pool}' is not supported{'' if cls else ' without a class token'}")
    return "cls" if pool == "token" else "patches" if cls else "mean"


def _image(there, leading, patch, sides):
    """Height and width in pixels for a number of positions: those that timm says, or else a square."""
    if min(sides) >= patch and there - math.prod(side // patch for side in sides) in (0, leading):
        return sides
    for some in (leading, 0):
        if (side := math.isqrt(there - some)) ** 2 == there - some:
            return side * patch, side * patch
    raise InputError(
        f"'pos_embed' has {there} positions: neither of an image of {list(sides)} nor of a square one, and registers "
        "with positions are not supported"
    )


def _heads(made, width):
    architecture = made.architecture
    if "num_heads" in made.args:
        return typed(made.args, "num_heads", 12)
    heads = HEADS_OF.get(architecture) or HEADS.get(width, width // 64)
    if not heads or width % heads:
        raise InputError(f"no shape tells the heads of width {width}; expected 'num_heads' among model_args")
    if not re.fullmatch(NAMED, architecture) and architecture not in HEADS_OF:
        log.warning(
            "the number of heads is in no shape, and the architecture '%s' tells none: %d heads are taken for width %d",
            architecture,
            heads,
            width,
        )
    return heads


def _names(config: ViTConfig, shapes: Shapes) -> Names:
    without = config.leading if shapes["pos_embed"][1] == math.prod(config.grid) else 0
    positions: LayerKind = {"": ("{}", padded(without) if without else SAME)}
    registers = "register_tokens" if "register_tokens" in shapes else "reg_token"
    if "blocks.0.mlp.fc1_g.weight" in shapes:
        mlp = GATED
    elif "blocks.0.mlp.w12.weight" in shapes:
        mlp = (("mlp.w12", ("mlp/gate", "mlp/up"), fused(2)), ("mlp.w3", "mlp/down", DENSE))
    elif config.gated:
        mlp = (("mlp.fc1", ("mlp/gate", "mlp/up"), fused(2)), ("mlp.fc2", "mlp/down", DENSE))
    else:
        mlp = MLP
    block = (
        ("norm1", "norm_1", NORM),
        ("attn.qkv", ("attention/query", "attention/key", "attention/value"), fused(3)),
        ("attn.proj", "attention/out", DENSE),
        ("ls1.gamma", "scale_1", LEAF),
        ("norm2", "norm_2", NORM),
        *mlp,
        ("ls2.gamma", "scale_2", LEAF),
    )
    rows = (
        Row("cls_token", "embeddings/cls", LEAF),
        Row("dist_token", "embeddings/distillation", LEAF),
        Row(registers, "embeddings/registers", LEAF),
        Row("pos_embed", "embeddings/positions", positions),
        Row("norm_pre", "embeddings/norm", NORM),
        Row("patch_embed.proj", "embeddings/patch", patches(config.patch, config.channels)),
        *(Row(f"blocks.{{}}.{theirs}", _in_block(ours), kind) for theirs, ours, kind in block),
        Row("norm", "encoder/norm", NORM),
        Row("fc_norm", "norm", NORM),
        Row("attn_pool.latent", "pooler/probe", LEAF),
        Row("attn_pool.q", "pooler/attention/query", DENSE),
        Row("attn_pool.kv", ("pooler/attention/key", "pooler/attention/value"), fused(2)),
        Row("attn_pool.proj", "pooler/attention/out", DENSE),
        Row("attn_pool.norm", "pooler/norm", NORM),
        Row("attn_pool.mlp.fc1", "pooler/mlp/up", DENSE),
        Row("attn_pool.mlp.fc2", "pooler/mlp/down", DENSE),
        Row("pre_logits.fc", "pooler", DENSE),
        Row("head", "source_head/cls" if config.distilled else "source_head", DENSE),
        Row("head_dist", "source_head/distillation", DENSE),
    )
    return Names(rows, ignored=IGNORED)


def _in_block(ours):
    return tuple(f"encoder/block_{{}}/{path}" for path in ((ours,) if isinstance(ours, str) else ours))


def _reads(config, shapes, made):
    return "distilled" if "head_dist.weight" in shapes else "pooler_output" if config.pooler else "features"


NETWORK = Network("patch_embed.proj.weight", _config, _names, TOLD, reads=_reads, alone=True)
