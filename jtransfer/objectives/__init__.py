"""Losses: pure functions of parameters, state, a batch and a key."""

from jtransfer.objectives.classification import check_mixup, classification
from jtransfer.objectives.contrastive import LOSSES, contrastive, pair_loss

__all__ = ["LOSSES", "check_mixup", "classification", "contrastive", "pair_loss"]
