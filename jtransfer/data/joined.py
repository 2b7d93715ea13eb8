"""A table, which has columns by name and rows by number, and the rows of several tables one after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jtransfer.errors import InputError


@dataclass(frozen=True, eq=False)
class Table:
    """Columns by name, whose values are read when their rows are asked for.

    Attributes:
        where: The file, for errors.
        count: Number of rows.
        sample: A value of each column, which tells what the column holds: a number, a text, a list of texts, the path
            of an image, or the bytes of one, perhaps as `{"bytes": ..., "path": ...}`.
        read: From the name of a column and row numbers [n] to n values, None where a row has none.
        digest: Of every byte of the file.
        at: From a row number to the file and the place in it, for errors.
        classes: Names of the classes that the numbers of a column count, by column.
        root: The directory that paths of images start from, and may not lead out of.
    """

    where: str
    count: int
    sample: Mapping[str, Any]
    read: Callable[[str, np.ndarray], list]
    digest: str
    at: Callable[[int], str]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    root: str = "."


class Tables:
    """The rows of some tables, one after the other."""

    def __init__(self, tables: Sequence[Table]):
        self.tables = [table for table in tables if table.count] or list(tables)
        self.ends = np.cumsum([table.count for table in self.tables])
        self.count = int(self.ends[-1])
        if not self.count:
            raise InputError(f"{self.tables[0].where}: there are no rows in it")

    def read(self, name: str, rows: np.ndarray) -> list:
        found, of = [None] * len(rows), np.searchsorted(self.ends, rows, side="right")
        for i in np.unique(of).tolist():
            places = np.flatnonzero(of == i)
            own = rows[places] - (self.ends[i] - self.tables[i].count)
            for place, value in zip(places.tolist(), self.tables[i].read(name, own), strict=True):
                found[place] = value
        return found

    def at(self, row: int) -> str:
        table, own = self._of(row)
        return table.at(own)

    def root(self, row: int) -> str:
        return self._of(row)[0].root

    def _of(self, row):
        i = int(np.searchsorted(self.ends, row, side="right"))
        return self.tables[i], row - int(self.ends[i]) + self.tables[i].count
