"""Finished parts of a run, one small object each: what was stopped goes on, and what has grown does only the rest."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged

log = logging.getLogger("jtransfer")


@dataclass(frozen=True)
class Cells:
    """The folder `cells` of a run's directory, local or in an object store; several runs may fill it at once.

    Attributes:
        directory: The run's.
        fingerprint: What every row has under `fingerprint`: that of the config which the cells are of.
    """

    directory: epath.Path
    fingerprint: str

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """Of these cells those that are finished, in this order. A damaged one is said, and counts as not done."""
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
        """Keep a finished cell: a row, or a list of rows, as JSON has them."""
        files.write_record(self._path(name), {"name": name, "content": content})

    def gather(self, rows: Iterable[Any]) -> None:
        """Write all rows into `results.jsonl`, which is for others to read: nothing here does."""
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
        return self.directory / "cells" / f"{quote(name, safe='')}.json"
