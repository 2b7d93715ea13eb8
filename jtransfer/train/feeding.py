"""The batches that steps take, read and prepared by a thread, or by worker processes where a run asks for these."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial

from jtransfer.data import workers
from jtransfer.data.streams import Cursor, HostBatch, Joined, ahead, taken
from jtransfer.devices import sharding
from jtransfer.train.programs import Programs


def batches(programs: Programs, start: int, cursor: Cursor) -> Iterator[tuple[HostBatch, Cursor]]:
    """This process's share of the batch of each step, with the cursor after it; a few are made ahead in a thread.

    They are equal to the bit with any number of workers. Close it to end the thread and the workers.

    Args:
        programs: Of the run.
        start: The number of steps that are done.
        cursor: Of the batch that was trained on last; 0 before any.

    Raises:
        Ended: the data have no more batches.
        InputError: as `taken`.
        MachineError: a worker died.
    """
    return ahead((_by_workers if programs.run.workers else _by_order)(programs, start, cursor))


def _by_order(programs, start, cursor):
    count = len(sharding.rows(programs.run.mesh, programs.run.schedule.batch))
    given = taken(programs.run.task.data.stream, count, cursor)
    for number, (batch, after) in enumerate(given, start + 1):
        yield programs.ready(number, batch), after


def _by_workers(programs, start, cursor):
    """Workers make what needs no device; what frozen layers make of rows, and teachers say, is added here."""
    run, data = programs.run, programs.run.task.data
    numbers, stream = range(start + 1, run.schedule.steps + 1), data.stream
    # A run that went back reads on behind the batch that it went back from.
    behind = (next(iter(cursor.values())) if isinstance(cursor, Mapping) else cursor) - start
    steps = [number - 1 + behind for number in numbers if not programs.knows(number)]
    with closing(workers.made(partial(_prepared, stream.at, data.ready), steps, run.workers)) as prepared:
        for number in numbers:
            place = number + behind
            after = dict.fromkeys(stream.streams, place) if isinstance(stream, Joined) else place
            if programs.knows(number):
                yield programs.ready(number, stream.at(place - 1)), after
            else:
                told = data.told(stream.at(place - 1)) if data.told else {}
                yield next(prepared) | told, after


def _prepared(at, ready, step):
    return ready(at(step))
