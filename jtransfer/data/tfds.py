"""Prepared TensorFlow Datasets, read record by record and without TensorFlow: `tfds:NAME[:VERSION][?OPTIONS]`.

Only the files in a directory that TFDS prepared are read; the code that made them is never run, and nothing is
downloaded. `prepared.py` reads the description in the directory.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data import records
from jtransfer.data.dataset import Context, Dataset, Lazy, targets, unlabelled
from jtransfer.data.labels import check_cells
from jtransfer.data.options import parse as parse_options
from jtransfer.data.prepared import Prepared, catalogued, describe
from jtransfer.data.splits import hold_out, hold_out_the_last
from jtransfer.errors import InputError, first_line, nearest

RESTRICTIONS = ("only", "test_only")
OPTIONS = ("input", "label", "caption", "train", "test", *RESTRICTIONS)
BLOCK = 4096
"""Records whose labels are read at a time."""

METRICS = {"glue/cola": "matthews", "glue/mrpc": "f1", "glue/qqp": "f1", "glue/stsb": "pearson_spearman"}
"""The metric in which results are published, if not accuracy (A. Wang et al., GLUE, ICLR 2019, table 1)."""


def read(rest: str, context: Context) -> Dataset:
    """A prepared dataset, with the options that `sources.load` describes.

    Inputs and label are the supervised keys, if those are an image or a text and a `ClassLabel` or floats. Otherwise
    the input is the only image, or the one or two texts in the order of their names. The label is the feature `label`
    or the only `ClassLabel`; without one, the only sequence of them; without one, the only feature of floats.

    The pool is `train`. The test rows are `test`; or `validation`, if there is no `test` or its labels are hidden (-1,
    as in GLUE); or a part of `train`, if there is neither: see `splits`. If "texts" are asked for, there need be no
    label; `label=` reads none. If "pairs" are asked for, see `read_pairs`.

    Labels are decoded here, and every byte of the files is read for the fingerprint. Inputs are decoded when their rows
    are asked for.

    Args:
        rest: What follows `tfds:`.
        context: With the name, `reads`, and `data_dir`, where prepared datasets lie; empty for `TFDS_DATA_DIR`, or
            TFDS's own directory.

    Raises:
        InputError: TFDS is not installed; there is no such dataset, version, option, feature, class or split; files are
            damaged or not in the format array_record; labels are hidden, of a single class, or not finite; or pool and
            test share rows.
    """
    name = context.name
    if "pairs" in context.reads:
        return read_pairs(rest, context)
    data, directory, options = opened(name, rest, context.data_dir)
    label = _label(data, options.get("label"), needed="texts" not in context.reads)
    inputs, kind = _inputs(data, options.get("input"))
    train, labels = _labels(data, label, "train", [options.get("train", "train")])
    if label and len(np.unique(labels)) < 2:
        raise InputError(f"{name}: '{train}' holds only one class of '{label}'; at least two are expected")
    asked = options.get("test")
    if ways := [asked] if asked else [split for split in ("test", "validation") if split in data.splits]:
        test, test_labels = _labels(data, label, "test", ways)
        _check_disjoint(data, train, test)
        pool, held_out = np.arange(len(labels)), len(labels) + np.arange(len(test_labels))
        labels, whole = np.concatenate([labels, test_labels]), f"{train}+{test}"
        tested = f"'{test}'" + (f" (the labels of '{ways[0]}' are hidden)" if test != ways[0] else "")
    else:
        pool, held_out, part = hold_out(labels, name, "a split for testing")
        whole, tested = train, f"{part} of '{train}'"
    source = records.of_split(data, whole)
    pool, held_out = _restricted(data, source, options, pool, held_out)
    restrictions = (f"{key}={options[key]}" for key in RESTRICTIONS if key in options)
    identity = "\n".join((data.about.full_name, data.about.text, label, *inputs, train, tested, *restrictions))
    note = (
        f"{name} is version {directory.name}, {' + '.join(inputs)} with {label or 'no label'}: few-shot sets are drawn "
        f"from '{train}', the test rows are {tested}.{_unused(data, train, tested)}"
    )
    feature = _of_class(data, label) if label else None
    classes = tuple(feature.names or map(str, range(feature.num_classes))) if feature else ()
    contents = records.contents(data, whole)
    lazy = records.lazy(data, source, inputs, kind, identity, contents)
    lazy = replace(lazy, of_inputs="\n".join((data.about.full_name, *inputs, whole, contents)))
    captions = _captions(data, source, options["caption"], lazy) if "caption" in options else None
    metric = METRICS.get(re.split("[:?]", rest)[0], "") if label else ""
    return Dataset(name, lazy, labels, classes, pool, held_out, kind, note, captions, metric)


def read_pairs(rest: str, context: Context) -> Dataset:
    """The images of a prepared dataset and their captions; labels are not read, and there need be none.

    The pool is `train`; the test rows are `test`, or `validation`, or if there is neither the last rows of `train`: see
    `splits.hold_out_the_last`. The labels of the dataset are all 0, of one class without a name.

    Args:
        rest: What follows `tfds:`; its options are those of `sources.load`, of which `caption` is needed.
        context: With the name and `data_dir`, as for `read`.

    Raises:
        InputError: as `read`; or there is no option `caption`, or the input is no image.
    """
    name = context.name
    data, directory, options = opened(name, rest, context.data_dir)
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
        whole, tested = f"{train}+{test}", f"'{test}'"
    else:
        pool, held_out = hold_out_the_last(count, name)
        whole, tested = train, f"the last {len(held_out)} of '{train}'"
    source = records.of_split(data, whole)
    total = count if not test else len(pool) + len(held_out)
    pool, held_out = _restricted(data, source, options, pool, held_out)
    restrictions = (f"{key}={options[key]}" for key in RESTRICTIONS if key in options)
    identity = "\n".join((data.about.full_name, data.about.text, *inputs, train, tested, *restrictions))
    lazy = records.lazy(data, source, inputs, kind, identity, records.contents(data, whole))
    note = f"{name} is version {directory.name}: pairs are drawn from '{train}', those held out are {tested}."
    captions = _captions(data, source, options["caption"], lazy)
    return Dataset(name, lazy, np.zeros(total, np.int8), ("",), pool, held_out, kind, note, captions)


def form(rest: str, context: Context) -> tuple[str, int]:
    """What a dataset holds, from its description alone; where it is not prepared here, from TFDS's own catalogue.

    Args:
        rest: What follows `tfds:`.
        context: As for `read`.

    Returns:
        The kind of its inputs, "image" or "text", and the number of its classes; 0 where labels are numbers.

    Raises:
        InputError: TFDS is not installed or does not know the dataset, or it has no such feature.
    """
    name, (which, _, query) = context.name, rest.partition("?")
    tfds, options = _library(name), parse_options(name, query, OPTIONS)
    about = None
    try:
        _directory(name, which, context.data_dir)
    except InputError:
        if (about := catalogued(tfds, which)) is None:
            raise
    data = Prepared(name, tfds, about) if about else opened(name, rest, context.data_dir)[0]
    feature = _of_class(data, _label(data, options.get("label")))
    return _inputs(data, options.get("input"))[1], feature.num_classes if feature else 0


def _unused(data: Prepared, train: str, tested: str) -> str:
    """A sentence on the splits for validation and testing that nothing is read of; empty where all are."""
    left = [name for name in ("validation", "test") if name in data.splits and name not in f"{train} {tested}"]
    return (
        f" Not used: {', '.join(f'{name!r} ({data.splits[name].num_examples} rows)' for name in left)}." if left else ""
    )


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
    found = [parts[key] for block in blocks for parts in records.parsed(data, only, source, block)]
    if not len(kept := rows[np.isin(found, wanted)]):
        raise InputError(f"{data.name}: no row has '{key}' {names}")
    return kept


def opened(name: str, rest: str, data_dir: str) -> tuple[Prepared, epath.Path, dict[str, str]]:
    """A prepared dataset, its directory, and the options that stand behind its name."""
    tfds = _library(name)
    which, _, query = rest.partition("?")
    options = parse_options(name, query, OPTIONS)
    directory = _directory(name, which, data_dir)
    try:
        data = Prepared(name, tfds, describe(tfds, directory))
    except Exception as error:  # of its many parsers
        raise InputError(f"{name}: {directory} cannot be read ({first_line(error)})") from None
    return data, directory, options


def _library(name: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"{name} needs TensorFlow Datasets ({error}); install it: pip install 'jtransfer[tfds]'"
        ) from None
    return tensorflow_datasets


def _directory(name: str, which: str, data_dir: str) -> epath.Path:
    """Where a dataset lies: `ROOT/name[/config]/version`, the newest unless a version is asked for."""
    root = files.path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "config.data_dir")
    path, _, version = which.partition(":")
    versions = _versions(root / path) if path else []
    if not versions:
        found = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
        there = {str(file.parent.parent.relative_to(root)) for file in found if _version(file.parent)}
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


def _label(data: Prepared, asked: str | None, needed: bool = True) -> str:
    """The feature that is the label: a `ClassLabel`, or a sequence of them where it is asked for or the only one.

    Where there are none, floats are; "" where none is asked for, or none is there and none needed.
    """
    classes = [key for key in data.features if _of_class(data, key)]
    values = [key for key, feature in data.features.items() if type(feature) is data.tfds.features.Tensor]
    labels = [key for key in classes if asked or _of_class(data, key) is data.features[key]] or classes
    labels = [*labels, *values] if asked else labels or values
    if asked == "" or not (asked or labels or needed):
        return ""
    if asked is not None and asked not in labels:
        found = data.features.get(asked)
        what = (
            "there is no"
            if found is None
            else f"expected a ClassLabel, found the {getattr(found, 'kind', type(found).__name__)}"
        )
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
        found = records.parsed(data, only, source, rows)
        return [[x.decode("utf-8", "replace") for key in names for x in np.ravel(parts[key])] for parts in found]

    return Lazy(lazy.count, read_rows, f"{lazy.identity}\n{asked}")


def _labels(data: Prepared, label: str, what: str, ways: list[str]) -> tuple[str, np.ndarray]:
    """The first of some splits whose labels are not hidden, and these as a `Dataset` has them; of no label `[n, 0]`."""
    if not label:
        _check_split(data, what, ways[0])
        return ways[0], unlabelled(data.splits[ways[0]].num_examples)
    only = data.tfds.features.FeaturesDict({label: data.features[label]})
    for split in ways:
        _check_split(data, what, split)
        source = records.of_split(data, split)
        blocks = (range(start, min(start + BLOCK, len(source))) for start in range(0, len(source), BLOCK))
        found = (parts[label] for rows in blocks for parts in records.parsed(data, only, source, rows))
        if not _of_class(data, label):
            labels = _finite(data, label, np.array(list(found), np.float32))
        elif _of_class(data, label) is data.features[label]:
            labels = _known(data, label, np.fromiter(found, np.int64, len(source)))
        else:
            labels = _multi_hot(data, label, list(found))
        hidden = labels == -1
        if not (hidden.all() if targets(labels) == "values" else hidden.any()):
            return split, labels
    raise InputError(
        f"{data.name}: the labels of '{ways[-1]}' are hidden (-1); choose another split with ?{what}=SPLIT"
    )


def _finite(data: Prepared, label: str, found: np.ndarray) -> np.ndarray:
    """Floats, if each is a number."""
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found.reshape(len(found), -1))).any(axis=1).argmax())
        raise InputError(f"{data.name}: row {row} has {found[row]} as '{label}'; expected finite numbers")
    return found


def _known(data: Prepared, label: str, found: np.ndarray) -> np.ndarray:
    """Numbers of classes as int32, if each is -1 (hidden) or less than there are classes."""
    count = _of_class(data, label).num_classes
    if len(bad := found[(found < -1) | (found >= count)]):
        raise InputError(f"{data.name}: a row has {bad[0]} as '{label}'; expected 0 to {count - 1}, or -1 where hidden")
    return found.astype(np.int32)


def _multi_hot(data: Prepared, label: str, rows: list[list[int]]) -> np.ndarray:
    """Sets of classes as `[n, classes]` of 0 and 1."""
    shape = len(rows), _of_class(data, label).num_classes
    check_cells(data.name, label, *shape)
    labels = np.zeros(shape, np.int32)
    for row, own in enumerate(_known(data, label, np.array(own, np.int64)) for own in rows):
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
        raise InputError(f"{data.name}: split '{split}' cannot be read ({first_line(error)})") from None
    if not count:
        raise InputError(f"{data.name}: split '{split}' is empty")
    records.check_shards(data, split)


def _check_disjoint(data: Prepared, train: str, test: str) -> None:
    """Refuse to test on rows of the pool."""

    def ranges(split):
        return [(str(part.filename), part.skip, part.skip + part.take) for part in data.splits[split].file_instructions]

    for file, start, end in ranges(train):
        if any(file == other and start < last and first < end for other, first, last in ranges(test)):
            raise InputError(f"{data.name}: '{train}' and '{test}' share rows; what is tested on is never trained on")
