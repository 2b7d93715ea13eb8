"""Finished parts of a run, one small file each: a run that was stopped or has grown does only what is missing."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged

log = logging.getLogger("jtransfer")

ResultRow = dict[str, Any]
"""A row of results: plain values by name, as JSON has them."""

ACCURACY = {"metric": "accuracy", "better": "higher", "unit": "%"}
"""The metric of a curve's row that names none, as rows of earlier versions."""

LONGEST = 200
"""Characters of a cell's name that its file's name begins with."""


@dataclass(frozen=True)
class Cells:
    """The folder `cells` of a run's directory, local or in an object store; several runs may fill it at once.

    Attributes:
        directory: The run's.
        fingerprint: Of the run's config, which every row has under `fingerprint`.
    """

    directory: epath.Path
    fingerprint: str

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """The contents of those cells that are finished, by name, in the order of `names`.

        A cell that is damaged, or of another config, is logged and counts as not done.
        """
        folder = self.directory / "cells"
        present = {path.name for path in folder.iterdir()} if folder.exists() else set()
        found = {}
        for name in names:
            if self._path(name).name in present:
                try:
                    found[name] = self._content(name)
                except Damaged as error:
                    log.warning("%s", error)
        return found

    def write(self, name: str, content: Any) -> None:
        """Keep a finished cell: a row, or a list of rows, as JSON has them.

        Raises:
            InputError, MachineError: as `files.write`.
        """
        files.write_record(self._path(name), {"name": name, "content": content})

    def gather(self, rows: Iterable[Any]) -> None:
        """Write all rows into `results.jsonl`, one a line, for other programs: jtransfer does not read it.

        Raises:
            InputError, MachineError: as `files.write`.
        """
        files.write(self.directory / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _content(self, name):
        path = self._path(name)
        version, values = files.read_record(path, "it is done again", bare=(dict, list))
        # In format 1 a cell was its content alone.
        content = values if version == 1 else values.get("content")
        rows = content if isinstance(content, list) else [content]
        ours = rows and all(isinstance(row, dict) and row.get("fingerprint") == self.fingerprint for row in rows)
        if not ours or (version > 1 and values.get("name") != name):
            raise Damaged(f"{path} is not of this run; it is done again")
        return content

    def _path(self, name):
        file = quote(name, safe="")
        if len(file) > LONGEST:  # 255 bytes are what disks take
            file = f"{file[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self.directory / "cells" / f"{file}.json"


def of_source(found: Mapping[str, Any], modules: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The finished cells without those that an earlier source of a user's module made, which are logged.

    Args:
        found: From `Cells.read`. Under `modules` a row has the modules that made it, with their digests.
        modules: For each part of the run that names modules of the user's, their digests by name. A cell of modules
            that no part names is kept.
    """
    now = {name: digest for own in modules.values() for name, digest in own.items()}

    def changed(content):
        rows = content if isinstance(content, list) else [content]
        noted = [own for row in rows if isinstance(own := row.get("modules"), dict)]
        return [name for own in noted for name, digest in own.items() if now.get(name, digest) != digest]

    gone = {cell: names[0] for cell, content in found.items() if (names := changed(content))}
    for name in dict.fromkeys(gone.values()):
        cells = [cell for cell, of in gone.items() if of == name]
        log.warning("the source of module '%s' has changed: %d cells made by it no longer count", name, len(cells))
    return {cell: content for cell, content in found.items() if cell not in gone}


def value(row: Mapping[str, Any]) -> float | None:
    """The value that a curve shows of a row of results: its metric on the test rows; None if all trials diverged.

    The row names the metric under `metric`, whether "higher" or "lower" is better under `better`, and the unit in which
    it is shown, "%" or "", under `unit`.
    """
    return row[f"test_{row.get('metric', ACCURACY['metric'])}"]
