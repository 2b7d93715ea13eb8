"""`jtransfer advise`: the evidence for one backbone and one task, and the method that follows from it.

All of it looks at the training rows alone: scores and domain gap at their features; the trial trains on some of them
and compares on others. The test rows of the dataset are never read.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jtransfer import config as configs
from jtransfer import files, methods, starts
from jtransfer.advice import page, rules
from jtransfer.config import curve_defaults, resolved
from jtransfer.curves import run as curves
from jtransfer.curves import trained
from jtransfer.data import sources, splits
from jtransfer.data.dataset import FOUND, Dataset, Lazy, damaged, fingerprint_of_inputs
from jtransfer.data.subsets import validation_shots
from jtransfer.errors import InputError
from jtransfer.evaluate import transferability as scores
from jtransfer.evaluate.protocols import structure
from jtransfer.evaluate.protocols.rows import ProtocolRun
from jtransfer.evaluate.store import FeatureStore, default_store
from jtransfer.evaluate.task import Progress, Reader, TargetTask, split
from jtransfer.storage.cells import value
from jtransfer.texts import plain
from jtransfer.train import costs

LEAST_SEEDS = 20
"""Seeds of the trial at least."""
MOST_SHOTS = 10
"""Labels of each class in the trial at most, where `config.shots` leaves their number open."""
MOST_ROWS = 4096
"""Training rows whose features are scored."""
SMALL = ("lora(rank=4)", "top_blocks(1)", "finetune")
"""Methods that train little of a backbone, of which the first that fits is taken; the last always does."""


@dataclass(frozen=True, eq=False)
class AdvicePlan:
    """A question with everything checked and nothing compiled.

    Attributes:
        config: The resolved config.
        curve: The trial: scratch and the methods of the config, at one number of shots; its test rows are training
            rows that were held out.
        task: Training rows as a dataset of their own, to be scored.
        transferability: Scores them.
        domain_gap: Compares them with the source; None where it is unknown.
        arms: Every method that is tried or may be recommended, by name.
        small: The first of `SMALL` that fits.
    """

    config: Any
    curve: curves.Curve
    task: TargetTask
    transferability: ProtocolRun
    domain_gap: ProtocolRun | None
    arms: dict[str, trained.Trained]
    small: str


class Evidence(NamedTuple):
    """What was measured before the trial.

    Attributes:
        lines: For each number what it is, its value and how it came about, as texts.
        explained: Share of the classes that the features explain; see `share_explained`.
        error: Of the domain classifier, 0..0.5; None without a source.
    """

    lines: list[tuple[str, str, str]]
    explained: float
    error: float | None


def prepare(config, progress: Progress = lambda what, done, rows: None) -> AdvicePlan:
    """Load data and backbone, and check all that a config asks.

    Args:
        config: With all keys of `jtransfer.config.advise_defaults`.
        progress: Called as `progress(what, done, rows)` while features are extracted.

    Raises:
        InputError: whatever in the config cannot be run.
    """
    configs.check("advise", config)
    if config.seeds < LEAST_SEEDS:
        raise InputError(f"config.seeds is {config.seeds!r}; expected at least {LEAST_SEEDS}, to compare in pairs")
    without = [name for name in config.methods if not methods.parse(name).pretrained]
    if without or not config.methods:
        found = f"'{without[0]}' uses no backbone" if without else "it is empty"
        raise InputError(f"config.methods: {found}; expected methods to compare with scratch, as probe and finetune")
    dataset = sources.load(config.data, config.data_dir)
    if dataset.targets != "classes":
        raise InputError(f"config.data: {dataset.name} has {FOUND[dataset.targets]}; advise takes one class a row")
    pool = subset(dataset, dataset.pool)
    drawn, held_out, _ = split(pool, config.validation)
    least = np.bincount(pool.labels[drawn], minlength=len(pool.classes)).min()
    possible = [k for k in range(1, MOST_SHOTS + 1) if k + validation_shots(k) <= least]
    trial = _trial(config, config.shots or max(possible, default=1))
    curve = curves.prepare(trial, replace(pool, pool=drawn, test=held_out))
    if not curve.examples.metric.higher:
        raise InputError(
            f"config.metrics: of '{next(iter(curve.examples.metrics))}' less is better; advise compares gains, as of "
            "accuracy"
        )

    rows = pool.pool
    scored = subset(pool, splits.stratified(pool.labels, rows, MOST_ROWS)) if len(rows) > MOST_ROWS else pool
    store = FeatureStore(files.path(config.store, "config.store") if config.store else default_store())
    tower = starts.tower_for(curve.backbone, pool)
    reader = Reader(tower, curve.examples.prepare, store, progress=progress)
    task = TargetTask(
        scored, scored.pool, scored.pool[:0], "", reader, (reader.default_layer(scored),), data_dir=config.data_dir
    )
    transferability = structure.transferability(task)
    source_dir = str(files.path(config.source_dir, "config.source_dir")) if config.source_dir else ""
    domain_gap = structure.domain_gap(task, config.source, source_dir=source_dir) if config.source else None

    def build(name):
        return trained.build(name, curve.examples, tower, curve.objective, curve.recipe)

    small, arm = _first_that_fits(build)
    built = {arm.name: arm for arm in curve.arms} | {small: arm}
    built |= {name: build(name) for name in ("probe", "finetune") if name not in built}
    return AdvicePlan(config, curve, task, transferability, domain_gap, built, small)


def check(config, directory: epath.PathLike) -> None:
    """Refuse a directory that a config cannot have, before anything is loaded.

    Raises:
        InputError: its trial is of another config, or it is none.
        MachineError: nothing can be written there.
    """
    curves.check(_trial(config, config.shots or 1), epath.Path(directory) / "trial")


def _trial(config, shots):
    trial = {key: config[key] for key in curve_defaults()}
    return ConfigDict(trial | {"methods": (rules.SCRATCH, *config.methods), "shots": (shots,)})


def subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Some rows of a dataset, numbered anew, as pool and as test rows alike; the others are out of reach."""
    named, *contents = sources.fingerprint(dataset).split(".")
    lazy = Lazy(
        len(rows),
        lambda places: dataset.inputs[rows[places]],
        f"{named} {len(rows)} rows",
        *contents,
        damaged=lambda places: damaged(dataset.inputs, rows[places]),
        of_inputs=f"{fingerprint_of_inputs(dataset)} {hashlib.sha256(rows.astype(np.int64)).hexdigest()}",
    )
    every = np.arange(len(rows))
    return replace(dataset, inputs=lazy, labels=dataset.labels[rows], pool=every, test=every)


