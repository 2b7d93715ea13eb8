"""A training run before it begins: everything checked and nothing compiled."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
from etils import epath

from jtransfer import expressions, methods
from jtransfer.checkpoints.adapter import merges
from jtransfer.checkpoints.keeping import Keep
from jtransfer.config import check, defaults, resolved
from jtransfer.data import preprocess, sources, workers
from jtransfer.devices import sharding
from jtransfer.errors import InputError, nearest
from jtransfer.optimiser import Optimiser
from jtransfer.starts import teachers
from jtransfer.train import costs, known, remembered, solved, tried
from jtransfer.train.bad_steps import OnBad
from jtransfer.train.bad_steps import parse as parse_on_bad
from jtransfer.train.cut import Cut, behind
from jtransfer.train.measured import Evaluate
from jtransfer.train.phases import Plan, plan
from jtransfer.train.task import Task
from jtransfer.train.tasks import build_task

log = logging.getLogger("jtransfer")

FREE = ("workers",)
"""Keys of a config that may differ whenever a run goes on, as nothing that it makes depends on them."""


@dataclass(frozen=True)
class Schedule:
    """How long a run trains, and when it measures and saves. A config has keys of these names.

    Attributes:
        steps: Number of steps of the whole run.
        batch: Number of examples in a step, over all devices; of several tasks, for each.
        ema: Decay of the moving average of the leaves that learn; 0 for none.
        seed: Seed of the leaves that start at random, and of what each step draws, as dropout.
        log_every: Number of steps between two rows of metrics.
        eval_every: Number of steps between two evaluations on held-out examples, a multiple of `log_every`.
        checkpoint_every: Number of steps between two checkpoints, a multiple of `log_every`.

    Raises:
        InputError: `eval_every` or `checkpoint_every` is no multiple of `log_every`.
    """

    steps: int
    batch: int
    ema: float
    seed: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def __post_init__(self):
        for key in ("eval_every", "checkpoint_every"):
            if (every := getattr(self, key)) % self.log_every:
                raise InputError(f"config.{key} {every} must be a multiple of config.log_every {self.log_every}")


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        task: What is learned, from which data.
        method: How the model is transferred.
        adapted: The model as the method changes it.
        optimiser: Options of the optimiser.
        plan: Steps and rates of the phases of the method.
        schedule: How long the run trains, and when it measures and saves.
        mesh: The devices.
        sharding: How leaves lie on the devices, as `sharding.tree_shardings` takes it.
        record: The resolved config as plain values, and under `fingerprints` those of the run.
        defaults: The default of every key of the config, which a run of an earlier version without the key had.
        keep: Which checkpoints are kept.
        higher: Whether more of the metric `keep.best` is better.
        on_bad: What becomes of steps whose loss is not finite or jumps.
        cuts: For each phase where its model is cut, so that what lies before is computed once; None for nowhere.
        workers: Number of processes that read and prepare batches, beside this one; 0 for a thread of it.
    """

    task: Task
    method: methods.Method
    adapted: methods.Adapted
    optimiser: Optimiser
    plan: Plan
    schedule: Schedule
    mesh: jax.sharding.Mesh
    sharding: Any
    record: Mapping[str, Any]
    defaults: Mapping[str, Any]
    keep: Keep
    higher: bool
    on_bad: OnBad
    cuts: Sequence[Cut | None]
    workers: int = 0

    @property
    def running(self) -> methods.Adapted:
        """The model under the method as steps run it, behind what is computed once."""
        return behind(self.adapted, self.cuts)

    @property
    def fingerprints(self) -> dict[str, Any]:
        """Fingerprints of what the run reads, by name.

        `data`; `backbone`, `vision` or `text` for weights; `teacher`; `source`; `preprocessing` for the files that say
        how the model's inputs are made; and `modules`, the digests of the user's modules by name. Only `data` is always
        there.
        """
        return self.record["fingerprints"]

    @property
    def merges(self) -> bool:
        """Whether the method merges all leaves into leaves of the plain model, which then gives equal outputs."""
        start = self.task.start
        return merges(self.method, start.model, self.adapted.example, self.adapted.shapes, self.adapted.base)


