"""Transfer curves: method x labels per class x seed, each cell at the hyper-parameters chosen on validation rows.

A cell is one method at one number of shots: its seeds and hyper-parameters run side by side in one program, which is
compiled once a method. A finished cell leaves one small object per seed under `cells/`, and `results.jsonl` gathers
them: a run that was stopped goes on, and one whose methods, shots or seeds have grown does only the rest.
"""

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jtransfer import checkpoints, files, methods, models
from jtransfer.config import resolved
from jtransfer.data import sources
from jtransfer.data.subsets import batches, few_shot, validation_shots
from jtransfer.errors import InputError, nearest
from jtransfer.models import Classifier, Pixels, PixelsConfig
from jtransfer.train import Optimiser, TrialData, costs, make_trial, predict
from jtransfer.tree import partition, size
from jtransfer.workdir import claim

ZERO_SHOT, PIXELS = "zero_shot", "pixels"
GROWS = ("methods", "shots", "seeds")
SEARCHED = ("rate", "decay")

Row = dict[str, Any]
Cell = tuple[str, int, int]
OnCell = Callable[[str, int | None, list[Row], int], None]


@dataclass(frozen=True)
class Arm:
    """One trained method of a curve.

    Attributes:
        name: As the config writes it.
        adapted: The model that it trains.
        optimiser: Its options.
        steps: Of each trial.
        grid: Every combination of the hyper-parameters that are searched.
    """

    name: str
    adapted: methods.Adapted
    optimiser: Optimiser
    steps: int
    grid: list[dict[str, float]]


@dataclass(frozen=True)
class Curve:
    """A curve with everything checked and nothing compiled.

    Attributes:
        config: The resolved config.
        dataset: The target task.
        backbone: What is transferred.
        arms: The methods that train, in the config's order.
        fingerprints: Of the data and of the backbone.
    """

    config: Any
    dataset: sources.Dataset
    backbone: checkpoints.Backbone
    arms: list[Arm]
    fingerprints: dict[str, str]


def prepare(config) -> Curve:
    """Load data and backbone, and build every method of a config.

    Raises:
        InputError: whatever in the config cannot be run, before any compilation.
    """
    for key in ("shots", "seeds", "steps", "batch"):
        for value in config[key] if key == "shots" else (config[key],):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"config.{key}: expected whole numbers above 0, found {value!r}")
    for name in config.methods:
        if name not in (ZERO_SHOT, PIXELS):
            methods.parse(name)
    dataset = sources.load(config.data)
    for shots in config.shots:
        few_shot(dataset.labels, dataset.pool, shots, seed=0)
    data = sources.fingerprint(dataset)
    what, shape = f"images of {config.data}", dataset.images.shape[1:]
    backbone, prepare = checkpoints.load_for_images(config.backbone, config.load, what, shape)
    dataset = replace(dataset, images=prepare(dataset.images))
    names = list(dict.fromkeys(config.methods))
    known = ["default", PIXELS, *methods.METHODS, *names]
    for name in config.hyper:
        if name not in known:
            raise InputError(f"config.hyper: unknown method '{name}'; {nearest(name, known)}")
    if ZERO_SHOT in names:
        _source_rows(dataset, backbone)
    arms = [_arm(config, name, dataset, backbone) for name in names if name != ZERO_SHOT]
    fingerprints = {"data": data, "backbone": backbone.fingerprint}
    return Curve(config, dataset, backbone, arms, fingerprints)


def run(curve: Curve, directory: epath.PathLike, on_cell: OnCell) -> list[Row]:
    """Do the cells that are missing in a directory, and return every row that it then holds.

    Args:
        curve: What to do.
        directory: The run's, local or in an object store.
        on_cell: Called as `on_cell(method, shots, rows, left)`: before a method compiles (no shots, no rows), before
            each cell (no rows) and after it; `left` is the number of cells still to do.

    Raises:
        InputError: the directory belongs to another config.
    """
    directory = epath.Path(directory)
    plain = resolved(curve.config) | {"fingerprints": curve.fingerprints}
    config = claim(directory, plain, GROWS)
    identity = {key: value for key, value in config.items() if key not in GROWS}
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    done = _finished(directory, config)
    todo: list[tuple[Arm | None, int, list[int]]] = []
    if ZERO_SHOT in config["methods"] and (ZERO_SHOT, 0, 0) not in done:
        todo.append((None, 0, [0]))
    for arm, shots in itertools.product(curve.arms, curve.config.shots):
        if seeds := [seed for seed in range(curve.config.seeds) if (arm.name, shots, seed) not in done]:
            todo.append((arm, shots, seeds))

    left, plan = len(todo), [list(cells) for _, cells in itertools.groupby(todo, key=lambda cell: id(cell[0]))]
    with _ahead(lambda arm, _, seeds: _runner(curve, arm, len(seeds)) if arm else _zero_shot(curve), plan) as runners:
        for cells, runner in zip(plan, runners, strict=True):
            name = cells[0][0].name if cells[0][0] else ZERO_SHOT
            on_cell(name, None, [], left)
            cell = runner.result()
            for _, shots, seeds in cells:
                on_cell(name, shots, [], left)
                rows = [row | {"fingerprint": fingerprint} for row in cell(shots, seeds)]
                for row in rows:
                    key = (row["method"], row["shots"], row["seed"])
                    files.write(_object(directory, *key), json.dumps(row) + "\n")
                    done[key] = row
                _gather(directory, config, done)
                left -= 1
                on_cell(name, shots, rows, left)
    return _gather(directory, config, done)


