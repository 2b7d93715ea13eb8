"""Tables by pyarrow alone: Parquet files, and what Hugging Face's `datasets` saved on a disk (`hf:DIR`)."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data.columns import OPTIONS, dataset
from jtransfer.data.dataset import Context, Dataset
from jtransfer.data.downloads import inside
from jtransfer.data.joined import Table
from jtransfer.data.options import parse as parse_options
from jtransfer.errors import InputError, first_line
from jtransfer.storage import parts

KEPT = 1 << 30
"""Bytes of a column of a Parquet file up to which it is read as a whole."""

GROUPS = 8
"""Columns, or row groups of larger columns, that are kept."""

SAMPLED = 100
"""Rows among which the first value of a column is looked for."""

END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a stream of Arrow that was written to its end."""


def read(rest: str, context: Context) -> Dataset:
    """The dataset in a directory that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, with the options that
    `sources.load` describes.

    Files on a disk are mapped into memory; those in an object store are read into memory. Features of the type
    `ClassLabel` have the names of `dataset_info.json`. Which columns are taken is said in `tables.read`.

    Args:
        rest: What follows `hf:`.
        context: With the name of the dataset, and what is asked of it.

    Raises:
        InputError: pyarrow is not installed; there is no such directory, a file in it is missing, damaged or lies
            outside of it; or as `columns.dataset`.
    """
    where, _, query = rest.partition("?")
    options, root = parse_options(context.name, query, OPTIONS), files.path(where, context.name)
    names = files.read_json(root / DICT).get("splits", ()) if files.exists(root / DICT) else None
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise InputError(f"{root / DICT}: expected a list of splits, as datasets.DatasetDict writes it")
    if names is None and not files.exists(root / STATE):
        raise InputError(f"{root}: expected a directory that save_to_disk wrote, with {STATE} or {DICT} in it")
    splits = {name: _place(root, name) for name in names} if names else {"train": root}
    opened = {name: lambda own=own: _saved(own, context.name) for name, own in splits.items()}
    return dataset(context, options, opened, "another split")


DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
"""Names of files that `datasets` writes: the splits, the files of one split, and what their columns are."""


def _saved(directory: epath.Path, name: str) -> list[Table]:
    """The files of one split."""
    listed = files.read_json(directory / STATE).get("_data_files")
    features = files.read_json(directory / INFO).get("features")
    try:
        found = [_place(directory, one["filename"]) for one in listed]
    except (TypeError, KeyError):
        found = []
    if not found:
        raise InputError(f"{directory / STATE}: expected a list '_data_files' of objects with a 'filename'")
    return [_stream(file, name, _class_names(features)) for file in found]


