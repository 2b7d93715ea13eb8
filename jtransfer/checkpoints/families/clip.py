"""CLIP, SigLIP (SigLIP 2 of fixed resolution among them) and SigLIP 2 "NaFlex" in Hugging Face's layout: both towers,
or one of them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import section, typed
from jtransfer.checkpoints.names import (
    DENSE,
    EMBED,
    LEAF,
    NORM,
    LayerKind,
    Layout,
    Names,
    Row,
    fused,
    patches,
    repeated,
)
from jtransfer.errors import InputError
from jtransfer.models import CLIPConfig, CLIPTextConfig, Head, NaFlexViTConfig, ViTConfig

VECTOR: LayerKind = {"": ("{}", Layout(lambda x: (x[None, None],), lambda x: x[0, 0]))}
"""`[width]` and `[1, 1, width]`."""
POSITIONS: LayerKind = {".weight": ("{}", Layout(lambda x: (x[None],), lambda x: x[0]))}
"""`[tokens, width]` and `[1, tokens, width]`."""
ONE: LayerKind = {"": ("{}", Layout(lambda x: (x.reshape(()),), lambda x: x.reshape(1)))}
"""`[1]` and a scalar."""
IN_PROJ: LayerKind = {end.replace(".", "_"): ours for end, ours in fused(3).items()}
"""The three layers of PyTorch's MultiheadAttention, `in_proj_weight` and `in_proj_bias`."""

BLOCKS = repeated(
    (
        Row("layer_norm1", "norm_1", NORM),
        Row("self_attn.q_proj", "attention/query", DENSE),
        Row("self_attn.k_proj", "attention/key", DENSE),
        Row("self_attn.v_proj", "attention/value", DENSE),
        Row("self_attn.out_proj", "attention/out", DENSE),
        Row("layer_norm2", "norm_2", NORM),
        Row("mlp.fc1", "mlp/up", DENSE),
        Row("mlp.fc2", "mlp/down", DENSE),
    ),
    "encoder.layers.{}.",
    "encoder/block_{}/",
)
TEXT = (
    Row("embeddings.token_embedding", "embeddings/word", EMBED),
    Row("embeddings.position_embedding", "embeddings/positions", POSITIONS),
    *BLOCKS,
    Row("final_layer_norm", "encoder/norm", NORM),
    Row("head", "pooler", DENSE),
)
MAP = (
    Row("head.probe", "pooler/probe", LEAF),
    Row("head.attention.in_proj", tuple(f"pooler/attention/{name}" for name in ("query", "key", "value")), IN_PROJ),
    Row("head.attention.out_proj", "pooler/attention/out", DENSE),
    Row("head.layernorm", "pooler/norm", NORM),
    Row("head.mlp.fc1", "pooler/mlp/up", DENSE),
    Row("head.mlp.fc2", "pooler/mlp/down", DENSE),
)
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}
EMBEDS = {"vision": "image_embeds", "text": "text_embeds"}
BUFFERS = (r"((vision|text)_model\.)?embeddings\.position_ids", "counts from 0 on")

COMMON = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "epsilon": "layer_norm_eps",
    "attention_dropout": "attention_dropout",
}
KEYS = {
    "vision": COMMON | {"channels": "num_channels", "patch": "patch_size"},
    "text": COMMON | {"vocabulary": "vocab_size", "positions": "max_position_embeddings"},
}
"""Our options of a tower, each with the key of Hugging Face's config for it."""

ONLY_HERE = ("dropout", "drop_path", "remat", "dtype", "param_dtype")
"""Options of training and precision, which their configs have not."""


@dataclass(frozen=True)
class CLIPDialect:
    """How Hugging Face writes one of the families, CLIP, SigLIP or SigLIP 2.

    Attributes:
        model_type: `model_type` of the whole model in `config.json`.
        classes: What the names of the family's classes begin with.
        vision: Options of the tower of images: the defaults of those in `KEYS`, and what all models of the family have.
        text: Options of the tower of texts, likewise.
        activation: Activation of the blocks where the file names none.
        rows: Rows of the name table for the tower of images, beside patches, positions and blocks.
        scalar: How the scale of similarities is stored.
        projected: Whether kernels project the features of both towers.
        of_images: Kind of the config of the tower of images.
    """

    model_type: str
    classes: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    activation: str
    rows: tuple[Row, ...]
    scalar: LayerKind
    projected: bool
    of_images: type = ViTConfig