def prepare(
    config,
    stream: Any = None,
    devices: Sequence[jax.Device] | None = None,
    workdir: epath.PathLike | None = None,
) -> Run:
    """Load data and backbone, build model and method.

    Args:
        config: A config with all keys of `jtransfer.config.train_defaults`.
        stream: A stream to use instead of the config's data, as `remembered.read` gives it; None to open the data.
        devices: Those of a topology to compile for; None for all that JAX has.
        workdir: The directory of the run, whose tokenizer is taken where it has one; None for none.

    Raises:
        InputError: a config that cannot be run. It is raised before any compilation.
    """
    check("train", config)
    schedule = Schedule(**{field.name: config[field.name] for field in fields(Schedule)})
    mesh = sharding.make_mesh(config.mesh, devices)
    parts = config.accumulate * sharding.batch_parts(mesh)
    if schedule.batch % parts:
        raise InputError(
            f"config.batch {schedule.batch} must be a multiple of {parts}: devices of the batch x accumulate"
        )
    on_bad = parse_on_bad(config.on_bad_step)
    method, optimiser = methods.parse(config.method), Optimiser(**config.optimiser)
    methods.check_needs([method], [key for key in ("teacher", "source") if config[key]])
    task = build_task(config, mesh, stream, remembered.tokenizer_of(config, workdir))
    start, objective = task.start, task.objective
    if method.binds:
        method = method.bound(teachers.given(task.data.parts, start.base, task.data.example))
    if start.params and not method.pretrained:
        which = ", ".join(filter(None, (config.backbone, *config.towers.values())))
        log.warning(
            "config.method '%s' starts at random: of %s nothing but the architecture is taken", method.name, which
        )
    if not stream:  # of what is only read back nothing is solved for
        for fit in method.solves:
            solved.check(method.name, fit, task.data.stream)
    wrap = (sharding.keep_batch_split(mesh),) if mesh.size > 1 else ()
    adapted = methods.adapt(method, start.model, start.params, task.data.example, wrap, start.fresh)
    sharding.tree_shardings(adapted.shapes, mesh, config.sharding, start.module.config.heads_at)
    optimiser.check_leaves(adapted.shapes)
    keep = Keep(**config.keep)
    higher = stream is not None or _is_higher(keep.best, task.data.evaluate(adapted.phases[0]), schedule)
    fingerprints = {"data": task.data.stream.fingerprint} | start.fingerprints
    if beside := start.beside():
        fingerprints["preprocessing"] = preprocess.fingerprint(beside)
    modules = _modules(config, stream)
    if modules:
        fingerprints["modules"] = modules
        tried.check(adapted.phases, objective, task.data.parts or costs.LABELS, modules, schedule.batch)
        merges(method, start.model, adapted.example, adapted.shapes, adapted.base)  # which tries that of the user's
    shares = plan(len(method.phases), config.steps, config.phase_steps, config.phase_rates)
    record = {key: value for key, value in resolved(config).items() if key not in FREE} | {"fingerprints": fingerprints}
    cuts = known.cuts(task, adapted, shares, schedule.batch, mesh, config.cache, method.name)
    if config.workers and not stream:
        workers.check(config.workers, task.data.stream)
    return Run(
        *(task, method, adapted, optimiser, shares, schedule, mesh, config.sharding, record),
        *(defaults("train", config), keep, higher, on_bad, cuts, config.workers),
    )


def _is_higher(best: str, evaluate: Evaluate, schedule: Schedule) -> bool:
    """Whether more of the metric by which the best checkpoint is kept is better.

    Raises:
        InputError: it is no metric of the evaluations, or there are evaluations without a checkpoint.
    """
    if not best:
        return True
    if best not in (known := evaluate.names()):
        raise InputError(f"config.keep.best '{best}' is not measured on held-out examples; {nearest(best, known)}")
    if schedule.eval_every % schedule.checkpoint_every:
        raise InputError(
            f"config.keep.best takes a checkpoint at each evaluation: config.eval_every {schedule.eval_every} must be "
            f"a multiple of config.checkpoint_every {schedule.checkpoint_every}"
        )
    return known[best]


def _modules(config, stream) -> dict[str, str]:
    """The user's modules that a config names, each with its digest; of data that are only read back none is named."""
    found = expressions.modules(config.method, "method")
    for section in config.tasks.values() if config.tasks else (config,):
        found |= expressions.modules(section.objective, "objective")
        for name in section.metrics:
            found |= expressions.modules(name, "metric")
        for name in () if stream or config.tasks else config.augment:
            found |= expressions.modules(name, "augmentation")
        found |= {} if stream else sources.modules(section.data)
    return found
