"""What a training run came to, from its directory: its backbone and what the method made of it."""

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jtransfer.checkpoints.adapter import Adapter
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.config import train_defaults
from jtransfer.errors import InputError
from jtransfer.files import read_record
from jtransfer.models import STATISTICS, Headed
from jtransfer.train import loop
from jtransfer.tree import FROZEN
from jtransfer.workdir import same_data


def result(directory: epath.PathLike) -> tuple[int, Adapter, dict[str, bytes]]:
    """The step of the newest checkpoint of a run, the adapted backbone at that step, and the files of its tokenizer.

    The files are those of a model that no checkpoint gave its tokenizer to: a dual encoder trained from scratch.

    The data and the backbone of the run have to be where they were; the devices need not be those that it had.

    Raises:
        InputError: no directory of a training run, no checkpoint in it, or data or backbone that have changed.
    """
    directory = epath.Path(directory)
    if not (directory / "config.json").exists():
        raise InputError(f"workdir {directory} has no config.json; expected the directory of a 'jtransfer train' run")
    _, values = read_record(directory / "config.json", "it cannot be told what this run was")
    if "methods" in values:
        raise InputError(f"workdir {directory} is of 'jtransfer curve', which keeps results and no weights")
    before = values.pop("fingerprints", {})
    here = {"mesh": {"data": 1, "rest": -1}, "sharding": "replicated"}
    run = loop.prepare(ConfigDict(train_defaults() | values | here))
    if changed := [what for what, own in run.fingerprints.items() if not same_data(own, before.get(what))]:
        raise InputError(f"workdir {directory}: the {' and the '.join(changed)} changed since the run was started")
    step, tree = loop.restored(run, directory)
    task = run.task
    base = task.backbone or Backbone(run.config.model.architecture, task.module, task.left_out)
    known = base.params | base.state

    def is_new(path, leaf):
        if path.startswith(STATISTICS):
            return path not in known or not np.array_equal(leaf, known[path])
        return path not in known or run.adapted.rates[path] != FROZEN

    params = {path: leaf for path, leaf in jax.device_get(tree).items() if is_new(path, leaf)}
    head = task.model.config if isinstance(task.model, Headed) else None
    return step, Adapter(base, run.method, params, head, task.classes), {} if task.backbone else task.beside()
