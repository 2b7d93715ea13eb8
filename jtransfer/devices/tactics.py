"""Named tactics: from a leaf's path and shape to the axes of the mesh that split it.

A mesh has up to three kinds of axes. The batch is split over the first axis, and over those called `data` and `fsdp`
(`batch_axes`); `fsdp` may split weights too, which are then gathered where they are used; `tensor` splits the heads of
attention and the hidden units of an MLP, and every chip along it sees the whole batch of its group.
"""

import math
import re
from collections.abc import Callable

from jax.sharding import Mesh, PartitionSpec

from jtransfer.errors import InputError

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
"""Axes of a mesh that have a meaning by their names."""

LEAST = 4096
"""Numbers of the smallest leaf that is split by `fsdp`."""

Tactic = Callable[[str, tuple[int, ...], Mesh], PartitionSpec]

BY_OUTPUT, BY_INPUT = r"(.*/)?(attention/(query|key|value|qkv)|mlp/(up|gate))", r"(.*/)?(attention/out|mlp/down)"
MEGATRON = (
    (rf"{BY_OUTPUT}/(kernel|lora/b)", (None, TENSOR)),
    (rf"{BY_OUTPUT}/bias", (TENSOR,)),
    (rf"{BY_INPUT}/(kernel|lora/a)", (TENSOR, None)),
)
"""How tensor parallelism splits the leaves that it concerns (Shoeybi et al. 2019, arXiv:1909.08053, section 3).

The first of two layers is split by its outputs, the second by its inputs, so that what lies between them stays on its
chip, and one sum over the chips follows. All other leaves are as without it, the tables of words among them.
"""
HEADS = r"(.*/)?attention/(query|key|value|qkv)/kernel"
"""Leaves whose outputs are heads, none of which may be cut."""


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh over which the examples of a batch are split: the first, `data` and `fsdp`; never `tensor`.

    >>> batch_axes(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    ('data', 'fsdp')
    >>> batch_axes(make_mesh({"replica": 4, "model": 2}))
    ('replica',)
    """
    first, split = mesh.axis_names[0], (DATA, FSDP)
    return tuple(name for name in mesh.axis_names if name in split or (name == first and name != TENSOR))


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(mesh.shape[name] for name in batch_axes(mesh))


def replicated(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A copy on every device. With the batch split over the mesh, this is data parallelism."""
    return PartitionSpec()


def fsdp(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Split the largest side that the size of the axis `fsdp` divides; of a mesh without it, that of its first axis.

    Leaves without such a side, or of fewer than `LEAST` numbers, are copied to every device.
    """
    return _also_fsdp((None,) * len(shape), shape, mesh)


def tensor(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Split attention by heads and MLPs by hidden units over the axis `tensor`; other leaves are copied.

    Raises:
        InputError: the mesh has no such axis, or its size does not divide a side of the leaf.
    """
    return _spec(_megatron("tensor", path, shape, mesh))


def fsdp_tensor(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Split as `tensor` does, and another side of each leaf as `fsdp` does.

    Raises:
        InputError: as `tensor`.
    """
    return _also_fsdp(_megatron("fsdp_tensor", path, shape, mesh), shape, mesh)


TACTICS: dict[str, Tactic] = {"replicated": replicated, "fsdp": fsdp, "tensor": tensor, "fsdp_tensor": fsdp_tensor}


def check_heads(path: str, heads: int, mesh: Mesh) -> None:
    """Refuse a split of attention that would cut a head.

    Args:
        path: Of a leaf that the axis `tensor` splits.
        heads: Of the attention that the leaf belongs to.
        mesh: The devices.

    Raises:
        InputError: with the numbers.
    """
    if re.fullmatch(HEADS, path) and heads % mesh.shape[TENSOR]:
        raise InputError(
            f"config.sharding: the {heads} heads of '{path}' cannot be split over {mesh.shape[TENSOR]} devices of "
            f"config.mesh.{TENSOR}; expected a divisor of {heads}"
        )


def _megatron(name, path, shape, mesh):
    """The axis of the mesh for each side of a leaf, None for a side that tensor parallelism does not split."""
    if TENSOR not in mesh.shape:
        raise InputError(
            f"config.sharding '{name}' needs an axis '{TENSOR}', config.mesh is {dict(mesh.shape)}; expected as in "
            f"{{'{DATA}': -1, '{TENSOR}': 2}}"
        )
    rules = (axes for pattern, axes in MEGATRON if len(axes) == len(shape) and re.fullmatch(pattern, path))
    axes = next(rules, (None,) * len(shape))
    for axis, side in zip(axes, shape, strict=True):
        if axis and side % mesh.shape[axis]:
            raise InputError(
                f"config.sharding '{name}': '{path}' {list(shape)} cannot be split over {mesh.shape[axis]} devices of "
                f"config.mesh.{axis}; expected a divisor of {side}"
            )
    return axes


def _also_fsdp(axes, shape, mesh):
    """`axes` with the largest side that is free and divides given to the axis that splits weights."""
    axis = FSDP if FSDP in mesh.shape else mesh.axis_names[0]
    free = [i for i, side in enumerate(shape) if axes[i] is None and side % mesh.shape[axis] == 0]
    if math.prod(shape) < LEAST or not free or axis in axes:
        return _spec(axes)
    largest = max(free, key=lambda i: shape[i])
    return PartitionSpec(*(axis if i == largest else own for i, own in enumerate(axes)))


def _spec(axes):
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()
