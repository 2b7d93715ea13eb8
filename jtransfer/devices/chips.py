"""TPU chips that are not there: their published peak rates, and the devices of a slice of them to compile for."""

import glob
import os
import re
from dataclasses import dataclass
from typing import Any

from jtransfer.errors import InputError, first_line, nearest


@dataclass(frozen=True)
class Chip:
    """Peak rates of a chip.

    Attributes:
        flops: Operations in bfloat16 a second.
        memory: Bytes of its HBM.
        bandwidth: Bytes a second between the HBM and the chip.
        links: Bytes a second that it sends to its neighbours, over all links together and in one direction.
        sides: Number of sides of a slice.
        options: Of the compiler, for one device a chip.
    """

    flops: float
    memory: int
    bandwidth: float
    links: float
    sides: int
    options: tuple[tuple[str, str], ...] = ()


# Google's documentation, cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "Key specifications": peak compute (bf16), HBM
# capacity and bandwidth, and ICI bandwidth per chip. That is given in both directions (400 GBps of v5e, 800 of v6e) or
# in bits (2400 Gbps of v4, 4800 of v5p), of which links has bytes in one direction.
CHIPS = {
    "v4": Chip(275e12, 32 << 30, 1.2e12, 300e9, 3, (("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 16 << 30, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95 << 30, 2.765e12, 600e9, 3),
    "v6e": Chip(918e12, 32 << 30, 1.638e12, 400e9, 2),
}
"""Chips by the first part of the name of a topology."""

NOWHERE = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # as several processes may compile at a time
}
"""Variables by which libtpu, where there is no TPU, looks for none and does not complain of finding none."""


def topology(name: str) -> tuple[Chip, list[Any]]:
    """The chip of a slice, and the devices to compile for: one a chip.

    Args:
        name: A chip and the sides of the slice, as "v5e:16x16" or "v5p:4x4x8".

    Raises:
        InputError: an unknown chip, sides that no slice of it has, or no compiler for TPUs.
    """
    kind, _, sides = name.partition(":")
    if kind not in CHIPS:
        raise InputError(f"--topology={name}: unknown chip '{kind}'; {nearest(kind, CHIPS)}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d{0,3}" + r"x[1-9]\d{0,3}" * (chip.sides - 1), sides):
        expected = {2: "v5e:16x16", 3: "v5p:4x4x8"}[chip.sides].replace("v5e", kind).replace("v5p", kind)
        raise InputError(f"--topology={name}: a slice of {kind} has {chip.sides} sides; expected as in '{expected}'")
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401, as JAX only says that its backend is missing
    except ImportError as error:
        raise InputError(f"--topology needs a compiler for TPUs ({error}): pip install 'jtransfer[pod]'") from None
    before = dict(os.environ)
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        os.environ.update({variable: value for variable, value in NOWHERE.items() if variable not in before})
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **dict(chip.options))
    except Exception as error:  # whatever the compiler raises
        raise InputError(f"--topology={name}: {first_line(error)}; expected sides that slices of {kind} have") from None
    finally:
        for variable in NOWHERE.keys() - before.keys():
            os.environ.pop(variable, None)
    return chip, list(found.devices)
