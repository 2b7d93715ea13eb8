"""ResNet in Hugging Face's layout."""

import numpy as np

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation
from jtransfer.checkpoints.families.values import sides, typed
from jtransfer.checkpoints.names import CONV, DENSE, SAME, LayerKind, Names, Row
from jtransfer.models import Head, ResNetConfig

BATCH_NORM: LayerKind = {
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
    return ResNetConfig(
        image=sides(values, "image_size", 224),
        channels=typed(values, "num_channels", 3),
        block=typed(values, "layer_type", "bottleneck"),
        stem=typed(values, "embedding_size", 64),
        widths=typed(values, "hidden_sizes", (256, 512, 1024, 2048)),
        depths=typed(values, "depths", (3, 4, 6, 3)),
        activation=activation(typed(values, "hidden_act", "relu")),
        downsample_in_first_stage=typed(values, "downsample_in_first_stage", False),
        downsample_in_bottleneck=typed(values, "downsample_in_bottleneck", False),
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
