"""ResNet in Hugging Face's layout."""

import numpy as np

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.names import CONV, DENSE, SAME, Kind, Names, Row
from jtransfer.models import Head, ResNetConfig

BATCH_NORM: Kind = {
    ".weight": ("{}/scale", SAME),
    ".bias": ("{}/bias", SAME),
    ".running_mean": ("batch_stats/{}/mean", SAME),
    ".running_var": ("batch_stats/{}/var", SAME),
}
THEIRS, OURS = "encoder.stages.{}.layers.{}", "stage_{}/block_{}"
ROWS = (
    Row("embedder.embedder.convolution", "stem/conv", CONV),
    Row("embedder.embedder.normalization", "stem/norm", BATCH_NORM),
    Row(f"{THEIRS}.layer.0.convolution", f"{OURS}/conv_1", CONV),
    Row(f"{THEIRS}.layer.0.normalization", f"{OURS}/norm_1", BATCH_NORM),
    Row(f"{THEIRS}.layer.1.convolution", f"{OURS}/conv_2", CONV),
    Row(f"{THEIRS}.layer.1.normalization", f"{OURS}/norm_2", BATCH_NORM),
    Row(f"{THEIRS}.layer.2.convolution", f"{OURS}/conv_3", CONV),
    Row(f"{THEIRS}.layer.2.normalization", f"{OURS}/norm_3", BATCH_NORM),
    Row(f"{THEIRS}.shortcut.convolution", f"{OURS}/shortcut/conv", CONV),
    Row(f"{THEIRS}.shortcut.normalization", f"{OURS}/shortcut/norm", BATCH_NORM),
    Row("classifier.1", "source_head", DENSE),
)
IGNORED = ((r".*\.num_batches_tracked", "PyTorch's count of training steps, which a fixed momentum does not read"),)
CONSTANTS = ((r"(.*)\.running_mean", r"\1.num_batches_tracked", np.int64(0)),)


def _read(values, names):
    side = values.get("image_size", 224)
    return ResNetConfig(
        image=tuple(side) if isinstance(side, list | tuple) else (side, side),
        channels=values.get("num_channels", 3),
        block=values.get("layer_type", "bottleneck"),
        stem=values.get("embedding_size", 64),
        widths=tuple(values.get("hidden_sizes", (256, 512, 1024, 2048))),
        depths=tuple(values.get("depths", (3, 4, 6, 3))),
        activation=activation(values.get("hidden_act", "relu")),
        downsample_in_first_stage=values.get("downsample_in_first_stage", False),
        downsample_in_bottleneck=values.get("downsample_in_bottleneck", False),
    )


def _write(config):
    return {
        "model_type": "resnet",
        "image_size": list(config.image),  # theirs has no such value, and keeps it
        "num_channels": config.channels,
        "layer_type": config.block,
        "embedding_size": config.stem,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "downsample_in_first_stage": config.downsample_in_first_stage,
        "downsample_in_bottleneck": config.downsample_in_bottleneck,
    }


def _names(config, kind):
    return Names(ROWS, "resnet.", IGNORED, CONSTANTS)


def _head(values, kind, classes):
    return Head(classes)


FAMILIES = {
    "resnet": Family(
        heads={"ResNetForImageClassification": "classification", "ResNetModel": ""},
        read=_read,
        head=_head,
        names=_names,
        write=_write,
        interpolates="bicubic",  # it has no positions, and takes what its processor gives
    ),
}
