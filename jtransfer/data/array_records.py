"""ArrayRecord files of `tf.train.Example`, as users of Grain and T5X write them: `array_record:PATTERN`.

No TensorFlow is needed. What TensorFlow Datasets prepared is read by `tfds:`, which knows its splits and features.
"""

import os
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data import examples, shards
from jtransfer.data.columns import IMAGES, dataset
from jtransfer.data.dataset import Context, Dataset
from jtransfer.data.downloads import shown
from jtransfer.data.joined import Table
from jtransfer.data.options import parse as parse_options
from jtransfer.errors import InputError, first_line

ENDINGS = (".array_record", ".arrayrecord")
"""How the names of files end, perhaps before numbers, as `.array_record-00000-of-00010`."""

SAMPLED = 100
"""Records by which the features are known."""

BLOCK = 256
"""Records that are read at a time."""

PREPARED = "dataset_info.json"
"""A file of directories that TensorFlow Datasets prepared."""


def read(rest: str, context: Context) -> Dataset:
    """The dataset in some ArrayRecord files, with the options that `sources.load` describes.

    The columns are the features of the first 100 records. A feature of bytes holds texts where each of these is UTF-8,
    images otherwise, or if it is called `image` or `img`. A feature of which one of these records has none or several
    values is a column of lists. `classes.txt` beside the files may have the names of the classes that integers count,
    one a line. Which columns are taken is said in `tables.read`. A part of the rows is held out: see
    `splits.hold_out`.

    Records are read when their rows are asked for; labels by one pass over all records, as a file has no columns.

    Args:
        rest: What follows `array_record:`: a file, a directory of files, or files by numbers in braces, as
            `train.array_record-{00000..00009}-of-00010`.
        context: With the name of the dataset, and what is asked of it.

    Raises:
        InputError: the package array_record is not installed; files are in an object store, missing or damaged; a
            record is no `tf.train.Example`; a directory was prepared by TensorFlow Datasets; or as `columns.dataset`.
    """
    where, _, query = rest.partition("?")
    options, name = parse_options(context.name, query, ("input", "label", "caption", "test")), context.name
    if away := next((own for own in (where, options.get("test", "")) if "://" in own), ""):
        raise InputError(
            f"{name}: ArrayRecord's reader reads no object stores; copy {shown(away)} to a disk, or keep the data as "
            f"tar:, table: or hf:, which are read from there"
        )
    try:
        import array_record.python.array_record_data_source  # noqa: F401
    except ImportError as error:
        raise InputError(f"{name} needs array_record ({error}); install it: pip install 'jtransfer[grain]'") from None
    splits = {"train": where, **({options["test"]: options["test"]} if "test" in options else {})}
    for pattern in splits.values():
        if (files.path(pattern, name) / PREPARED).exists():
            raise InputError(
                f"{name}: {pattern} holds {PREPARED}, all splits of a prepared dataset; expected tfds:NAME with "
                f"config.data_dir, or one of its files"
            )
    found = {split: shards.found(pattern, name, ENDINGS) for split, pattern in splits.items()}
    return dataset(
        context, options, {split: lambda own=own: list(map(_table, own)) for split, own in found.items()}, "?test=FILE"
    )


class _Records:
    """The records of a file by row; a copy in another process opens the file anew."""

    def __init__(self, path: epath.Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.path, self.where = path, shown(path)
        self.source = ArrayRecordDataSource(os.fspath(path))

    def __reduce__(self):
        return _Records, (self.path,)

    def examples(self, rows: list[int]) -> list[dict[str, list[Any]]]:
        """The features of some rows.

        Raises:
            InputError: a record cannot be read, or is no `tf.train.Example`.
        """
        try:
            records = self.source.__getitems__(rows) if rows else []
        except Exception as error:  # of files that are damaged
            what = f"row {rows[0]}" if len(rows) == 1 else f"rows {min(rows)} to {max(rows)}"
            raise InputError(f"{self.where}: {what} cannot be read ({first_line(error)})") from None
        return [self._example(row, record) for row, record in zip(rows, records, strict=True)]

    def _example(self, row: int, record: bytes) -> dict[str, list[Any]]:
        try:
            return examples.parse(record)
        except ValueError as error:
            said = f"expected a serialized tf.train.Example ({first_line(error)})"
            raise InputError(f"{self.where}: row {row} is {len(record):,} bytes; {said}") from None


def _table(path: epath.Path) -> Table:
    """A file whose columns are the features of its records."""
    where = shown(path)
    _check(path)
    records = _Records(path)
    count = len(records.source)
    told = records.examples([*range(min(count, SAMPLED))])
    columns = dict.fromkeys(name for own in told for name in own)
    seen = {name: [own[name] for own in told if name in own] for name in columns}
    lists = {name for name, own in seen.items() if any(len(values) != 1 for values in own)}
    filled = {name: [value for values in own for value in values] for name, own in seen.items()}
    texts = {name for name, own in filled.items() if name not in IMAGES[:2] and all(map(_is_text, own))}

    def cell(name: str, example: dict[str, list[Any]]) -> Any:
        values = [_text(value) if name in texts else value for value in example.get(name, [])]
        if name in lists:
            return values if name in example else None
        return values[0] if len(values) == 1 else values or None

    def read_rows(name: str, rows: np.ndarray) -> list:
        blocks = (rows[start : start + BLOCK].tolist() for start in range(0, len(rows), BLOCK))
        return [cell(name, own) for block in blocks for own in records.examples(block)]

    def sample(name: str) -> Any:
        values = [cell(name, own) for own in told if name in own]
        return next((value for value in values if value not in ("", [])), values[0])

    names = shards.names(path.parent)
    integers = [name for name, own in filled.items() if names and own and isinstance(own[0], int)]
    return Table(
        where,
        count,
        {name: sample(name) for name in columns},
        read_rows,
        files.digest(path).hex(),
        lambda row: f"{where}: row {row}",
        dict.fromkeys(integers, names),
        os.path.dirname(os.fspath(path)) or ".",
    )


def _check(path: epath.Path) -> None:
    """Refuse a file that is none of ArrayRecord, or is cut off."""
    from array_record.python.array_record_module import ArrayRecordReader

    where = shown(path)
    try:
        files.length(path)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; expected an ArrayRecord file, or a directory of them") from None
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or first_line(error)})") from None
    try:
        reader = ArrayRecordReader(os.fspath(path))
        is_whole = reader.ok()
        reader.close()
    except Exception as error:
        raise InputError(f"{where} is no ArrayRecord file, or is cut off or damaged ({first_line(error)})") from None
    if not is_whole:
        raise InputError(f"{where} is no ArrayRecord file, or is cut off or damaged")


def _is_text(value: Any) -> bool:
    return isinstance(value, bytes) and isinstance(_text(value), str)


def _text(value: Any) -> Any:
    """Bytes as a text; what is no text as it is, for the errors of those who expect one."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