BASE = {"width": 768, "depth": 12, "heads": 12, "hidden": 3072, "attention_dropout": 0.0}
SMALL = {"width": 512, "depth": 12, "heads": 8, "hidden": 2048, "attention_dropout": 0.0}
CLIP = CLIPDialect(
    model_type="clip",
    classes="CLIP",
    vision=BASE
    | {"epsilon": 1e-5, "channels": 3, "patch": 32}
    | {"patch_bias": False, "embedding_norm": True, "norm_pooled": True},
    text=SMALL | {"epsilon": 1e-5, "vocabulary": 49408, "positions": 77},
    activation="quick_gelu",
    rows=(
        Row("embeddings.class_embedding", "embeddings/cls", VECTOR),
        Row("pre_layrnorm", "embeddings/norm", NORM),
        Row("post_layernorm", "norm", NORM),
    ),
    scalar=LEAF,
    projected=True,
)
SIGLIP = CLIPDialect(
    model_type="siglip",
    classes="Siglip",
    vision=BASE | {"epsilon": 1e-6, "channels": 3, "patch": 16},
    text=BASE | {"epsilon": 1e-6, "vocabulary": 32000, "positions": 64, "causal": False, "pool": "last"},
    activation="gelu_pytorch_tanh",
    rows=(Row("post_layernorm", "encoder/norm", NORM), *MAP),
    scalar=ONE,
    projected=False,
)
NAFLEX = dataclasses.replace(SIGLIP, model_type="siglip2", classes="Siglip2", of_images=NaFlexViTConfig)


def _read(dialect, values, tensors):
    towers = {name: read(dialect, _values_of(values, name), tensors) for name, read in READERS.items()}
    if not dialect.projected:
        return CLIPConfig(**towers, projection=0, logit_scale=math.log(10), logit_bias=-10.0)
    start = typed(values, "logit_scale_init_value", 2.6592)
    return CLIPConfig(**towers, projection=typed(values, "projection_dim", 512), logit_scale=start)


def _values_of(values, tower):
    """The values of one tower. An older key goes first, as in transformers."""
    older = values.get(f"{tower}_config_dict")
    return section(values, f"{tower}_config" if older is None else f"{tower}_config_dict")


def _options(dialect, values, tower):
    defaults = getattr(dialect, tower)
    said = {ours: typed(values, theirs, defaults[ours]) for ours, theirs in KEYS[tower].items()}
    return {**defaults, **said, "activation": activation(typed(values, "hidden_act", dialect.activation))}


def _read_vision(dialect, values, tensors):
    pool = "cls" if dialect.projected else "map" if typed(values, "vision_use_head", True) else "mean"
    if dialect.of_images is NaFlexViTConfig:
        places = typed(values, "num_patches", 256)
        return NaFlexViTConfig(**_options(dialect, values, "vision"), places=places, pool=pool)
    side = typed(values, "image_size", 224)
    return ViTConfig(**_options(dialect, values, "vision"), image=(side, side), pool=pool)


def _read_text(dialect, values, tensors):
    options = _options(dialect, values, "text")
    if not dialect.projected:
        own = values.get("projection_size") is not None
        return CLIPTextConfig(**options, pooler=typed(values, "projection_size", 768) if own else options["width"])
    eos = typed(values, "eos_token_id", 49407)
    # OpenAI's configs say 2, which ends no text of theirs: the largest id does.
    return CLIPTextConfig(**options, **({"pool": "largest"} if eos == 2 else {"pool": "eos", "eos_token": eos}))


READERS = {"vision": _read_vision, "text": _read_text}


def _rows(dialect, config, tower):
    if tower == "text":
        return TEXT
    naflex = dialect.of_images is NaFlexViTConfig  # whose patches are a dense layer there too
    kind = DENSE if naflex else patches(config.patch, config.channels)
    patch = Row("embeddings.patch_embedding", "embeddings/patch", kind)
    return (patch, Row("embeddings.position_embedding", "embeddings/positions", POSITIONS), *BLOCKS, *dialect.rows)


def _names(dialect, config, kind):
    if isinstance(config, dialect.of_images):  # which a head for images stands on
        return _tower_names(dialect, "vision", config, kind)
    for name in READERS:
        _check_tower(dialect, name, config.towers.get(name))
    rows = [Row("logit_scale", "logit_scale", dialect.scalar), Row("logit_bias", "logit_bias", dialect.scalar)]
    for tower, projection in PROJECTIONS.items():
        rows += repeated(_rows(dialect, config.towers[tower], tower), f"{tower}_model.", f"{tower}/")
        rows += [Row(projection, f"{tower}_projection", DENSE)] if dialect.projected else []
    return Names(tuple(rows), ignored=(BUFFERS, (r"classifier\..*", "predicts classes from one tower")))


