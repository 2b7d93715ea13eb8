"""`jtransfer evaluate`: every protocol of a config on one backbone and one dataset; what is done is not done again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jtransfer import checkpoints, workdir
from jtransfer.cells import Cells
from jtransfer.config import resolved
from jtransfer.data import sources
from jtransfer.errors import InputError
from jtransfer.evaluate import protocols
from jtransfer.evaluate.features import Layer
from jtransfer.evaluate.protocols.rows import Row, Run
from jtransfer.evaluate.store import Store, default_store
from jtransfer.evaluate.task import Progress, Reader, Task, split

GROWS = ("protocols",)
WITHOUT_EFFECT = ("batch", "mesh", "store", "data_dir")
"""Keys that no number depends on."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation with everything checked and nothing extracted.

    Attributes:
        config: The resolved config.
        task: Data and backbone.
        runs: What each protocol does.
    """

    config: Any
    task: Task
    runs: dict[str, Run]


def prepare(config, progress: Progress = lambda what, done, rows: None) -> Evaluation:
    """Load data and backbone, and check every protocol of a config on them.

    Args:
        config: With all keys of `jtransfer.config.evaluate_defaults`.
        progress: Called as `progress(what, done, rows)` while features are extracted.

    Raises:
        InputError: whatever in the config cannot be run.
    """
    if not isinstance(config.batch, int) or config.batch < 1:
        raise InputError(f"config.batch: expected a whole number above 0, found {config.batch!r}")
    if not config.protocols:
        raise InputError("config.protocols is empty; expected at least one")
    for layer in config.layers:
        Layer.parse(layer)
    wanted = {text: protocols.parse(text) for text in config.protocols}
    dataset = sources.load(config.data, config.data_dir)
    train, validation, held_out = split(dataset, config.validation)
    backbone, make_inputs = checkpoints.load_for(config.backbone, config.load, dataset, tower=False)
    store = Store(epath.Path(config.store) if config.store else default_store())
    reader = Reader(backbone, make_inputs, store, config.batch, dict(config.mesh), progress)
    layers = tuple(dict.fromkeys(config.layers)) or (reader.default_layer(dataset),)
    config = ConfigDict(config)
    config.layers = layers
    task = Task(dataset, train, validation, held_out, reader, layers, dict(config.load), config.data_dir)
    reader.check(dataset, *layers)
    return Evaluation(config, task, {text: put_on(task) for text, put_on in wanted.items()})


def run(evaluation: Evaluation, directory: epath.PathLike, on_rows: Callable[[str, list[Row]], None]) -> list[Row]:
    """Do the protocols that are missing in a directory, and return every row that it then holds.

    Args:
        evaluation: What to do.
        directory: The run's, local or in an object store.
        on_rows: Called as `on_rows(protocol, rows)`: before a protocol (no rows) and after it.

    Raises:
        InputError: the directory belongs to another config.
    """
    directory, task = epath.Path(directory), evaluation.task
    fingerprints = {"data": sources.fingerprint(task.dataset), "backbone": task.backbone.fingerprint}
    plain = resolved(evaluation.config) | {"fingerprints": fingerprints}
    config = workdir.claim(directory, {k: v for k, v in plain.items() if k not in WITHOUT_EFFECT}, GROWS)
    fingerprint = workdir.fingerprint(config, GROWS)
    cells = Cells(directory, fingerprint)
    done = cells.read(config["protocols"])
    for text, work in evaluation.runs.items():
        if text in done:
            continue
        on_rows(text, [])
        done[text] = [{"protocol": text} | found | {"fingerprint": fingerprint} for found in work()]
        cells.write(text, done[text])
        cells.gather(_ordered(done, config))
        on_rows(text, done[text])
    rows = _ordered(done, config)
    cells.gather(rows)
    return rows


def _ordered(done, config):
    return [row for text in config["protocols"] for row in done.get(text, ())]


def about(evaluation: Evaluation) -> list[str]:
    """What all numbers have in common, in sentences."""
    task = evaluation.task
    dataset = task.dataset
    prints = f"({task.backbone.fingerprint}); data {sources.fingerprint(dataset)}"
    return [
        f"Data: {dataset.name}, {len(dataset.classes)} classes: {len(task.train)} rows to fit on, "
        f"{len(task.validation)} to choose on ({task.held_out}), {len(dataset.test)} to test on, which chose nothing."
        + f" {dataset.note}".rstrip(),
        f"Backbone: {task.backbone.name} {prints}, preprocessing {task.reader.origin(dataset, '').preprocessing}.",
    ]
