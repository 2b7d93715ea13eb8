"""What the directory of a prepared TensorFlow Dataset says of itself, read as data: nothing that it names is run.

TFDS would import the class that `features.json` names, and open the files that `dataset_info.json` names. Here a
description is read into features and splits of TFDS's own classes: nothing but a name that is known makes a feature,
and nothing but a file in the directory makes a shard.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data.downloads import inside, shown
from jtransfer.errors import InputError, nearest

LARGEST_DESCRIPTION, LARGEST_NAMES = 1 << 22, 1 << 24
"""Bytes of a description and of a file of classes; those of TFDS's own catalogue have less than a tenth."""

MOST_CLASSES, MOST_SHARDS = 1 << 20, 1 << 16
"""Of a label and of a split; the largest in use have 200,000 classes and 10,000 shards."""

MOST_VALUES = 1 << 16
"""Floats in a row."""

TEMPLATE = re.compile(r"(?:[\w.\-/]|\{(?:DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})+")
"""What may stand in the pattern of the names of shards."""


class Other(NamedTuple):
    """A feature that is no image, text, label or float, nor a sequence of those: known by name, never read."""

    kind: str


class DatasetInfo(NamedTuple):
    """What a prepared dataset consists of.

    Attributes:
        directory: Of one version of the dataset.
        full_name: `name[/config]/version`.
        features: By name, features of `tfds.features`, or `Other`.
        supervised: The names of the input and the label of supervised learning, None for a nested one; may be empty.
        splits: A `tfds.core.SplitDict`.
        file_format: Of the shards, as "array_record".
        text: The text of `dataset_info.json`.
    """

    directory: epath.Path
    full_name: str
    features: Mapping[str, Any]
    supervised: tuple
    splits: Any
    file_format: str
    text: str


class Prepared(NamedTuple):
    """A prepared dataset: its name in the config, the module `tensorflow_datasets`, and what its directory holds."""

    name: str
    tfds: Any
    about: DatasetInfo

    @property
    def features(self) -> Mapping[str, Any]:
        """By name, features of `tfds.features`, or `Other`."""
        return self.about.features

    @property
    def supervised(self) -> tuple:
        """The names of the input and the label of supervised learning, None for a nested one; may be empty."""
        return self.about.supervised

    @property
    def splits(self) -> Mapping[str, Any]:
        """A `tfds.core.SplitDict`."""
        return self.about.splits


def describe(tfds: Any, directory: epath.Path) -> DatasetInfo:
    """The description of a prepared dataset.

    Args:
        tfds: The module `tensorflow_datasets`.
        directory: Of one version.

    Raises:
        InputError: a file is missing, damaged, too large or a link out of the directory; it names an unknown feature
            class; or it has numbers that cannot be.
        Exception: any error of TFDS, or that values of a wrong type cause.
    """
    text = _text(directory, "dataset_info.json")
    info, spec = _object(text, "dataset_info.json"), _object(_text(directory, "features.json"), "features.json")
    known = _known(tfds)
    for name in _class_names(spec):
        if name not in known:
            raise InputError(
                f"features.json names the feature class '{_short(name)}', which is not TFDS's own and is not imported; "
                f"{nearest(name, known)}"
            )
    root = _content(spec, "featuresDict")
    features = root.get("features", root) if isinstance(root, dict) else None
    if not _named(spec).endswith(".FeaturesDict") or not isinstance(features, dict):
        raise InputError("features.json: expected a FeaturesDict")
    made = {name: _feature(tfds, directory, name, features[name]) for name in sorted(features)}
    name, config, version = (str(info.get(key) or "") for key in ("name", "configName", "version"))
    full_name = "/".join(filter(None, (name, config, version)))
    file_format = str(info.get("fileFormat") or "tfrecord")
    supervised = tuple(_supervised(info.get("supervisedKeys")))
    splits = _splits(tfds, directory, name, file_format, info.get("splits", []))
    return DatasetInfo(directory, full_name, made, supervised, splits, file_format, text)


