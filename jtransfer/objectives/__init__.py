"""What can be learned, one file per family. To add an objective, write a function that returns an `Objective`."""

from jtransfer.objectives.classification import check_mixup, classification
from jtransfer.objectives.contrastive import LOSSES, contrastive, pair_loss
from jtransfer.objectives.objective import Objective, Score, make_loss

__all__ = ["LOSSES", "Objective", "Score", "check_mixup", "classification", "contrastive", "make_loss", "pair_loss"]
