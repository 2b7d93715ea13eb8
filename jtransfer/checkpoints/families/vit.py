"""ViT, DeiT and the encoder of ViT-MAE in Hugging Face's layout."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import side_of, sides, typed, written_sides
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, patches
from jtransfer.errors import InputError
from jtransfer.kinds import shown
from jtransfer.models import Head, ViTConfig

BLOCK = tuple(
    Row(f"encoder.layer.{{}}.{theirs}", f"encoder/block_{{}}/{ours}", kind, (f"layers.{{}}.{in_memory}",))
    for theirs, ours, kind, in_memory in (
        ("layernorm_before", "norm_1", NORM, "layernorm_before"),
        ("attention.attention.query", "attention/query", DENSE, "attention.q_proj"),
        ("attention.attention.key", "attention/key", DENSE, "attention.k_proj"),
        ("attention.attention.value", "attention/value", DENSE, "attention.v_proj"),
        ("attention.output.dense", "attention/out", DENSE, "attention.o_proj"),
        ("layernorm_after", "norm_2", NORM, "layernorm_after"),
        ("intermediate.dense", "mlp/up", DENSE, "mlp.fc1"),
        ("output.dense", "mlp/down", DENSE, "mlp.fc2"),
    )
)
POOLER = Row("pooler.dense", "pooler", DENSE)
CLASSIFIER = Row("classifier", "source_head", DENSE)
TWO_CLASSIFIERS = (
    Row("cls_classifier", "source_head/cls", DENSE),
    Row("distillation_classifier", "source_head/distillation", DENSE),
)
MASKING = (
    (r"embeddings\.mask_token", "stands for masked patches in pre-training"),
    (r"decoder\..*", "reconstructs masked patches in pre-training"),
)

OPTIONS = (
    ("channels", "num_channels", 3),
    ("width", "hidden_size", 768),
    ("depth", "num_hidden_layers", 12),
    ("heads", "num_attention_heads", 12),
    ("qkv_bias", "qkv_bias", True),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
)
"""Options of our config, the keys of every model type of this family that say the same, and their defaults."""


def embeddings(config: ViTConfig) -> tuple[Row, ...]:
    """The rows of what precedes the blocks."""
    return (
        Row("embeddings.cls_token", "embeddings/cls", LEAF),
        Row("embeddings.position_embeddings", "embeddings/positions", LEAF),
        Row("embeddings.patch_embeddings.projection", "embeddings/patch", patches(config.patch, config.channels)),
        Row("layernorm", "encoder/norm", NORM),
    )


def read(values: Mapping[str, Any], patch: int, epsilon: float, **own: Any) -> ViTConfig:
    """The config of a model type.

    Args:
        values: Values of `config.json`.
        patch: The default of `patch_size`; `epsilon` is that of `layer_norm_eps`.
        **own: Options that this model type says in its own way.

    Raises:
        InputError: a value of another type than its default, or one that means a model that is not ours.
    """
    return ViTConfig(
        **{ours: typed(values, theirs, default) for ours, theirs, default in OPTIONS},
        image=sides(values, "image_size", 224),
        patch=side_of(values, "patch_size", patch),
        epsilon=typed(values, "layer_norm_eps", epsilon),
        **own,
    )


def write(config: ViTConfig, again: Callable[..., ViTConfig], model_type: str, **own: Any) -> dict[str, Any]:
    """The values of `config.json`: the inverse of `read`.

    Args:
        config: To write.
        again: How the model type is read. What does not come back by it has no place there.
        model_type: That is written.
        **own: Values that this model type says in its own way.

    Raises:
        InputError: a model that is none of this type, with the options that differ.
    """
    values = {
        "model_type": model_type,
        "image_size": written_sides(config.image),
        "patch_size": config.patch,
        "layer_norm_eps": config.epsilon,
        **{theirs: getattr(config, ours) for ours, theirs, _ in OPTIONS},
        **own,
    }
    back = vars(again(values, ["pooler.dense.weight"] if config.pooler else []))
    mine = vars(dataclasses.replace(config, hidden=config.stack.hidden))
    only_here = ("drop_path", "remat", "dtype", "param_dtype")
    if differs := [f"{key}={mine[key]!r}" for key in mine if key not in only_here and mine[key] != back[key]]:
        raise InputError(f"a model with {', '.join(differs)} cannot be written as model_type '{model_type}'")
    return values


def _read(values, names, distilled=False, may_pool=True):
    pooler = may_pool and any(name.endswith("pooler.dense.weight") for name in names)
    if pooler and values.get("pooler_act", "tanh") != "tanh":
        raise InputError(f"config.json: pooler_act is {shown(values['pooler_act'])}; only 'tanh' is supported")
    if pooler and values.get("pooler_output_size") not in (None, values.get("hidden_size", 768)):
        found = shown(values["pooler_output_size"])
        raise InputError(f"config.json: pooler_output_size is {found}; expected hidden_size")
    return read(
        values,
        patch=16,
        epsilon=1e-12,
        hidden=typed(values, "intermediate_size", 3072),
        activation=activation(typed(values, "hidden_act", "gelu")),
        pooler=pooler,
        distilled=distilled,
    )


def _write(config, again, model_type, **own):
    act = THEIR_ACTIVATIONS[config.activation]
    return write(config, again, model_type, intermediate_size=config.stack.hidden, hidden_act=act, **own)


def _names(config, kind):
    return Names((*embeddings(config), POOLER, *BLOCK, CLASSIFIER), "vit.", MASKING)


def _deit_names(config, kind):
    token = Row("embeddings.distillation_token", "embeddings/distillation", LEAF)
    return Names((*embeddings(config), token, POOLER, *BLOCK, CLASSIFIER, *TWO_CLASSIFIERS), "deit.", MASKING)


def _mae_names(config, kind):
    return Names((*embeddings(config), *BLOCK), "vit.", MASKING)


def _head(values, kind, classes):
    return Head(classes, reads="distilled" if kind == "distilled" else "features")


_read_deit = partial(_read, distilled=True)
_read_mae = partial(_read, may_pool=False)

FAMILIES = {
    "vit": Family(
        heads={"ViTForImageClassification": "classification", "ViTModel": "", "ViTForMaskedImageModeling": ""},
        read=_read,
        head=_head,
        names=_names,
        write=partial(_write, again=_read, model_type="vit"),
    ),
    "deit": Family(
        heads={
            "DeiTForImageClassification": "classification",
            "DeiTForImageClassificationWithTeacher": "distilled",
            "DeiTModel": "",
            "DeiTForMaskedImageModeling": "",
        },
        read=_read_deit,
        head=_head,
        names=_deit_names,
        write=partial(_write, again=_read_deit, model_type="deit"),
    ),
    "vit_mae": Family(
        heads={"ViTMAEModel": "", "ViTMAEForPreTraining": ""},
        read=_read_mae,
        head=_head,
        names=_mae_names,
        # Here every patch is seen, so there too: its own default masks three quarters of them.
        write=partial(_write, again=_read_mae, model_type="vit_mae", mask_ratio=0.0),
    ),
}