def _check_tower(dialect, tower, config):
    kind = dialect.of_images if tower == "vision" else CLIPTextConfig
    if config is None:
        raise InputError(f"images without a tower of texts cannot be written as '{dialect.model_type}'")
    if not isinstance(config, kind):
        own = {ViTConfig: "a ViT", NaFlexViTConfig: "NaFlex's ViT", CLIPTextConfig: "CLIP's own of texts"}[kind]
        raise InputError(f"towers other than {own} cannot be written as '{dialect.model_type}'")


def _tower_names(dialect, tower, config, kind):
    name = {"classification": "classifier", "projection": PROJECTIONS[tower]}.get(kind)
    head = (Row(name, "source_head", DENSE),) if name else ()
    other = {"vision": "text", "text": "vision"}[tower]
    ignored = (
        BUFFERS,
        (rf"{other}_model\..*", "the other tower"),
        (r"logit_(scale|bias)", "compares the towers"),
        *((rf"{one}\..*", "another head") for one in ("classifier", *PROJECTIONS.values()) if one != name),
    )
    return Names((*_rows(dialect, config, tower), *head), f"{tower}_model.", ignored)


def _head(tower, values, kind, classes):
    if kind == "classification":
        return Head(classes, reads="patches")
    return Head(typed(values, "projection_dim", 512), bias=False, output=EMBEDS[tower])


def _write(dialect, config):
    if isinstance(config, dialect.of_images):
        return {"model_type": dialect.model_type, "vision_config": _write_tower(dialect, "vision", config)}
    if (bool(config.projection), config.logit_bias is None) != (dialect.projected, dialect.projected):
        has = f"projection={config.projection} and logit_bias={config.logit_bias}"
        raise InputError(f"a model with {has} cannot be written as model_type '{dialect.model_type}'")
    said = {"projection_dim": config.projection, "logit_scale_init_value": config.logit_scale}
    said |= {f"{name}_config_dict": None for name in READERS}  # which would go before what is written here
    towers = {f"{name}_config": _write_tower(dialect, name, config.towers.get(name)) for name in READERS}
    return {"model_type": dialect.model_type, **towers, **(said if dialect.projected else {})}


def _write_tower(dialect, tower, config):
    """The values of one tower. What does not come back from them has no place there."""
    _check_tower(dialect, tower, config)
    model_type = f"{dialect.model_type}_{tower}_model"
    values = {theirs: getattr(config, ours) for ours, theirs in KEYS[tower].items()}
    values |= {"model_type": model_type, "hidden_act": THEIR_ACTIVATIONS[config.activation]}
    values["intermediate_size"] = config.stack.hidden
    if tower == "vision":
        naflex = dialect.of_images is NaFlexViTConfig
        values |= {"num_patches": config.places} if naflex else {"image_size": config.image[0]}
        values |= {} if dialect.projected else {"vision_use_head": config.pool == "map"}
    elif dialect.projected:
        values["eos_token_id"] = 2 if config.pool == "largest" else config.eos_token
    else:
        values["projection_size"] = config.pooler
    back = vars(READERS[tower](dialect, values, {}))
    mine = vars(dataclasses.replace(config, hidden=config.stack.hidden))
    if differs := [f"{key}={mine[key]!r}" for key in mine if key not in ONLY_HERE and mine[key] != back[key]]:
        raise InputError(f"a tower with {', '.join(differs)} cannot be written as model_type '{model_type}'")
    return values


def _tower(dialect, tower):
    classes = f"{dialect.classes}{tower.title()}Model"
    return Family(
        heads={classes: ""} | ({f"{classes}WithProjection": "projection"} if dialect.projected else {}),
        read=partial(READERS[tower], dialect),
        head=partial(_head, tower),
        names=partial(_tower_names, dialect, tower),
        write=partial(_write_tower, dialect, tower),
    )


def _families(dialect):
    return {
        dialect.model_type: Family(
            heads={f"{dialect.classes}Model": "", f"{dialect.classes}ForImageClassification": "classification"},
            read=partial(_read, dialect),
            head=partial(_head, "vision"),
            names=partial(_names, dialect),
            write=partial(_write, dialect),
            towers={"classification": "vision"},
        ),
        **{f"{dialect.model_type}_{tower}_model": _tower(dialect, tower) for tower in READERS},
    }


FAMILIES = {**_families(CLIP), **_families(SIGLIP), **_families(NAFLEX)}