def _first_that_fits(build):
    for name in SMALL:
        try:
            return name, build(name)
        except InputError:
            if name == SMALL[-1]:
                raise


def measure(plan: AdvicePlan) -> Evidence:
    """Score the training rows, and compare them with the source."""
    task, error = plan.task, None
    if task.backbone.classes:
        task.reader(task.dataset, *task.layers, "logits")  # both in one pass, for the protocols to find in the store
    (features,), labels = task.features(*task.layers), task.dataset.labels
    counts = np.bincount(plan.curve.dataset.labels, minlength=len(task.dataset.classes))
    explained = share_explained(features, labels)
    lines = [
        (
            "labels",
            f"{counts.sum():,}",
            f"training rows of {len(counts)} classes, {counts.min():,} to {counts.max():,} of each",
        ),
        (
            "classes explained",
            f"{explained:.0%}",
            f"by a linear map of the features: shrunk H-score over {len(np.unique(labels)) - 1}, adjusted so that "
            "shuffled labels reach 0%",
        ),
    ]
    for row in plan.transferability():
        shown = {name: "–" if value is None else f"{value:.3g}" for name, value in row["metrics"].items()}
        lines += [(name, value, row["how"]) for name, value in shown.items()]
    if plan.domain_gap is None:
        lines.append(("domain gap", "unknown", "config.source names no source: the classes explained stand for it"))
        return Evidence(lines, explained, error)
    (row,) = plan.domain_gap()
    error, squared, p_value, frechet = row["metrics"].values()
    lines += [
        (
            "domain classifier's error",
            f"{error:.1%}",
            f"telling rows held out from {plan.config.source} from training rows, cross-validated; 50% is chance",
        ),
        ("proxy A-distance", f"{2 * (1 - 2 * error):.2f}", "2 (1 - 2 error): 0 for the same domain, 2 for two apart"),
        (
            "MMD p-value",
            f"{p_value:.2g}",
            f"permutation test of MMD² {squared:.3g}: small where the domains differ at all",
        ),
        ("Fréchet distance", f"{frechet:.3g}", "of the features, in their own squared units"),
    ]
    return Evidence(lines, explained, error)


PERMUTATIONS = 10
"""How often labels are shuffled, to tell what is explained by chance."""


