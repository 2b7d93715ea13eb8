"""Parts of a model that run in evaluation mode while others train: interceptors that add no leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jtransfer.models.dinov3 import PatchPlaces
from jtransfer.models.layers import BatchNorm
from jtransfer.tree import FROZEN


def evaluation_mode(rates: Mapping[str, float]) -> Callable[..., Any]:
    """Run every frozen part of a model in evaluation mode, whatever mode the model is called in.

    A part is the module around a dropout or a batch normalisation: where none of its own leaves (those in `rates`)
    learns, nothing is dropped and no statistics are updated.
    """
    learning = [path for path, rate in rates.items() if rate != FROZEN]

    def frozen(module):
        part = "".join(f"{name}/" for name in module.path[:-1])
        return not any(path.startswith(part) for path in learning)

    return evaluating(DROPOUTS | BATCH_NORMS, frozen)


DROPOUTS = {nn.Dropout: "deterministic", PatchPlaces: "deterministic"}
BATCH_NORMS = {nn.BatchNorm: "use_running_average", BatchNorm: "use_running_average"}
"""Layers that differ in training, and what switches each to evaluation."""


def evaluating(
    switches: Mapping[type, str], chosen: Callable[[nn.Module], bool] = lambda module: True
) -> Callable[..., Any]:
    """Run the layers of the types in `switches` that are `chosen` in evaluation mode."""

    def interceptor(call, args, kwargs, context):
        switch = switches.get(type(context.module))
        if switch and context.method_name == "__call__" and chosen(context.module):
            # The model may have set it on the layer or passed it by position; Flax takes it in one place only.
            object.__setattr__(context.module, switch, None)
            args, kwargs = args[:1], kwargs | {switch: True}
        return call(*args, **kwargs)

    return interceptor
