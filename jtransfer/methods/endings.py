"""Where a phase of training ends: at its last step, or between where it began and where it came to."""

from typing import TYPE_CHECKING

from jtransfer.errors import InputError
from jtransfer.methods.statistics import moving
from jtransfer.tree import FROZEN, Tree

if TYPE_CHECKING:
    from jtransfer.methods.method import Adapted

BEGAN = "began/"
"""Prefix of the paths of leaves as they were at the start of a phase, for a method whose `ends` reads them."""


def now(tree: Tree) -> Tree:
    """The leaves of a tree without those of `BEGAN`, which no step reads."""
    return {path: leaf for path, leaf in tree.items() if not path.startswith(BEGAN)}


def check(name: str, phase: "Adapted", plain: Tree, first: bool) -> None:
    """Refuse a phase that ends elsewhere than at its last step, where that is no place between two models.

    Args:
        name: Name of the method.
        phase: The model under the method in this phase.
        plain: Shapes of the leaves of the model without the method.
        first: Whether no phase comes before.

    Raises:
        InputError: a leaf that the method adds learns, batch statistics move, or a head starts at nothing.
    """
    learning, what = [path for path, rate in phase.rates.items() if rate != FROZEN], f"method '{name}' ends between"
    if added := [path for path in learning if path not in plain]:
        raise InputError(
            f"{what} two models, and none has the leaf '{added[0]}' that it adds and trains; train leaves of the model "
            "alone, as in 'finetune + wise_ft'"
        )
    if moved := moving(phase):
        raise InputError(
            f"{what} two models, and {len(moved)} batch statistics move, between which there is none; add frozen_norm"
        )
    fresh = [path for path in learning if path.startswith("head/") and path not in (*phase.base, *phase.solved)]
    if first and fresh:
        raise InputError(
            f"{what} two models, and the head of the first knows nothing; start it, as in 'logistic >> {name}' or "
            f"'probe >> {name}'"
        )
