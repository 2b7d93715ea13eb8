"""The arms of a curve: what one method runs, as a function from shots and seeds to rows of results, compiled once."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import checkpoints, methods, models
from jtransfer.checkpoints import inputs
from jtransfer.data.coded import Coded
from jtransfer.data.dataset import Dataset
from jtransfer.data.subsets import batches, few_shot, validation_shots
from jtransfer.errors import InputError, nearest
from jtransfer.evaluate import zero_shot as by_names
from jtransfer.models import Classifier, Pixels, PixelsConfig
from jtransfer.objectives import Objective, classification
from jtransfer.train import Optimiser, Plan, TrialData, costs, make_trial, plan, predict_rows, trials
from jtransfer.tree import partition, size

ZERO_SHOT, PIXELS = "zero_shot", "pixels"
SEARCHED = ("rate", "decay")

Row = dict[str, Any]
Cell = Callable[[int, list[int]], list[Row]]
"""From shots and seeds to one row for each seed."""


@dataclass(frozen=True, eq=False)
class Examples:
    """A dataset, and those of its rows that a curve uses, made ready for its backbone when they are first needed.

    Attributes:
        dataset: The whole.
        test: Rows of its test split that are reported on.
        rows: [u] all rows that are used, ascending.
        prepare: From its inputs to the backbone's.
    """

    dataset: Dataset
    test: np.ndarray
    rows: np.ndarray
    prepare: inputs.Prepare

    @cached_property
    def on_device(self) -> tuple[dict[str, jax.Array | Coded], jax.Array]:
        """The backbone's inputs of `rows`, by name, images as bytes where these say all; and the labels `[u]`."""
        arrays = inputs.gathered(self.prepare, self.dataset.inputs, self.rows, coded=True)
        return jax.device_put(arrays, may_alias=True), jnp.asarray(self.dataset.labels[self.rows])

    @cached_property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of one of `inputs`; no more than one row is made ready for that."""
        return inputs.example(self.prepare(self.dataset.inputs[self.rows[:1]]))

    @cached_property
    def cut(self) -> int:
        """How many texts among `rows` are longer than what the backbone is given of them."""
        blocks = np.split(self.rows, range(inputs.BLOCK, len(self.rows), inputs.BLOCK))
        return sum(self.prepare.cut(self.dataset.inputs[rows]) for rows in blocks)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where rows of the dataset stand among `inputs`."""
        return np.searchsorted(self.rows, rows)


@dataclass(frozen=True)
class Arm:
    """One trained method of a curve.

    Attributes:
        name: As the config writes it.
        adapted: The model that it trains.
        objective: What it learns.
        optimiser: Its options.
        plan: Steps and rates of its phases, in each trial.
        grid: Every combination of the hyper-parameters that are searched.
    """

    name: str
    adapted: methods.Adapted
    objective: Objective
    optimiser: Optimiser
    plan: Plan
    grid: list[dict[str, float]]


def family(name: str) -> str:
    """What `hyper` calls a method: the function of its first part, as "houlsby" of `my_methods.houlsby(width=2)`."""
    return name.partition("(")[0].partition("+")[0].strip().rpartition(".")[2]


def build(config, name: str, examples: Examples, backbone: checkpoints.Backbone) -> Arm:
    """The arm of a method that trains.

    Raises:
        InputError: hyper-parameters that cannot be searched, or a method that does not fit the backbone.
    """
    hyper = dict(config.hyper.get(name) or config.hyper.get(family(name)) or config.hyper["default"])
    optimiser = Optimiser(**config.optimiser)
    shares = hyper.pop("phase_steps", ()), hyper.pop("phase_rates", ())
    steps = hyper.pop("steps", sum(shares[0]) or config.steps)
    values = {key: tuple(hyper.get(key, (getattr(optimiser, key),))) for key in SEARCHED}
    grid = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    if name == PIXELS:
        _, height, width, channels = examples.example["pixel_values"].shape
        module, params, method = Pixels(PixelsConfig((height, width), channels)), {}, methods.probe()
    else:
        module, params, method = backbone.model, backbone.params | backbone.state, methods.parse(name)
    model = Classifier(module, len(examples.dataset.classes))
    objective = classification(config.smoothing, config.mixup)
    where = f"config.hyper['{name}']" if name in config.hyper else "config"
    phases = plan(len(method.phases), steps, *shares, where)
    return Arm(name, methods.adapt(method, model, params, examples.example), objective, optimiser, phases, grid)


