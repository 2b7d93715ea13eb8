"""`jtransfer advise`: the evidence for one backbone and one task, and the method that follows from it.

All of it looks at the training rows alone, at `config.rows` of them: scores and domain gap at their features; the trial
trains on some of them and compares on others. The test rows of the dataset are never read.
"""

import hashlib
import json
import logging
import shlex
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from etils import epath

from jtransfer import config as configs
from jtransfer import files, methods, starts
from jtransfer.advice import evidence as evidence_of
from jtransfer.advice import page, rules
from jtransfer.advice import trial as trials
from jtransfer.advice.evidence import Evidence
from jtransfer.advice.trial import Trial
from jtransfer.config import resolved
from jtransfer.curves import fitted, trained
from jtransfer.curves import run as curves
from jtransfer.curves.raw import RAW
from jtransfer.data import sources, splits
from jtransfer.data.damage import damaged
from jtransfer.data.dataset import FOUND, Dataset, Lazy, fingerprint_of_inputs
from jtransfer.data.subsets import most_shots
from jtransfer.errors import InputError
from jtransfer.evaluate.protocols import structure
from jtransfer.evaluate.protocols.rows import ProtocolRun
from jtransfer.evaluate.store import FeatureStore, default_store
from jtransfer.evaluate.task import Progress, Reader, TargetTask, split
from jtransfer.solvers import few_shot as fits
from jtransfer.storage.cells import value
from jtransfer.texts import plain
from jtransfer.train import costs
from jtransfer.tree import FROZEN, size

log = logging.getLogger("jtransfer")

MOST_ROWS = 4096
"""Training rows whose features are scored."""
SMALL = ("lora(rank=4)", "top_blocks(1)", "finetune")
"""Methods that train little of a backbone, of which the first that fits is taken; the last always does."""


@dataclass(frozen=True, eq=False)
class AdvicePlan:
    """A question with everything checked and nothing compiled.

    Attributes:
        config: The resolved config.
        trial: Every method that may be recommended, the baselines among them.
        counts: Training rows of each class that the dataset has.
        task: Training rows as a dataset of their own, to be scored.
        transferability: Scores them.
        domain_gap: Compares them with the source; None where it is unknown.
        small: The first of `SMALL` that fits.
    """

    config: Any
    trial: Trial
    counts: np.ndarray
    task: TargetTask
    transferability: ProtocolRun
    domain_gap: ProtocolRun | None
    small: str

    @property
    def curve(self) -> curves.Curve:
        """The trial of all methods."""
        return self.trial.curve

    @property
    def baselines(self) -> tuple[str, ...]:
        """The methods without the backbone: a head on the inputs and, if time allows, the network from scratch."""
        return tuple(arm.name for arm in self.curve.arms if arm.name in (*RAW.values(), rules.SCRATCH))


