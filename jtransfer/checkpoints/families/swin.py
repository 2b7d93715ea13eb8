"""Swin Transformer in Hugging Face's layout."""

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import side_of, sides, typed, written_sides
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, patches
from jtransfer.models import Head, SwinConfig

OPTIONS = (
    ("channels", "num_channels", 3),
    ("width", "embed_dim", 96),
    ("depths", "depths", (2, 2, 6, 2)),
    ("heads", "num_heads", (3, 6, 12, 24)),
    ("window", "window_size", 7),
    ("mlp_ratio", "mlp_ratio", 4.0),
    ("absolute", "use_absolute_embeddings", False),
    ("qkv_bias", "qkv_bias", True),
    ("epsilon", "layer_norm_eps", 1e-5),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
    ("drop_path", "drop_path_rate", 0.1),
)
"""Options of our config, the keys that say the same, and their defaults."""

TABLE = "relative_position_bias_table"
ROWS = (
    Row("embeddings.norm", "embeddings/norm", NORM),
    Row("embeddings.position_embeddings", "embeddings/positions", LEAF),
    *(
        Row(
            f"encoder.layers.{{}}.blocks.{{}}.{theirs}",
            f"stage_{{}}/block_{{}}/{ours}",
            kind,
            (f"encoder.layers.{{}}.blocks.{{}}.{in_memory}",),
        )
        for theirs, ours, kind, in_memory in (
            ("layernorm_before", "norm_1", NORM, "layernorm_before"),
            ("attention.self.query", "attention/query", DENSE, "attention.q_proj"),
            ("attention.self.key", "attention/key", DENSE, "attention.k_proj"),
            ("attention.self.value", "attention/value", DENSE, "attention.v_proj"),
            ("attention.output.dense", "attention/out", DENSE, "attention.o_proj"),
            (f"attention.self.{TABLE}", "attention/positions", LEAF, f"attention.relative_position_bias.{TABLE}"),
            ("layernorm_after", "norm_2", NORM, "layernorm_after"),
            ("intermediate.dense", "mlp/up", DENSE, "mlp.fc1"),
            ("output.dense", "mlp/down", DENSE, "mlp.fc2"),
        )
    ),
    Row("layernorm", "norm", NORM),
    Row("classifier", "source_head", DENSE),
)
IGNORED = (
    (r".*\.relative_position_index", "follows from the side of the window"),
    (r"embeddings\.mask_token", "stands for masked patches in pre-training"),
    (r"decoder\..*", "reconstructs masked patches in pre-training"),
)


def _read(values, names):
    return SwinConfig(
        **{ours: typed(values, theirs, default) for ours, theirs, default in OPTIONS},
        image=sides(values, "image_size", 224),
        patch=side_of(values, "patch_size", 4),
        activation=activation(typed(values, "hidden_act", "gelu")),
    )


def _write(config):
    return {
        "model_type": "swin",
        "image_size": written_sides(config.image),
        "patch_size": config.patch,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        **{theirs: getattr(config, ours) for ours, theirs, _ in OPTIONS},
    }


def _names(config, kind):
    patch = Row("embeddings.patch_embeddings.projection", "embeddings/patch", patches(config.patch, config.channels))
    merges = (
        Row(f"encoder.layers.{i}.downsample.{layer}", f"stage_{i + 1}/block_0/merge/{layer}", kind)
        for i in range(len(config.depths) - 1)
        for layer, kind in (("norm", NORM), ("reduction", DENSE))
    )
    return Names((patch, *merges, *ROWS), "swin.", IGNORED)


def _head(values, kind, classes):
    return Head(classes)


FAMILIES = {
    "swin": Family(
        heads={"SwinForImageClassification": "classification", "SwinModel": "", "SwinForMaskedImageModeling": ""},
        read=_read,
        head=_head,
        names=_names,
        write=_write,
        interpolates="bicubic_torch",  # the places in a window stay; only positions of whole images are resized
    ),
}
