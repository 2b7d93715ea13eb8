"""Tables in files, of texts or of images and their paths: `table:PATH`, of CSV, TSV, JSON lines or Parquet."""

import csv
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data import arrow
from jtransfer.data.columns import OPTIONS, dataset
from jtransfer.data.dataset import Context, Dataset
from jtransfer.data.downloads import TRAIN, beginning
from jtransfer.data.joined import Table
from jtransfer.data.options import parse as parse_options
from jtransfer.errors import InputError, cut, first_line, nearest
from jtransfer.storage import parts

LONGEST = 1 << 24
"""Bytes of a line, and characters of a value in it, at most."""

Parse = Callable[[Iterator[str]], Iterator[Mapping[str, Any] | None]]


def read(rest: str, context: Context) -> Dataset:
    """The dataset in a table, or in the tables of a directory, with the options that `sources.load` describes.

    The first line of a CSV or TSV file names its columns. A column holds images if its first value ends as an image
    file does, if it is called `image` or alike (see `columns.IMAGES`), or if it holds bytes. Paths of images start from
    the directory of the table. Of the columns that no option names, images are the inputs, or else the text `text`, or
    the one or two texts that there are.

    A directory has files whose names begin with `train`, and others that begin with `test`, `validation`, `valid`,
    `val` or `dev`; several files of a split follow each other in the order of their names. Without any for testing a
    part is held out: see `splits.hold_out`.

    Rows of CSV, TSV and JSON lines are read from the file when they are asked for; for Parquet see `arrow.parquet`.

    Args:
        rest: What follows `table:`.
        context: With the name of the dataset, and what is asked of it.

    Raises:
        InputError: a file is missing, damaged, of another kind or not UTF-8; a row has more or fewer columns than the
            first line names; or as `columns.dataset`.
    """
    where, _, query = rest.partition("?")
    options, path = parse_options(context.name, query, OPTIONS), files.path(where, context.name)
    if files.is_directory(path):
        ways = {"train": TRAIN, "test": ("test",), "validation": ("val", "dev")}
        splits = {split: beginning(path, names, tuple(OPENED)) for split, names in ways.items()}
        splits, without = {split: own for split, own in splits.items() if own}, "a file for testing"
        if "train" not in splits:
            raise InputError(
                f"{context.name}: {path} has no table whose name begins with 'train'; expected one that ends in "
                f"{' or '.join(OPENED)}, or name a file"
            )
    elif "train" in options:
        raise InputError(f"{context.name}: option 'train' chooses files of a directory; {path} is none")
    else:
        splits, without = {"train": [path]}, "?test=FILE"
        if "test" in options:
            splits[options["test"]] = [files.path(options["test"], context.name)]
    opened = {split: lambda own=own: [open_table(file, context.name) for file in own] for split, own in splits.items()}
    return dataset(context, options, opened, without)


def open_table(path: epath.Path, name: str) -> Table:
    """The table in a file, of which `name` is that of the dataset, for errors.

    Raises:
        InputError: no such file, one of another kind, or a damaged row.
    """
    ending = os.path.splitext(path.name)[1].lower()
    if ending not in OPENED:
        raise InputError(f"{path}: expected a table, which ends in {' or '.join(OPENED)}; {nearest(ending, OPENED)}")
    try:
        files.length(path)
        return OPENED[ending](path, name)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a table, or a directory of tables") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None


def _separated(path: epath.Path, name: str, mark: str) -> Table:
    """A file of rows whose columns are apart by a mark, quoted as in CSV."""
    at = [0, 0]
    with parts.opened(path, parts.ROW) as opened:
        header = next(_parsed(path, _quoted(_lines(path, opened, at), mark), at), [])
    if twice := [column for column in header if column and header.count(column) > 1]:
        raise InputError(f"{path}: line 1 names the column '{cut(twice[0])}' twice; expected each name once")

    def rows(lines: Iterator[str]) -> Iterator[Mapping[str, Any] | None]:
        for own in _quoted(lines, mark):
            if own and len(own) != len(header):
                said = f"{len(own)} column{'s' * (len(own) != 1)}, expected {len(header)}, as line 1 has names"
                raise ValueError(f"{said} ({cut(', '.join(header))})")
            yield dict(zip(header, own, strict=True)) if own else None

    return _of_lines(path, rows, at[1])


