"""Where a backbone meets a dataset: what makes its inputs, and what a dual encoder on pairs starts from."""

from jtransfer.starts.inputs import load_for, tower_for

__all__ = ["load_for", "tower_for"]
