"""Flax modules, one file per architecture. They know nothing of methods, training or data."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.models.architecture import Architecture
from jtransfer.models.awd_lstm import AWDLSTM, AWDLSTMConfig
from jtransfer.models.bert import Bert, BertConfig
from jtransfer.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig
from jtransfer.models.convnext import ConvNext, ConvNextConfig
from jtransfer.models.dinov3 import DINOv3ViT, DINOv3ViTConfig
from jtransfer.models.efficientnet import EfficientNet, EfficientNetConfig
from jtransfer.models.elmo import Elmo, ElmoConfig
from jtransfer.models.gpt2 import GPT2, GPT2Config
from jtransfer.models.heads import SOURCE_HEAD, STATISTICS, Classifier, Head, Headed, Heads, of_source_head
from jtransfer.models.llama import Llama, LlamaConfig
from jtransfer.models.modernbert import ModernBert, ModernBertConfig
from jtransfer.models.naflex import NaFlexViT, NaFlexViTConfig
from jtransfer.models.pixels import Pixels, PixelsConfig
from jtransfer.models.resnet import ResNet, ResNetConfig
from jtransfer.models.swin import Swin, SwinConfig
from jtransfer.models.vit import ViT, ViTConfig
from jtransfer.models.word_vectors import WordVectors, WordVectorsConfig
from jtransfer.tree import Tree, flat, nested, prefixed, select

__all__ = [
    "AWDLSTM",
    "CLIP",
    "GPT2",
    "MODELS",
    "SOURCE_HEAD",
    "STATISTICS",
    "AWDLSTMConfig",
    "Architecture",
    "Bert",
    "BertConfig",
    "CLIPConfig",
    "CLIPText",
    "CLIPTextConfig",
    "Classifier",
    "ConvNext",
    "ConvNextConfig",
    "DINOv3ViT",
    "DINOv3ViTConfig",
    "EfficientNet",
    "EfficientNetConfig",
    "Elmo",
    "ElmoConfig",
    "GPT2Config",
    "Head",
    "Headed",
    "Heads",
    "Llama",
    "LlamaConfig",
    "ModernBert",
    "ModernBertConfig",
    "NaFlexViT",
    "NaFlexViTConfig",
    "Pixels",
    "PixelsConfig",
    "ResNet",
    "ResNetConfig",
    "Swin",
    "SwinConfig",
    "ViT",
    "ViTConfig",
    "WordVectors",
    "WordVectorsConfig",
    "apply",
    "build",
    "check_ids",
    "check_images",
    "complete",
    "described",
    "of_config",
    "of_source_head",
    "outputs_and_leaves",
    "shapes_of",
]

MODELS = {
    "awd_lstm": (AWDLSTM, AWDLSTMConfig),
    "bert": (Bert, BertConfig),
    "clip": (CLIP, CLIPConfig),
    "clip_text": (CLIPText, CLIPTextConfig),
    "convnext": (ConvNext, ConvNextConfig),
    "dinov3_vit": (DINOv3ViT, DINOv3ViTConfig),
    "efficientnet": (EfficientNet, EfficientNetConfig),
    "elmo": (Elmo, ElmoConfig),
    "gpt2": (GPT2, GPT2Config),
    "llama": (Llama, LlamaConfig),
    "modernbert": (ModernBert, ModernBertConfig),
    "naflex_vit": (NaFlexViT, NaFlexViTConfig),
    "resnet": (ResNet, ResNetConfig),
    "swin": (Swin, SwinConfig),
    "vit": (ViT, ViTConfig),
    "word_vectors": (WordVectors, WordVectorsConfig),
    "pixels": (Pixels, PixelsConfig),
}


def build(architecture: str, **options: Any) -> nn.Module:
    """The backbone `architecture` (a key of `MODELS`) with the options of its config.

    Raises:
        InputError: an unknown architecture or option, with the nearest that exists.
    """
    if architecture not in MODELS:
        raise InputError(f"unknown architecture '{architecture}'; {nearest(architecture, MODELS)}")
    module, config = MODELS[architecture]
    names = [field.name for field in fields(config)]
    for key in options:
        if key not in names:
            raise InputError(f"architecture '{architecture}' has no option '{key}'; {nearest(key, names)}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return module(config(**options))


def of_config(config: Architecture) -> nn.Module:
    """The backbone of a config object."""
    return next(module for module, kind in MODELS.values() if kind is type(config))(config)


def described(config: Architecture) -> dict[str, Any]:
    """A config as plain values, from which `build` makes it again: its architecture, and that of each tower in it."""
    values = dataclasses.asdict(config)
    architecture = next(name for name, (_, kind) in MODELS.items() if kind is type(config))
    return {"architecture": architecture, **values, **{name: described(tower) for name, tower in config.towers.items()}}


def apply(model: nn.Module, tree: Tree, inputs: Any, **kwargs) -> Any:
    """Call a model on a flat tree: its parameters, and its statistics under `batch_stats/`.

    Args:
        model: A Flax module.
        tree: Leaves that the model lacks do no harm.
        inputs: One array, or a mapping of arrays by the names of the model's arguments.
        **kwargs: For the model (`train`) and for Flax (`rngs`, `mutable`, `method`).
    """
    variables = {"params": nested({p: x for p, x in tree.items() if not p.startswith(STATISTICS)})}
    if statistics := select(tree, STATISTICS):
        variables["batch_stats"] = nested(statistics)
    if isinstance(inputs, Mapping):
        return model.apply(variables, **inputs, **kwargs)
    return model.apply(variables, inputs, **kwargs)


def complete(model: nn.Module, key: jax.Array, tree: Tree, example: Any) -> Tree:
    """Apply a model on `tree` and let it make the leaves that are missing: no other is ever initialised.

    Args:
        model: A Flax module.
        key: For the leaves that start at random.
        tree: Parameters, and statistics under `batch_stats/`.
        example: Shapes of the inputs, as `apply` takes them.

    Returns:
        The whole tree. Call it under `jit`: what the missing leaves do not need is then never computed.
    """
    return _run(model, key, tree, example)[1]


def shapes_of(model: nn.Module, example: Any) -> Tree:
    """Shape and dtype of every leaf of a model, its statistics under `batch_stats/`."""
    return outputs_and_leaves(model, example)[1]


def outputs_and_leaves(model: nn.Module, example: Any) -> tuple[dict[str, Any], Tree]:
    """Shape and dtype of what a model gives in evaluation mode, by name, and of every leaf, as `shapes_of`."""
    return jax.eval_shape(partial(_run, model, tree={}, example=example), jax.random.key(0))


def _run(model, key, tree, example):
    """The outputs of a model on inputs of zeros, and its whole tree."""
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    variables = nn.DenyList(("intermediates",))
    outputs, made = apply(model, tree, inputs, train=False, rngs={"params": key}, mutable=variables)
    return outputs, tree | flat(made.get("params", {})) | prefixed(flat(made.get("batch_stats", {})), STATISTICS)


def check_ids(what: str, name: str, ids: Any, rows: int, named: Callable[[int], str] | None = None) -> None:
    """Refuse a number that a table has no row for, as PyTorch does.

    Args:
        what: That the ids are given to, for the error.
        name: Name of the input.
        ids: `[n, tokens]`.
        rows: Number of rows of the table.
        named: What is said of such a number, for the error.

    Raises:
        InputError: with the first such number, its place, and the size of the table.
    """
    ids = np.asarray(ids)
    if not ids.size or (ids.min() >= 0 and ids.max() < rows):
        return
    place = tuple(int(i) for i in np.argwhere((ids < 0) | (ids >= rows))[0])
    found = f"{name}[{', '.join(map(str, place))}] is {ids[place]}{named(int(ids[place])) if named else ''}"
    raise InputError(f"{what}: {found}; the model's table has {rows} rows: expected 0..{rows - 1}")


def check_images(model: nn.Module, what: str, shape: tuple[int, ...]) -> None:
    """Refuse images that a model does not take.

    Args:
        model: A backbone.
        what: Where the images come from, for the error.
        shape: `[height, width, channels]` of one of them.

    Raises:
        InputError: with both shapes.
    """
    inputs = model.config.inputs
    if "pixel_values" not in inputs:
        raise InputError(f"config.data: {what} are images, the model takes {', '.join(inputs)}")
    if shape != (taken := inputs["pixel_values"].shape[1:]):
        found, expected = ("x".join(map(str, sides)) for sides in (shape, taken))
        resized = "; config.preprocessor may resize them" if shape[-1] == taken[-1] in (1, 3) else ""
        raise InputError(f"config.data: {what} are {found}, the model takes {expected}{resized}")
