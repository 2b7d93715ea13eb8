"""What a training step needs and takes on a pod that is not there: compiled for it, and estimated by its peak rates."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from jtransfer.devices import sharding
from jtransfer.devices.chips import Chip
from jtransfer.devices.collectives import by_kind, collectives
from jtransfer.errors import InputError, one_line
from jtransfer.train.costs import StepShapes
from jtransfer.train.operations import operations


def step(shapes: StepShapes, chip: Chip, mesh: jax.sharding.Mesh, batch: int) -> dict[str, Any]:
    """Compile a step for a mesh, and report what one chip needs and does.

    Args:
        shapes: The step, and its arguments with their shardings: see `state.lay_out`.
        chip: The chip.
        mesh: The devices, none of which need be there.
        batch: Examples of a step, over all chips.

    Returns:
        `chips`, `batch_per_chip`; `argument_bytes`, `temporary_bytes` and `peak_bytes` of one chip, and `chip_bytes`,
        its HBM; `collectives`, as `collectives.by_kind` gives them; `flops_per_chip`; and `seconds`: see `estimate`.

    Raises:
        InputError: the step does not fit into the memory of a chip.
    """
    layout = jax.tree.map(lambda x: x.sharding, shapes.arguments[0]), sharding.everywhere(mesh)
    traced = jax.jit(shapes.step, out_shardings=layout, donate_argnums=0).trace(*shapes.arguments)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\(?([\d.]+[KMGT])\)?", str(error))
        needs = f"{sizes[0]}iB of {sizes[1]}iB" if len(sizes) > 1 else one_line(error)
        raise InputError(
            f"the step does not fit into the memory of a chip ({needs}); take more chips, config.sharding 'fsdp', a "
            "larger config.accumulate, config.model.remat, or a smaller config.batch"
        ) from None
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = held + memory.temp_size_in_bytes
    # A chip alone sends nothing, and jaxlib 0.10.2 cannot print every program that libtpu 0.0.52 makes.
    sent = by_kind(collectives(compiled.as_text())) if mesh.size > 1 else {}
    flops = sum(map(operations, traced.jaxpr.eqns)) / mesh.size
    moved = float(compiled.cost_analysis()["bytes accessed"])
    return {
        "chips": mesh.size,
        "batch_per_chip": batch / sharding.batch_parts(mesh),
        "argument_bytes": int(memory.argument_size_in_bytes),
        "temporary_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": int(peak),
        "chip_bytes": chip.memory,
        "collectives": sent,
        "flops_per_chip": flops,
        "seconds": estimate(chip, flops, moved, sum(one["bytes"] for one in sent.values())),
    }


def estimate(chip: Chip, flops: float, moved: float, sent: float) -> Mapping[str, float]:
    """How long a step would take at the published peak rates of a chip, which no program reaches.

    Args:
        chip: The chip.
        flops: Operations of one chip, taken for bfloat16.
        moved: Bytes that its operations read and write, as XLA counts them: some of these stay on the chip.
        sent: Bytes that it sends to its neighbours, as if over all links at once.

    Returns:
        Seconds of `compute`, `memory` and `communication` alone, and of the `step`: the longest of the three, as if
        they overlapped wholly.
    """
    alone = {"compute": flops / chip.flops, "memory": moved / chip.bandwidth, "communication": sent / chip.links}
    return alone | {"step": max(alone.values())}
