"""CLIP in open_clip's names, OpenAI's own, in a safetensors file beside an `open_clip_config.json`.

    visual.{class_embedding, positional_embedding, conv1, ln_pre, ln_post, proj}
    token_embedding    positional_embedding    ln_final    text_projection    logit_scale
    [visual.]transformer.resblocks.0.{ln_1, attn.{in_proj_weight, in_proj_bias, out_proj}, ln_2, mlp.{c_fc, c_proj}}

Sizes are read from the shapes; heads, activation and pooling from the config.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from jtransfer.checkpoints.families.clip import IN_PROJ, VECTOR
from jtransfer.checkpoints.families.family import Description, preprocessor
from jtransfer.checkpoints.families.values import colours, section, sides, typed
from jtransfer.checkpoints.names import DENSE, EMBED, LEAF, NORM, LayerKind, Layout, Names, Row, patches, repeated
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError, nearest
from jtransfer.models import CLIPConfig, CLIPTextConfig, ViTConfig

EITHER = "width|layers|mlp_ratio|act_kwargs|norm_kwargs|pool_type|final_ln_after_pool|output_tokens|"
TOLD = {
    "vision_cfg": EITHER + "head_width|patch_size|image_size|ls_init_value|patch_dropout|no_ln_pre|pos_embed_type",
    "text_cfg": EITHER + "heads|context_length|vocab_size|pad_id|eos_id|no_causal_mask|hf_tokenizer_name|tokenizer_.*",
}
"""Options of the two towers that the tensors say too, that are read below, or that only training needs."""
OTHERS = {"timm_model_name": "a tower of timm", "hf_model_name": "a tower of transformers", "attentional_pool": "CoCa"}
"""Options that mean a tower of another kind."""

IMAGE_POOLS = {"tok": "cls", "avg": "patches"}
TEXT_POOLS = {"argmax": "largest", "last": "last", "eos": "eos"}

IGNORED = ((r"(text\.)?attn_mask", "a buffer, which follows from the number of positions"),)

BLOCK = (
    Row("ln_1", "norm_1", NORM),
    Row("attn.in_proj", ("attention/query", "attention/key", "attention/value"), IN_PROJ),
    Row("attn.out_proj", "attention/out", DENSE),
    Row("ls_1.gamma", "scale_1", LEAF),
    Row("ln_2", "norm_2", NORM),
    Row("mlp.c_fc", "mlp/up", DENSE),
    Row("mlp.c_proj", "mlp/down", DENSE),
    Row("ls_2.gamma", "scale_2", LEAF),
)
TABLE: LayerKind = {"": ("{}", Layout(lambda x: (x[None],), lambda x: x[0]))}


def describe(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Description:
    """What is in a checkpoint with these names.

    Args:
        tensors: By their names.
        values: Values of `open_clip_config.json`.

    Raises:
        InputError: a model of another kind than CLIP's, with what tells it.
    """
    model, shapes = section(values, "model_cfg"), {name: x.shape for name, x in tensors.items()}
    towers = {name: section(model, name) for name in TOLD}
    for name, options in towers.items():
        for key in (key for key, value in options.items() if value and not re.fullmatch(TOLD[name], key)):
            what = f", that is {OTHERS[key]}" if key in OTHERS else ""
            raise InputError(f"open_clip_config.json: {name} has '{key}'{what}, which is not supported")
    if model.get("multimodal_cfg"):
        raise InputError("open_clip_config.json: 'multimodal_cfg' means CoCa, which is not supported")
    text = "text." if "text.token_embedding.weight" in shapes else ""
    for name in ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", f"{text}text_projection"):
        if name not in shapes:
            raise InputError(f"'{name}' is missing; of open_clip's models, only those with its own transformers load")
    quick = typed(model, "quick_gelu", False)
    config = CLIPConfig(
        vision=_vision(shapes, towers["vision_cfg"], quick),
        text=_text(shapes, towers["text_cfg"], quick, text),
        projection=shapes["visual.proj"][1],
        logit_bias=0.0 if "logit_bias" in shapes else None,
    )
    image = config.vision.image
    return Description(config, None, Names(_rows(config, text), ignored=IGNORED), tensors, _preprocessor(values, image))


def _vision(shapes, options, quick):
    width, channels, patch, other = shapes["visual.conv1.weight"]
    there = shapes["visual.positional_embedding"][0] - 1
    image = sides(options, "image_size", math.isqrt(there) * patch)
    if patch != other or math.prod(length // patch for length in image) != there:
        raise InputError(f"'visual.positional_embedding' is not of {list(image)} pixels in patches of {patch}x{other}")
    pool, after = typed(options, "pool_type", "tok"), typed(options, "final_ln_after_pool", False)
    if pool not in IMAGE_POOLS:
        raise InputError(f"open_clip_config.json: vision_cfg has pool_type '{pool}'; {nearest(str(pool), IMAGE_POOLS)}")
    return ViTConfig(
        image=image,
        channels=channels,
        patch=patch,
        pool=IMAGE_POOLS[pool],
        # For one token alone the order is all the same, and this one leaves the tokens as transformers does.
        norm_pooled=pool == "tok" or after,
        heads=width // typed(options, "head_width", 64),
        patch_bias=False,
        embedding_norm=not typed(options, "no_ln_pre", False),
        layer_scale=typed(options, "ls_init_value", 0.0) if options.get("ls_init_value") is not None else 0.0,
        **_common(shapes, options, quick, "visual."),
    )


def _text(shapes, options, quick, prefix):
    pool = typed(options, "pool_type", "argmax")
    if pool not in TEXT_POOLS:
        raise InputError(f"open_clip_config.json: text_cfg has pool_type '{pool}'; {nearest(str(pool), TEXT_POOLS)}")
    return CLIPTextConfig(
        vocabulary=shapes[f"{prefix}token_embedding.weight"][0],
        positions=shapes[f"{prefix}positional_embedding"][0],
        heads=typed(options, "heads", 8),
        causal=not typed(options, "no_causal_mask", False),
        pool=TEXT_POOLS[pool],
        eos_token=typed(options, "eos_id", 2),
        **_common(shapes, options, quick, prefix),
    )


def _common(shapes, options, quick, prefix):
    """Options of either tower."""
    first = f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"
    act, norm = section(options, "act_kwargs"), section(options, "norm_kwargs")
    if first not in shapes or act.keys() - {"approximate"} or norm.keys() - {"eps"}:
        raise InputError(
            f"'{first}', act_kwargs {act} and norm_kwargs {norm}: expected a CLIP, 'approximate' and 'eps'"
        )
    stem = f"{prefix}transformer.resblocks."
    return {
        "width": shapes[first][1],
        "depth": len({name.removeprefix(stem).split(".")[0] for name in shapes if name.startswith(stem)}),
        "hidden": shapes[first][0],
        "epsilon": typed(norm, "eps", 1e-5),
        "activation": "quick_gelu" if quick else "gelu_tanh" if act.get("approximate") == "tanh" else "gelu",
    }


def _rows(config, text):
    vision = config.vision
    return (
        Row("visual.class_embedding", "vision/embeddings/cls", VECTOR),
        Row("visual.positional_embedding", "vision/embeddings/positions", TABLE),
        Row("visual.conv1", "vision/embeddings/patch", patches(vision.patch, vision.channels)),
        Row("visual.ln_pre", "vision/embeddings/norm", NORM),
        *repeated(BLOCK, "visual.transformer.resblocks.{}.", "vision/encoder/block_{}/"),
        Row("visual.ln_post", "vision/norm" if vision.norm_pooled else "vision/encoder/norm", NORM),
        Row("visual.proj", "vision_projection/kernel", LEAF),
        Row(f"{text}token_embedding", "text/embeddings/word", EMBED),
        Row(f"{text}positional_embedding", "text/embeddings/positions", TABLE),
        *repeated(BLOCK, f"{text}transformer.resblocks.{{}}.", "text/encoder/block_{}/"),
        Row(f"{text}ln_final", "text/encoder/norm", NORM),
        Row(f"{text}text_projection", "text_projection/kernel", LEAF),
        Row("logit_scale", "logit_scale", LEAF),
        Row("logit_bias", "logit_bias", LEAF),
    )


def _preprocessor(values, image):
    """open_clip's transform of images for inference; empty where it pads them."""
    given, (height, width) = section(values, "preprocess_cfg"), image
    mode = typed(given, "resize_mode", "shortest")
    if height != width or mode not in ("shortest", "squash"):
        return {}
    size = {"shortest_edge": height} if mode == "shortest" else {"height": height, "width": width}
    mean = colours(given, "mean", (0.48145466, 0.4578275, 0.40821073))
    std = colours(given, "std", (0.26862954, 0.26130258, 0.27577711))
    return preprocessor(size, height, typed(given, "interpolation", "bicubic"), mean, std)
