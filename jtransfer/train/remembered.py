"""What a run keeps of its data, so that its result is exported without them: `task.json`, and its tokenizer.

An export builds the task of the run again: the model, its classes, the shapes of its inputs. From the data it needs
their kind, the names of the classes, the form of the labels, and one row that has the form of all others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data.dataset import Lazy
from jtransfer.data.pairs import HeldOut, PairStream
from jtransfer.data.streams import Joined, Stream
from jtransfer.data.words import Vocabulary
from jtransfer.errors import Damaged
from jtransfer.starts.texts import FOLDER
from jtransfer.storage import directories
from jtransfer.train.task import Task

FILE = "task.json"
WAY_OUT = "remove it, and the data are read in its place"
LARGEST = 1 << 28
"""Numbers in an input, at most."""


def write(directory: epath.Path, task: Task) -> None:
    """Write the record of a task's data into a run's directory, and the tokenizer that was made for it.

    Raises:
        MachineError: it cannot be written.
    """
    stream = task.data.stream
    tokens = task.data.example["input_ids"].shape[1] if stream.kind == "text" else 0
    if isinstance(stream, Joined):
        values = {"tasks": {name: _record(own, own.classes, tokens) for name, own in stream.streams.items()}}
    else:
        # A model that answers in words keeps no classes, and its prompts need them.
        classes = stream.classes if task.objective.answers else task.start.classes
        values = _record(stream, classes, tokens)
    files.write_record(directory / FILE, values)
    own = task.start.backbone is None or task.start.backbone.origin.tokenizer
    if task.start.tokenizer and own and not (directory / FOLDER / directories.RECORD).exists():
        directories.write_together(directory / FOLDER, task.start.tokenizer)


def tokenizer_of(config: Any, directory: epath.PathLike | None) -> epath.Path | None:
    """Where the tokenizer lies that a run of a config has kept in its directory; None where it has kept none."""
    found = epath.Path(directory) / FOLDER if directory is not None else None
    if not config.tokenizer or found is None or not (found / directories.RECORD).exists():
        return None
    _, before = files.read_record(epath.Path(directory) / "config.json", "choose another --workdir, or remove it")
    return found if before.get("tokenizer") == config.tokenizer else None


def _record(stream, classes, tokens):
    (one,) = stream.inputs[np.arange(1)]
    if stream.kind == "text":
        row = {"texts": 1 if isinstance(one, str) else len(one), "tokens": tokens}
    else:
        lazy = hasattr(stream.inputs, "read")
        row = {"shape": list(np.shape(one)), "dtype": "uint8" if lazy else str(stream.inputs.dtype), "lazy": lazy}
    values = {"kind": stream.kind, "name": stream.name, "fingerprint": stream.fingerprint, "row": row}
    if isinstance(stream, Stream):
        labels = stream.held_out[2]
        values["labels"] = {"dtype": labels.dtype.name, "shape": list(labels.shape[1:])}
        values |= {"rows": len(stream.pool[1])} if stream.pool else {}
        if stream.vocabulary:
            values["vocabulary"] = {"words": list(stream.vocabulary.words), "lower": stream.vocabulary.lower}
    return values | {"classes": list(classes)}


def read(directory: epath.Path) -> tuple[Stream | PairStream | Joined, int] | None:
    """Read the record of a run's data.

    Returns:
        A stream that has the form of the data and none of their rows, and the length of its texts in tokens, 0 for
        images. None for a run that kept no record, as one of an earlier version.

    Raises:
        Damaged: the record is not as it was written.
    """
    path = directory / FILE
    if not path.exists():
        return None
    version, values = files.read_record(path, WAY_OUT)
    try:
        if version == 1:  # of which there were none
            raise ValueError("it has no checksum")
        if tasks := values.get("tasks"):
            tokens = int(next(iter(tasks.values()))["row"].get("tokens", 0))
            return Joined({name: stream_of(own) for name, own in tasks.items()}), tokens
        return stream_of(values), int(values["row"].get("tokens", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {error}); {WAY_OUT}") from None


def stream_of(values: Mapping[str, Any]) -> Stream | PairStream:
    """A stream that has the form which a record says, and no rows.

    Raises:
        Exception: values that no record has.
    """
    kind, name, fingerprint = (str(values[key]) for key in ("kind", "name", "fingerprint"))
    row, classes = values["row"], tuple(map(str, values["classes"]))
    if kind == "text":
        one = "" if row["texts"] == 1 else ("",) * min(int(row["texts"]), 2)
        inputs = Lazy(1, lambda rows: [one] * len(rows), "")
    else:
        shape, dtype = tuple(map(int, row["shape"])), np.dtype(row["dtype"])
        if kind not in ("image", "pair") or dtype.kind not in "biuf" or not 0 < np.prod(shape, dtype=float) <= LARGEST:
            raise ValueError(f"{kind} of {shape}, {dtype.name}")
        image = np.broadcast_to(np.zeros((), dtype), shape)
        inputs = Lazy(1, lambda rows: [image] * len(rows), "") if row["lazy"] else image[None]
    if kind == "pair":
        held_out = HeldOut("", inputs, (), np.zeros(0, np.int32), ())
        return PairStream(name, inputs, _no_batches, held_out, fingerprint)
    labels = values.get("labels", {"dtype": "int32", "shape": []})
    form, dtype = tuple(map(int, labels["shape"])), np.dtype(labels["dtype"])
    sound = len(form) < 2 or (len(form) == 2 and form[1] in (2, 3))  # of rows, or of words and answers in them
    if dtype.kind not in "iuf" or not sound or not all(0 <= side <= LARGEST for side in form):
        raise ValueError(f"labels of {form}, {dtype.name}")
    held_out, rows = ("", inputs, np.zeros((0, *form), dtype)), int(values.get("rows", 0))
    pool = (inputs, np.broadcast_to(np.zeros((), dtype), (rows, *form))) if 0 < rows <= LARGEST else None
    known = values.get("vocabulary")
    vocabulary = Vocabulary(tuple(map(str, known["words"])), bool(known["lower"])) if known else None
    about = {"pool": pool, "vocabulary": vocabulary}
    return Stream(name, classes, kind, inputs, _no_batches, held_out, fingerprint, **about)


def _no_batches(cursor):
    raise ValueError("a stream without rows has no batches")