def trained(config, arm: Arm, examples: Examples, seeds: int) -> Cell:
    """Compile a method once, for cells of `seeds` seeds; then every cell is a call.

    `config.parallel` bounds how many trials run side by side; the others wait their turn in the same program.
    """
    dataset, adapted = examples.dataset, arm.adapted
    trial = make_trial(adapted, arm.objective, arm.optimiser, arm.plan)
    test = examples.places(examples.test)
    many = config.parallel
    seeds_at_once = max(1, many // len(arm.grid)) if many else 0

    def best(key, grid, base, inputs, labels, data):
        """All hyper-parameters of one seed: which is best on validation, how it fares there, and on the test rows."""
        results = _over(lambda hyper: trial(key, hyper, base, inputs, labels, data), grid, many)
        accuracy = results.accuracy.max()
        chosen = jnp.where(results.accuracy == accuracy, results.loss, jnp.inf).argmin()
        learned, state = jax.tree.map(lambda leaf: leaf[chosen], (results.trainable, results.state))
        tree, _ = adapted.start(jax.random.split(key)[0], base)
        logits = predict_rows(adapted, tree | learned, state, inputs, test)
        right = logits.argmax(-1) == labels[test]
        finite = (accuracy >= 0) & jnp.isfinite(logits).all()
        return chosen, accuracy, right.mean(), finite

    @jax.jit
    def program(keys, grid, base, inputs, labels, data):
        return _over(lambda one: best(one[0], grid, base, inputs, labels, one[1]), (keys, data), seeds_at_once)

    def arguments(shots, seeds):
        data = [_trial_data(examples, shots, seed, config.batch, sum(arm.plan.steps), padded) for seed in seeds]
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), shots) for seed in seeds])
        return keys, grid, adapted.base, *examples.on_device, TrialData(*map(np.stack, zip(*data, strict=True)))

    padded = len(dataset.classes) * max(map(validation_shots, config.shots))
    grid = {key: jnp.array([point[key] for point in arm.grid], jnp.float32) for key in arm.grid[0]}
    compiled = {seeds: program.lower(*arguments(min(config.shots), range(seeds))).compile()}
    trainable = size(partition(adapted.shapes, adapted.rates)[0])
    flops = costs.flops_per_step(adapted, arm.objective, arm.optimiser, config.batch, arm.plan)

    def cell(shots, seeds):
        call = arguments(shots, seeds)
        if len(seeds) not in compiled:  # where some seeds are done already, a cell has fewer
            compiled[len(seeds)] = program.lower(*call).compile()
        started = time.perf_counter()
        chosen, accuracy, test_accuracy, finite = map(np.asarray, compiled[len(seeds)](*call))
        seconds = (time.perf_counter() - started) / (len(seeds) * len(arm.grid))
        return [
            {
                "method": arm.name,
                "shots": shots,
                "seed": seed,
                "hyper": arm.grid[chosen[i]] if finite[i] else {},
                "val_accuracy": float(accuracy[i]) if finite[i] else None,
                "test_accuracy": float(test_accuracy[i]) if finite[i] else None,
                "trainable": trainable,
                "flops_per_step": flops,
                "seconds": seconds,
            }
            for i, seed in enumerate(seeds)
        ]

    return cell