def catalogued(tfds: Any, which: str) -> DatasetInfo | None:
    """The description of a dataset in TFDS's own catalogue, without splits or files; None where it is in none.

    TFDS's code for the dataset makes it, which is part of TFDS; no directory of a prepared dataset is looked at.

    Args:
        tfds: The module `tensorflow_datasets`.
        which: The dataset, as "imagenet2012" or "glue/rte".
    """
    name, _, config = which.partition(":")[0].partition("/")
    try:
        with tempfile.TemporaryDirectory() as nowhere:
            about = tfds.builder_cls(name)(config=config or None, data_dir=nowhere).info
    except Exception:  # of its many builders
        return None
    supervised = tuple(about.supervised_keys or ())
    return DatasetInfo(epath.Path(), about.full_name, dict(about.features), supervised, {}, "", "")


def shard(description: DatasetInfo, path: str) -> str:
    """Return the path of a shard as it is, if it is a plain file within the dataset's directory.

    A path in an object store is not checked.

    Raises:
        InputError: the file is missing, is no plain file, or lies outside of the directory.
    """
    if "://" in os.fspath(description.directory):
        return path
    inside(path, os.fspath(description.directory))
    if not os.path.isfile(path):
        raise InputError(f"{shown(path)} is a directory, a pipe or a device; expected a file")
    return path


def _text(directory: epath.Path, name: str, most: int = LARGEST_DESCRIPTION) -> str:
    path = directory / name
    try:
        if "://" not in os.fspath(path):
            inside(os.fspath(path), os.fspath(directory))
        return files.read(path, most).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected an object")
    return values


def _known(tfds: Any) -> set[str]:
    """The feature classes of TFDS by the names that it writes, old ones included."""
    base = tfds.features.FeatureConnector
    own = [x for x in vars(tfds.features).values() if isinstance(x, type) and issubclass(x, base)]
    return {f"{x.__module__}.{x.__name__}" for x in own} | {alias for x in own for alias in x.ALIASES}


def _class_names(node: Any) -> Iterator[str]:
    """Every class that a description names, at any depth; contents that are written as texts are read for that."""
    todo = [node]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if name := _named(node):
                yield name
            if isinstance(text := node.get("content"), str) and text:
                node["content"] = _object(text, "features.json")
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _named(node: Mapping[str, Any]) -> str:
    """The class that a node names; descriptions of before 2022 call it its type."""
    name = next((node[key] for key in ("pythonClassName", "python_class_name", "type") if key in node), "")
    return name if isinstance(name, str) else ""


def _content(node: Mapping[str, Any], key: str) -> Any:
    return node.get(key, node.get("content", {}))


def _feature(tfds: Any, directory: epath.Path, name: str, node: Any, nested: bool = False) -> Any:
    if not isinstance(node, dict) or not _named(node):
        raise InputError(f"features.json: '{_short(name)}' names no class")
    features, kind = tfds.features, _named(node).rpartition(".")[2]
    if kind == "Text":
        return features.Text()
    if kind == "Image" and not nested:
        return _image(features, name, _content(node, "image"))
    if kind == "ClassLabel":
        return _label(features, directory, name, _content(node, "classLabel"))
    if kind in ("Tensor", "Scalar") and not nested:
        return _floats(features, kind, name, _content(node, "tensor"))
    if kind == "Sequence" and not nested:
        inner = _content(node, "sequence")
        inner = inner.get("feature") if isinstance(inner, dict) else None
        made = _feature(tfds, directory, name, inner, nested=True)
        return Other(kind) if isinstance(made, Other) else features.Sequence(made)
    return Other(kind)


def _short(name: Any) -> str:
    """A word of the description, for errors."""
    return shown(str(name)[:80])


