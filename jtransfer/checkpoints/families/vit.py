"""ViT in Hugging Face's layout."""

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, patches
from jtransfer.errors import InputError
from jtransfer.models import Head, ViTConfig

BLOCK = (
    Row("encoder.layer.{}.layernorm_before", "encoder/block_{}/norm_1", NORM, ("layers.{}.layernorm_before",)),
    Row(
        "encoder.layer.{}.attention.attention.query",
        "encoder/block_{}/attention/query",
        DENSE,
        ("layers.{}.attention.q_proj",),
    ),
    Row(
        "encoder.layer.{}.attention.attention.key",
        "encoder/block_{}/attention/key",
        DENSE,
        ("layers.{}.attention.k_proj",),
    ),
    Row(
        "encoder.layer.{}.attention.attention.value",
        "encoder/block_{}/attention/value",
        DENSE,
        ("layers.{}.attention.v_proj",),
    ),
    Row(
        "encoder.layer.{}.attention.output.dense",
        "encoder/block_{}/attention/out",
        DENSE,
        ("layers.{}.attention.o_proj",),
    ),
    Row("encoder.layer.{}.layernorm_after", "encoder/block_{}/norm_2", NORM, ("layers.{}.layernorm_after",)),
    Row("encoder.layer.{}.intermediate.dense", "encoder/block_{}/mlp/up", DENSE, ("layers.{}.mlp.fc1",)),
    Row("encoder.layer.{}.output.dense", "encoder/block_{}/mlp/down", DENSE, ("layers.{}.mlp.fc2",)),
    Row("layernorm", "encoder/norm", NORM),
)
HEAD = (Row("classifier", "source_head", DENSE),)


def _read(values, names):
    side = values.get("image_size", 224)
    return ViTConfig(
        image=tuple(side) if isinstance(side, list | tuple) else (side, side),
        channels=values.get("num_channels", 3),
        patch=values.get("patch_size", 16),
        width=values.get("hidden_size", 768),
        depth=values.get("num_hidden_layers", 12),
        heads=values.get("num_attention_heads", 12),
        hidden=values.get("intermediate_size", 3072),
        pooler=any(name.endswith("pooler.dense.weight") for name in names),
        qkv_bias=values.get("qkv_bias", True),
        epsilon=values.get("layer_norm_eps", 1e-12),
        activation=activation(values.get("hidden_act", "gelu")),
        dropout=values.get("hidden_dropout_prob", 0.0),
        attention_dropout=values.get("attention_probs_dropout_prob", 0.0),
    )


def _names(config, kind):
    rows = (
        Row("embeddings.cls_token", "embeddings/cls", LEAF),
        Row("embeddings.position_embeddings", "embeddings/positions", LEAF),
        Row("embeddings.patch_embeddings.projection", "embeddings/patch", patches(config.patch, config.channels)),
        Row("pooler.dense", "pooler", DENSE),
        *BLOCK,
        *HEAD,
    )
    return Names(rows, "vit.")


def _write(config):
    if config.pool != "cls":
        raise InputError(f"Hugging Face's ViT reads its class token; this one has pool='{config.pool}'")
    return {
        "model_type": "vit",
        "image_size": list(config.image),
        "num_channels": config.channels,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.stack.hidden,
        "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.epsilon,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }


def _head(values, kind, classes):
    return Head(classes)


FAMILIES = {
    "vit": Family(
        heads={"ViTForImageClassification": "classification", "ViTModel": ""},
        read=_read,
        head=_head,
        names=_names,
        write=_write,
    ),
}