def zero_shot(config, examples: Examples, backbone: checkpoints.Backbone) -> Cell:
    """Without any label: the class names as a dual encoder reads them, or the source head's outputs of these names."""
    whole, tree = backbone.whole, backbone.params | backbone.state
    test, labels = examples.places(examples.test), examples.dataset.labels[examples.test]
    output = "image_embeds" if _is_dual(backbone) else "logits"

    @jax.jit
    def read(tree, inputs):
        return trials.in_blocks(lambda some: models.apply(whole, tree, some)[output], inputs, test)

    batch = {key: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype) for key, x in examples.example.items()}

    def cell(shots, seeds):
        started = time.perf_counter()
        outputs = np.asarray(read(tree, examples.on_device[0]))
        if _is_dual(backbone):
            logits = by_names.text_classifier(backbone, examples.dataset.classes, _templates(config))(outputs)
        else:
            logits = outputs[:, source_columns(examples.dataset, backbone)]
        if not np.isfinite(logits).all():
            raise InputError(f"{ZERO_SHOT}: outputs of {backbone.name} hold NaN or infinite values")
        return [
            {
                "method": ZERO_SHOT,
                "shots": 0,
                "seed": 0,
                "hyper": {},
                "val_accuracy": None,
                "test_accuracy": float((logits.argmax(-1) == labels).mean()),
                "trainable": 0,
                "flops_per_step": costs.forward_flops(whole, tree, batch),
                "seconds": time.perf_counter() - started,
            }
        ]

    return cell


def check_zero_shot(config, dataset: Dataset, backbone: checkpoints.Backbone) -> None:
    """Refuse a backbone that cannot name the classes of a dataset.

    Raises:
        InputError: a dual encoder without a tokenizer, templates that are none, or a source head without a class.
    """
    if _is_dual(backbone):
        by_names.check(backbone)
        by_names.check_texts(dataset.classes, _templates(config))
    else:
        source_columns(dataset, backbone)


def zero_shot_in_words(config, backbone: checkpoints.Backbone) -> str:
    """What the classes are told by, in a sentence."""
    if not _is_dual(backbone):
        return "the outputs of the source head that have the classes' names; no label is seen"
    templates = _templates(config)
    each = f"{len(templates)} templates" if len(templates) > 1 else f"the template {templates[0]!r}"
    return f"the classes' names in {each}, read by the text tower; no label is seen"


def fingerprints(config) -> dict[str, str]:
    """Of what a config's files of texts hold, by key."""
    return {"templates": by_names.fingerprint(_templates(config))} if config.templates else {}


def _is_dual(backbone):
    return {"pixel_values", "input_ids"} <= backbone.config.inputs.keys()


def _templates(config):
    return by_names.read_texts(config.templates) if config.templates else by_names.TEMPLATES


def source_columns(dataset: Dataset, backbone: checkpoints.Backbone) -> list[int]:
    """For each class of a dataset, the output of the backbone's own head that has its name.

    Raises:
        InputError: there is none.
    """
    place = {name: i for i, name in reversed([*enumerate(backbone.classes)])}  # of a name that stands twice, the first
    missing = [name for name in dataset.classes if name not in place]
    if missing:
        raise InputError(
            f"{ZERO_SHOT}: the source head of '{backbone.name}' has no class '{missing[0]}' of {dataset.name}; "
            f"{nearest(missing[0], backbone.classes)}"
        )
    return [place[name] for name in dataset.classes]


def _over(call: Callable, xs: Any, many: int) -> Any:
    """`call` on every row of `xs`, at most `many` side by side; 0 for all."""
    if 0 < many < len(jax.tree.leaves(xs)[0]):
        return jax.lax.map(call, xs, batch_size=many if many > 1 else None)
    return jax.vmap(call)(xs)


def _trial_data(examples: Examples, shots, seed, batch, steps, padded) -> TrialData:
    train, validation = map(examples.places, few_shot(examples.dataset.labels, examples.dataset.pool, shots, seed))
    counts = np.arange(padded) < len(validation)
    order = batches(train, batch, steps, seed=(seed, shots))
    return TrialData(order, np.resize(validation, padded), counts.astype(np.float32))
