"""Evaluation of representations: published protocols on stored features. Functions on arrays; no training loop."""