@contextlib.contextmanager
def _ahead(compile_one, plan):
    """Compile the methods two at a time, ahead of their turn: tracing and compiling use one core each."""
    pool = ThreadPoolExecutor(2)
    try:
        yield [pool.submit(compile_one, *cells[0]) for cells in plan]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _cells(config: dict[str, Any]) -> list[Cell]:
    """Every cell of a config in the order of its methods."""
    cells = []
    for name in config["methods"]:
        trained = itertools.product([name], config["shots"], range(config["seeds"]))
        cells += [(ZERO_SHOT, 0, 0)] if name == ZERO_SHOT else trained
    return cells


def _finished(directory: epath.Path, config: dict[str, Any]) -> dict[Cell, Row]:
    folder = directory / "cells"
    present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    paths = {cell: _object(directory, *cell) for cell in _cells(config)}
    return {cell: json.loads(path.read_text()) for cell, path in paths.items() if path.name in present}


def _gather(directory: epath.Path, config: dict[str, Any], done: dict[Cell, Row]) -> list[Row]:
    rows = [done[cell] for cell in _cells(config) if cell in done]
    files.write(directory / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def protocol(curve: Curve, rows: list[Row]) -> list[str]:
    """What the numbers mean, in sentences: data, labels, choice of hyper-parameters and its edges."""
    config, dataset = curve.config, curve.dataset
    shots = ", ".join(f"{k} + {validation_shots(k)}" for k in config.shots)
    lines = [
        f"Target: {dataset.name}, {len(dataset.classes)} classes; tested on the {len(dataset.test)} rows of the test "
        f"split, which chose nothing; few-shot sets are drawn from the other {len(dataset.pool)}.",
        f"Labels: k per class for training and min(k, 4) more for validation, disjoint, class-balanced and nested "
        f"for one seed: {shots} per class.",
        "Choice: for each method, shots and seed, the hyper-parameters of the best validation accuracy (ties: the "
        "lowest validation loss); the chosen model is tested as it is, never trained on the validation labels.",
        f"Backbone: {curve.backbone.name} ({curve.backbone.fingerprint}); data {curve.fingerprints['data']}.",
    ]
    for arm in curve.arms:
        mine = [row for row in rows if row["method"] == arm.name]
        searched = {key: sorted({point[key] for point in arm.grid}) for key in arm.grid[0]}
        grid = "; ".join(f"{key} of {', '.join(f'{v:g}' for v in values)}" for key, values in searched.items())
        edges = {
            key: sum(row["hyper"][key] in (values[0], values[-1]) for row in mine)
            for key, values in searched.items()
            if len(values) > 1
        }
        edge = "".join(f"; {key} at an edge in {n} of {len(mine)}" for key, n in edges.items())
        how = f"{arm.steps} steps of {config.batch}, {arm.optimiser.name}, {arm.optimiser.schedule}"
        lines.append(f"{arm.name}: {how}, {grid}{edge}.")
    return lines


def _arm(config, name: str, dataset: sources.Dataset, backbone: checkpoints.Backbone) -> Arm:
    family = name.partition("(")[0].partition("+")[0].strip()
    hyper = dict(config.hyper.get(name) or config.hyper.get(family) or config.hyper["default"])
    optimiser = Optimiser(**config.optimiser)
    for key, value in hyper.items():
        if key not in (*SEARCHED, "steps"):
            raise InputError(f"config.hyper.{name}: unknown key '{key}'; {nearest(key, [*SEARCHED, 'steps'])}")
        if key == "steps" and not (isinstance(value, int) and value > 0):
            raise InputError(f"config.hyper.{name}.steps: expected a whole number above 0, found {value!r}")
        if key != "steps" and not (
            value and isinstance(value, tuple | list) and all(isinstance(v, int | float) for v in value)
        ):
            raise InputError(f"config.hyper.{name}.{key}: expected a list of numbers, found {value!r}")
    steps = hyper.pop("steps", config.steps)
    values = {key: tuple(hyper.get(key, (getattr(optimiser, key),))) for key in SEARCHED}
    grid = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    if name == PIXELS:
        height, width, channels = dataset.images.shape[1:]
        module, params, method = Pixels(PixelsConfig((height, width), channels)), {}, methods.probe()
    else:
        module, params, method = backbone.model, backbone.params | backbone.state, methods.parse(name)
    model = Classifier(module, len(dataset.classes))
    return Arm(name, methods.adapt(method, model, params, dataset.images.shape[1:]), optimiser, steps, grid)


def _runner(curve: Curve, arm: Arm, seeds: int) -> Callable[[int, list[int]], list[Row]]:
    """Compile a method once, for cells of `seeds` seeds; then every cell is a call."""
    config, dataset, adapted = curve.config, curve.dataset, arm.adapted
    trial = make_trial(adapted, arm.optimiser, arm.steps, config.smoothing, config.mixup)
    over_hyper = jax.vmap(trial, (None, 0, None, None, None, None))

    def best(key, grid, base, images, labels, data):
        """All hyper-parameters of one seed: which is best on validation, how it fares there, and on the test rows."""
        trials = over_hyper(key, grid, base, images, labels, data)
        accuracy = trials.accuracy.max()
        chosen = jnp.where(trials.accuracy == accuracy, trials.loss, jnp.inf).argmin()
        learned, state = jax.tree.map(lambda leaf: leaf[chosen], (trials.trainable, trials.state))
        tree, _ = adapted.start(jax.random.split(key)[0], base)
        right = predict(adapted, tree | learned, state, images[dataset.test]).argmax(-1) == labels[dataset.test]
        return chosen, accuracy, right.mean()

    def arguments(shots, seeds):
        data = [_trial_data(dataset, shots, seed, config.batch, arm.steps, padded) for seed in seeds]
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), shots) for seed in seeds])
        return keys, grid, adapted.base, images, labels, TrialData(*map(np.stack, zip(*data, strict=True)))

    padded = len(dataset.classes) * max(map(validation_shots, config.shots))
    grid = {key: jnp.array([point[key] for point in arm.grid], jnp.float32) for key in arm.grid[0]}
    images, labels = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    program = jax.jit(jax.vmap(best, (0, None, None, None, None, 0)))
    compiled = {seeds: program.lower(*arguments(min(config.shots), range(seeds))).compile()}
    shapes = costs.step_shapes(adapted, arm.optimiser, config.batch, smoothing=config.smoothing, mixup=config.mixup)
    trainable = size(partition(adapted.shapes, adapted.rates)[0])
    flops = costs.step_flops(shapes)

    def cell(shots, seeds):
        call = arguments(shots, seeds)
        if len(seeds) not in compiled:  # where some seeds are done already, a cell has fewer
            compiled[len(seeds)] = program.lower(*call).compile()
        started = time.perf_counter()
        chosen, accuracy, test_accuracy = map(np.asarray, compiled[len(seeds)](*call))
        seconds = (time.perf_counter() - started) / (len(seeds) * len(arm.grid))
        return [
            {
                "method": arm.name,
                "shots": shots,
                "seed": seed,
                "hyper": arm.grid[chosen[i]],
                "val_accuracy": max(float(accuracy[i]), 0.0),
                "test_accuracy": float(test_accuracy[i]),
                "trainable": trainable,
                "flops_per_step": flops,
                "seconds": seconds,
            }
            for i, seed in enumerate(seeds)
        ]

    return cell


