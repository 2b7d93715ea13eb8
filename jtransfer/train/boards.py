"""Where rows of metrics go beside `metrics.jsonl`: TensorBoard, and Weights & Biases where a project is named."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from etils import epath

from jtransfer.devices import hosts
from jtransfer.errors import InputError
from jtransfer.storage.cells import ResultRow

Write = Callable[[ResultRow], None]


@contextmanager
def boards(directory: epath.Path, project: str, record: Mapping[str, Any]) -> Iterator[Write]:
    """What writes a row to all boards, on the first process alone.

    TensorBoard forgets what an earlier run wrote from the first of these rows on; Weights & Biases keeps both.

    Args:
        directory: Of the run.
        project: Of Weights & Biases; empty for none.
        record: The config of the run, which Weights & Biases keeps.
    """
    with ExitStack() as stack:
        opened: list[Write] = []

        def write(row: ResultRow) -> None:
            if not opened:  # the first row says where a run goes on
                opened.append(stack.enter_context(_tensorboard(directory, row["step"])))
                opened.extend([stack.enter_context(_wandb(project, directory, record))] if project else [])
            for one in opened:
                one(row)

        yield write if hosts.is_first() else lambda row: None


@contextmanager
def _tensorboard(directory, first):
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(directory / "tensorboard"), purge_step=first if first > 1 else None) as writer:

        def write(row):
            for name, value in row.items():
                if isinstance(value, list):
                    writer.add_text(name, _text(value), row["step"])
                elif name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

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
    import wandb

    words = os.fspath(directory)
    # Its own files lie in the workdir, unless that is in an object store; WANDB_MODE=offline and the like are read.
    where = None if "://" in words else words
    name = hashlib.sha256(os.path.abspath(words).encode()).hexdigest()[:16]
    about = {"project": project, "id": name, "name": directory.name, "resume": "allow"}
    with wandb.init(**about, dir=where, config=dict(record)) as run:
        run.define_metric("*", step_metric="step")
        yield lambda row: run.log({name: _text(value) for name, value in row.items()})


def _text(value):
    """Texts as one, which boards show, and anything else as it is."""
    return "\n\n".join(value) if isinstance(value, list) else value
