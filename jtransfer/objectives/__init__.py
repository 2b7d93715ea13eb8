"""Losses: pure functions of parameters, state, a batch and a key."""

from jtransfer.objectives.classification import check_mixup, classification

__all__ = ["check_mixup", "classification"]
