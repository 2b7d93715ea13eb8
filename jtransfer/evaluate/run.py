"""`jtransfer evaluate`: every protocol of a config on one backbone and one dataset; what is done is not done again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jtransfer import config as configs
from jtransfer import expressions, files, starts
from jtransfer.checkpoints import load
from jtransfer.config import resolved
from jtransfer.data import sources
from jtransfer.devices.sharding import make_mesh
from jtransfer.errors import InputError, Unfinished, first_line
from jtransfer.evaluate import protocols
from jtransfer.evaluate.features import Layer
from jtransfer.evaluate.protocols.rows import ProtocolRun
from jtransfer.evaluate.store import FeatureStore, default_store
from jtransfer.evaluate.task import Progress, Reader, TargetTask, split
from jtransfer.starts.inputs import options_of
from jtransfer.storage import workdir
from jtransfer.storage.cells import Cells, ResultRow, of_source

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
        also: Of each protocol, what its rows say that it has read beside the task; empty where that is nothing.
        modules: Of each protocol that names modules of the user's, their digests by name.
    """

    config: Any
    task: TargetTask
    runs: dict[str, ProtocolRun]
    also: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    modules: dict[str, dict[str, str]] = field(default_factory=dict)


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
    config = settled(config)
    for layer in config.layers:
        Layer.parse(layer)
    wanted = {text: protocols.parse(text) for text in config.protocols}
    modules = {text: own for text in wanted if (own := expressions.modules(text, "protocol"))}
    task = (_task if config.data else _table)(config, progress)
    runs, also = {}, {}
    for text, put_on in wanted.items():
        task.also.clear()
        runs[text] = put_on(task)
        also[text] = {"also": list(task.also)} if task.also else {}
    return Evaluation(config, task, runs, also, modules)


def _task(config, progress):
    """What protocols look at. Where no layers are named, the config gets the one that stands for the backbone."""
    dataset = sources.load(config.data, config.data_dir)
    train, validation, held_out = split(dataset, config.validation)
    backbone, make_inputs = starts.load_for(config.backbone, config.load, dataset, tower=False)
    store = FeatureStore(files.path(config.store, "config.store") if config.store else default_store())
    reader = Reader(backbone, make_inputs, store, config.batch, dict(config.mesh), progress)
    config.layers = config.layers or (reader.default_layer(dataset),)
    task = TargetTask(dataset, train, validation, held_out, reader, config.layers, dict(config.load), config.data_dir)
    reader.check(dataset, *config.layers)
    return task


def _table(config, progress):
    """A task that is a backbone and no data."""
    reader = Reader(load(config.backbone, **options_of(config.load)), None, None, progress=progress)
    rows = np.arange(0)
    return TargetTask(None, rows, rows, "", reader, config.layers, dict(config.load), config.data_dir)


def settled(config) -> ConfigDict:
    """A config with each protocol and layer once, and without data where the default ones would not be read.

    That is where all protocols look at the table of word vectors alone. Data that are named are loaded in any case.
    """
    config = configs.once(config, "protocols", "layers")
    of_tables = all(text.partition("(")[0].strip() in protocols.OF_TABLES for text in config.protocols)
    if of_tables and config.data == configs.defaults("evaluate", config)["data"]:
        config.data = ""
    return config


def check(config, directory: epath.PathLike) -> None:
    """Refuse a directory that a config cannot have, before anything is loaded.

    Raises:
        InputError: it belongs to another config, or it is none.
        MachineError: nothing can be written there.
    """
    config = settled(config)
    chosen_later = () if config.layers else ("layers",)
    plain, defaults = _plain(config), configs.defaults("evaluate", config)
    workdir.check(epath.Path(directory), plain, defaults, GROWS, later=("fingerprints", *chosen_later))


def _plain(config):
    return {key: value for key, value in resolved(config).items() if key not in WITHOUT_EFFECT}


def run(
    evaluation: Evaluation, directory: epath.PathLike, on_rows: Callable[[str, list[ResultRow]], None]
) -> list[ResultRow]:
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
    data = {"data": sources.fingerprint(task.dataset)} if task.dataset else {}
    fingerprints = data | task.backbone.fingerprints
    mine = _plain(evaluation.config) | {"fingerprints": fingerprints}
    defaults = configs.defaults("evaluate", evaluation.config)
    config = workdir.check(directory, mine, defaults, GROWS)
    fingerprint = workdir.fingerprint(config, GROWS)
    cells = Cells(directory, fingerprint)
    finished = of_source(cells.read(config["protocols"]), evaluation.modules)
    done, failed = _of_these(finished, evaluation.also), {}
    for text, work in evaluation.runs.items():
        if text in done:
            continue
        on_rows(text, [])
        also = evaluation.also.get(text, {}) | ({"modules": own} if (own := evaluation.modules.get(text)) else {})
        try:
            done[text] = [{"protocol": text} | found | also | {"fingerprint": fingerprint} for found in work()]
        except OF_THE_INPUT as error:
            failed[text] = first_line(error)
            continue
        config = workdir.claim(directory, mine, defaults, GROWS)  # not before there is something to keep
        cells.write(text, done[text])
        cells.gather(_ordered(done, config))
        on_rows(text, done[text])
    # Whatever other runs in this directory have finished meanwhile is gathered too.
    config = workdir.check(directory, mine, defaults, GROWS)
    rows = _ordered(of_source(cells.read(config["protocols"]), evaluation.modules), config)
    if rows:
        cells.gather(rows)
    if failed:
        raise Unfinished(rows, failed)
    return rows


def _of_these(done, also):
    """The finished protocols, but for those that read a file or a source which is another by now.

    What an earlier version did not note is taken as it is.
    """

    def same(now, noted):
        return noted is None if now is None else bool(noted) and now[: len(noted)] == noted

    return {
        text: rows
        for text, rows in done.items()
        if text not in also or all(same(also[text].get("also"), row.get("also")) for row in rows)
    }


def _ordered(done, config):
    return [row for text in dict.fromkeys(config["protocols"]) for row in done.get(text, ())]


def about(evaluation: Evaluation) -> list[str]:
    """What all numbers have in common, in sentences."""
    task = evaluation.task
    dataset = task.dataset
    if dataset is None:
        return [f"Backbone: {task.backbone.name} ({task.backbone.fingerprint}), its table alone; no data."]
    empty = len(dataset.classes) - len(np.unique(dataset.labels[dataset.test])) if dataset.labels.ndim == 1 else 0
    prints = f"({task.backbone.fingerprint}); data {sources.fingerprint(dataset)}"
    return [
        f"Data: {dataset.name}, {len(dataset.classes)} classes: {len(task.train)} rows to fit on, "
        f"{len(task.validation)} to choose on ({task.held_out}), {len(dataset.test)} to test on, which chose nothing."
        + (f" {empty} classes have no test row, and no mean over classes counts them." if empty else "")
        + f" {dataset.note}".rstrip(),
        f"Backbone: {task.backbone.name} {prints}, preprocessing {task.reader.origin(dataset, '').preprocessing}.",
    ]
