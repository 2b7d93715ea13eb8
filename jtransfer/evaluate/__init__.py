"""Evaluation of representations: published protocols on stored features. Functions on arrays; no training loop."""

from jtransfer.solvers.logistic import few_shot_paths, logistic_path

__all__ = ["few_shot_paths", "logistic_path"]
