"""`jtransfer evaluate`: every protocol of a config on one backbone and one dataset; what is done is not done again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jtransfer import checkpoints, files, workdir
from jtransfer import config as configs
from jtransfer.cells import Cells
from jtransfer.config import resolved
from jtransfer.data import sources
from jtransfer.errors import InputError, Unfinished
from jtransfer.evaluate import protocols
from jtransfer.evaluate.features import Layer
from jtransfer.evaluate.protocols.rows import Row, Run
from jtransfer.evaluate.store import Store, default_store
from jtransfer.evaluate.task import Progress, Reader, Task, split
from jtransfer.train.sharding import make_mesh

GROWS = ("protocols",)
WITHOUT_EFFECT = ("batch", "mesh", "store", "data_dir")
"""Keys that no number depends on."""
OF_THE_INPUT = (InputError, ArithmeticError, np.linalg.LinAlgError, MemoryError, jax.errors.JaxRuntimeError)
"""What a protocol may end in on data that it was not made for; anything else is a fault of ours, and is raised."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation with everything checked and nothing extracted.

    Attributes:
        config: The resolved config.
        task: Data and backbone.
        runs: What each protocol does.
        also: Of each protocol, what its rows say of how inputs are made, and of what it has read beside the task.
    """

    config: Any
    task: Task
    runs: dict[str, Run]
    also: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def prepare(config, progress: Progress = lambda what, done, rows: None) -> Evaluation:
    """Load data and backbone, and check every protocol of a config on them.

    Args:
        config: With all keys of `jtransfer.config.evaluate_defaults`.
        progress: Called as `progress(what, done, rows)` while features are extracted.

    Raises:
        InputError: whatever in the config cannot be run.
    """
    configs.check("evaluate", config)
    make_mesh(config.mesh)  # which refuses one that does not fit the devices
    config = _once(config)
    for layer in config.layers:
        Layer.parse(layer)
    wanted = {text: protocols.parse(text) for text in config.protocols}
    dataset = sources.load(config.data, config.data_dir)
    train, validation, held_out = split(dataset, config.validation)
    backbone, make_inputs = checkpoints.load_for(config.backbone, config.load, dataset, tower=False)
    store = Store(files.path(config.store, "config.store") if config.store else default_store())
    reader = Reader(backbone, make_inputs, store, config.batch, dict(config.mesh), progress)
    config.layers = config.layers or (reader.default_layer(dataset),)
    task = Task(dataset, train, validation, held_out, reader, config.layers, dict(config.load), config.data_dir)
    reader.check(dataset, *config.layers)
    runs, also, made = {}, {}, {"preprocessing": reader.origin(dataset, "").preprocessing}
    for text, put_on in wanted.items():
        task.also.clear()
        runs[text] = put_on(task)
        also[text] = made | ({"also": list(task.also)} if task.also else {})
    return Evaluation(config, task, runs, also)


def check(config, directory: epath.PathLike) -> None:
    """Refuse a directory that a config cannot have, before anything is loaded.

    Raises:
        InputError: it belongs to another config, or it is none.
        MachineError: nothing can be written there.
    """
    plain = {key: value for key, value in resolved(_once(config)).items() if key not in WITHOUT_EFFECT}
    chosen_later = () if config.layers else ("layers",)
    workdir.check(epath.Path(directory), plain, GROWS, later=("fingerprints", *chosen_later))


def _once(config):
    """The config with every protocol and layer once."""
    config = ConfigDict(config)
    for key in ("protocols", "layers"):
        config[key] = tuple(dict.fromkeys(config[key]))
    return config


def run(evaluation: Evaluation, directory: epath.PathLike, on_rows: Callable[[str, list[Row]], None]) -> list[Row]:
    """Do the protocols that are missing in a directory, and return every row that it then holds.

    Args:
        evaluation: What to do.
        directory: The run's, local or in an object store.
        on_rows: Called as `on_rows(protocol, rows)`: before a protocol (no rows) and after it.

    Raises:
        InputError: the directory belongs to another config.
        Unfinished: some protocols cannot be done on this data; the rows of the others are written, and in the error.
    """
    directory, task = epath.Path(directory), evaluation.task
    fingerprints = {"data": sources.fingerprint(task.dataset), "backbone": task.backbone.fingerprint}
    plain = resolved(evaluation.config) | {"fingerprints": fingerprints}
    mine = {k: v for k, v in plain.items() if k not in WITHOUT_EFFECT}
    config = workdir.check(directory, mine, GROWS)
    fingerprint = workdir.fingerprint(config, GROWS)
    cells = Cells(directory, fingerprint)
    done, failed = _of_these(cells.read(config["protocols"]), evaluation.also), {}
    for text, work in evaluation.runs.items():
        if text in done:
            continue
        on_rows(text, [])
        also = evaluation.also.get(text, {})
        try:
            done[text] = [{"protocol": text} | found | also | {"fingerprint": fingerprint} for found in work()]
        except OF_THE_INPUT as error:
            failed[text] = next(iter(str(error).splitlines()), "") or type(error).__name__
            continue
        config = workdir.claim(directory, mine, GROWS)  # not before there is something to keep
        cells.write(text, done[text])
        cells.gather(_ordered(done, config))
        on_rows(text, done[text])
    # Whatever other runs in this directory have finished meanwhile is gathered too.
    config = workdir.check(directory, mine, GROWS)
    rows = _ordered(cells.read(config["protocols"]), config)
    if rows:
        cells.gather(rows)
    if failed:
        raise Unfinished(rows, failed)
    return rows


def _of_these(done, also):
    """The finished protocols, but for those that read what is another by now: a file, a source, how inputs are made.

    Rows of versions that did not say how their inputs are made are taken to have had them made so.
    """

    def is_this(text, row):
        own = also.get(text, {})
        made = own.get("preprocessing")
        return not own or (row.get("also") == own.get("also") and row.get("preprocessing", made) == made)

    return {text: rows for text, rows in done.items() if all(is_this(text, row) for row in rows)}


def _ordered(done, config):
    return [row for text in dict.fromkeys(config["protocols"]) for row in done.get(text, ())]


def about(evaluation: Evaluation) -> list[str]:
    """What all numbers have in common, in sentences."""
    task = evaluation.task
    dataset = task.dataset
    empty = len(dataset.classes) - len(np.unique(dataset.labels[dataset.test])) if dataset.labels.ndim == 1 else 0
    prints = f"({task.backbone.fingerprint}); data {sources.fingerprint(dataset)}"
    return [
        f"Data: {dataset.name}, {len(dataset.classes)} classes: {len(task.train)} rows to fit on, "
        f"{len(task.validation)} to choose on ({task.held_out}), {len(dataset.test)} to test on, which chose nothing."
        + (f" {empty} classes have no test row, and no mean over classes counts them." if empty else "")
        + f" {dataset.note}".rstrip(),
        f"Backbone: {task.backbone.name} {prints}, preprocessing {task.reader.origin(dataset, '').preprocessing}.",
    ]