def _image(features: Any, name: str, content: Any) -> Any:
    """Any size and format: those of each picture are read from its own bytes."""
    dtype = content.get("dtype") or "uint8" if isinstance(content, dict) else ""
    if dtype not in ("uint8", "uint16", "float32"):
        raise InputError(f"features.json: image '{_short(name)}' holds {_short(dtype)}; expected uint8")
    channels = {"uint8": 3, "uint16": 3, "float32": 1}[dtype]
    return features.Image(shape=(None, None, channels), dtype=np.dtype(dtype))


def _floats(features: Any, kind: str, name: str, content: Any) -> Any:
    """A float, or as many in every row; other tensors are not read."""
    content = content if isinstance(content, dict) else {}
    sides = content.get("shape", {}).get("dimensions", []) if isinstance(content.get("shape", {}), dict) else None
    plain = content.get("encoding", "none") == "none" and content.get("dtype") in ("float32", "float64")
    if not plain or not isinstance(sides, list) or len(sides) > 1 or "-1" in map(str, sides):
        return Other(kind)
    most = f"features.json: the length of '{_short(name)}'"
    shape = tuple(_number(side, most, MOST_VALUES) for side in sides)
    return features.Tensor(shape=shape, dtype=np.dtype(content["dtype"])) if 0 not in shape else Other(kind)


def _label(features: Any, directory: epath.Path, name: str, content: Any) -> Any:
    count = content.get("numClasses", content.get("num_classes")) if isinstance(content, dict) else None
    if not count:
        return Other("ClassLabel")
    count = _number(count, f"features.json: the number of classes of '{_short(name)}'", MOST_CLASSES)
    path = f"{name.replace('/', '.')}.labels.txt"
    if not (directory / path).exists():
        return features.ClassLabel(num_classes=count)
    names = [own for line in _text(directory, path, LARGEST_NAMES).split("\n") if (own := line.strip())]
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"{_short(path)} has {len(set(names))} different names in {len(names)} lines; expected {count}"
        )
    return features.ClassLabel(names=names)


def _supervised(keys: Any) -> list[str | None]:
    """The names at the top of supervised keys; None for those that are nested."""
    keys = keys if isinstance(keys, dict) else {}
    if keys.get("input") and keys.get("output"):
        return [keys["input"], keys["output"]]
    items = keys["tuple"].get("items") if isinstance(keys.get("tuple"), dict) else None
    return [item.get("featureKey") for item in items or () if isinstance(item, dict)]


def _splits(tfds: Any, directory: epath.Path, name: str, file_format: str, splits: Any) -> Any:
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise InputError("dataset_info.json: 'splits' is no list of objects")
    made = []
    for split in splits:
        called, template = (str(split.get(key) or "") for key in ("name", "filepathTemplate"))
        where = f"dataset_info.json: split '{_short(called)}'"
        if not re.fullmatch(r"[\w.\-]*\w[\w.\-]*", called) or called in [own.name for own in made]:
            raise InputError(f"{where}: expected another name, of letters, digits and '_', for each split")
        if template and not TEMPLATE.fullmatch(template):
            raise InputError(
                f"{where} has the files '{_short(template)}'; expected names like {{SPLIT}}-{{SHARD_X_OF_Y}}"
            )
        lengths = split.get("shardLengths", [])
        if not isinstance(lengths, list) or len(lengths) > MOST_SHARDS:
            raise InputError(f"{where}: expected a list of at most {MOST_SHARDS} 'shardLengths'")
        core, lengths = tfds.core, [_number(own, f"{where}: the length of a shard", 1 << 40) for own in lengths]
        pattern = core.ShardedFileTemplate(directory, template, name, called, file_format)
        made.append(core.SplitInfo(called, lengths, 0, pattern))
    return tfds.core.SplitDict(made)


def _number(value: Any, what: str, most: int) -> int:
    """A whole number from 0; JSON made from a protobuf has large ones as texts."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    if not re.fullmatch(r"\d{1,18}", text) or int(text) > most:
        raise InputError(f"{what} is {_short(value)}; expected a whole number from 0 to {most:,}")
    return int(text)
