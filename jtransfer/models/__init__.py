"""Flax modules, one file per architecture. They know nothing of methods, training or data."""

from dataclasses import fields
from typing import Any

from flax.linen import Module

from jtransfer.errors import InputError, nearest
from jtransfer.models.classifier import SOURCE_HEAD, Classifier
from jtransfer.models.pixels import Pixels, PixelsConfig
from jtransfer.models.vit import ViT, ViTConfig

__all__ = ["MODELS", "SOURCE_HEAD", "Classifier", "Pixels", "PixelsConfig", "ViT", "ViTConfig", "build"]

MODELS = {"vit": (ViT, ViTConfig), "pixels": (Pixels, PixelsConfig)}


def build(architecture: str, **options: Any) -> Module:
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
