"""Weights in and out: pretrained backbones of many layouts, adapters, exports, and the checkpoints of a run."""

from jtransfer.checkpoints.adapter import Adapter
from jtransfer.checkpoints.backbone import Backbone, load, save
from jtransfer.checkpoints.export import to_huggingface, to_orbax
from jtransfer.checkpoints.hub import embedded
from jtransfer.checkpoints.inputs import load_for, tower_for
from jtransfer.checkpoints.peft import load_adapter, write_adapter

__all__ = [
    "Adapter",
    "Backbone",
    "embedded",
    "load",
    "load_adapter",
    "load_for",
    "save",
    "to_huggingface",
    "to_orbax",
    "tower_for",
    "write_adapter",
]
