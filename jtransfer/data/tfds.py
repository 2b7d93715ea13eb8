"""Prepared TensorFlow Datasets, read record by record and without TensorFlow: `tfds:NAME[:VERSION][?OPTIONS]`.

Only what a directory holds that TFDS prepared is used, never the code that made it, and nothing is ever downloaded.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jtransfer.data.dataset import Dataset, Lazy, each
from jtransfer.data.folder import decode
from jtransfer.data.splits import hold_out_a_fifth, hold_out_the_last
from jtransfer.errors import InputError, nearest

RESTRICTIONS = ("only", "test_only")
OPTIONS = ("input", "label", "caption", "train", "test", *RESTRICTIONS)
BLOCK = 4096
"""Records that are read at once."""


class Prepared(NamedTuple):
    """A prepared dataset: the name that it was asked for by, the library, and TFDS's reader of its directory."""

    name: str
    tfds: Any
    builder: Any

    @property
    def features(self) -> dict[str, Any]:
        return dict(sorted(self.builder.info.features.items()))  # their own order changes from run to run

    @property
    def supervised(self) -> tuple:
        return tuple(self.builder.info.supervised_keys or ())

    @property
    def splits(self) -> Mapping[str, Any]:
        return self.builder.info.splits


def read(name: str, rest: str, data_dir: str = "") -> Dataset:
    """A prepared dataset, with the options that `sources.load` describes.

    Inputs and label are the supervised keys where those are an image or a text and a `ClassLabel`; otherwise the one
    image, or the one or two texts (in the order of the alphabet), and the one `ClassLabel`. The pool is `train`; the
    test rows are `test`, or `validation` where there is no `test` or its labels are hidden (-1, as in GLUE), or a
    fifth of `train` where there is neither. Only labels are read here.

    Args:
        name: The whole name, for errors.
        rest: What follows `tfds:`.
        data_dir: Where prepared datasets lie; empty for `TFDS_DATA_DIR`, or TFDS's own directory.

    Raises:
        InputError: TFDS is not installed, or there is no such dataset, feature or split.
    """
    data, directory, options = _opened(name, rest, data_dir)
    label = _label(data, options.get("label"))
    inputs, kind = _inputs(data, options.get("input"))
    train, labels = _labels(data, label, "train", [options.get("train", "train")])
    if len(np.unique(labels)) < 2:
        raise InputError(f"{name}: '{train}' holds only one class of '{label}'; at least two are expected")
    asked = options.get("test")
    if ways := [asked] if asked else [split for split in ("test", "validation") if split in data.splits]:
        test, test_labels = _labels(data, label, "test", ways)
        _check_disjoint(data, train, test)
        pool, held_out = np.arange(len(labels)), len(labels) + np.arange(len(test_labels))
        labels, both = np.concatenate([labels, test_labels]), f"{train}+{test}"
        tested = f"'{test}'" + (f" (the labels of '{ways[0]}' are hidden)" if test != ways[0] else "")
    else:
        pool, held_out = hold_out_a_fifth(labels, name, "a split for testing")
        both, tested = train, f"a fifth of each class of '{train}'"
    source = _records(data, both)
    pool, held_out = _restricted(data, source, options, pool, held_out)
    about = (directory / "dataset_info.json").read_text()
    restrictions = (f"{key}={options[key]}" for key in RESTRICTIONS if key in options)
    identity = "\n".join((data.builder.info.full_name, about, label, *inputs, train, tested, *restrictions))
    of_inputs = "\n".join((data.builder.info.full_name, about, *inputs, both, *_stamps(directory)))
    note = (
        f"{name} is version {directory.name}, {' + '.join(inputs)} with {label}: few-shot sets are drawn from "
        f"'{train}', the test rows are {tested}. The fingerprint of the data is over its description, labels and "
        f"splits, not over every byte."
    )
    feature = _of_class(data, label)
    classes = tuple(feature.names or map(str, range(feature.num_classes)))
    lazy = Lazy(len(labels), _reader(data, source, inputs, kind), identity, of_inputs)
    captions = _captions(data, source, options["caption"], lazy) if "caption" in options else None
    return Dataset(name, lazy, labels, classes, pool, held_out, kind, note, captions)


def _stamps(directory: epath.Path) -> list[str]:
    """Size and time of every file, which stand for what is in them where no label does."""
    stats = [(path.name, path.stat()) for path in sorted(directory.iterdir())]
    return [f"{name} {stat.length} {stat.mtime}" for name, stat in stats]


