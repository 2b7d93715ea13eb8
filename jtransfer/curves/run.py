"""Transfer curves: method x labels per class x seed, each cell at the hyper-parameters chosen on validation rows.

A cell is one method at one number of shots: its seeds and hyper-parameters run side by side in one program, which is
compiled once a method. A finished cell leaves one small object per seed under `cells/`, and `results.jsonl` gathers
them: a run that was stopped goes on, and one whose methods, shots or seeds have grown does only the rest.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from jtransfer import checkpoints, expressions, methods, objectives, starts
from jtransfer import config as configs
from jtransfer.config import resolved
from jtransfer.curves import arms, fitted, named, trained
from jtransfer.curves.arms import Arm, Examples
from jtransfer.curves.named import ZERO_SHOT
from jtransfer.curves.raw import RAW
from jtransfer.curves.worth import worth
from jtransfer.data import sources, splits
from jtransfer.data.dataset import FOUND, LABELS
from jtransfer.data.marks import KINDS
from jtransfer.data.subsets import few_shot, validation_rows, validation_shots
from jtransfer.errors import InputError, Unfinished, first_line, nearest
from jtransfer.evaluate import zero_shot as by_names
from jtransfer.objectives import metrics
from jtransfer.optimiser import Optimiser
from jtransfer.solvers import few_shot as fits
from jtransfer.starts import teachers
from jtransfer.storage import workdir
from jtransfer.storage.cells import Cells, ResultRow, of_source
from jtransfer.train import tried
from jtransfer.train.by_names import ClassNames

log = logging.getLogger("jtransfer")
LISTS = ("methods", "shots")
"""Keys whose lists have each item once."""
GROWS = (*LISTS, "seeds")
"""Keys that may grow from run to run in one directory."""
FREE = ("parallel", "costs", "cache")
"""Keys that change no result."""

OF_KIND = {"image": (ZERO_SHOT, RAW["image"]), "text": (RAW["text"],)}
"""By the kind of data, the arms that are of it alone."""
WITHOUT_METHOD = (ZERO_SHOT, *RAW.values())
"""The arms that are neither a `Method` nor a fit."""

Key = tuple[str, int, int]
"""Method, shots and seed of a row."""
OnCell = Callable[[str, int | None, list[ResultRow], int], None]
"""What `run` calls before and after its parts, as `on_cell(method, shots, rows, left)`."""


@dataclass(frozen=True)
class Curve:
    """A curve with everything checked and nothing compiled.

    Attributes:
        config: The config, each method and number of shots once.
        examples: The target dataset, and the rows of it that are used.
        backbone: The backbone that is transferred; of a dual encoder both towers.
        objective: What the methods that train by steps learn.
        recipe: How these methods are trained.
        arms: One arm for each method, in the config's order.
        fingerprints: Fingerprints by `data`, `backbone`, `preprocessing` (what makes its inputs), `templates`,
            `teacher` and `source`, where there are any.
        modules: For each method that uses modules of the user's, their digests by name.
    """

    config: Any
    examples: Examples
    backbone: checkpoints.Backbone
    objective: objectives.Objective
    recipe: trained.Recipe
    arms: list[Arm]
    fingerprints: dict[str, str]
    modules: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def dataset(self) -> sources.Dataset:
        """The target dataset."""
        return self.examples.dataset


def prepare(config, dataset: sources.Dataset | None = None) -> Curve:
    """Load data and backbone, and build every method of a config.

    Args:
        config: A config with all keys of `jtransfer.config.curve_defaults`.
        dataset: A dataset to use instead of the config's, as one with other test rows; None to load the config's.

    Raises:
        InputError: a config that cannot be run. It is raised before any compilation.
    """
    configs.check("curve", config)
    config = configs.once(config, *LISTS)
    names, learned, modules = config.methods, {}, {}
    for name in names:
        if fitted.is_fit(name):
            fits.parse(name)
        elif name not in WITHOUT_METHOD:
            learned[name] = methods.parse(name, (*WITHOUT_METHOD, *fits.FITS))
            if own := expressions.modules(name, "method"):
                modules[name] = own
    known = ["default", *RAW.values(), *methods.METHODS, *learned, *map(arms.family, modules)]
    for name in config.hyper:
        if name in known:
            continue
        try:
            methods.parse(name, (*WITHOUT_METHOD, *fits.FITS))
        except InputError:
            raise InputError(f"config.hyper: unknown method '{name}'; {nearest(name, known)}") from None
        log.warning("config.hyper['%s'] is of none of config.methods", name)
    objective = objectives.parse(config.objective, {key: config[key] for key in objectives.SETTINGS})
    own = expressions.modules(config.objective, "objective")
    for name in config.metrics:
        own |= expressions.modules(name, "metric")
    methods.check_needs(learned.values(), [key for key in ("teacher", "source") if config[key]])
    dataset = dataset or sources.load(config.data, config.data_dir, (*LABELS, *KINDS))
    own |= sources.modules(config.data)
    objectives.check_reads(objective, config.objective, dataset)
    if objective.answers:
        raise InputError(f"config.objective '{config.objective}' is of jtransfer train; a curve draws heads of classes")
    if objective.reads not in LABELS:
        raise InputError(
            f"config.objective '{config.objective}' learns from {FOUND[objective.reads]}, and a curve draws rows "
            "by the label of each; use jtransfer train"
        )
    chosen = metrics.chosen(config.metrics, dataset, objective)
    metrics.choosing(chosen, dataset, config.objective)
    if dataset.targets != "classes" and ZERO_SHOT in names:
        raise InputError(f"config.methods: '{ZERO_SHOT}' is of classes by name, which {dataset.name} has not one a row")
    for kind, alone in OF_KIND.items():
        if dataset.kind != kind and (unfit := [name for name in names if name in alone]):
            raise InputError(
                f"config.methods: '{unfit[0]}' is of {kind}s, {dataset.name} holds {dataset.kind}s; leave it out"
            )
    for shots in config.shots:
        few_shot(dataset.labels, dataset.pool, shots, seed=0)
    test = dataset.test
    if 0 < config.test_rows < len(test):
        test = splits.stratified(dataset.labels, test, config.test_rows)
    # For one seed, the most shots have all rows of fewer.
    drawn = [few_shot(dataset.labels, dataset.pool, max(config.shots), seed) for seed in range(config.seeds)]
    rows = np.unique(np.concatenate([test, *itertools.chain(*drawn)]))
    backbone, make = starts.load_for(config.backbone, config.load, dataset, tower=False)
    tower = starts.tower_for(backbone, dataset)
    needs = {part for method in learned.values() for part in method.needs}
    taught = teachers.of(config.teacher, dataset, needs, tower, make, config.load.trust)
    templates = named.templates(config.templates)
    names_of_classes, source = ClassNames(backbone, dataset.classes, templates), None
    if config.source:
        place = config.source, config.source_dir or config.data_dir
        source = names_of_classes.source(*place, tower, config.load, config.test_rows)
    examples = Examples(dataset, test, rows, make, tuple(config.shots), chosen, taught, source)
    objectives.check_mixup(config.mixup, examples.example)
    objectives.check_mixup(config.cutmix, examples.example, "cutmix")
    how = config.steps, config.batch, config.hyper.to_dict(), config.parallel, config.cache
    recipe = trained.Recipe(Optimiser(**config.optimiser), *how)

    def build(name) -> Arm:
        if name == ZERO_SHOT:
            return named.build(examples, backbone, templates, config.batch)
        if fitted.is_fit(name):
            return fitted.build(name, examples, tower, config.batch, names_of_classes)
        return trained.build(name, examples, tower, objective, recipe, names_of_classes)

    built = [build(name) for name in names]
    if recipe.optimiser.schedules:  # of one method's leaves, perhaps, which others lack
        recipe.optimiser.check_leaves({path for arm in built for phase in arm.phases() for path in phase.rates})
    for arm in built:
        if theirs := modules.get(arm.name, {}) | own:
            tried.check(arm.phases(), objective, examples.parts, theirs, config.batch, ("loss",))
    if own:
        modules |= {arm.name: modules.get(arm.name, {}) | own for arm in built}
    fingerprints = {"data": sources.fingerprint(dataset)} | backbone.fingerprints
    fingerprints |= {"templates": by_names.fingerprint(templates)} if config.templates else {}
    read = taught | ({"source": source} if source else {})
    fingerprints |= {name: one.fingerprint for name, one in read.items() if name != "recorded"}
    return Curve(config, examples, backbone, objective, recipe, built, fingerprints, modules)


def check(config, directory: epath.PathLike) -> None:
    """Refuse a directory in which a config cannot run, before anything is loaded.

    Raises:
        InputError: the config cannot be run; the directory belongs to another config, or a file has its place.
        MachineError: nothing can be written there.
    """
    configs.check("curve", config)
    plain = _plain(configs.once(config, *LISTS))
    workdir.check(epath.Path(directory), plain, configs.defaults("curve", config), GROWS, later=("fingerprints",))


def check_prepared(curve: Curve, directory: epath.PathLike) -> None:
    """Refuse a directory in which a prepared curve cannot run, as its config, data or backbone are others.

    Raises:
        InputError: the directory belongs to another config, data or backbone.
        MachineError: nothing can be written there.
    """
    plain = _plain(curve.config) | {"fingerprints": curve.fingerprints}
    workdir.check(epath.Path(directory), plain, configs.defaults("curve", curve.config), GROWS)


def _plain(config) -> dict[str, Any]:
    return {key: value for key, value in resolved(config).items() if key not in FREE}


def run(curve: Curve, directory: epath.PathLike, on_cell: OnCell) -> list[ResultRow]:
    """Do the cells that are missing in a directory, and return every row that it then holds.

    Args:
        curve: The curve.
        directory: The directory of the run, local or in an object store.
        on_cell: Called as `on_cell(method, shots, rows, left)`: before a method compiles (no shots, no rows), before
            each cell (no rows) and after it; `left` is the number of cells still to do.

    Raises:
        InputError: the directory belongs to another config, or a file of the data cannot be read.
        MachineError: the directory cannot be written.
        Unfinished: some methods cannot be run on this data; the rows of the others are written, and in the error.
    """
    directory, plain = epath.Path(directory), _plain(curve.config) | {"fingerprints": curve.fingerprints}
    defaults = configs.defaults("curve", curve.config)
    config = workdir.check(directory, plain, defaults, GROWS)
    _ = curve.examples.on_device  # what cannot be read is refused before anything is written
    fingerprint = workdir.fingerprint(config, GROWS)
    cells, every = Cells(directory, fingerprint), [_name(*key) for key in _keys(config)]
    done = of_source(cells.read(every), curve.modules)
    todo: list[tuple[Arm, int, list[int]]] = []
    for arm in curve.arms:
        for shots in curve.config.shots if arm.draws else (0,):
            seeds = range(curve.config.seeds if arm.draws else 1)
            if missing := [seed for seed in seeds if _name(arm.name, shots, seed) not in done]:
                todo.append((arm, shots, missing))

    failed: dict[str, str] = {}
    left, plan = len(todo), [list(some) for _, some in itertools.groupby(todo, key=lambda cell: id(cell[0]))]
    with _ahead(lambda arm, _, seeds: arm.compile(len(seeds)), plan) as compiling:
        for some, compiled in zip(plan, compiling, strict=True):
            name = some[0][0].name
            on_cell(name, None, [], left)
            for _, shots, seeds in some:
                try:
                    cell = compiled.result()
                    on_cell(name, shots, [], left)
                    of = {"modules": curve.modules[name]} if name in curve.modules else {}
                    rows = [row | of | {"fingerprint": fingerprint} for row in cell(shots, seeds)]
                except (InputError, MemoryError, jax.errors.JaxRuntimeError) as error:
                    failed[name] = first_line(error)
                    break
                config = workdir.claim(directory, plain, defaults, GROWS)  # not before there is something to keep
                for row in rows:
                    key = _name(row["method"], row["shots"], row["seed"])
                    cells.write(key, row)
                    done[key] = row
                cells.gather(done[key] for key in every if key in done)
                left -= 1
                on_cell(name, shots, rows, left)
    # Whatever other runs in this directory have finished meanwhile is gathered too.
    config = workdir.check(directory, plain, defaults, GROWS)
    found = cells.read(_name(*key) for key in _keys(config))
    rows = list(of_source(found, curve.modules).values())
    if rows:
        cells.gather(rows)
    if failed:
        raise Unfinished(rows, failed)
    return rows


@contextlib.contextmanager
def _ahead(compile_one, plan):
    """Compile the methods two at a time, ahead of their turn: tracing and compiling use one core each."""
    pool = ThreadPoolExecutor(2)
    try:
        yield [pool.submit(compile_one, *cells[0]) for cells in plan]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _keys(config: dict[str, Any]) -> list[Key]:
    """Method, shots and seed of every row of a config, in the order of its methods."""
    keys = []
    for name in config["methods"]:
        trained = itertools.product([name], config["shots"], range(config["seeds"]))
        keys += [(ZERO_SHOT, 0, 0)] if name == ZERO_SHOT else trained
    return list(dict.fromkeys(keys))


def _name(method: str, shots: int, seed: int) -> str:
    return f"{method}-{shots}-{seed}"


def _labels(dataset, shots) -> str:
    if dataset.targets != "classes":
        each = ", ".join(f"{k} + {validation_rows(k)}" for k in shots)
        return f"k rows for training and k/4 more for validation, disjoint and nested for one seed: {each} rows"
    each = ", ".join(f"{k} + {validation_shots(k)}" for k in shots)
    return (
        "k per class for training and min(k, 4) more for validation, disjoint, class-balanced and nested "
        f"for one seed: {each} per class"
    )


def protocol(curve: Curve, rows: list[ResultRow]) -> list[str]:
    """What the numbers mean, in sentences: data, labels, choice of hyper-parameters, backbone, and each method.

    Args:
        curve: The curve.
        rows: The rows that `run` returned.
    """
    config, dataset, examples = curve.config, curve.dataset, curve.examples
    part = len(examples.test) < len(dataset.test)
    tested = f"{len(examples.test)} of the {len(dataset.test)}" if part else f"the {len(dataset.test)}"
    each = ", each class in its proportion" if dataset.targets == "classes" else ""
    drawn = f" (drawn once{each})" if part else ""
    what = {"classes": "classes", "labels": "labels, several a row", "values": "values a row"}[dataset.targets]
    named = [(name.replace("_", " "), metric.words) for name, metric in examples.metrics.items()]
    chosen, *others = [name if name == words else f"{name}, the {words}" for name, words in named]
    also = f" Also measured: {'; '.join(others)}." if others else ""
    lines = [
        f"Target: {dataset.name}, {dataset.outputs} {what}; tested on {tested} rows of the test split{drawn}, "
        f"which chose nothing; few-shot sets are drawn from the other {len(dataset.pool)}.",
        f"Labels: {_labels(dataset, config.shots)}.",
        f"Choice: for each method, shots and seed, the hyper-parameters of the best validation {chosen} (ties: the "
        f"lowest validation loss); the chosen model is tested as it is, never trained on the validation labels.{also}",
        f"Backbone: {curve.backbone.name} ({curve.backbone.fingerprint}); data {curve.fingerprints['data']}.",
    ]
    if dataset.kind == "text":
        lines.append(
            f"Texts: {examples.prepare.tokens} tokens each; {examples.cut} of {len(examples.rows)} are cut off."
        )
    lines += [dataset.note] if dataset.note else []
    if source := examples.source:
        lines.append(
            f"Source: {source.data.name}, told by {source.what}; accuracy on {len(source.held_out['labels'])} held-out "
            f"rows before ({source.before:.1%}) and after training, at the most labels."
        )
    for arm in curve.arms:
        lines += arm.about([row for row in rows if row["method"] == arm.name])
    for name, labels in worth(rows).items():
        lines.append(f"{ZERO_SHOT} is worth {labels} training labels per class of {name}, by log-linear interpolation.")
    return lines