def prepare(config, progress: Progress = lambda what, done, rows: None) -> AdvicePlan:
    """Load data and backbone, and check all that a config asks.

    Args:
        config: With all keys of `jtransfer.config.advise_defaults`.
        progress: Called as `progress(what, done, rows)` while features are extracted.

    Returns:
        The plan, whose trial is as large as is good; `sized` makes it as large as there is time for.

    Raises:
        InputError: whatever in the config cannot be run.
    """
    configs.check("advise", config)
    given = [name for name in config.methods if name != rules.SMALL]
    if without := [name for name in given if not _uses_backbone(name)]:
        raise InputError(
            f"config.methods: '{without[0]}' uses no backbone; expected methods to compare with those without one, as "
            "logistic and finetune"
        )
    dataset = sources.load(config.data, config.data_dir)
    if dataset.targets != "classes":
        raise InputError(f"config.data: {dataset.name} has {FOUND[dataset.targets]}; advise takes one class a row")
    counts = np.bincount(dataset.labels[dataset.pool], minlength=len(dataset.classes))
    pool = subset(dataset, _some(dataset, dataset.pool, config.rows))
    share = config.validation
    if config.test_rows:
        share = min(share, config.test_rows / len(pool.pool))
    drawn, held_out, _ = split(pool, share)
    parts = replace(pool, pool=drawn, test=held_out)
    most = most_shots(int(np.bincount(parts.labels[parts.pool], minlength=len(parts.classes)).min()))
    size = trials.good(config, [rules.SCRATCH], most, len(parts.classes))
    size = size._replace(names=(*size.names, *_of_so_many(given, size.shots)))
    curve = curves.prepare(trials.config_of(config, size), parts)
    if not curve.examples.metric.higher:
        raise InputError(
            f"config.metrics: of '{next(iter(curve.examples.metrics))}' less is better; advise compares gains, as of "
            "accuracy"
        )
    tower = starts.tower_for(curve.backbone, pool)

    def build(name):
        return trained.build(name, curve.examples, tower, curve.objective, curve.recipe)

    small, before = _first_that_fits(build, SMALL), _if_it_fits(build, RAW[dataset.kind])
    after = [small] if rules.SMALL in config.methods and small.name not in size.names else []
    arms = [*before, *curve.arms, *after]
    whole = trials.config_of(config, size._replace(names=tuple(arm.name for arm in arms)))
    whole_curve = replace(curve, config=whole, arms=arms)

    scored = subset(pool, _some(pool, pool.pool, MOST_ROWS))
    store = FeatureStore(files.path(config.store, "config.store") if config.store else default_store())
    reader = Reader(tower, curve.examples.prepare, store, progress=progress)
    task = TargetTask(
        scored, scored.pool, scored.pool[:0], "", reader, (reader.default_layer(scored),), data_dir=config.data_dir
    )
    transferability = structure.transferability(task)
    source_dir = str(files.path(config.source_dir, "config.source_dir")) if config.source_dir else ""
    domain_gap = structure.domain_gap(task, config.source, source_dir=source_dir) if config.source else None
    return AdvicePlan(config, Trial(whole_curve), counts, task, transferability, domain_gap, small.name)


def sized(plan: AdvicePlan, directory: epath.PathLike) -> AdvicePlan:
    """A plan whose trial takes `config.minutes`, or goes on as it began in a directory: see `trial.sized`.

    Raises:
        InputError: the directory belongs to another trial.
        MachineError: nothing can be written there.
    """
    directory, curve, optional = epath.Path(directory), plan.curve, _optional(plan.config, plan.small)
    if there := trials.begun(trials.size_of(curve), plan.config, directory / "trial", optional):
        own = replace(curve, config=trials.config_of(curve.config, there))
        curves.check_prepared(own, directory / "trial")  # before the backbone runs, to tell its speed
    trial = trials.sized(plan.trial, plan.config, curve.dataset, directory / "trial", optional)
    for curve, place in ((trial.curve, "trial"), (trial.half, "half")):
        if curve:
            curves.check_prepared(curve, directory / place)
    return replace(plan, trial=trial)


def check(config, directory: epath.PathLike) -> None:
    """Refuse a directory that a config cannot have, before anything is loaded.

    Raises:
        InputError: its trial is of another config, or it is none.
        MachineError: nothing can be written there.
    """
    trial, size = epath.Path(directory) / "trial", trials.good(config, config.methods, 1, 1)
    curves.check(trials.config_of(config, trials.begun(size, config, trial, ()) or size), trial)


def _optional(config, small):
    """The methods that are left out where time is short, in this order: those that the config does not name."""
    return [name for name in (small, rules.SCRATCH) if name not in config.methods]


def _uses_backbone(name):
    return fitted.is_fit(name) or methods.parse(name).pretrained


