"""Where a backbone meets a dataset: what makes its inputs, what a run starts from, and what a teacher gives."""

from jtransfer.starts.inputs import OF_ONE, load_for, tower_for

__all__ = ["OF_ONE", "load_for", "tower_for"]