def _trial_data(dataset, shots, seed, batch, steps, padded) -> TrialData:
    train, validation = few_shot(dataset.labels, dataset.pool, shots, seed)
    counts = np.arange(padded) < len(validation)
    order = batches(train, batch, steps, seed=(seed, shots))
    return TrialData(order, np.resize(validation, padded), counts.astype(np.float32))


def _zero_shot(curve: Curve) -> Callable[[int, list[int]], list[Row]]:
    """Without any label: the rows of the source task's head that carry the names of the target's classes."""
    dataset, backbone = curve.dataset, curve.backbone
    rows = jnp.array(_source_rows(dataset, backbone))
    tree, source = backbone.params | backbone.state, jax.jit(partial(models.apply, backbone.whole))

    def cell(shots, seeds):
        started = time.perf_counter()
        logits = source(tree, dataset.images[dataset.test])["logits"]
        right = np.asarray(logits[:, rows].argmax(-1)) == dataset.labels[dataset.test]
        return [
            {
                "method": ZERO_SHOT,
                "shots": 0,
                "seed": 0,
                "hyper": {},
                "val_accuracy": None,
                "test_accuracy": float(right.mean()),
                "trainable": 0,
                "flops_per_step": costs.forward_flops(
                    backbone.whole, tree, (curve.config.batch, *dataset.images.shape[1:])
                ),
                "seconds": time.perf_counter() - started,
            }
        ]

    return cell


def _source_rows(dataset: sources.Dataset, backbone: checkpoints.Backbone) -> list[int]:
    missing = [name for name in dataset.classes if name not in backbone.classes]
    if missing:
        raise InputError(
            f"{ZERO_SHOT}: the source head of '{backbone.name}' has no class '{missing[0]}' of {dataset.name}; "
            f"{nearest(missing[0], backbone.classes)}"
        )
    return [backbone.classes.index(name) for name in dataset.classes]


def _object(directory: epath.Path, method: str, shots: int, seed: int) -> epath.Path:
    return directory / "cells" / f"{quote(method, safe='')}-{shots}-{seed}.json"
