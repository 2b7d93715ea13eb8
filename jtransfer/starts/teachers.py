"""A teacher: a checkpoint whose head knows the classes of a dataset, and whose outputs ride in the batches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.errors import InputError, nearest
from jtransfer.starts.inputs import Prepare, gathered, load_for, within

BLOCK = 256
"""The most rows that a teacher reads at once."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A checkpoint whose head predicts the classes of a dataset.

    Attributes:
        backbone: The checkpoint with its head.
        prepare: Makes the inputs of the checkpoint.
        columns: `[classes]`, the output of the head for each class of the dataset.
    """

    backbone: Backbone
    prepare: Prepare
    columns: np.ndarray

    def __call__(self, inputs: Any, rows: np.ndarray) -> np.ndarray:
        """Logits `[rows, classes]` of some rows of inputs, float32."""
        first = self.prepare(inputs[rows[:1]])
        parts = np.split(rows, range(step := within(first, BLOCK), len(rows), step))
        found = [self.backbone(gathered(self.prepare, inputs, part))["logits"] for part in parts]
        return np.concatenate([np.asarray(x, np.float32) for x in found])[:, self.columns]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its weights."""
        return self.backbone.fingerprint


def of(name: str, data: Any, trust: Iterable[str] = ()) -> Teacher:
    """The teacher of a name for a dataset or stream.

    Args:
        name: As `load` takes it.
        data: The dataset or stream.
        trust: As of `load`.

    Raises:
        InputError: data without one class a row, no such checkpoint, or a head that lacks a class of the data.
    """
    if data.targets != "classes":
        raise InputError(f"config.teacher: {data.name} has not one class a row, of which a teacher could tell")
    backbone, prepare = load_for(name, {"trust": trust}, data)
    return Teacher(backbone, prepare, np.array(source_columns("config.teacher", data, backbone)))


def parts(labels: np.ndarray, teacher: Teacher | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one example of what batches with such labels have beside `inputs`.

    They are `labels`, and `teacher [1, classes]` if a teacher is given.
    """
    found = {"labels": jax.ShapeDtypeStruct((1, *labels.shape[1:]), labels.dtype)}
    return found | ({"teacher": jax.ShapeDtypeStruct((1, len(teacher.columns)), jnp.float32)} if teacher else {})


def source_columns(what: str, data: Any, backbone: Backbone) -> list[int]:
    """For each class of some data, the number of the output of a backbone's own head that has the name of the class.

    Names are equal where they are letter by letter; else where case, underscores and spaces alone differ; else where
    one of several between commas is, as in "tench, Tinca tinca". Of outputs with an equal name the first is taken.

    Args:
        what: Name of the caller, for the error.
        data: A dataset or stream with `name` and `classes`.
        backbone: A checkpoint with the names of its classes.

    Raises:
        InputError: the outputs have numbers for names, no output has the name of a class, or one has those of two.
    """
    head, number = f"{what}: the source head of '{backbone.name}'", len(backbone.classes)
    if number != len(data.classes) and backbone.classes == tuple(map(str, range(number))):
        raise InputError(
            f"{head} numbers its {number:,} outputs and does not name them; name them in its config.json, as "
            "label_names of timm's or id2label of Hugging Face's"
        )
    place: dict[str, int] = {}
    for alike in zip(*map(_spellings, backbone.classes), strict=True):
        for i, names in enumerate(alike):
            for name in names:
                place.setdefault(name, i)
    found = {
        name: next((place[own] for names in _spellings(name) for own in names if own in place), None)
        for name in data.classes
    }
    missing = [name for name, column in found.items() if column is None]
    if missing:
        raise InputError(
            f"{head} has no class '{missing[0]}' of {data.name}, and {len(found) - len(missing)} of all {len(found)}; "
            f"{nearest(missing[0], backbone.classes)}"
        )
    taken: dict[int, str] = {}
    for name, column in found.items():
        if taken.setdefault(column, name) != name:
            raise InputError(
                f"{head} has one output, '{backbone.classes[column]}', for the classes '{taken[column]}' and '{name}' "
                f"of {data.name}; expected one for each"
            )
    return list(found.values())


def _spellings(name: str) -> tuple[list[str], list[str], list[str]]:
    """A name as it is, without case and underscores, and each of several names between commas."""
    plain = " ".join(name.casefold().replace("_", " ").split())
    return [name], [plain], [part.strip() for part in plain.split(",") if part.strip()]
