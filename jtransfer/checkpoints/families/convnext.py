"""ConvNeXt and ConvNeXt V2 in Hugging Face's layout."""

from functools import partial

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import sides, typed
from jtransfer.checkpoints.names import CONV, DENSE, LEAF, NORM, LayerKind, Layout, Names, Row
from jtransfer.errors import InputError
from jtransfer.models import ConvNextConfig, Head


def response_norm(*axes: int) -> LayerKind:
    """Global response normalisation, whose vectors have `axes` there: -1 for the channels, and some of length 1."""
    channels = Layout(lambda x: (x.reshape(-1),), lambda x: x.reshape(axes))
    return {".weight": ("{}/scale", channels), ".bias": ("{}/bias", channels)}


THEIRS, OURS = "encoder.stages.{}.layers.{}", "stage_{}/block_{}"
ROWS = (
    Row("embeddings.patch_embeddings", "stem/conv", CONV),
    Row("embeddings.layernorm", "stem/norm", NORM),
    Row("encoder.stages.{}.downsampling_layer.0", "stage_{}/block_0/downsample/norm", NORM),
    Row("encoder.stages.{}.downsampling_layer.1", "stage_{}/block_0/downsample/conv", CONV),
    Row(f"{THEIRS}.dwconv", f"{OURS}/conv", CONV),
    Row(f"{THEIRS}.layernorm", f"{OURS}/norm", NORM),
    Row(f"{THEIRS}.pwconv1", f"{OURS}/mlp/up", DENSE),
    Row(f"{THEIRS}.grn", f"{OURS}/mlp/grn", response_norm(1, 1, 1, -1)),
    Row(f"{THEIRS}.pwconv2", f"{OURS}/mlp/down", DENSE),
    Row(f"{THEIRS}.layer_scale_parameter", f"{OURS}/scale", LEAF),
    Row("layernorm", "norm", NORM),
    Row("classifier", "source_head", DENSE),
)


def _read(values, names, grn):
    patch, widths = sides(values, "patch_size", 4), typed(values, "hidden_sizes", (96, 192, 384, 768))
    if patch[0] != patch[1]:
        raise InputError(f"config.json: patch_size is {list(patch)}; expected a square patch")
    if (stages := typed(values, "num_stages", 4)) != len(widths):
        raise InputError(f"config.json: num_stages is {stages}; expected {len(widths)}, the number of hidden_sizes")
    return ConvNextConfig(
        image=sides(values, "image_size", 224),
        channels=typed(values, "num_channels", 3),
        stride=patch[0],
        widths=widths,
        depths=typed(values, "depths", (3, 3, 9, 3)),
        activation=activation(typed(values, "hidden_act", "gelu")),
        grn=grn,
        layer_scale=0.0 if grn else typed(values, "layer_scale_init_value", 1e-6),
        drop_path=typed(values, "drop_path_rate", 0.0),
        epsilon=typed(values, "layer_norm_eps", 1e-12),
    )


def _write(config, model_type, grn):
    has = {"grn": config.grn, "layer_scale": config.layer_scale, "inner_epsilon": config.inner_epsilon}
    says = {"grn": grn, "layer_scale": 0.0 if grn else config.layer_scale, "inner_epsilon": 1e-6}
    if differs := [f"{key}={value}" for key, value in has.items() if value != says[key]]:
        raise InputError(f"a model with {', '.join(differs)} cannot be written as model_type '{model_type}'")
    return {
        "model_type": model_type,
        "image_size": list(config.image),  # theirs reads no such value, and keeps it
        "num_channels": config.channels,
        "patch_size": config.stride,
        "num_stages": len(config.widths),
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "drop_path_rate": config.drop_path,
        "layer_norm_eps": config.epsilon,
        **({} if grn else {"layer_scale_init_value": config.layer_scale}),
    }


def _head(values, kind, classes):
    return Head(classes)


def _family(model_type, stem, grn):
    return Family(
        heads={f"{stem}ForImageClassification": "classification", f"{stem}Model": ""},
        read=partial(_read, grn=grn),
        head=_head,
        names=lambda config, kind: Names(ROWS, f"{model_type}."),
        write=partial(_write, model_type=model_type, grn=grn),
        interpolates="bicubic",  # it has no positions, and takes what its processor gives
    )


FAMILIES = {
    "convnext": _family("convnext", "ConvNext", grn=False),
    "convnextv2": _family("convnextv2", "ConvNextV2", grn=True),
}
