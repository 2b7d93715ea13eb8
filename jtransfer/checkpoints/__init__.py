"""Weights in and out: pretrained backbones of many layouts, adapters, exports, and the checkpoints of a run."""

from jtransfer.checkpoints.adapter import Adapter
from jtransfer.checkpoints.adapters import Adapters, load_adapter
from jtransfer.checkpoints.backbone import Backbone, load, save
from jtransfer.checkpoints.catalogue import Known, families
from jtransfer.checkpoints.export import to_huggingface, to_orbax
from jtransfer.checkpoints.hub import embedded
from jtransfer.checkpoints.merged import merge
from jtransfer.checkpoints.peft_writing import write_adapter

__all__ = [
    "Adapter",
    "Adapters",
    "Backbone",
    "Known",
    "embedded",
    "families",
    "load",
    "load_adapter",
    "merge",
    "save",
    "to_huggingface",
    "to_orbax",
    "write_adapter",
]