def read_pairs(name: str, rest: str, data_dir: str = "") -> Dataset:
    """The images of a prepared dataset and their captions; there need be no label, and no record is read for one.

    The pool is `train`; the test rows are `test`, or `validation`, or where there is neither the last rows of
    `train`: see `splits.hold_out_the_last`.

    Args:
        name: The whole name, for errors.
        rest: What follows `tfds:`; its options are those of `sources.load`, of which `caption` is needed.
        data_dir: As for `read`.

    Raises:
        InputError: as `read`, or no caption.
    """
    data, directory, options = _opened(name, rest, data_dir)
    inputs, kind = _inputs(data, options.get("input"))
    if "caption" not in options or kind != "image":
        raise InputError(f"{name}: expected images with captions, as in {name.partition('?')[0]}?caption=FEATURE")
    train = options.get("train", "train")
    _check_split(data, "train", train)
    test = options.get("test") or next((split for split in ("test", "validation") if split in data.splits), "")
    count = data.splits[train].num_examples
    if test:
        _check_split(data, "test", test)
        _check_disjoint(data, train, test)
        pool, held_out = np.arange(count), count + np.arange(data.splits[test].num_examples)
        source, tested = _records(data, f"{train}+{test}"), f"'{test}'"
    else:
        pool, held_out = hold_out_the_last(count)
        source, tested = _records(data, train), f"the last {len(held_out)} of '{train}'"
    total = count if not test else len(pool) + len(held_out)
    pool, held_out = _restricted(data, source, options, pool, held_out)
    about = (directory / "dataset_info.json").read_text()
    restrictions = (f"{key}={options[key]}" for key in RESTRICTIONS if key in options)
    identity = "\n".join((data.builder.info.full_name, about, *inputs, train, tested, *restrictions))
    lazy = Lazy(total, _reader(data, source, inputs, kind), identity)
    note = f"{name} is version {directory.name}: pairs are drawn from '{train}', those held out are {tested}."
    captions = _captions(data, source, options["caption"], lazy)
    return Dataset(name, lazy, np.zeros(total, np.int8), ("",), pool, held_out, kind, note, captions)


def _restricted(data: Prepared, source: Any, options: Mapping[str, str], *rows: np.ndarray) -> list[np.ndarray]:
    """The rows of pool and test that the options `only` and `test_only` leave."""
    return [_only(data, source, own, options.get(key)) for key, own in zip(RESTRICTIONS, rows, strict=True)]


def _only(data: Prepared, source: Any, rows: np.ndarray, asked: str | None) -> np.ndarray:
    """Those rows whose class is one of some: `style:noto+twemoji`."""
    if not asked:
        return rows
    key, _, names = asked.partition(":")
    labels = {name: x for name, x in data.features.items() if isinstance(x, data.tfds.features.ClassLabel)}
    if key not in labels:
        raise InputError(f"{data.name}: there is no ClassLabel '{key}'; {nearest(key, labels)}")
    if unknown := [name for name in names.split("+") if name not in labels[key].names]:
        raise InputError(f"{data.name}: '{key}' has no class '{unknown[0]}'; {nearest(unknown[0], labels[key].names)}")
    wanted = [labels[key].str2int(name) for name in names.split("+")]
    only = data.tfds.features.FeaturesDict({key: labels[key]})
    blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    found = [only.deserialize_example_np(record)[key] for block in blocks for record in _get(data, source, block)]
    if not len(kept := rows[np.isin(found, wanted)]):
        raise InputError(f"{data.name}: no row has '{key}' {names}")
    return kept


def _opened(name: str, rest: str, data_dir: str) -> tuple[Prepared, epath.Path, dict[str, str]]:
    """A prepared dataset, its directory, and the options that stand behind its name."""
    tfds = _library(name)
    which, _, query = rest.partition("?")
    options = _options(name, query)
    directory = _directory(name, which, data_dir)
    try:
        data = Prepared(name, tfds, tfds.builder_from_directory(directory))
        _ = data.features
    except Exception as error:  # of its many parsers
        raise InputError(f"{name}: {directory} cannot be read ({_reason(error)})") from None
    return data, directory, options


def _library(name: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"{name} needs TensorFlow Datasets ({error}); install it: pip install 'jtransfer[tfds]'"
        ) from None
    return tensorflow_datasets


def _options(name: str, query: str) -> dict[str, str]:
    options = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in OPTIONS:
            raise InputError(f"{name}: unknown option '{key}'; {nearest(key, OPTIONS)}")
        if not value:
            raise InputError(f"{name}: option '{key}' has no value; expected {key}=...")
        options[key] = value
    return options


