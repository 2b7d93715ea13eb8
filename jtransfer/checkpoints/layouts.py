"""What a checkpoint is: which layout it is in, the architecture that it describes, and the table that reads it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from jtransfer.checkpoints import tensors as files
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.names import LEAF, Names, Row
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError, nearest
from jtransfer.models import MODELS, SOURCE_HEAD, Head, build


@dataclass(frozen=True)
class Origin:
    """Where a backbone came from, for what is read later (its processor) or written back (an export).

    Attributes:
        directory: Of the checkpoint.
        values: Of its `config.json`.
        layout: "jtransfer", "huggingface", or the name of another.
        kind: Of the head, as a key of the family's `heads` values.
    """

    directory: epath.Path
    values: Mapping[str, Any]
    layout: str
    kind: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its config read and no tensor yet.

    Attributes:
        config: Of the model that the file holds.
        head: That goes with it; None for none.
        classes: Names of the head's classes.
        names: The table.
        tensors: By their names.
        origin: Where it came from.
        optional: Prefixes of leaves that may be initialised where no tensor fills them.
    """

    config: Any
    head: Head | None
    classes: tuple[str, ...]
    names: Names
    tensors: Mapping[str, Tensor]
    origin: Origin
    optional: Sequence[str] = field(default=(SOURCE_HEAD,))

    def may_be_fresh(self, classes: int | None) -> Callable[[str], bool]:
        """Whether a leaf that the checkpoint does not have, or has in another shape, may be initialised.

        A head that is not there at all may; one that is there must be whole, and fit unless other `classes` were asked.
        """
        there = any(target.path.startswith(SOURCE_HEAD) for name in self.tensors for target in self.names.targets(name))
        return lambda path: path.startswith(tuple(self.optional)) and (not there or classes is not None)

    def resize(self, config: Any, image, channels, positions) -> tuple[Any, dict[str, Callable]]:
        """The config for another size of input, and what becomes of the leaves that depend on it, by path."""
        from jtransfer.checkpoints import resizing

        return resizing.resize(self.config, config, image, channels, positions)


def read(where: epath.Path, name: str, head: str | None, classes: int | None) -> Checkpoint:
    """Tell the layout of a directory or file, and read its config.

    Raises:
        InputError: an unknown layout or architecture, or a file that is damaged.
    """
    if where.is_file():
        raise InputError(f"backbone '{name}': expected a directory")
    values = read_json(where / "config.json")
    tensors = files.read_directory(where)
    if values.get("architecture") in MODELS:
        return _own(where, values, tensors, head, classes)
    if "model_type" in values:
        return _huggingface(where, values, tensors, head, classes)
    if "architecture" in values and "classes" in values:
        raise InputError(
            f"{where / 'config.json'}: unknown architecture '{values['architecture']}'; "
            f"{nearest(str(values['architecture']), MODELS)}"
        )
    raise InputError(f"{where / 'config.json'}: expected 'model_type' (Hugging Face) or 'architecture' (jtransfer)")


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    return values


def _own(where, values, tensors, head, classes):
    options = {key: value for key, value in values.items() if key not in ("architecture", "classes")}
    names = tuple(map(str, values.get("classes", ())))
    try:
        model = build(values["architecture"], **options)
    except TypeError as error:
        raise InputError(f"{where / 'config.json'}: {error}") from None
    number = len(names) if classes is None else classes
    kind = Head(number) if number and head != "" else None
    check_size(where, model.config, len(tensors))
    rows = tuple(
        Row(path, f"{SOURCE_HEAD}{path.removeprefix('head/')}" if path.startswith("head/") else path, LEAF)
        for path in tensors
    )
    labels = names if len(names) == number else tuple(map(str, range(number)))
    return Checkpoint(
        model.config, kind, labels if kind else (), Names(rows), tensors, Origin(where, values, "jtransfer")
    )


def _huggingface(where, values, tensors, head, classes):
    file, model_type = where / "config.json", values["model_type"]
    if model_type not in FAMILIES:
        raise InputError(f"{file}: unknown model_type '{model_type}'; {nearest(str(model_type), FAMILIES)}")
    family = FAMILIES[model_type]
    architecture = (values.get("architectures") or [""])[0]
    kinds = {kind: kind for kind in family.heads.values()}
    kind = family.heads.get(architecture, "") if head is None else head
    if kind not in kinds:
        raise InputError(f"{file}: {model_type} has no head '{kind}'; {nearest(kind, kinds)}")
    try:
        config = family.read(values, tensors.keys())
        labels = values.get("id2label") or {i: f"LABEL_{i}" for i in range(values.get("num_labels") or 2)}
        number = len(labels) if classes is None else classes
        layers = family.head(values, kind, number) if kind else None
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix('config.json: ')}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise InputError(f"{file}: {type(error).__name__}: {error}") from None
    check_size(where, config, len(tensors))
    names = tuple(str(labels[key]) for key in labels) if len(labels) == number else tuple(map(str, range(number)))
    return Checkpoint(
        config,
        layers,
        names if kind else (),
        family.names(config, kind),
        tensors,
        Origin(where, values, "huggingface", kind),
    )


def check_size(where: epath.Path, config: Any, tensors: int) -> None:
    """Refuse a config that claims more blocks than the file has tensors, before a model of that depth is traced.

    Raises:
        InputError: with both numbers.
    """
    depth = getattr(config, "depth", 0)
    if depth > tensors:
        raise InputError(f"{where / 'config.json'} claims {depth} blocks, but the file has {tensors} tensors")
