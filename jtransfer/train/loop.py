"""The streaming loop: one jitted step on a mesh, metrics, checkpoints, and exact resume."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import jax
import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints.keeping import Highest
from jtransfer.checkpoints.store import Store
from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Ended, Joined, Stream, ended
from jtransfer.devices import hosts, sharding, watch
from jtransfer.errors import Damaged, InputError, Once
from jtransfer.models import STATISTICS
from jtransfer.stopping import Stopped, after_a_step
from jtransfer.storage import locks, workdir
from jtransfer.storage.cells import ResultRow
from jtransfer.train import boards, feeding, outcome, profiling, remembered, resuming
from jtransfer.train.bad_steps import BadSteps, Rewind
from jtransfer.train.pace import Pace, untimed
from jtransfer.train.phases import packed
from jtransfer.train.programs import Programs
from jtransfer.train.runs import Run
from jtransfer.train.state import TrainState
from jtransfer.tree import Tree, merge

log = logging.getLogger("jtransfer")


def train(
    run: Run,
    directory: epath.PathLike,
    on_row: Callable[[ResultRow, dict[str, float]], None],
    profile: int = 0,
    wandb: str = "",
) -> list[ResultRow]:
    """Train from the newest checkpoint in a directory, or from the start, to the last step.

    Leaves `config.json`, `task.json`, `metrics.jsonl`, TensorBoard files and `checkpoints/`, and `events.jsonl` where
    bad steps were left out or gone around. At the end it writes the trained model under `model/`, in the layout that
    `config.backbone` takes: a plain model, or, where the method does not merge into one, what the method made of the
    backbone. Where neither can be kept, no model is written, and a warning at the start says so.

    Args:
        run: What to do.
        directory: The directory of the run, local or in an object store.
        on_row: Called with every row of metrics, and with what `Pace` measured since the row before.
        profile: How many steps are traced, as by `profiling.window`; 0 for none.
        wandb: The project of Weights & Biases that rows are sent to as well; empty for none.

    Returns:
        The rows of `metrics.jsonl`, without what `Pace` measured.

    Raises:
        InputError: the directory belongs to another config or is in use, a checkpoint is damaged, the data end before
            the last step, the head that a method solves for is not finite, or `wandb` is not installed.
        MachineError: the directory cannot be written.
        Diverged: a step is bad (see `bad_steps`), and the config says that the run stops; earlier checkpoints are kept.
        Stopped: a signal came. The state is saved, and the next call ends as if there had been none.
    """
    directory, schedule, mesh, stream = epath.Path(directory), run.schedule, run.mesh, run.task.data.stream
    boards.check(wandb)
    of = resuming.claim(run, directory)
    if hosts.is_first():
        remembered.write(directory, run.task)
    programs = Programs(run)
    if refusal := outcome.refusal(run):
        log.warning(
            "no model/ is written at the end, and the result goes out by jtransfer export --format=orbax alone: %s",
            refusal,
        )

    rows: list[ResultRow] = []
    best = _best(run, rows)
    with (
        after_a_step() as signalled,
        _held(directory) as still_held,
        Store(directory / "checkpoints", [*run.keep.policies(), *_kept_too(run), best]) as store,
        boards.boards(directory, wandb, run.record) as board,
        profiling.window(directory, profile) as trace,
    ):
        at = resuming.newest(programs, store, directory, of)
        start, phase, state, kept, frozen = at.step, at.phase, at.state, at.kept, at.frozen
        rows[:], pending, cursor, bad = at.rows, at.pending, at.cursor, BadSteps(run.on_bad, at.events, at.step)
        del at  # whose arrays the first step takes
        programs.recall()
        if start < schedule.steps:
            programs.know(known := run.plan.at(start + 1))
        others, warn, agreed = merge(kept, frozen), Once(), hosts.agree()
        pace = Pace(stream.kind, schedule.batch * len(run.task.objectives), schedule.steps)
        number, batches = start, feeding.batches(programs, start, cursor)
        try:
            while number < schedule.steps:
                number += 1
                compiles = number == start + 1 or run.plan.at(number) > phase
                if run.plan.at(number) > phase:
                    phase = run.plan.at(number)
                    state, kept, frozen = programs.enter(phase, state, kept, frozen)
                    others = merge(kept, frozen)
                trace(number - start, pending[-1:])
                watch.at(watch.DATA, number)
                try:
                    with pace.waiting():
                        own, cursor = next(batches)
                except Ended as error:
                    raise InputError(ended(error, number - 1, schedule.steps) + _kept(store)) from None
                watch.at(watch.COMPILING if compiles else watch.STEP, number)
                batch = sharding.assemble(own, schedule.batch, mesh)
                with profiling.step(number):
                    state, metrics = programs.step(phase)(state, others | programs.held, batch)
                pending.append(metrics)
                bad.saw(number, cursor)
                if compiles:
                    jax.block_until_ready(metrics)
                    pace.again()
                else:
                    pace.step()
                jax.block_until_ready(pending[-2:-1])  # a step ahead of the devices and no more: a signal can wait
                stop, where = agreed(signalled())
                due = number % schedule.log_every == 0 or number in (1, schedule.steps)
                try:
                    pending = bad.read(number, pending, _kept(store)) if due or stop else pending
                except Rewind as back:
                    batches.close()
                    del state, kept, frozen, others  # before their place is needed
                    at = resuming.newest(programs, store, directory, of, back.step)
                    number, phase, state, kept, frozen = at.step, at.phase, at.state, at.kept, at.frozen
                    rows[:], pending, cursor, others = at.rows, at.pending, back.cursor, merge(kept, frozen)
                    del at
                    bad.back(back, number)
                    if (again := run.plan.at(number + 1)) < known:
                        known = again
                        programs.know(known)
                    batches = feeding.batches(programs, number, cursor)
                    pace.again()
                    continue
                if due:
                    row = _row(number, pending, bad) | (programs.solved | _left_out(stream) if number == 1 else {})
                    measured = pace.read(number)
                    if number % schedule.eval_every == 0 or number == schedule.steps:
                        watch.at(watch.EVALUATION, number)
                        row |= programs.evaluate(phase)(state, others)
                    rows.append(row | measured)
                    board(row | measured)
                    on_row(row, measured)
                    for said in filter(None, (one.notice(row) for one in run.task.objectives if any(pending))):
                        warn("%s", said)
                    pending = []
                    pace.again()
                if number % schedule.checkpoint_every == 0 or number == schedule.steps or stop:
                    watch.at(watch.SAVING, number)
                    still_held()
                    _write(directory, rows, bad)
                    about = {"metrics": [*rows], "pending": [*pending], "config": of, "phase": phase, "cursor": cursor}
                    about |= {"events": [*bad.events]} if bad.events else {}
                    about |= {"best": found} if (found := best.of((*store.steps, number))) else {}
                    store.save(number, packed(state, kept), about)
                if stop and number < schedule.steps:
                    raise Stopped(stop, f"{where} at step {number}; saved", agreed=True)
        finally:  # after a NaN or Ctrl-C too; what comes after the newest checkpoint is written again by the next run
            batches.close()
            _write(directory, rows, bad)
    watch.at("")
    if not refusal:
        tree = run.adapted.phases[phase].ended(state.average, others)
        outcome.save(run, merge(tree, _statistics(state)), directory / "model")
    return [untimed(row) for row in rows]


def restored(run: Run, directory: epath.PathLike, asked: int | str = "") -> tuple[int, Tree]:
    """The step of one of a run's checkpoints, and all leaves at that step, not merged.

    Leaves of which a moving average is kept have the value of the average.

    Args:
        run: The run.
        directory: The directory of the run.
        asked: The step, or "best" by the metric that the run keeps the best by; empty for the newest.

    Raises:
        InputError: there is no such checkpoint, or it is damaged, or it is of another config than the directory.
    """
    directory = epath.Path(directory)
    of = workdir.fingerprint(files.read_record(directory / "config.json", "it cannot be told what this run was")[1])
    if not (directory / "checkpoints").exists():  # which opening it would make
        raise InputError(f"workdir {directory}: there is no checkpoint yet")
    with Store(directory / "checkpoints", reading=True) as store:
        if not store.steps:
            raise InputError(f"workdir {directory}: there is no checkpoint yet")
        step = _asked(asked, store, directory)
        try:
            at = resuming.at(step, Programs(run), store, directory, of)
        except Damaged as error:
            before = [other for other in store.steps if other < step]
            way_out = f"step {before[-1]} is there too" if before else "there is no other"
            raise Damaged(f"{error}; {way_out}") from error
    tree = run.adapted.phases[at.phase].ended(at.state.average, merge(at.kept, at.frozen))
    return step, merge(tree, _statistics(at.state))


@contextmanager
def _held(directory: epath.Path) -> Iterator[Callable[[], None]]:
    """The lock of a directory, held by the first process for all; what `locks.held` gives."""
    with ExitStack() as stack:
        yield hosts.first_does(lambda: stack.enter_context(locks.held(directory))) or (lambda: None)


def _row(number: int, pending: list[dict[str, float]], bad: BadSteps) -> ResultRow:
    """The mean of each metric over the steps since the last row, without those that were left out."""
    good = list(filter(None, pending))
    row = {name: float(np.mean([metrics[name] for metrics in good])) for name in (good[0] if good else ())}
    skipped = {"skipped": len(pending) - len(good)} if bad.on_bad.does == "skip" else {}
    return {"step": number} | row | skipped


def _left_out(stream: Stream | PairStream | Joined) -> ResultRow:
    """How many damaged rows are left out of training, as a metric of the first row; nothing where there are none."""
    return {"damaged": stream.damaged} if stream.damaged else {}


def _kept_too(run: Run) -> tuple[Highest, ...]:
    """Of a run that may go back, what keeps the newest checkpoint that no signal made: a run that was not stopped goes
    back to that one."""
    every = run.schedule.checkpoint_every
    return (Highest(lambda step: None if step % every else step),) if run.on_bad.does == "rewind" else ()


def _best(run: Run, rows: list[ResultRow]) -> Highest:
    """What keeps the checkpoint of the best evaluation in rows, which may still grow."""

    def score(step):
        value = next((row.get(run.keep.best, math.nan) for row in rows if row["step"] == step), math.nan)
        return None if math.isnan(value) else value if run.higher else -value

    return Highest(score)


def _asked(step, store, directory):
    best = store.about(store.latest).get("best") if step == "best" else None
    if step == "best" and not best:
        raise InputError(
            f"workdir {directory}: no checkpoint is the best; config.keep.best names no metric, or none yet"
        )
    wanted = best or step or store.latest
    if str(wanted) not in map(str, store.steps):
        there = ", ".join(map(str, store.steps))
        raise InputError(f"workdir {directory}: there is no checkpoint of step {wanted}; there are those of {there}")
    return int(wanted)


def _kept(store: Store) -> str:
    return f"the checkpoint of step {store.latest} is kept" if store.latest else "there is no checkpoint yet"


def _write(directory: epath.Path, rows: list[ResultRow], bad: BadSteps) -> None:
    for name, lines in {"metrics.jsonl": rows, "events.jsonl": bad.events}.items():
        if hosts.is_first() and (lines or name == "metrics.jsonl"):
            files.write(directory / name, "".join(json.dumps(line) + "\n" for line in lines))


def _statistics(state: TrainState) -> Tree:
    return {path: leaf for path, leaf in state.state.items() if path.startswith(STATISTICS)}
