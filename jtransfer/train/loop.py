"""The streaming loop: one jitted step on a mesh, metrics, checkpoints, and exact resume."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import jax
import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints.store import Store
from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Cursor, Ended, Joined, Stream, ended
from jtransfer.devices import hosts, sharding, watch
from jtransfer.errors import Damaged, InputError, Once
from jtransfer.models import STATISTICS
from jtransfer.stopping import Stopped, after_a_step
from jtransfer.storage import locks, workdir
from jtransfer.storage.cells import ResultRow
from jtransfer.train import feeding, outcome, remembered
from jtransfer.train.phases import packed, unpacked
from jtransfer.train.programs import Programs
from jtransfer.train.runs import Run
from jtransfer.train.state import TrainState
from jtransfer.tree import Tree, merge

log = logging.getLogger("jtransfer")


WATCHED = ("temperature", "loss", "grad_norm")
"""Metrics that end a run when they are not finite, as the loss of each task does; the first that is not is named."""


class Diverged(InputError):
    """A loss, the norm of the gradient or the temperature of a contrastive loss became NaN or infinite."""


def train(run: Run, directory: epath.PathLike, on_row: Callable[[ResultRow, float], None]) -> list[ResultRow]:
    """Train from the newest checkpoint in a directory, or from the start, to the last step.

    Leaves `config.json`, `task.json`, `metrics.jsonl`, TensorBoard files and `checkpoints/`. At the end it writes the
    trained model under `model/`, in the layout that `config.backbone` takes: a plain model, or, where the method does
    not merge into one, what the method made of the backbone. Where neither can be kept, no model is written, and a
    warning at the start says so.

    Args:
        run: What to do.
        directory: The directory of the run, local or in an object store.
        on_row: Called with every row of metrics and the examples per second since the row before. The first step of a
            call, which compiles, does not count; the rate is nan where no other step ran. Elsewhere the row has
            `input_share` too: the share of the time since the row before in which the loop waited for a batch.

    Returns:
        The rows of `metrics.jsonl`.

    Raises:
        InputError: the directory belongs to another config or is in use, a checkpoint is damaged, the data end before
            the last step, or the head that a method solves for is not finite.
        MachineError: the directory cannot be written.
        Diverged: a metric of `WATCHED` or the loss of a task is not finite; earlier checkpoints are kept.
        Stopped: a signal came. The state is saved, and the next call ends as if there had been none.
    """
    directory, schedule, mesh, stream = epath.Path(directory), run.schedule, run.mesh, run.task.data.stream
    of = workdir.fingerprint(workdir.claim(directory, run.record, run.defaults))
    if hosts.is_first():
        remembered.write(directory, run.task)
    programs = Programs(run)
    if refusal := outcome.refusal(run):
        log.warning(
            "no model/ is written at the end, and the result goes out by jtransfer export --format=orbax alone: %s",
            refusal,
        )

    with (
        after_a_step() as signalled,
        _held(directory) as still_held,
        Store(directory / "checkpoints") as store,
        _board(directory, store.latest or 0) as board,
    ):
        rows, pending, cursor, start = [], [], 0, store.latest or 0
        phase = run.plan.at(start)
        state, kept, frozen = programs.start(phase, anew=not start)
        programs.recall()
        if start < schedule.steps:
            programs.know(run.plan.at(start + 1))
        if start:
            whole, rows, pending, cursor = _restore(store, start, packed(state, kept), directory, of)
            state, kept = unpacked(whole)
        others = merge(kept, frozen)
        timed, began, waited, warn, agreed = 0, math.nan, 0.0, Once(), hosts.agree()
        batches = feeding.batches(programs, start, cursor)
        try:
            for number in range(start + 1, schedule.steps + 1):
                compiles = number == start + 1 or run.plan.at(number) > phase
                if run.plan.at(number) > phase:
                    phase = run.plan.at(number)
                    state, kept, frozen = programs.enter(phase, state, kept, frozen)
                    others = merge(kept, frozen)
                watch.at(watch.DATA, number)
                asked = time.perf_counter()
                try:
                    own, cursor = next(batches)
                except Ended as error:
                    raise InputError(ended(error, number - 1, schedule.steps) + _kept(store)) from None
                watch.at(watch.COMPILING if compiles else watch.STEP, number)
                given = time.perf_counter()
                batch = sharding.assemble(own, schedule.batch, mesh)
                state, metrics = programs.step(phase)(state, others | programs.held, batch)
                pending.append(metrics)
                if number == start + 1:
                    jax.block_until_ready(metrics)
                    began = time.perf_counter()
                else:
                    timed += schedule.batch * len(run.task.objectives)
                    waited += given - asked
                jax.block_until_ready(pending[-2:-1])  # a step ahead of the devices and no more: a signal can wait
                stop, where = agreed(signalled())
                if number % schedule.log_every == 0 or number in (1, schedule.steps):
                    row = _row(number, pending, store) | (programs.solved | _left_out(stream) if number == 1 else {})
                    taken = time.perf_counter() - began
                    speed = timed / taken if timed else math.nan
                    measured = {"input_share": waited / taken} if timed else {}  # in no row that is kept
                    if number % schedule.eval_every == 0 or number == schedule.steps:
                        watch.at(watch.EVALUATION, number)
                        row |= programs.evaluate(phase)(state, others)
                    rows.append(row)
                    board(row | measured | ({f"{stream.kind}s_per_second": speed} if timed else {}))
                    on_row(row | measured, speed)
                    for said in filter(None, (one.notice(row) for one in run.task.objectives)):
                        warn("%s", said)
                    pending, timed, began, waited = [], 0, time.perf_counter(), 0.0
                if number % schedule.checkpoint_every == 0 or number == schedule.steps or stop:
                    watch.at(watch.SAVING, number)
                    still_held()
                    _write(directory / "metrics.jsonl", rows)
                    about = {"metrics": rows, "pending": _finite(number, pending, store), "config": of, "phase": phase}
                    store.save(number, packed(state, kept), about | {"cursor": cursor})
                if stop and number < schedule.steps:
                    raise Stopped(stop, f"{where} at step {number}; saved", agreed=True)
        finally:  # after a NaN or Ctrl-C too; what comes after the newest checkpoint is written again by the next run
            batches.close()
            _write(directory / "metrics.jsonl", rows)
    if not refusal:
        tree = run.adapted.phases[phase].ended(state.average, others)
        outcome.save(run, merge(tree, _statistics(state)), directory / "model")
    return rows


def restored(run: Run, directory: epath.PathLike) -> tuple[int, Tree]:
    """The step of a run's newest checkpoint, and all leaves at that step, not merged.

    Leaves of which a moving average is kept have the value of the average.

    Raises:
        InputError: there is no checkpoint yet, or it is damaged, or it is of another config than the directory.
    """
    directory = epath.Path(directory)
    of = workdir.fingerprint(files.read_record(directory / "config.json", "it cannot be told what this run was")[1])
    if not (directory / "checkpoints").exists():  # which opening it would make
        raise InputError(f"workdir {directory}: there is no checkpoint yet")
    programs = Programs(run)
    with Store(directory / "checkpoints", reading=True) as store:
        if (step := store.latest) is None:
            raise InputError(f"workdir {directory}: there is no checkpoint yet")
        state, kept, frozen = programs.start(run.plan.at(step))
        state, kept = unpacked(_restore(store, step, packed(state, kept), directory, of)[0])
    tree = run.adapted.phases[run.plan.at(step)].ended(state.average, merge(kept, frozen))
    return step, merge(tree, _statistics(state))


@contextmanager
def _held(directory: epath.Path) -> Iterator[Callable[[], None]]:
    """The lock of a directory, held by the first process for all; what `locks.held` gives."""
    with ExitStack() as stack:
        yield hosts.first_does(lambda: stack.enter_context(locks.held(directory))) or (lambda: None)


def _row(number: int, pending: list[dict], store: Store) -> ResultRow:
    """The mean of each metric over the steps since the last row."""
    pending = _finite(number, pending, store)
    return {"step": number} | {name: float(np.mean([metrics[name] for metrics in pending])) for name in pending[0]}


def _left_out(stream: Stream | PairStream | Joined) -> ResultRow:
    """How many damaged rows are left out of training, as a metric of the first row; nothing where there are none."""
    return {"damaged": stream.damaged} if stream.damaged else {}


def _finite(number: int, pending: list[dict], store: Store) -> list[dict[str, float]]:
    """The metrics of the steps up to `number` as numbers; the first step that is not finite is an error."""
    pending = [{name: float(value) for name, value in metrics.items()} for metrics in jax.device_get(pending)]
    for i, metrics in enumerate(pending):
        watched = [*WATCHED, *(name for name in metrics if name.endswith("_loss"))]
        bad = [name for name in watched if not np.isfinite(metrics.get(name, 0))]
        if bad:
            at = number - len(pending) + 1 + i
            raise Diverged(
                f"{bad[0]} is {metrics[bad[0]]} at step {at}; {_kept(store)}; try a lower config.optimiser.rate"
            )
    return pending


def _kept(store: Store) -> str:
    return f"the checkpoint of step {store.latest} is kept" if store.latest else "there is no checkpoint yet"


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _restore(
    store: Store, step: int, state: TrainState, directory: epath.Path, of: str
) -> tuple[TrainState, list[ResultRow], list[dict[str, float]], Cursor]:
    """The state at a step, in the layout of `state`, the rows of metrics up to it, and the metrics since the last row.

    Last comes the cursor of the data; checkpoints of earlier versions have none, and go on from their step. The rows
    come from the checkpoint, so that nothing depends on `metrics.jsonl`, which is written for others to read;
    checkpoints of format 1 did not have them.

    Raises:
        Damaged: it is not as it was written, of another step, or of a run of another config than `of`.
    """
    state, about = store.restore(step, _abstract(state))
    if int(state.step) != step:
        raise Damaged(
            f"checkpoint {store.directory / str(step)} is that of step {int(state.step)}, renamed; give it its name "
            "back, or remove it"
        )
    if about.get("config", of) != of:
        raise Damaged(
            f"checkpoint {store.directory / str(step)} is of another config; remove it to go on "
            "from the one before, or choose another --workdir"
        )
    rows = about["metrics"] if "metrics" in about else _rows_of_1(directory / "metrics.jsonl")
    rows = [row for row in rows if row["step"] <= step]
    return state, rows, about.get("pending", []), about.get("cursor", step)


def _rows_of_1(path):
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if sorted({row["step"] for row in rows}) != [row["step"] for row in rows]:
            raise ValueError("its steps do not rise")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error}); remove it to go on without what it holds") from None
    return rows


def _write(path: epath.Path, rows: list[ResultRow]) -> None:
    if hosts.is_first():
        files.write(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def _board(directory: epath.Path, start: int) -> Iterator[Callable[[ResultRow], None]]:
    """What writes rows as TensorBoard scalars, over what an earlier run wrote after step `start`."""
    if not hosts.is_first():
        yield lambda row: None
        return
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None) as writer:

        def write(row):
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

        yield write


def _statistics(state: TrainState) -> Tree:
    return {path: leaf for path, leaf in state.state.items() if path.startswith(STATISTICS)}