def _of_so_many(names, shots):
    """The methods that can be fitted on so few labels of each class; those that cannot are logged, if others can."""
    least = {name: fits.parse(name).least if fitted.is_fit(name) else 1 for name in names}
    kept = [name for name in names if least[name] <= min(shots)] or names
    for name in (name for name in names if name not in kept):
        words = (name, least[name], min(shots))
        log.warning("%s needs %d labels of each class, the trial has %d: it is left out", *words)
    return kept


def _some(dataset, rows, most):
    """At most so many of some rows, each class in its proportion; 0 for all."""
    return splits.stratified(dataset.labels, rows, most) if 0 < most < len(rows) else rows


def subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Some rows of a dataset, numbered anew, as pool and as test rows alike; the others are out of reach."""
    named, *contents = sources.fingerprint(dataset).split(".")

    def refused(places):
        said = damaged(dataset.inputs, rows[places])
        return {int(place): said[row] for place, row in zip(places, rows[places].tolist(), strict=True) if row in said}

    lazy = Lazy(
        len(rows),
        lambda places: dataset.inputs[rows[places]],
        f"{named} {len(rows)} rows",
        *contents,
        damaged=refused,
        of_inputs=f"{fingerprint_of_inputs(dataset)} {hashlib.sha256(rows.astype(np.int64)).hexdigest()}",
    )
    every = np.arange(len(rows))
    return replace(dataset, inputs=lazy, labels=dataset.labels[rows], pool=every, test=every)


def _first_that_fits(build, names):
    for name in names[:-1]:
        if found := _if_it_fits(build, name):
            return found[0]
    return build(names[-1])


def _if_it_fits(build, name):
    """The arm of a method in a list; an empty list where the backbone or the data refuse it, as images of any sides."""
    try:
        return [build(name)]
    except InputError:
        return []


def measure(plan: AdvicePlan) -> Evidence:
    """Score the training rows, and compare them with the source."""
    return evidence_of.measure(plan.task, plan.counts, plan.transferability, plan.domain_gap, plan.config.source)


def run(plan: AdvicePlan, evidence: Evidence, directory: epath.PathLike, on_cell: curves.OnCell) -> dict[str, Any]:
    """Run the trial, decide, and write `advice.json`, `advice.md` and `curve.py` (what to run next).

    Args:
        plan: What is asked.
        evidence: From `measure`.
        directory: Local or in an object store. The trial goes to `trial` and `half` in it; what is there is not done
            again.
        on_cell: As of `curves.run`.

    Returns:
        What `advice.json` holds.

    Raises:
        InputError: the directory belongs to another trial, or fewer than two seeds have a result of every method.
        MachineError: nothing can be written there.
        Unfinished: some methods of the trial cannot be run on this data.
    """
    directory, config, curve = epath.Path(directory), plan.config, plan.curve
    rows = _own(curve, curves.run(curve, directory / "trial", on_cell))
    half = _own(plan.trial.half, curves.run(plan.trial.half, directory / "half", on_cell)) if plan.trial.half else []
    found, lost = compared(rows, half)
    if curve.config.seeds - len(lost) < 2:
        raise InputError(
            f"the trial compares nothing: in {len(lost)} of {curve.config.seeds} seeds every rate diverged, as with "
            f"'{next(iter(lost.values()))}'; give lower ones in config.hyper, and another --workdir"
        )
    of_half = found.pop(HALF, {})
    last, most = found[plan.trial.most], max(plan.trial.most, most_shots(int(plan.counts.min())))
    gains = {name: [x - y for x, y in zip(last[name], own, strict=True)] for name, own in of_half.items()}
    linear = [arm.name for arm in curve.arms if _is_linear(arm)]
    estimates = rules.with_more_steps(rules.extrapolated(found, most, linear), gains)

    of_each = {arm.name: _cost(arm, rows) for arm in curve.arms}
    learning = next((own["trainable"] for name, own in of_each.items() if name == "finetune"), _parameters(curve))
    labels, many = rules.labels(plan.counts, learning)
    gap, near = rules.gap(evidence.explained, evidence.error)
    choices = [plan.small if name == rules.SMALL else name for name in rules.TABLE[labels, gap]]
    choice = rules.recommend([name for name in choices if name in last], estimates)
    baseline = rules.better_baseline(last, plan.baselines)
    trial = {name: own for name, own in rules.compare(last, baseline).items() if name not in plan.baselines}
    advice = {
        "target": curve.dataset.name,
        "backbone": curve.backbone.name,
        "method": choice.method,
        "alternative": choice.alternative,
        "negative_transfer": rules.negative_transfer(trial),
        "baseline": baseline,
        "labels": labels,
        "gap": gap,
        "because": [*choice.reasons, f"Labels are {labels}: {many}.", f"The task is {gap}: {near}."],
        "table": {
            " ".join(place): plan.small if first == rules.SMALL else first for place, (first, _) in rules.TABLE.items()
        },
        "evidence": evidence.lines,
        "trial": {name: own._asdict() | {"harm": own.harm} for name, own in trial.items()},
        "accuracies": {str(shots): own for shots, own in found.items()},
        "estimates": estimates,
        "most": most,
        "linear": linear,
        "gains": gains,
        "steps": {arm.name: sum(arm.plan.steps) for arm in curve.arms if arm.how == "trained"},
        "protocol": [line for line in curves.protocol(curve, rows) if line.partition(": ")[0] in last],
        "shots": list(curve.config.shots),
        "fewest": int(plan.counts.min()),
        "classes": len(curve.dataset.classes),
        "held_out": len(curve.examples.test),
        "costs": of_each,
        "estimate": str(plan.trial),
        "next": shlex.join(
            ["jtransfer", "curve", f"--config={directory / 'curve.py'}", f"--workdir={directory / 'curve'}"]
        ),
        "config": resolved(config) | {"seeds": curve.config.seeds, "steps": curve.config.steps},
        "fingerprints": curve.fingerprints,
    }
    files.write(directory / "curve.py", page.next_config(advice))
    files.write(directory / "advice.json", json.dumps(advice, indent=2) + "\n")
    files.write(
        directory / "advice.md", page.markdown(advice) + f"\n## What to run next\n\n    {plain(advice['next'])}\n"
    )
    return advice


HALF = 0
"""The number of shots under which `compared` has the trial of half the steps."""


def compared(rows, half):
    """Accuracies by shots and method, one for each seed in which no method diverged; and what diverged, by seed."""
    named = [(row["shots"], row) for row in rows] + [(HALF, row) for row in half]
    lost = {row["seed"]: row["method"] for _, row in named if value(row) is None}
    found: dict[int, dict[str, list[float]]] = {}
    for shots, row in named:
        if row["seed"] not in lost:
            found.setdefault(shots, {}).setdefault(row["method"], []).append(value(row))
    return found, lost


def _own(curve, rows):
    """The rows of a curve among those that its directory has, seed by seed."""
    names = {arm.name for arm in curve.arms}
    own = (row for row in rows if row["method"] in names and row["shots"] in curve.config.shots)
    return sorted((row for row in own if row["seed"] < curve.config.seeds), key=lambda row: row["seed"])


def _is_linear(arm):
    """Whether a method learns nothing but a linear head."""
    learn = () if arm.how == "solved" else (path for path, rate in arm.adapted.rates.items() if rate != FROZEN)
    return all(path.startswith("head/") for path in learn)


def _parameters(curve):
    return size(starts.tower_for(curve.backbone, curve.dataset).params)


def _cost(arm, rows):
    """Of a step, as the rows of a method say it; of one that is solved for, of a forward pass."""
    row = next(row for row in rows if row["method"] == arm.name)
    return {
        "trainable": row["trainable"],
        "flops_per_step": row["flops_per_step"],
        "optimiser_bytes": max((costs.optimiser_bytes(part.shapes) for part in arm.training()), default=0),
    }
