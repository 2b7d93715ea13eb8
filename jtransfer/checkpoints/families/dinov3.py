"""The vision transformer of DINOv3 in Hugging Face's layout."""

import numpy as np

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import side_of, sides, typed, written_sides
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, patches
from jtransfer.models import DINOv3ViTConfig, Head

OPTIONS = (
    ("channels", "num_channels", 3),
    ("width", "hidden_size", 384),
    ("depth", "num_hidden_layers", 12),
    ("heads", "num_attention_heads", 6),
    ("hidden", "intermediate_size", 1536),
    ("registers", "num_register_tokens", 0),
    ("theta", "rope_theta", 100.0),
    ("query_bias", "query_bias", True),
    ("key_bias", "key_bias", False),
    ("value_bias", "value_bias", True),
    ("out_bias", "proj_bias", True),
    ("mlp_bias", "mlp_bias", True),
    ("epsilon", "layer_norm_eps", 1e-5),
    ("gated", "use_gated_mlp", False),
    ("layer_scale", "layerscale_value", 1.0),
    ("attention_dropout", "attention_dropout", 0.0),
    ("drop_path", "drop_path_rate", 0.0),
)
"""Options of our config, the keys that say the same, and their defaults."""

AUGMENTED = (
    ("shift", "pos_embed_shift", None),
    ("jitter", "pos_embed_jitter", None),
    ("rescale", "pos_embed_rescale", 2.0),
)
"""Likewise, of what training does to the places of patches; null there is 0 here."""

ROWS = (
    Row("embeddings.cls_token", "embeddings/cls", LEAF),
    Row("embeddings.register_tokens", "embeddings/registers", LEAF),
    *(
        Row(f"layer.{{}}.{theirs}", f"encoder/block_{{}}/{ours}", kind, (f"model.layer.{{}}.{theirs}",))
        for theirs, ours, kind in (
            ("norm1", "norm_1", NORM),
            ("attention.q_proj", "attention/query", DENSE),
            ("attention.k_proj", "attention/key", DENSE),
            ("attention.v_proj", "attention/value", DENSE),
            ("attention.o_proj", "attention/out", DENSE),
            ("layer_scale1.lambda1", "scale_1", LEAF),
            ("norm2", "norm_2", NORM),
            ("mlp.gate_proj", "mlp/gate", DENSE),
            ("mlp.up_proj", "mlp/up", DENSE),
            ("mlp.down_proj", "mlp/down", DENSE),
            ("layer_scale2.lambda1", "scale_2", LEAF),
        )
    ),
    Row("norm", "encoder/norm", NORM),
)
CLASS_TOKEN = r"(.*embeddings\.)cls_token"
MASK = (r"embeddings\.mask_token", "stands for masked patches in pre-training")
NO_REGISTERS = (r"embeddings\.register_tokens", "is empty, as the model has no registers")


def _read(values, names):
    def augmented(theirs, default):
        return 0.0 if values.get(theirs, default) is None else typed(values, theirs, default or 0.0)

    return DINOv3ViTConfig(
        **{ours: typed(values, theirs, default) for ours, theirs, default in OPTIONS},
        **{ours: augmented(theirs, default) for ours, theirs, default in AUGMENTED},
        image=sides(values, "image_size", 224),
        patch=side_of(values, "patch_size", 16),
        activation=activation(typed(values, "hidden_act", "gelu")),
    )


def _write(config):
    return {
        "model_type": "dinov3_vit",
        "image_size": written_sides(config.image),
        "patch_size": config.patch,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        **{theirs: getattr(config, ours) for ours, theirs, _ in OPTIONS},
        "intermediate_size": config.stack.hidden,
        **{theirs: getattr(config, ours) or None for ours, theirs, _ in AUGMENTED},
    }


def _names(config, kind):
    patch = Row("embeddings.patch_embeddings", "embeddings/patch", patches(config.patch, config.channels))
    # What transformers misses in a file it calls missing, needed or not.
    blank = [(CLASS_TOKEN, r"\1mask_token", np.zeros((1, 1, config.width), np.float32))]
    if config.registers:
        return Names((patch, *ROWS), ignored=(MASK,), constants=tuple(blank))
    blank += [(CLASS_TOKEN, r"\1register_tokens", np.zeros((1, 0, config.width), np.float32))]
    rows = tuple(row for row in ROWS if row.ours != "embeddings/registers")
    return Names((patch, *rows), ignored=(MASK, NO_REGISTERS), constants=tuple(blank))


def _head(values, kind, classes):
    return Head(classes)


FAMILIES = {
    "dinov3_vit": Family(
        heads={"DINOv3ViTModel": "", "DINOv3ViTBackbone": ""},
        read=_read,
        head=_head,
        names=_names,
        write=_write,
        interpolates="bicubic",  # it takes what its processor gives, and has no positions to resize
    ),
}