def share_explained(features: Any, labels: np.ndarray) -> float:
    """Share of the classes that a linear map of features explains beyond chance, about 0 to 1.

    The shrunk H-score over its bound is the mean squared canonical correlation of features and classes. Of few rows
    shuffled labels are explained too, so it is adjusted as the Rand index is: what these reach becomes 0.

    Args:
        features: `[n, d]`.
        labels: `[n]`.

    Raises:
        InputError: as `transferability.h_score`.
    """
    rng, bound = np.random.default_rng(0), len(np.unique(labels)) - 1
    shuffled = [scores.h_score(features, rng.permutation(labels), "ledoit_wolf") for _ in range(PERMUTATIONS)]
    chance = np.mean(shuffled) / bound
    return float((scores.h_score(features, labels, "ledoit_wolf") / bound - chance) / (1 - chance))


def run(plan: AdvicePlan, evidence: Evidence, directory: epath.PathLike, on_cell: curves.OnCell) -> dict[str, Any]:
    """Run the trial, decide, and write `advice.json`, `advice.md` and `curve.py` (what to run next).

    Args:
        plan: What is asked.
        evidence: From `measure`.
        directory: Local or in an object store. The trial goes to `trial` in it, and what is there is not done again.
        on_cell: As of `curves.run`.

    Returns:
        What `advice.json` holds.

    Raises:
        InputError: the directory belongs to another trial, or fewer than two seeds have a result of every method.
        MachineError: nothing can be written there.
        Unfinished: some methods of the trial cannot be run on this data.
    """
    directory, config, curve = epath.Path(directory), plan.config, plan.curve

    def named(name):
        return plan.small if name == rules.SMALL else name

    rows = curves.run(curve, directory / "trial", on_cell)
    (shots,) = curve.config.shots
    rows = [row for row in rows if row["shots"] == shots and row["seed"] < config.seeds]
    lost = {row["seed"]: row["method"] for row in rows if value(row) is None}
    rows = [row for row in rows if row["seed"] not in lost]  # methods are compared on the same seeds
    if len({row["seed"] for row in rows}) < 2:
        raise InputError(
            f"the trial compares nothing: in {len(lost)} of {config.seeds} seeds every rate diverged, as with "
            f"'{next(iter(lost.values()))}'; give lower ones in config.hyper, and another --workdir"
        )
    accuracies = {arm.name: [value(row) for row in rows if row["method"] == arm.name] for arm in curve.arms}
    counts = np.bincount(curve.dataset.labels, minlength=len(curve.dataset.classes))
    of_each = {name: _cost(arm) for name, arm in plan.arms.items()}
    labels, many = rules.labels(counts, of_each["finetune"]["trainable"])
    gap, near = rules.gap(evidence.explained, evidence.error)
    choices = [named(name) for name in rules.TABLE[labels, gap]]
    choice = rules.recommend(choices, accuracies, share=shots / float(np.median(counts)))
    trial = rules.compare(accuracies)
    advice = {
        "target": curve.dataset.name,
        "backbone": curve.backbone.name,
        "method": choice.method,
        "alternative": choice.alternative,
        "negative_transfer": rules.negative_transfer(trial),
        "labels": labels,
        "gap": gap,
        "because": [f"Labels are {labels}: {many}.", f"The task is {gap}: {near}.", *choice.reasons],
        "table": {" ".join(place): named(first) for place, (first, _) in rules.TABLE.items()},
        "evidence": evidence.lines,
        "trial": {name: found._asdict() | {"harm": found.harm} for name, found in trial.items()},
        "accuracies": accuracies,
        "protocol": [line for line in curves.protocol(curve, rows) if line.partition(": ")[0] in accuracies],
        "shots": shots,
        "fewest": int(counts.min()),
        "held_out": len(curve.examples.test),
        "costs": of_each,
        "next": shlex.join(
            ["jtransfer", "curve", f"--config={directory / 'curve.py'}", f"--workdir={directory / 'curve'}"]
        ),
        "config": resolved(config),
        "fingerprints": curve.fingerprints,
    }
    files.write(directory / "curve.py", page.next_config(advice))
    files.write(directory / "advice.json", json.dumps(advice, indent=2) + "\n")
    files.write(
        directory / "advice.md", page.markdown(advice) + f"\n## What to run next\n\n    {plain(advice['next'])}\n"
    )
    return advice


def _cost(arm):
    return {
        "trainable": arm.trainable,
        "flops_per_step": arm.flops_per_step(),
        "optimiser_bytes": max(costs.optimiser_bytes(part.shapes) for part in arm.training()),
    }
