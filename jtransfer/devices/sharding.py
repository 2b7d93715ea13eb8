"""How arrays lie on a mesh of devices, by rules on their paths. On one device nothing changes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jtransfer.devices.tactics import TACTICS, TENSOR, batch_axes, batch_parts, check_heads
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import AXES, check
from jtransfer.tree import Tree, label

__all__ = [
    "assemble",
    "batch_axes",
    "batch_parts",
    "batch_sharding",
    "everywhere",
    "keep_batch_split",
    "make_mesh",
    "place",
    "rows",
    "tree_shardings",
]


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices from the names and sizes of its axes; one size may be -1, for the devices that are left.

    Neighbours on the mesh are neighbours in the machine: on a TPU slice the order of the devices follows its torus,
    so that processes need not come in turn along an axis; see `rows`.

    Args:
        axes: The size of each axis by its name; `tactics` says what the names `data`, `fsdp` and `tensor` mean.
        devices: Those of a topology to compile for; by default all that JAX has.

    Raises:
        InputError: sizes other than whole numbers above 0 and one -1, or whose product is not the number of devices.
    """
    check(axes, AXES, "config.mesh")
    devices, sizes = jax.devices() if devices is None else devices, dict(axes)
    free = [name for name, side in sizes.items() if side == -1]
    known = math.prod(side for side in sizes.values() if side != -1)
    if len(free) == 1 and known and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if not sizes or min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise InputError(f"config.mesh {dict(axes)} does not fit {len(devices)} devices; {{'data': -1}} takes them all")
    # What is computed is split by the compiler: the types that `jax.make_mesh` gives by default differ among versions.
    return Mesh(_ordered(tuple(sizes.values()), devices), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _ordered(shape, devices):
    """As `jax.make_mesh` orders them, which refuses several slices and shapes that cut an axis of the torus."""
    slices, outer = len({getattr(device, "slice_index", 0) for device in devices}), []
    for side in shape:
        outer.append(math.gcd(side, slices))
        slices //= outer[-1]
    if math.prod(outer) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    inner = [side // between for side, between in zip(shape, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def tree_shardings(
    shapes: Tree, mesh: Mesh, how: str | list[tuple[str, Any]], heads: Callable[[str], int] | None = None
) -> dict[str, NamedSharding]:
    """The sharding of every leaf of a flat tree, by path.

    Args:
        shapes: Leaves with a `shape`.
        mesh: The devices.
        how: A key of `TACTICS` for all leaves, or rules of `(pattern, value)` whose value is such a key or the
            axis names of a `PartitionSpec`, as in `((".*mlp/up/kernel", (None, "model")), (".*", "fsdp"))`.
        heads: From the path of a leaf to the heads of the attention that it belongs to; None to leave them unchecked.

    Raises:
        InputError: an unknown tactic or mesh axis, rules that do not fit the tree, a tactic that splits no leaf over
            the axis that it is named after, or heads that would be cut.
    """
    values = label(shapes, [(".*", how)] if isinstance(how, str) else [tuple(rule) for rule in how])
    specs = {path: _spec(path, leaf.shape, values[path], mesh) for path, leaf in shapes.items()}
    split = [path for path, spec in specs.items() if TENSOR in spec]
    if isinstance(how, str) and how.endswith(TENSOR) and not split:
        raise InputError(
            f"config.sharding '{how}': no leaf is one of attention or of an MLP, which alone are split over "
            f"'{TENSOR}'; expected 'replicated' or 'fsdp'"
        )
    for path in split if heads else ():
        check_heads(path, heads(path), mesh)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of an array with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch, whose examples are split over the `batch_axes` of the mesh."""
    axes = batch_axes(mesh)
    return NamedSharding(mesh, PartitionSpec(axes) if axes else PartitionSpec())


def keep_batch_split(mesh: Mesh) -> Callable[..., Any]:
    """A method interceptor of Flax that holds the residual stream to the batch's split.

    With split weights XLA may otherwise gather the activations and keep whole copies of them
    ("involuntary full rematerialization").
    """

    def interceptor(call, args, kwargs, context):
        y = call(*args, **kwargs)
        lowered_for = jax.config.jax_default_device  # None, or where FLOPs are counted, which may be another platform
        elsewhere = lowered_for is not None and lowered_for.platform != mesh.devices.flat[0].platform
        if context.method_name == "residual" and not elsewhere:
            return jax.lax.with_sharding_constraint(y, batch_sharding(mesh))
        return y

    return interceptor


def place(tree: Any, shardings: Any) -> Any:
    """Global arrays from host arrays, each of which every process holds as a whole.

    Args:
        tree: Host arrays, in any tree.
        shardings: A tree of the same structure, with the sharding of each array.
    """
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: x[index]), tree, shardings)


def rows(mesh: Mesh, batch: int) -> np.ndarray:
    """The positions in a batch of the examples that the devices of this process hold, ascending.

    On a TPU slice they may lie apart, as in `[0, 1, 6, 15]` of 16. Processes that share a place on the mesh's
    `batch_axes` hold the same examples. Of the devices of a topology that is not there this process holds none.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(0), *(np.arange(batch)[part] for part in parts)]))


def assemble(local: Mapping[str, Any], batch: int, mesh: Mesh) -> dict[str, Any]:
    """The global batch from the examples that each process reads, each example at its position.

    Args:
        local: Arrays `[own, ...]` by name, the examples at the `rows` of this process, in their order.
        batch: Examples of the global batch.
        mesh: The devices.

    Returns:
        Arrays `[batch, ...]` by name, split as `batch_sharding` says.
    """
    layout, own = batch_sharding(mesh), rows(mesh, batch)

    def whole(x):
        x = np.asarray(x)

        def part(index):
            first, last = np.searchsorted(own, np.arange(batch)[index[0]][[0, -1]])
            return x[first : last + 1]

        return jax.make_array_from_callback((batch, *x.shape[1:]), layout, part)

    return jax.tree.map(whole, dict(local))


def _spec(path, shape, value, mesh):
    if isinstance(value, str):
        if value not in TACTICS:
            raise InputError(f"config.sharding: unknown '{value}' for '{path}'; {nearest(value, TACTICS)}")
        return TACTICS[value](path, shape, mesh)
    names = [axis for axis in value if axis is not None]
    if len(value) > len(shape) or len(set(names)) < len(names):
        raise InputError(
            f"config.sharding: '{path}' {list(shape)} has {len(shape)} axes, found {tuple(value)}; expected "
            "for each an axis of the mesh or None, and no axis twice"
        )
    for axis, side in zip(value, shape, strict=False):
        if axis is not None and (axis not in mesh.shape or side % mesh.shape[axis]):
            raise InputError(
                f"config.sharding: '{path}' {list(shape)} cannot be split as {value} over {dict(mesh.shape)}"
            )
    return PartitionSpec(*value)
