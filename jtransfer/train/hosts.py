"""Several processes as one machine: the same command on every host of a pod."""

import os

import jax

from jtransfer.errors import InputError


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


def is_first() -> bool:
    """Whether this process is the one that writes and prints what all of them know."""
    return jax.process_index() == 0
