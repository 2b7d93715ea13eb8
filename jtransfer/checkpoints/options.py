"""The options of `load`: which can be, and what those of the blocks make of a config."""

from collections.abc import Collection
from typing import Any

from jax.sharding import Sharding

from jtransfer.checkpoints import heads
from jtransfer.checkpoints.resizing import RESIZERS
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import FLOATS, PATTERN, shown
from jtransfer.kinds import check as check_kind
from jtransfer.models import MODELS, Architecture, quantized


def check(include, head, classes, image, channels, positions, dtype, param_dtype, sharding) -> None:
    """Refuse options of `load` that are of no use, before anything is read.

    Raises:
        InputError: with the option and what was expected.
    """
    if include is not None:
        check_kind(include, PATTERN, "include")
    if not (head is None or isinstance(head, str)):
        raise InputError(f"head={head!r}: expected the name of a kind of head, '' for none, None for its own")
    sides = image if isinstance(image, tuple | list) else (image,)
    numbers = {"classes": classes, "channels": channels, **{f"image[{i}]": side for i, side in enumerate(sides)}}
    for option, value in numbers.items():
        if not (value is None or (type(value) is int and value > 0)):
            raise InputError(f"{option}={shown(value)}: expected a whole number above 0")
    if classes is not None and classes > heads.MOST_CLASSES:
        raise InputError(f"classes={shown(classes)}: expected at most {heads.MOST_CLASSES:,}")
    if isinstance(image, tuple | list) and (len(image) != 2 or None in image):
        raise InputError(f"image={image!r}: expected height and width, or both as one number")
    if not (positions is None or (isinstance(positions, str) and positions in RESIZERS)):
        raise InputError(f"positions: unknown '{positions}'; {nearest(positions, RESIZERS)}")
    for option, value in {"dtype": dtype, "param_dtype": param_dtype}.items():
        if not FLOATS.takes(value):
            raise InputError(f"{option}: unknown '{value}'; {nearest(value, FLOATS.choices)}")
    if not (sharding is None or sharding == "host" or isinstance(sharding, Sharding) or callable(sharding)):
        raise InputError(f"sharding={sharding!r}: expected a jax Sharding, a function of path and shape, or 'host'")


def of_blocks(config: Architecture, bits: int, remat: bool) -> dict[str, Any]:
    """What `bits` and `remat` change in the config of a checkpoint.

    Raises:
        InputError: bits that are none, an architecture without such kernels or blocks, or a checkpoint that is in other
            bits.
    """
    names = {kind: name for name, (_, kind) in MODELS.items()}
    if type(bits) is not int or bits not in quantized.BITS:
        raise InputError(f"bits={shown(bits)}: expected one of {', '.join(map(str, quantized.BITS))}")
    if bits and config.bits is None:
        there = ", ".join(sorted(name for kind, name in names.items() if kind.bits is not None))
        raise InputError(
            f"bits={bits}: architecture '{names[type(config)]}' has no quantised kernels; there are {there}"
        )
    if bits and config.bits not in (0, bits):
        raise InputError(f"bits={bits}: the kernels of the checkpoint are in {config.bits} bits; expected that, or 0")
    if remat and not hasattr(config, "remat"):
        raise InputError(f"remat=True: architecture '{names[type(config)]}' has no blocks that are computed again")
    return ({"bits": bits} if bits else {}) | ({"remat": True} if remat else {})


def check_base_alone(name: str, bits: int, remat: bool) -> None:
    """Refuse options of the blocks for a base and what a method made of it, which is as it was trained.

    Raises:
        InputError: naming the option.
    """
    if bits or remat:
        option = f"bits={bits}" if bits else "remat=True"
        raise InputError(
            f"{option}: backbone '{name}' is a base and what a method made of it; its base was so or was not"
        )


def check_fresh(name: str, bits: int, paths: Collection[str]) -> None:
    """Refuse kernels in few bits that no checkpoint gives.

    Raises:
        InputError: with the first of these paths.
    """
    if paths:
        raise InputError(f"bits={bits}: backbone '{name}' has no '{next(iter(paths))}' to quantise; leave out include")
