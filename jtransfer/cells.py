"""Finished parts of a run, one small object each: what was stopped goes on, and what has grown does only the rest."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from etils import epath

from jtransfer import files


@dataclass(frozen=True)
class Cells:
    """The folder `cells` of a run's directory, local or in an object store.

    Attributes:
        directory: The run's.
    """

    directory: epath.Path

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """Of these cells those that are finished, in this order."""
        folder = self.directory / "cells"
        present = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return {name: json.loads(self._path(name).read_text()) for name in names if self._path(name).name in present}

    def write(self, name: str, content: Any) -> None:
        """Keep a finished cell, as JSON."""
        files.write(self._path(name), json.dumps(content) + "\n")

    def gather(self, rows: Iterable[Any]) -> None:
        """Write all rows into `results.jsonl`."""
        files.write(self.directory / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _path(self, name):
        return self.directory / "cells" / f"{quote(name, safe='')}.json"