def _quoted(lines: Iterator[str], mark: str) -> Iterator[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # one for the whole process, 128 KiB unless it is set
    return csv.reader(lines, delimiter=mark, strict=True)


def _json_lines(path: epath.Path, name: str) -> Table:
    """A file with a JSON object on every line."""

    def rows(lines: Iterator[str]) -> Iterator[Mapping[str, Any] | None]:
        for line in lines:
            found = json.loads(line) if line.strip() else None
            if not isinstance(found, dict | None):
                raise ValueError(f"{type(found).__name__}, expected a JSON object")
            yield found

    return _of_lines(path, rows)


def _of_lines(path: epath.Path, rows: Parse, header: int = 0) -> Table:
    """A table whose rows are lines, or a few lines each, after `header` lines; where they begin is kept."""
    starts, numbers, sample, at = array("q"), array("q"), {}, [0, 0]
    with parts.opened(path) as opened:
        lines = _lines(path, opened, at)
        for _ in range(header):
            next(lines)
        start = list(at)
        for row in _parsed(path, rows(lines), at):
            if row is not None:
                starts.append(start[0])
                numbers.append(start[1] + 1)
                for column, value in row.items():
                    if sample.get(column, "") == "":
                        sample[column] = "" if value is None else value
            start = list(at)
    places = np.array(starts, np.int64)

    def values(column: str, asked: np.ndarray) -> list:
        try:
            with parts.opened(path, parts.ROW) as opened:
                return [one(opened, row).get(column) for row in asked.tolist()]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None

    def one(opened: BinaryIO, row: int) -> Mapping[str, Any]:
        opened.seek(int(places[row]))
        at = [0, numbers[row] - 1]
        return next(_parsed(path, rows(_lines(path, opened, at)), at), None) or {}

    root = os.path.dirname(os.fspath(path)) or "."
    digest = files.digest(path).hex()
    return Table(str(path), len(places), sample, values, digest, lambda row: f"{path}: line {numbers[row]}", root=root)


def _lines(path: epath.Path, opened: BinaryIO, at: list[int]) -> Iterator[str]:
    """The lines of a file; `at` becomes the bytes and lines that were taken."""
    while line := opened.readline(LONGEST):
        if len(line) == LONGEST:
            raise InputError(f"{path}: line {at[1] + 1} has more than {LONGEST:,} bytes; expected a row")
        try:
            text = line.decode("utf-8-sig" if at == [0, 0] else "utf-8")
        except UnicodeDecodeError as error:
            held = line[max(0, error.start - 20) :][:40]
            raise InputError(f"{path}: line {at[1] + 1} holds {held!r}, which is no UTF-8") from None
        at[:] = at[0] + len(line), at[1] + 1
        yield text


def _parsed(path: epath.Path, rows: Iterator, at: list[int]) -> Iterator:
    """Rows, whose errors name the file and the line; None is a blank line."""
    while True:
        number = at[1] + 1
        try:
            row = next(rows, rows)
        except InputError:
            raise
        except (ValueError, RecursionError, csv.Error) as error:
            raise InputError(f"{path}: line {number} cannot be read ({first_line(error)})") from None
        if row is rows:
            return
        yield row


OPENED: dict[str, Callable[[epath.Path, str], Table]] = {
    ".csv": lambda path, name: _separated(path, name, ","),
    ".tsv": lambda path, name: _separated(path, name, "\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": arrow.parquet,
}
"""By the ending of a file, what opens it as a table, given the name of the dataset for errors."""
