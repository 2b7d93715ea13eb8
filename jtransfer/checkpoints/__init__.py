"""Weights in and out: pretrained backbones of many layouts, adapters, exports, and the checkpoints of a run."""

from jtransfer.checkpoints.backbone import Backbone, load, save
from jtransfer.checkpoints.hub import embedded

__all__ = ["Backbone", "embedded", "load", "save"]
