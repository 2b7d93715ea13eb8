"""Rows as CSV, TSV or JSON lines: written beside their place and put there when all are, so that no half is left."""

import csv
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from jtransfer import files
from jtransfer.errors import InputError, nearest
from jtransfer.predict.rows import TABLES


def place(words: str, path: str, overwrite: bool) -> epath.Path:
    """Where predictions go.

    Args:
        words: The flag; "" for a file beside the one that is read, as `mine.predictions.csv` beside `mine.csv`.
        path: What is read.
        overwrite: Whether a file that is there is replaced.

    Raises:
        InputError: another ending than a table's, a file that is there, the file that is read itself, or a directory.
    """
    if not words:
        base, ending = os.path.splitext(path.rstrip("/"))
        if "*" in path:
            raise InputError(f"--output is needed for the images of '{path}'; expected a file in {', '.join(TABLES)}")
        base, ending = (base, ending) if ending in TABLES else (path.rstrip("/"), ".jsonl")
        words = f"{base}.predictions{ending}"
    found = files.path(words, "--output")
    ending = os.path.splitext(found.name)[1].lower()
    if ending not in TABLES:
        raise InputError(
            f"--output {words}: expected a file that ends in {', '.join(TABLES)}; {nearest(ending, TABLES)}"
        )
    if os.path.realpath(found) == os.path.realpath(path):
        raise InputError(f"--output {words} is the file that is read; expected another")
    if files.exists(found) and not overwrite:
        raise InputError(f"--output {words} is there already; choose another, or give --overwrite")
    if files.is_directory(found):
        raise InputError(f"--output {words} is a directory; expected a file")
    files.check_directory(found.parent, f"--output {words}")
    return found


def write(path: epath.Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as the ending of a path says; what a row lacks is blank.

    In CSV and TSV, lists and objects are JSON.

    Raises:
        MachineError: it cannot be written. What was there before is there still.
    """
    ending = os.path.splitext(path.name)[1].lower()
    if "://" in os.fspath(path):
        whole = io.StringIO(newline="")
        _fill(whole, ending, columns, rows)
        files.write(path, whole.getvalue())
        return
    draft = path.parent / f".{secrets.token_hex(6)}.draft"
    try:
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(draft, "w", encoding="utf-8", newline="") as opened:
                _fill(opened, ending, columns, rows)
            files.sync(draft)
            draft.replace(path)
            files.sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _fill(opened, ending, columns, rows):
    if ending in (".jsonl", ".ndjson"):
        for row in rows:
            opened.write(_json(row) + "\n")
        return
    table = csv.writer(opened, delimiter="\t" if ending == ".tsv" else ",", lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else "" if value is None else value


def _json(value):
    """A value as JSON, which has no NaN and no infinity: null stands for both."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
