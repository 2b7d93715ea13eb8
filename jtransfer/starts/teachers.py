"""Teachers: frozen models, of which outputs ride in the batches."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.checkpoints.backbone import Backbone, run
from jtransfer.errors import InputError, nearest
from jtransfer.methods import Given
from jtransfer.methods.intercepted import Intercepted, Interceptor
from jtransfer.methods.remembering import RECORDED
from jtransfer.methods.teachers import MAP, TEACHER, TEACHER_FEATURES, TEACHER_MAP, with_map
from jtransfer.models import Heads, apply, outputs_and_leaves
from jtransfer.starts.inputs import Prepare, gathered, load_for, within
from jtransfer.tree import Tree

BLOCK = 256
"""The most rows that a teacher reads at once."""


Reads = Callable[[Mapping[str, Any]], Any]
"""From a model's outputs to a part of a batch `[n, ...]`."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model, some of whose outputs ride in the batches.

    Attributes:
        backbone: The checkpoint with its head.
        prepare: Makes the inputs of the checkpoint.
        reads: What makes each part of a batch, by name, of the outputs.
        adds: Interceptors under which it runs, that add outputs.
    """

    backbone: Backbone
    prepare: Prepare
    reads: Mapping[str, Reads]
    adds: tuple[Interceptor, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The model that is run."""
        return Intercepted(self.backbone.whole, self.adds) if self.adds else self.backbone.whole

    @property
    def tree(self) -> Tree:
        """Its leaves and statistics."""
        return self.backbone.params | self.backbone.state

    def __call__(self, inputs: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of a batch `[rows, ...]` by name for some rows of inputs, float32."""
        first = self.prepare(inputs[rows[:1]])
        blocks = np.split(rows, range(step := within(first, BLOCK), len(rows), step))
        arrays = (gathered(self.prepare, inputs, block) for block in blocks)
        found = [self._read(run(self.backbone, self.model, self.tree, own, {})) for own in arrays]
        return {name: np.concatenate([one[name] for one in found]) for name in self.reads}

    def _read(self, outputs):
        return {name: np.asarray(read(outputs), np.float32) for name, read in self.reads.items()}

    def shapes(self, inputs: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of one example of each part, `[1, ...]`, from inputs of which one row is made ready."""

        def read(tree, example):
            outputs = apply(self.model, tree, example)
            return {name: read(outputs).astype(jnp.float32) for name, read in self.reads.items()}

        return jax.eval_shape(read, self.tree, self.prepare(inputs[np.arange(1)]))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its weights."""
        return self.backbone.fingerprint


def of(
    name: str, data: Any, needs: Collection[str], start: Backbone, prepare: Prepare, trust: Iterable[str] = ()
) -> dict[str, Teacher]:
    """The frozen models whose outputs some methods need of every example of a dataset or stream.

    Args:
        name: Of the teacher, as `load` takes it; empty for none.
        data: The dataset or stream.
        needs: The parts of a batch that methods need, in `Method.needs`.
        start: The backbone that is transferred, which is its own teacher where a method records what its head says.
        prepare: Makes the inputs of that backbone.
        trust: As of `load`.

    Returns:
        Under "teacher" that of `name`, and under "recorded" the backbone; those that are needed.

    Raises:
        InputError: data without one class a row, no such checkpoint, a head that lacks a class of the data, or a
            backbone without a head of classes.
    """
    found = {}
    if name:
        reads: dict[str, Reads] = {}
        if TEACHER in needs and data.targets != "classes":
            raise InputError(f"config.teacher: {data.name} has not one class a row, of which a teacher could tell")
        backbone, own = load_for(name, {"trust": trust}, data)
        if TEACHER in needs:
            columns = np.array(source_columns("config.teacher", data, backbone))
            reads[TEACHER] = lambda outputs: outputs["logits"][:, columns]
        if TEACHER_FEATURES in needs:
            reads[TEACHER_FEATURES] = lambda outputs: outputs["features"]
        if TEACHER_MAP in needs:
            reads[TEACHER_MAP] = lambda outputs: outputs[MAP]
        found["teacher"] = Teacher(backbone, own, reads, (with_map,) if TEACHER_MAP in needs else ())
        try:
            found["teacher"].shapes(data.inputs)
        except InputError as error:
            raise InputError(f"config.teacher: '{name}': {error}") from None
    if RECORDED in needs:
        if start.head is None or isinstance(start.head, Heads) or start.head.kind != "classification":
            raise InputError(
                f"method 'lwf' keeps what the backbone's own head says, and '{start.name}' has no head of classes; "
                "load one with its head, or leave the method out"
            )
        found["recorded"] = Teacher(start, prepare, {RECORDED: lambda outputs: outputs["logits"]})
    return found


def parts(labels: np.ndarray, read: Iterable[Teacher] = (), inputs: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one example of what batches with such labels have beside `inputs`.

    Args:
        labels: As the objective takes them.
        read: The frozen models whose outputs ride in the batches.
        inputs: Of the data, of which one row is read if there are any such models.
    """
    found = {"labels": jax.ShapeDtypeStruct((1, *labels.shape[1:]), labels.dtype)}
    return found | {name: x for one in read for name, x in one.shapes(inputs).items()}


def given(parts: Mapping[str, jax.ShapeDtypeStruct], backbone: Backbone, example: Any) -> Given:
    """What a method may be made for.

    Args:
        parts: Shape and dtype of one example of what a batch has beside `inputs`.
        backbone: That is transferred, perhaps without leaves.
        example: One example of its inputs, or its shapes.
    """
    outputs, _ = outputs_and_leaves(backbone.model, example)
    features = outputs.get("features")
    return Given(parts, backbone.config, backbone.head, features.shape[-1] if features is not None else 0)


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