def _place(directory: epath.Path, name: str) -> epath.Path:
    """A file or directory of a directory, by the name that a file in it gives."""
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise InputError(f"{directory}: {name!r} leads out of it; expected a name in it")
    place = directory / name
    return place if "://" in os.fspath(place) or not os.path.lexists(place) else epath.Path(inside(place, directory))


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes of each feature that has them, or is a list of what has them."""
    named = {} if not isinstance(features, Mapping) else features
    found = {key: own[0] if isinstance(own, list) and len(own) == 1 else own for key, own in named.items()}
    found = {key: own.get("feature", own) for key, own in found.items() if isinstance(own, Mapping)}
    lists = {key: own.get("names") for key, own in found.items() if isinstance(own, Mapping)}
    return {key: tuple(map(str, own)) for key, own in lists.items() if isinstance(own, list) and own}


class _Whole:
    """A file with a stream of Arrow, mapped into memory; a copy in another process maps it anew."""

    def __init__(self, path: epath.Path):
        import pyarrow.ipc

        self.path, where = path, os.fspath(path)
        source = pyarrow.input_stream(parts.opened(path)) if "://" in where else pyarrow.memory_map(where)
        self.table = pyarrow.ipc.open_stream(source).read_all()

    def __reduce__(self):
        return _Whole, (self.path,)


class _Columns:
    """The columns of a Parquet file, of which the last parts are kept; a copy in another process keeps its own."""

    def __init__(self, path: epath.Path):
        self.path, self.part = path, lru_cache(maxsize=GROUPS)(self._read)

    def __reduce__(self):
        return _Columns, (self.path,)

    def _read(self, column: str, group: int | None) -> Any:
        """A column, or the part of it in one row group."""
        from pyarrow import parquet

        with parts.opened(self.path) as opened:
            own = parquet.ParquetFile(opened)
            found = own.read([column]) if group is None else own.read_row_group(group, [column])
            found.validate(full=True)
            return found.column(0)


def _stream(path: epath.Path, name: str, classes: Mapping[str, tuple[str, ...]]) -> Table:
    """A file with a stream of Arrow."""
    where = os.fspath(path)
    _library(name)
    with _reading(where):
        if files.length(path) < len(END):
            raise InputError(f"{where} is cut off; expected a stream of Arrow")
        whole = _Whole(path)
        whole.table.validate(full=True)
        with parts.opened(path) as opened:
            opened.seek(-len(END), os.SEEK_END)
            if opened.read() != END:
                raise InputError(f"{where} is cut off; expected the end of a stream of Arrow")

    def values(column: str, rows: np.ndarray) -> list:
        own = whole.table.column(column)
        return [own[row].as_py() for row in rows.tolist()]

    sample = {column: _first(whole.table.column(column)) for column in whole.table.column_names}
    return _table(where, whole.table.num_rows, sample, values, files.digest(path).hex(), classes)


def parquet(path: epath.Path, name: str) -> Table:
    """A Parquet file: a column of at most `KEPT` bytes is read as a whole, a larger one by its row groups.

    Parquet has no access by row: to train on images in larger files, write row groups of few rows, or save them by
    `datasets` or as tar files.

    Args:
        path: Of the file.
        name: Of the dataset, for errors.

    Raises:
        InputError: pyarrow is not installed, or the file is damaged.
    """
    _library(name)
    from pyarrow import parquet

    where = os.fspath(path)
    with _reading(where), parts.opened(path) as opened:
        about = parquet.ParquetFile(opened)
        groups = [about.metadata.row_group(i) for i in range(about.metadata.num_row_groups)]
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        features = json.loads((about.schema_arrow.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        columns, sample = about.schema_arrow.names, {}
        sizes = Counter()
        for part in (group.column(i) for group in groups for i in range(group.num_columns)):
            sizes[part.path_in_schema.partition(".")[0]] += part.total_uncompressed_size
        for batch in about.iter_batches(SAMPLED):
            sample = {column: _first(batch.column(i)) for i, column in enumerate(columns)}
            break

    own = _Columns(path)

    def values(column: str, rows: np.ndarray) -> list:
        with _reading(where):
            if sizes[column] <= KEPT:
                return [own.part(column, None)[row].as_py() for row in rows.tolist()]
            of = np.searchsorted(starts, rows, side="right") - 1
            places = zip(of.tolist(), (rows - starts[of]).tolist(), strict=True)
            return [own.part(column, group)[row].as_py() for group, row in places]

    classes = _class_names(features.get("features"))
    return _table(where, int(starts[-1]), sample, values, files.digest(path).hex(), classes)


def _table(where, count, sample, values, digest, classes) -> Table:
    root = os.path.dirname(where) or "."
    return Table(where, count, sample, values, digest, lambda row: f"{where}: row {row}", classes, root)


def _first(column: Any) -> Any:
    """The first value that is there; a text without any."""
    found = column.slice(0, SAMPLED).drop_null()
    return found[0].as_py() if len(found) else ""


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what pyarrow or a disk refuses within this block into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:  # of its parser
        raise InputError(f"{where} cannot be read, is damaged or cut off ({first_line(error)})") from None


def _library(name: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise InputError(f"{name} needs pyarrow ({error}); install it: pip install 'jtransfer[tables]'") from None
    return pyarrow
