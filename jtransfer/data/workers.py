"""What processes make of steps side by side, in the order of the steps: `config.workers` of `jtransfer train`.

The processes are workers of Grain's (`IterDataset.mp_prefetch`). They compute nothing by JAX, and arrays come from them
through shared memory. Each step is made by one of them alone, so that their number changes nothing of what is made.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import connection, resource_tracker
from typing import Any

import numpy as np

from jtransfer import imports, stopping
from jtransfer.errors import InputError, MachineError, first_line, refusal
from jtransfer.storage.arrays import aligned

log = logging.getLogger("jtransfer")

AHEAD = 1
"""Batches that wait in the queue of a worker; four more a worker are in hand, in its own and in the threads here."""


def check(count: int, stream: Any) -> None:
    """Refuse so many workers before anything compiles.

    Args:
        count: Of the workers, 1 or more.
        stream: A `Stream`, a `PairStream` or `Joined` ones.

    Raises:
        InputError: the stream makes its batches in their order alone, or Grain is not installed.
    """
    for own in getattr(stream, "streams", {"": stream}).values():
        if own.at is None:
            raise InputError(
                f"config.workers is {count}, and {own.name} has no batches by the number of the step, which workers "
                "make; set it to 0"
            )
    try:
        import grain  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"config.workers is {count}, and that needs Grain ({error}); install it: pip install 'jtransfer[grain]', "
            "or set it to 0"
        ) from None


def made(host: Callable[[int], Any], steps: Sequence[int], count: int) -> Iterator[Any]:
    """What a function makes of each step, in the order of the steps, in processes that are started at the first.

    Close it to end the processes. Warnings of theirs are logged here, each text once.

    Args:
        host: From a step to arrays in a tree. The processes get copies of it, made by cloudpickle.
        steps: What it is called with.
        count: Of the processes.

    Raises:
        InputError, MachineError: as the function raised it.
        MachineError: a process died.
        RuntimeError: the function raised something else.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads its own, and no program of ours has any
        flags.FLAGS.mark_as_parsed()
    resource_tracker.ensure_running()  # in this thread, as it unblocks signals
    begin, each = partial(_begin, imports.folders()), []
    for number in range(count):
        read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        own = grain.MapDataset.source(steps[number::count]).map(partial(_one, host)).to_iter_dataset(read)
        options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=AHEAD)
        each.append(iter(own.mp_prefetch(options, worker_init_fn=begin)))
    # A process starts with the blocked signals of the thread that starts it: Ctrl-C is for the training alone, which
    # ends its workers when it has saved.
    pool, said = ThreadPoolExecutor(count, initializer=partial(_block, stopping.SIGNALS)), set()
    try:
        pending = [pool.submit(_taken, own) for own in each]
        for place, step in enumerate(steps):
            number = place % count
            try:
                found = pending[number].result()
            except (InputError, MachineError):
                raise
            except Exception as error:
                raise _lost(f"input worker {number + 1} of {count}", step, error) from error
            pending[number] = pool.submit(_taken, each[number])
            for text in found["said"]:
                if text not in said:
                    said.add(text)
                    log.warning("%s", text)
            yield found["made"]
    finally:
        pool.shutdown(cancel_futures=True)  # first: a thread that waits for a closed iterator would wait for ever
        with ThreadPoolExecutor(count) as closing:
            list(closing.map(lambda own: own.close(), each))
        gc.collect()  # errors of Grain's hold frames, and these the last batch of each worker in shared memory


def _taken(items: Iterator[Any]) -> Any:
    """The next item in memory of its own, so that no shared memory is in use when the processes end."""
    return _owned(next(items, None))


def _owned(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _owned(value) for key, value in tree.items()}
    if not isinstance(tree, np.ndarray):
        return tree
    found = aligned(tree.shape, tree.dtype)
    np.copyto(found, tree)
    return found


def _lost(worker: str, step: int, error: Exception) -> Exception:
    """The error for a worker that did not give what it should have made of a step, from what Grain raised."""
    told = first_line(error)
    if isinstance(error, Failed):
        return RuntimeError(f"{worker} failed at step {step + 1}: {error}")
    code = told.partition("exit code ")[2].partition(".")[0]
    if code.startswith("-") and code[1:].isdigit():
        told = f"it was ended by {signal.Signals(int(code[1:])).name}"
    why = " (/dev/shm is full)" if code == f"-{int(signal.SIGBUS)}" else ""
    return MachineError(
        f"{worker} died before it gave the batch of step {step + 1}: {told}{why}; the same command goes on, with fewer "
        "config.workers where memory is short"
    )


class Failed(RuntimeError):
    """What was raised in a worker, as text, for not every error can be sent to another process."""


_said: list[str] = []
"""In a worker, warnings since the last batch."""


class _Noted(logging.Handler):
    def emit(self, record):
        _said.append(record.getMessage())


def _begin(folders: Sequence[str], number: int, count: int) -> None:
    """What a worker does first, before what it calls is unpickled, which may import JAX."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the devices are the training's
    sys.path[:0] = folders
    sys.dont_write_bytecode = sys.dont_write_bytecode or bool(folders)
    os.dup2(2, 1)  # the output of a command stays what it is
    log.addHandler(_Noted())
    log.propagate = False
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process when the training is gone, as by SIGKILL."""
    connection.wait([parent.sentinel])
    os._exit(1)


def _block(signals: Sequence[int]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def _one(host: Callable[[int], Any], step: int) -> dict[str, Any]:
    try:
        found = host(step)
    except (InputError, MachineError):
        raise
    except BaseException as error:  # sys.exit() among them, after which Grain would wait for ever
        if told := refusal(error):
            raise MachineError(told[0]) from None
        raise Failed("".join(traceback.format_exception(error)).strip()) from None
    said = [*_said]
    _said.clear()
    return {"made": found, "said": said}
