"""Where rows of metrics go beside `metrics.jsonl`: TensorBoard, and Weights & Biases where a project is named."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

from jtransfer.devices import hosts
from jtransfer.errors import InputError
from jtransfer.storage.cells import ResultRow

Write = Callable[[ResultRow], None]


@contextmanager
def boards(directory: epath.Path, start: int, project: str = "", record: Mapping[str, Any] | None = None) -> Iterator:
    """What writes a row to all boards, on the first process alone.

    Args:
        directory: Of the run.
        start: The step that the run goes on from: what an earlier run wrote after it is written over. (Weights & Biases
            keeps both, and draws what came last.)
        project: Of Weights & Biases; empty for none.
        record: The config of the run, which Weights & Biases keeps.

    Yields:
        A `Write`.

    Raises:
        InputError: a project, where the package `wandb` is not installed.
    """
    if not hosts.is_first():
        yield lambda row: None
        return
    check(project)
    from tensorboardX import SummaryWriter

    purge = start + 1 if start else None
    with (
        SummaryWriter(str(directory / "tensorboard"), purge_step=purge) as writer,
        _wandb(project, directory, record) as log,
    ):

        def write(row: ResultRow) -> None:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()
            log(row)

        yield write


def check(project: str) -> None:
    """Refuse a project of Weights & Biases where its package is not installed.

    Raises:
        InputError: it is not.
    """
    if project:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise InputError(f"--wandb={project}: {error}; pip install wandb, or leave it out") from None


@contextmanager
def _wandb(project, directory, record):
    """What logs a row; one workdir is one run there, however often it is started."""
    if not project:
        yield lambda row: None
        return
    import wandb

    words = os.fspath(directory)
    # Its own files lie in the workdir, unless that is in an object store; WANDB_MODE=offline and the like are read.
    where = None if "://" in words else words
    name = hashlib.sha256(os.path.abspath(words).encode()).hexdigest()[:16]
    about = {"project": project, "id": name, "name": directory.name, "resume": "allow"}
    with wandb.init(**about, dir=where, config=dict(record or {})) as run:
        run.define_metric("*", step_metric="step")
        yield run.log
