"""Several processes as one machine: the same command on every host of a pod."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtransfer.devices import google, watch
from jtransfer.devices.launch import launch
from jtransfer.errors import Gone, InputError, first_line, refusal
from jtransfer.stopping import Stopped

_names: list[str] = []
"""Of the processes of this run, once there are several."""

T = TypeVar("T")


@contextmanager
def together(patience: float = 0) -> Iterator[None]:
    """Be one of the processes of a launch until the block ends; do nothing if the environment names no launch.

    Enter it before anything touches a device. All processes leave the block together. When one of them fails or is
    gone, all others end, each with a line that names its host.

    TPU slices, Slurm and Open MPI are recognised. Elsewhere set `JAX_COORDINATOR_ADDRESS` (host:port of the first
    process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Where Google's cloud says that it takes this machine away, this
    process is sent SIGTERM.

    Args:
        patience: Seconds after which a training that stands still is ended; 0 for never.

    Raises:
        InputError: variables of the environment that describe no launch, the address of process 0 cannot be found or
            opened, or the processes contradict each other.
        Gone: another process did not come, has failed, or is gone.
    """
    here = launch()
    watch.at("")
    google.answer_notices()
    if here.number == 1:
        over = watch.alone(patience)
        try:
            yield
        finally:
            over()
        return
    from jtransfer.devices.link import Link

    link = Link(here, patience)
    try:
        _join(here, link)
        _names[:] = [f" to process {index} on {name}" for index, name in enumerate(link.hosts)]
        yield
    except BaseException as error:
        if isinstance(error, Stopped) and error.agreed:
            _leave(link)
            raise
        # Where another process is gone, whatever failed here failed of that: a collective fails in the middle of a
        # checkpoint too, which is not damaged for it.
        missing = link.missing() if isinstance(error, Exception) else None
        ours = isinstance(error, InputError) and error.__cause__ is None
        if missing and (missing.code == Gone.CODE or not ours):
            raise missing from error
        if isinstance(error, Stopped):
            link.tell(str(error), error.code)
        else:
            link.tell(*(refusal(error) or (f"{type(error).__name__}: {first_line(error)}", 1)))
        raise
    _leave(link)


def _leave(link):
    """End JAX's part together; what it says last goes through this process, if it is the first."""
    link.leave()
    jax.distributed.shutdown()
    link.leave(seconds=10)


def _join(here, link):
    """Join JAX's coordinator, and take back the signals that JAX takes."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    if any(name.lower().endswith("_proxy") for name in os.environ):  # of gRPC; this address is on this host
        os.environ["no_proxy"] = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1")))
    # Under Slurm and Open MPI, JAX gives each process one GPU of its host, even where it is the host's only process.
    alone = link.hosts.count(link.hosts[here.index]) == 1 and "JAX_LOCAL_DEVICE_IDS" not in os.environ
    jax.distributed.initialize(
        link.address,
        here.number,
        here.index,
        local_device_ids=[] if alone else None,
        coordinator_bind_address=link.address,
    )
    if main:
        signal.signal(signal.SIGTERM, handler)


def agree() -> Callable[[int], tuple[int, str]]:
    """A function by which all processes agree on a number: each calls it after each step, with a number from 0 to 127.

    To all processes it returns what one of them gave at the call before: the number that is not 0 of the last process
    that gave one, and words that name this process; or 0 and "". It waits for the computations that were dispatched
    until then, and no longer. A single process gets its number back at once, and "".
    """
    if jax.process_count() == 1:
        return lambda number: (number, "")
    mesh = Mesh(np.array(jax.devices()), "all")
    split, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    largest, before = jax.jit(jnp.max, out_shardings=whole), np.int32(0)
    index = launch().index

    def of_all(number: int) -> tuple[int, str]:
        nonlocal before
        mine = np.full(jax.local_device_count(), number and number + 128 * index, np.int32)
        before, agreed = largest(jax.make_array_from_process_local_data(split, mine)), int(before)
        return agreed % 128, _names[agreed // 128] if agreed else ""

    return of_all


def first_does(work: Callable[[], T]) -> T | None:
    """Call `work` on the first process alone; if it raises an `InputError`, end all processes.

    Returns:
        What `work` returns, on the first process; None on the others.

    Raises:
        InputError: on every process, if `work` raises it on the first.
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


def first_of(said: str) -> str:
    """What the first process that says anything says, known to all; empty where none does. All processes call this."""
    if jax.process_count() == 1:
        return said
    from jax.experimental import multihost_utils

    line = np.zeros(LINE, np.uint8)
    own = np.frombuffer(said.encode()[:LINE], np.uint8)
    line[: len(own)] = own
    each = multihost_utils.process_allgather(line)
    return next((bytes(one).rstrip(b"\0").decode(errors="ignore") for one in each if one.any()), "")


LINE = 512
"""Bytes of a line that processes tell each other."""


def as_the_first(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays of the same shapes in every process as the first process has them."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    return [np.asarray(x) for x in multihost_utils.broadcast_one_to_all(arrays)]


def is_first() -> bool:
    """Whether this process is the one that writes and prints what all of them know."""
    return jax.process_index() == 0
