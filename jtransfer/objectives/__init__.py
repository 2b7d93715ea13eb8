"""Losses: pure functions of parameters, state, a batch and a key."""

from jtransfer.objectives.classification import classification

__all__ = ["classification"]