def _directory(name: str, which: str, data_dir: str) -> epath.Path:
    """Where a dataset lies: `ROOT/name[/config]/version`, the newest unless a version is asked for."""
    root = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    path, _, version = which.partition(":")
    versions = _versions(root / path) if path else []
    if not versions:
        files = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
        there = {str(file.parent.parent.relative_to(root)) for file in files if _version(file.parent)}
        raise InputError(
            f"{name}: '{path}' is not prepared in {root} (config.data_dir or TFDS_DATA_DIR says where to look; 'tfds "
            f"build NAME --file_format=array_record' prepares an official one); {nearest(path, there)}"
        )
    if version and version not in versions:
        raise InputError(f"{name}: there is no version '{version}' in {root / path}; {nearest(version, versions)}")
    return root / path / (version or versions[-1])


def _versions(path: epath.Path) -> list[str]:
    if not path.is_dir():
        return []
    found = [entry for entry in path.iterdir() if _version(entry) and (entry / "dataset_info.json").exists()]
    return [entry.name for entry in sorted(found, key=_version)]


def _version(path: epath.Path) -> tuple[int, ...]:
    return tuple(map(int, path.name.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", path.name) else ()


def _label(data: Prepared, asked: str | None) -> str:
    """The feature that is the label: a `ClassLabel`, or a sequence of them where it is asked for or the only one."""
    classes = [key for key in data.features if _of_class(data, key)]
    labels = [key for key in classes if asked or _of_class(data, key) is data.features[key]] or classes
    if asked is not None and asked not in labels:
        found = data.features.get(asked)
        what = "there is no" if found is None else f"expected a ClassLabel, found the {type(found).__name__}"
        raise InputError(f"{data.name}: {what} '{asked}'; {nearest(asked, labels)}")
    for choice in (asked, *data.supervised[1:], "label"):
        if choice in labels:
            return choice
    if len(labels) != 1:
        there = f"are {', '.join(labels)}; choose with ?label=NAME" if labels else "is none"
        raise InputError(f"{data.name}: expected one ClassLabel, there {there}")
    return labels[0]


def _of_class(data: Prepared, key: str) -> Any:
    """The `ClassLabel` that a feature is, or is a sequence of; None for others."""
    feature = getattr(data.features[key], "feature", data.features[key])
    return feature if isinstance(feature, data.tfds.features.ClassLabel) else None


def _inputs(data: Prepared, asked: str | None) -> tuple[tuple[str, ...], str]:
    """The features that are the inputs, one image or one or two texts, and which of the two they are."""
    names = {data.tfds.features.Image: "image", data.tfds.features.Text: "text"}
    kinds = {key: names[type(feature)] for key, feature in data.features.items() if type(feature) in names}
    supervised = [key for key in data.supervised[:1] if isinstance(key, str) and key in kinds]
    images = [key for key, kind in kinds.items() if kind == "image"]
    inputs = tuple(asked.split("+") if asked else supervised or images or kinds)
    if unknown := [key for key in inputs if key not in kinds]:
        raise InputError(f"{data.name}: there is no image or text '{unknown[0]}'; {nearest(unknown[0], kinds)}")
    found = [kinds[key] for key in inputs]
    if found not in (["image"], ["text"], ["text", "text"]):
        there = ", ".join(f"{key} ({kind})" for key, kind in kinds.items()) or "none"
        raise InputError(
            f"{data.name}: expected one image, one text or two texts as input, there are {there}; choose with "
            f"?input=NAME or ?input=NAME+NAME"
        )
    dtype = np.dtype(data.features[inputs[0]].np_dtype)
    if found == ["image"] and dtype != np.uint8:
        raise InputError(f"{data.name}: '{inputs[0]}' holds images of {dtype}; expected uint8")
    return inputs, found[0]


def _captions(data: Prepared, source: Any, asked: str, lazy: Lazy) -> Lazy:
    """The texts that describe each row: of each feature that is asked for its text, or all of its sequence of texts."""
    names, features = tuple(asked.split("+")), data.tfds.features
    either = {key: getattr(feature, "feature", feature) for key, feature in data.features.items()}
    texts = [key for key, feature in either.items() if type(feature) is features.Text]
    if unknown := [key for key in names if key not in texts]:
        raise InputError(f"{data.name}: there is no text '{unknown[0]}'; {nearest(unknown[0], texts)}")
    only = features.FeaturesDict({key: data.features[key] for key in names})

    def read_rows(rows: np.ndarray) -> list[list[str]]:
        found = [only.deserialize_example_np(record) for record in _get(data, source, rows)]
        return [[x.decode("utf-8", "replace") for key in names for x in np.ravel(parts[key])] for parts in found]

    return Lazy(lazy.count, read_rows, f"{lazy.identity}\n{asked}")


def _labels(data: Prepared, label: str, what: str, ways: list[str]) -> tuple[str, np.ndarray]:
    """The first of some splits whose labels are not hidden, and these `[n]`, or `[n, classes]` of sequences."""
    only = data.tfds.features.FeaturesDict({label: data.features[label]})
    for split in ways:
        _check_split(data, what, split)
        source = _records(data, split)
        blocks = (range(start, min(start + BLOCK, len(source))) for start in range(0, len(source), BLOCK))
        found = (only.deserialize_example_np(record)[label] for rows in blocks for record in _get(data, source, rows))
        if _of_class(data, label) is data.features[label]:
            labels = np.fromiter(found, np.int32, len(source))
        else:
            labels = _multi_hot(data, label, list(found))
        if (labels >= 0).all():
            return split, labels
    raise InputError(
        f"{data.name}: the labels of '{ways[-1]}' are hidden (-1); choose another split with ?{what}=SPLIT"
    )


def _multi_hot(data: Prepared, label: str, rows: list[list[int]]) -> np.ndarray:
    """Sets of classes as `[n, classes]` of 0 and 1."""
    labels = np.zeros((len(rows), _of_class(data, label).num_classes), np.int32)
    for row, own in enumerate(np.array(own, np.int32) for own in rows):
        if len(np.unique(own)) < len(own) or (own < 0).any():  # as CheXpert's, one of four values for each finding
            raise InputError(f"{data.name}: row {row} of '{label}' is {own.tolist()}; expected each class once at most")
        labels[row, own] = 1
    return labels


def _check_split(data: Prepared, what: str, split: str) -> None:
    """Refuse what names no rows of the dataset; `train[:10%]` names some."""
    base = re.split(r"[\[+]", split)[0]
    if base not in data.splits:
        advice = f"choose with ?{what}=SPLIT; {nearest(base, data.splits)}"
        raise InputError(f"{data.name}: there is no split '{base}'; {advice}")
    try:
        count = data.splits[split].num_examples
    except Exception as error:  # of its parser
        raise InputError(f"{data.name}: split '{split}' cannot be read ({_reason(error)})") from None
    if not count:
        raise InputError(f"{data.name}: split '{split}' is empty")


def _check_disjoint(data: Prepared, train: str, test: str) -> None:
    """Refuse to test on rows of the pool."""

    def ranges(split):
        return [(str(part.filename), part.skip, part.skip + part.take) for part in data.splits[split].file_instructions]

    for file, start, end in ranges(train):
        if any(file == other and start < last and first < end for other, first, last in ranges(test)):
            raise InputError(f"{data.name}: '{train}' and '{test}' share rows; what is tested on is never trained on")


def _records(data: Prepared, split: str) -> Any:
    """The undecoded records of a split, by row."""
    try:
        return data.builder.as_data_source(split, deserialize_method=data.tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError:
        raise InputError(
            f"{data.name}: {data.builder.data_dir} is in the format '{data.builder.info.file_format.value}', which has "
            f"no random access; prepare it again with --file_format=array_record"
        ) from None
    except Exception as error:  # of files that are missing
        raise InputError(f"{data.name}: split '{split}' cannot be read ({_reason(error)})") from None


def _get(data: Prepared, source: Any, rows: Sequence[int]) -> list[bytes]:
    try:
        return source.__getitems__([int(row) for row in rows])
    except Exception as error:  # of files that are damaged
        raise InputError(f"{data.name}: rows {rows[0]}..{rows[-1]} cannot be read ({_reason(error)})") from None


def _reader(data: Prepared, source: Any, inputs: tuple[str, ...], kind: str) -> Callable[[np.ndarray], list]:
    """From row numbers to inputs. Of a record nothing else is decoded; images always by PIL, TFDS prefers OpenCV."""
    only = data.tfds.features.FeaturesDict({key: data.features[key] for key in inputs})
    skip = dict.fromkeys(inputs, data.tfds.decode.SkipDecoding())

    def read_rows(rows: np.ndarray) -> list:
        found = [only.deserialize_example_np(record, decoders=skip) for record in _get(data, source, rows)]
        if kind == "image":
            return each(lambda row, parts: decode(parts[inputs[0]], f"{row} of {data.name}"), rows, found)
        texts = [tuple(parts[key].decode("utf-8", "replace") for key in inputs) for parts in found]
        return [own if len(own) > 1 else own[0] for own in texts]

    return read_rows


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
