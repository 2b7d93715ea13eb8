"""Weights in and out: pretrained backbones, and the checkpoints of a run."""

from jtransfer.checkpoints.backbone import Backbone, load, save

__all__ = ["Backbone", "load", "save"]
