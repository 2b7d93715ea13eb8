"""What a `config.json` claims of a model, refused where no model of ours can be so before any of it is built."""

import dataclasses
import math
from typing import Any

from etils import epath

from jtransfer.checkpoints.families.values import MAY_BE_NULL, MOST, typed
from jtransfer.checkpoints.resizing import LARGEST_IMAGE
from jtransfer.errors import InputError
from jtransfer.kinds import shown
from jtransfer.models import MODELS, Architecture

MOST_BLOCKS = 1000


def options(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of our own config, each of the type that its default has; `build` knows their names.

    Raises:
        InputError: with the first option that is of another type, or a number that no model has.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(MODELS[architecture][1])}
    for key, value in options.items():
        default = defaults.get(key)
        if type(default) in (bool, str):
            typed(options, key, default)
        elif type(default) in (int, float):
            kinds = (int,) if type(default) is int else (int, float)
            nullable = value is None and key in MAY_BE_NULL
            if not nullable and (type(value) not in kinds or not 0 <= value <= MOST):
                raise InputError(f"config.json: {key} is {shown(value)}; expected a number from 0 to {MOST:,}")
        elif type(default) is tuple or key == "image":
            typed(options, key, default if type(default) is tuple else (1, 1))
    return options


def size(where: epath.Path, config: Architecture, tensors: int) -> None:
    """Refuse a config that claims more blocks than the file has tensors, or larger images than there are.

    A model of that depth would be traced for ever.

    Raises:
        InputError: with both numbers.
    """
    file = where / "config.json" if where.is_dir() else where
    depth, inputs = config.depth, config.inputs
    if depth > min(tensors, MOST_BLOCKS):
        has = f"but the file has {tensors} tensors" if depth > tensors else f"expected {MOST_BLOCKS:,} at most"
        raise InputError(f"{file} claims {depth} blocks, {has}")
    if "pixel_values" in inputs and (values := math.prod(inputs["pixel_values"].shape)) > LARGEST_IMAGE:
        raise InputError(
            f"{file} claims images of {' x '.join(map(str, inputs['pixel_values'].shape[1:]))}, which are {values:,} "
            f"values each; expected {LARGEST_IMAGE:,} at most"
        )
