"""Losses: pure functions of parameters, state, a batch and a key."""

from jtransfer.objectives.classification import check_mixup, classification
from jtransfer.objectives.contrastive import contrastive, pair_loss

__all__ = ["check_mixup", "classification", "contrastive", "pair_loss"]
