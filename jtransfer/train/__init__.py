"""Training: the state, the step, phases, the streaming loop, and whole trials side by side."""

from jtransfer.optimiser import Optimiser
from jtransfer.train.phases import Plan, plan
from jtransfer.train.state import TrainState
from jtransfer.train.step import make_step
from jtransfer.train.trials import TrialData, TrialResult, make_trial, predict, predict_rows

__all__ = [
    "Optimiser",
    "Plan",
    "TrainState",
    "TrialData",
    "TrialResult",
    "make_step",
    "make_trial",
    "plan",
    "predict",
    "predict_rows",
]
