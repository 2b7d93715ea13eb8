"""Several processes as one machine: the same command on every host of a pod."""

import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from jtransfer.errors import InputError

T = TypeVar("T")


def join() -> None:
    """Join the other processes of a launch, if the environment names any; call it before anything touches a device.

    A TPU pod, Slurm and Open MPI are recognised by JAX itself. Elsewhere set `JAX_COORDINATOR_ADDRESS` (host:port of
    the first process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Raises:
        InputError: a coordinator without the number of processes or this one's.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        try:
            numbers = int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES or JAX_PROCESS_ID is not: {error}"
            ) from None
        jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], *numbers)
    elif (
        "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or int(env.get("SLURM_NTASKS", 1)) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    ):
        jax.distributed.initialize()


def first_does(work: Callable[[], T]) -> T | None:
    """Let the first process do something, and end all where it is refused.

    Args:
        work: Called on the first process alone.

    Returns:
        What it returns there, None elsewhere.

    Raises:
        InputError: on every process, where `work` raises it.
    """
    found = refused = None
    if is_first():
        try:
            found = work()
        except InputError as error:
            refused = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        fine = multihost_utils.broadcast_one_to_all(np.int32(refused is None))
        if not fine and refused is None:
            raise InputError("the first process ends this run; its line says why")
    if refused:
        raise refused
    return found


def is_first() -> bool:
    """Whether this process is the one that writes and prints what all of them know."""
    return jax.process_index() == 0
