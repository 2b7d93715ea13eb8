"""Which processes a launcher started together, from the environment that it gives each of them."""

import os
import re
from dataclasses import dataclass

from jtransfer.devices import google
from jtransfer.errors import InputError


@dataclass(frozen=True)
class Launch:
    """The processes of one command.

    Attributes:
        index: The number of this process, from 0.
        number: How many processes there are.
        host: The host of process 0, by a name or address that the others reach; empty if it is not known.
        port: Of process 0 on this host.
        said: The variable of the environment that names the launch.
    """

    index: int = 0
    number: int = 1
    host: str = ""
    port: int = 0
    said: str = ""


def launch() -> Launch:
    """The launch that the environment describes; a single process if it describes none.

    The variables of JAX come first, then those of GKE's TPU slices, Slurm and Open MPI, and last what the metadata
    server says to the workers of a TPU slice. `JAX_COORDINATOR_PORT` gives the port for the last four, if it is set.

    Raises:
        InputError: a variable is missing, or is not the number or address that it must be.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env or "JAX_NUM_PROCESSES" in env:
        number = _whole("JAX_NUM_PROCESSES", 1)
        index = _whole("JAX_PROCESS_ID", 0, number) if number > 1 or "JAX_PROCESS_ID" in env else 0
        if number > 1 and "JAX_COORDINATOR_ADDRESS" not in env:
            raise InputError(
                f"JAX_NUM_PROCESSES={number}, but JAX_COORDINATOR_ADDRESS is not set; expected host:port of process 0"
            )
        return Launch(index, number, *_address(env.get("JAX_COORDINATOR_ADDRESS", "")), "JAX_COORDINATOR_ADDRESS")
    if "," in (names := env.get("TPU_WORKER_HOSTNAMES", "")):
        hosts = [name.strip() for name in names.split(",")]
        slices = _whole("MEGASCALE_NUM_SLICES", 1, default=1)
        index = _whole("TPU_WORKER_ID", 0, len(hosts))
        index += len(hosts) * _whole("MEGASCALE_SLICE_ID", 0, slices, default=0)
        first = env.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0] or hosts[0]
        return Launch(index, slices * len(hosts), first, _port(8476), "TPU_WORKER_HOSTNAMES")
    if (number := _whole("SLURM_NTASKS", 1, default=1)) > 1:
        index = _whole("SLURM_PROCID", 0, number, default=0)
        # The first of "node7", "node7,gpu2", "node[007-010,12],gpu2".
        first = re.match(r"([^,\[]*)(?:\[(\d+))?", env.get("SLURM_STEP_NODELIST", ""))
        port = 61440 + _whole("SLURM_JOB_ID", 0, default=0) % 4096
        return Launch(index, number, first[1] + (first[2] or ""), _port(port), "SLURM_NTASKS")
    if (number := _whole("OMPI_COMM_WORLD_SIZE", 1, default=1)) > 1:
        index = _whole("OMPI_COMM_WORLD_RANK", 0, number)
        # As in "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911" and "1314521088.0;tcp6://[fe80::1,2620::2]:43370".
        place = re.match(r"(\d+)\..*?tcp6?://\[?([^,\]]+?)(?:,|\]|:\d+$)", env.get("OMPI_MCA_orte_hnp_uri", ""))
        first, job = (place[2], int(place[1]) >> 12) if place else ("", 0)
        return Launch(index, number, first, _port(61440 + job % 4096), "OMPI_COMM_WORLD_SIZE")
    if "TPU_WORKER_HOSTNAMES" not in env and (found := google.slice_of_tpus()) and found.number > 1:
        return Launch(found.index, found.number, found.first, _port(8476), "the metadata server")
    return Launch()


def describe(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Let flags of the command line describe the launch, in the place of what the environment says; all None for none.

    Args:
        coordinator: host:port of process 0.
        processes: How many there are.
        process: The number of this one.

    Raises:
        InputError: a flag is missing or out of range.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    lacking = [flag for flag, value in given.items() if value is None]
    if len(lacking) == len(given):
        return
    if lacking:
        raise InputError(f"{lacking[0]} is missing; {', '.join(given)} describe a launch together")
    _address(coordinator, "--coordinator ")
    if processes < 1 or not 0 <= process < processes:
        raise InputError(
            f"--process {process} of --processes {processes}: expected a number from 0 to below their number"
        )
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    os.environ.update(zip(names, map(str, given.values()), strict=True))


def alone(what: str) -> None:
    """Refuse to run in any process of a launch but the first.

    Args:
        what: What runs, for the error.

    Raises:
        InputError: this is not the first process.
    """
    here = launch()
    if here.index:
        raise InputError(
            f"{what} runs in one process, and this is number {here.index} of the {here.number} that {here.said} "
            "names; process 0 does the work"
        )


def _whole(name: str, least: int, below: int | None = None, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    expected = f"a whole number from {least}" + (f" to {below - 1}" if below is not None else "")
    if text is None:
        raise InputError(f"{name} is not set; expected {expected}")
    if not re.fullmatch(r"\d{1,9}", text.strip()) or not least <= int(text) < (below or 10**9):
        raise InputError(f"{name}={text!r}: expected {expected}")
    return int(text)


def _port(default: int) -> int:
    return _whole("JAX_COORDINATOR_PORT", 1, 65536, default)


def _address(text: str, name: str = "JAX_COORDINATOR_ADDRESS=") -> tuple[str, int]:
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if text and not (host and re.fullmatch(r"\d{1,5}", port) and 0 < int(port) < 65536):
        raise InputError(f"{name}{text!r}: expected host:port of process 0, as in 10.0.0.1:1234")
    return (host, int(port)) if text else ("", 0)
