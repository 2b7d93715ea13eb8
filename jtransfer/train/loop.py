"""The streaming loop: one jitted step on a mesh, metrics, checkpoints, and exact resume."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from etils import epath

from jtransfer import expressions, files, methods
from jtransfer.checkpoints.adapter import merges
from jtransfer.checkpoints.store import Store
from jtransfer.config import check, defaults, resolved
from jtransfer.data import preprocess, sources
from jtransfer.data.streams import Cursor, ahead, ended, taken
from jtransfer.devices import hosts, sharding
from jtransfer.errors import Damaged, InputError, Once
from jtransfer.models import STATISTICS
from jtransfer.objectives import make_loss
from jtransfer.optimiser import Optimiser
from jtransfer.stopping import Stopped, after_a_step
from jtransfer.storage import locks, workdir
from jtransfer.storage.cells import ResultRow
from jtransfer.train import costs, outcome, remembered, tried
from jtransfer.train.phases import Plan, entered, packed, parts, plan, unpacked
from jtransfer.train.state import TrainState, state_shardings
from jtransfer.train.step import make_step
from jtransfer.train.tasks import Task, build_task
from jtransfer.tree import Tree, merge

log = logging.getLogger("jtransfer")


WATCHED = ("temperature", "loss", "grad_norm")
"""Metrics that end a run when they are not finite, as the loss of each task does; the first that is not is named."""


class Diverged(InputError):
    """The loss or the gradient became NaN or infinite."""


@dataclass(frozen=True)
class Run:
    """A training run with everything checked and nothing compiled.

    Attributes:
        config: The resolved config.
        task: What is learned, of which data.
        method: How it is trained.
        adapted: The model as the method changes it.
        optimiser: Its options.
        plan: Steps and rates of the phases of the method.
        mesh: The devices.
        fingerprints: Of the data, of the backbones, of the files that say how the model's inputs are made and of the
            user's modules (by name), where there are any.
    """

    config: Any
    task: Task
    method: methods.Method
    adapted: methods.Adapted
    optimiser: Optimiser
    plan: Plan
    mesh: jax.sharding.Mesh
    fingerprints: dict[str, Any]

    @property
    def merges(self) -> bool:
        """Whether the plain model computes the same as the adapted one, by leaves that the method makes of all."""
        return merges(self.method, self.task.model, self.adapted.example, self.adapted.shapes, self.adapted.base)


def prepare(config, stream: Any = None) -> Run:
    """Load data and backbone, build model and method.

    Args:
        config: Of the run.
        stream: Of its data, as `remembered` has it; None to open what the config names.

    Raises:
        InputError: whatever in the config cannot be run, before any compilation.
    """
    check("train", config)
    for key in ("eval_every", "checkpoint_every"):
        if config[key] % config.log_every:
            raise InputError(f"config.{key} {config[key]} must be a multiple of config.log_every {config.log_every}")
    mesh = sharding.make_mesh(config.mesh)
    parts = config.accumulate * mesh.shape[mesh.axis_names[0]]
    if config.batch % parts:
        raise InputError(
            f"config.batch {config.batch} must be a multiple of {parts}: devices of the batch x accumulate"
        )
    method, optimiser = methods.parse(config.method), Optimiser(**config.optimiser)
    if method.solves:
        raise InputError(f"config.method '{method.name}': only a curve solves for a head; write 'probe >> finetune'")
    methods.check_needs([method], ["teacher"] if config.teacher else [])
    task = build_task(config, mesh, stream)
    if task.params and not method.pretrained:
        which = ", ".join(filter(None, (config.backbone, *config.towers.values())))
        log.warning(
            "config.method '%s' starts at random: of %s nothing but the architecture is taken", method.name, which
        )
    wrap = (sharding.keep_batch_split(mesh),) if mesh.size > 1 else ()
    adapted = methods.adapt(method, task.model, task.params, task.example, wrap, task.fresh)
    sharding.tree_shardings(adapted.shapes, mesh, config.sharding)
    fingerprints = {"data": task.stream.fingerprint} | task.fingerprints
    if beside := task.beside():
        fingerprints["preprocessing"] = preprocess.fingerprint(beside)
    modules = expressions.modules(config.method, "method")
    for section in config.tasks.values() if config.tasks else (config,):
        modules |= expressions.modules(section.objective, "objective")
        for name in section.metrics:
            modules |= expressions.modules(name, "metric")
        modules |= {} if stream else sources.modules(section.data)  # what is only read back imports none
    if modules:
        fingerprints["modules"] = modules
        tried.check(adapted.phases, task.objective, task.parts or costs.LABELS, modules)
    shares = plan(len(method.phases), config.steps, config.phase_steps, config.phase_rates)
    return Run(config, task, method, adapted, optimiser, shares, mesh, fingerprints)


def train(run: Run, directory: epath.PathLike, on_row: Callable[[ResultRow, float], None]) -> list[ResultRow]:
    """Train from the newest checkpoint in a directory, or from the start, to the last step.

    Leaves `metrics.jsonl`, TensorBoard files, `checkpoints/`, `task.json` and, at the end, the trained model under
    `model/` in the layout that `config.backbone` takes: a plain model, or, where the method does not merge into one,
    what it made of the backbone. Where neither can be, there is no model, which is said.

    Args:
        run: What to do.
        directory: The run's, local or in an object store.
        on_row: Called with every row of metrics and the examples per second since the last, without the first step,
            which compiles; nan where there was no other.

    Returns:
        The rows of `metrics.jsonl`.

    Raises:
        InputError: the directory belongs to another config or is in use, or a checkpoint is damaged.
        Diverged: the loss became NaN; the checkpoints before that are kept.
        Stopped: a signal came. The state is saved, and the next call ends as if there had been none.
    """
    directory, config, mesh = epath.Path(directory), run.config, run.mesh
    plain = resolved(config) | {"fingerprints": run.fingerprints}
    of = workdir.fingerprint(workdir.claim(directory, plain, defaults("train", config)))
    if hosts.is_first():
        remembered.write(directory, run.task)
    programs = _Programs(run)
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
        state, kept, frozen = programs.start(phase)
        if start:
            whole, rows, pending, cursor = _restore(store, start, packed(state, kept), directory, of)
            state, kept = unpacked(whole)
        others = merge(kept, frozen)
        timed, began, warn, agreed = 0, math.nan, Once(), hosts.agree()
        given = taken(run.task.stream, len(sharding.rows(mesh, config.batch)), cursor)
        batches = ahead((run.task.ready(own), after) for own, after in given)
        try:
            for number in range(start + 1, config.steps + 1):
                if run.plan.at(number) > phase:
                    phase = run.plan.at(number)
                    state, kept, frozen = programs.enter(phase, state, kept, frozen)
                    others = merge(kept, frozen)
                if (item := next(batches, None)) is None:
                    raise InputError(ended(run.task.stream, number - 1, config.steps) + _kept(store))
                own, cursor = item
                batch = sharding.assemble(own, config.batch, mesh)
                state, metrics = programs.step(phase)(state, others | programs.held, batch)
                pending.append(metrics)
                if number == start + 1:
                    jax.block_until_ready(metrics)
                    began = time.perf_counter()
                else:
                    timed += config.batch * (len(config.tasks) or 1)
                jax.block_until_ready(pending[-2:-1])  # a step ahead of the devices and no more: a signal can wait
                stop, where = agreed(signalled())
                if number % config.log_every == 0 or number in (1, config.steps):
                    row = _row(number, pending, store)
                    speed = timed / (time.perf_counter() - began) if timed else math.nan
                    if number % config.eval_every == 0 or number == config.steps:
                        row |= programs.evaluate(phase)(state, others)
                    rows.append(row)
                    board(row | ({f"{run.task.stream.kind}s_per_second": speed} if timed else {}))
                    on_row(row, speed)
                    if said := run.task.notice(row):
                        warn("%s", said)
                    pending, timed, began = [], 0, time.perf_counter()
                if number % config.checkpoint_every == 0 or number == config.steps or stop:
                    still_held()
                    _write(directory / "metrics.jsonl", rows)
                    about = {"metrics": rows, "pending": _finite(number, pending, store), "config": of, "phase": phase}
                    store.save(number, packed(state, kept), about | {"cursor": cursor})
                if stop and number < config.steps:
                    raise Stopped(stop, f"{where} at step {number}; saved", agreed=True)
        finally:  # after a NaN or Ctrl-C too; what comes after the newest checkpoint is written again by the next run
            batches.close()
            _write(directory / "metrics.jsonl", rows)
    if not refusal:
        outcome.save(run, merge(state.average, others, _statistics(state)), directory / "model")
    return rows


def restored(run: Run, directory: epath.PathLike) -> tuple[int, Tree]:
    """The step of a run's newest checkpoint, and all leaves then (averaged where an average is kept), none merged.

    Raises:
        InputError: there is no checkpoint yet, or it is damaged, or not of the directory's config.
    """
    directory = epath.Path(directory)
    of = workdir.fingerprint(files.read_record(directory / "config.json", "it cannot be told what this run was")[1])
    if not (directory / "checkpoints").exists():  # which opening it would make
        raise InputError(f"workdir {directory}: there is no checkpoint yet")
    programs = _Programs(run)
    with Store(directory / "checkpoints", reading=True) as store:
        if (step := store.latest) is None:
            raise InputError(f"workdir {directory}: there is no checkpoint yet")
        state, kept, frozen = programs.start(run.plan.at(step))
        state, kept = unpacked(_restore(store, step, packed(state, kept), directory, of)[0])
    return step, merge(state.average, kept, frozen, _statistics(state))


@contextmanager
def _held(directory: epath.Path) -> Iterator[Callable[[], None]]:
    """The lock of a directory, held by the first process for all; what `locks.held` gives."""
    with ExitStack() as stack:
        yield hosts.first_does(lambda: stack.enter_context(locks.held(directory))) or (lambda: None)


class _Programs:
    """The phases of a run as jitted programs, and the state that each starts from, laid out on the mesh.

    Shapes come first, then where they lie, then arrays: no device ever holds more than its part.
    """

    def __init__(self, run: Run):
        self.run, self.whole = run, sharding.everywhere(run.mesh)
        self.leaves = sharding.tree_shardings(run.adapted.shapes, run.mesh, run.config.sharding)
        self.keys = jax.random.split(jax.random.key(run.config.seed))
        self.held: Tree = {}
        self.layouts: dict[int, TrainState] = {}
        self.step, self.evaluate = lru_cache(self._step), lru_cache(self._evaluate)

    def start(self, phase: int) -> tuple[TrainState, Tree, Tree]:
        """The state of a phase as if none were before it; what an earlier one trained and it does not; all others."""
        adapted, (start_key, run_key) = self.run.adapted, self.keys

        def create(start_key, run_key, base):
            tree, state = adapted.start(start_key, base)
            trainable, kept, frozen = parts(adapted, phase, tree)
            optimiser = self._optimiser(phase)
            return TrainState.create(run_key, trainable, state, optimiser, self.run.config.ema), kept, frozen

        base = sharding.place(adapted.base, {path: self.leaves.get(path, self.whole) for path in adapted.base})
        self.held = adapted.holds(base)  # and no other leaf of the backbone's is kept twice
        return self._laid_out(phase, create, start_key, run_key, base)

    def enter(self, phase: int, state: TrainState, kept: Tree, frozen: Tree) -> tuple[TrainState, Tree, Tree]:
        """The same of a phase, from the end of the one before it."""

        def change(state, others):
            return entered(self.run.adapted, phase, state, others, self._optimiser(phase))

        return self._laid_out(phase, change, state, merge(kept, frozen))

    def _laid_out(self, phase, call, *args):
        state, *others = jax.eval_shape(call, *args)
        self.layouts[phase] = state_shardings(state, self.leaves, self.run.mesh)
        places = [{path: self.leaves[path] for path in tree} for tree in others]
        return jax.jit(call, out_shardings=(self.layouts[phase], *places))(*args)

    def _optimiser(self, phase):
        one, plan, optimiser = self.run.adapted.phases[phase], self.run.plan, self.run.optimiser
        options = {"rate": optimiser.rate * plan.factors[phase], "limits": self.run.task.limits, "since": one.since}
        return optimiser.build(one.rates, plan.steps[phase], **options)

    def _step(self, phase):
        one, task, config = self.run.adapted.phases[phase], self.run.task, self.run.config
        loss = make_loss(one.model, task.objective, one.scores)
        step = make_step(loss, self._optimiser(phase), task.accumulate, config.ema, combine=task.combine)
        return jax.jit(step, out_shardings=(self.layouts[phase], self.whole), donate_argnums=0)

    def _evaluate(self, phase):
        return self.run.task.evaluate(self.run.adapted.phases[phase])


def _row(number: int, pending: list[dict], store: Store) -> ResultRow:
    """The mean of each metric over the steps since the last row."""
    pending = _finite(number, pending, store)
    return {"step": number} | {name: float(np.mean([metrics[name] for metrics in pending])) for name in pending[0]}


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
