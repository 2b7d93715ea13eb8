"""DINOv2, plain and with registers, in Hugging Face's layout."""

from functools import partial

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.families.vit import CLASSIFIER, MASKING, embeddings, read, write
from jtransfer.checkpoints.names import DENSE, LEAF, NORM, Names, Row, fused, repeated
from jtransfer.errors import InputError
from jtransfer.models import Head

BLOCK = (
    Row("norm1", "norm_1", NORM),
    Row("attention.attention.query", "attention/query", DENSE, ("attention.q_proj",)),
    Row("attention.attention.key", "attention/key", DENSE, ("attention.k_proj",)),
    Row("attention.attention.value", "attention/value", DENSE, ("attention.v_proj",)),
    Row("attention.output.dense", "attention/out", DENSE, ("attention.o_proj",)),
    Row("layer_scale1.lambda1", "scale_1", LEAF),
    Row("norm2", "norm_2", NORM),
    Row("layer_scale2.lambda1", "scale_2", LEAF),
)
MLP = (Row("mlp.fc1", "mlp/up", DENSE), Row("mlp.fc2", "mlp/down", DENSE))
GATED = (
    Row("mlp.weights_in", ("mlp/gate", "mlp/up"), fused(2)),
    Row("mlp.weights_out", "mlp/down", DENSE, ("mlp.down_proj",)),
    # Transformers 5 keeps the two apart in memory, and writes them as one.
    Row("mlp.gate_proj", "mlp/gate", DENSE),
    Row("mlp.up_proj", "mlp/up", DENSE),
)
RATIOS = range(1, 65)


def _hidden(width, ratio, gated):
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _read(values, names, patch, registers):
    gated = typed(values, "use_swiglu_ffn", False)
    config = read(
        values,
        patch=patch,
        epsilon=1e-6,
        hidden=_hidden(typed(values, "hidden_size", 768), typed(values, "mlp_ratio", 4.0), gated),
        activation="silu" if gated else activation(typed(values, "hidden_act", "gelu")),
        gated=gated,
        layer_scale=typed(values, "layerscale_value", 1.0),
        drop_path=typed(values, "drop_path_rate", 0.0),
        registers=typed(values, "num_register_tokens", 4) if registers else 0,
        pool="cls_mean",
    )
    if config.image[0] != config.image[1]:
        # Transformers takes the positions for those of a square of as many patches, whatever the config says.
        raise InputError(f"config.json: image_size is {list(config.image)}; expected a square image")
    return config


def _write(config, again, model_type):
    if not config.layer_scale:  # theirs would start at 0, which turns every branch off
        raise InputError(f"a model with layer_scale=0.0 cannot be written as model_type '{model_type}'")
    ratios = [ratio for ratio in RATIOS if _hidden(config.width, ratio, config.gated) == config.stack.hidden]
    own = {"num_register_tokens": config.registers} if "registers" in model_type else {"use_mask_token": False}
    return write(
        config,
        again,
        model_type,
        mlp_ratio=ratios[0] if ratios else 4,
        hidden_act=THEIR_ACTIVATIONS[config.activation],
        use_swiglu_ffn=config.gated,
        layerscale_value=config.layer_scale,
        drop_path_rate=config.drop_path,
        **own,
    )


def _names(config, kind, prefix):
    block = repeated(BLOCK + (GATED if config.gated else MLP), "encoder.layer.{}.", "encoder/block_{}/")
    registers = Row("embeddings.register_tokens", "embeddings/registers", LEAF)
    return Names((*embeddings(config), registers, *block, CLASSIFIER), prefix, MASKING[:1])


def _head(values, kind, classes):
    return Head(classes)


def _family(model_type, stem, patch, registers):
    again = partial(_read, patch=patch, registers=registers)
    return Family(
        heads={f"{stem}ForImageClassification": "classification", f"{stem}Model": "", f"{stem}Backbone": ""},
        read=again,
        head=_head,
        names=partial(_names, prefix=f"{model_type}."),
        write=partial(_write, again=again, model_type=model_type),
        interpolates="bicubic" if registers else "bicubic_torch",
    )


FAMILIES = {
    "dinov2": _family("dinov2", "Dinov2", patch=14, registers=False),
    "dinov2_with_registers": _family("dinov2_with_registers", "Dinov2WithRegisters", patch=16, registers=True),
}
