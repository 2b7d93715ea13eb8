"""Files on a disk or in an object store: written whole, so that a reader finds the old content or the new; JSON."""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from jtransfer.errors import InputError


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Write all of a file at once.

    An object store replaces an object atomically; on a disk a temporary file beside it takes its name. No directory
    is renamed, and nothing is appended.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):
        path.write_bytes(content)
    else:
        draft = path.parent / f".{path.name}.{os.getpid()}.draft"
        draft.write_bytes(content)
        draft.replace(path)


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    return values


RECORD = "jtransfer.json"
"""The file in a directory that says which others in it were written together with it."""


@contextmanager
def replacing(directory: epath.PathLike, about: Mapping[str, Any]) -> Iterator[Path]:
    """Write a whole directory at once: give a draft to fill, which takes the directory's name when the block ends.

    Whenever a crash comes, the directory is as it was before or wholly new. What was written by an earlier call is
    replaced; anything else is not. On Linux old and new change places in one step. Elsewhere there is an instant in
    which the old one has only its hidden name beside the new one's place, from where the next call takes it back.

    Args:
        directory: On a disk.
        about: What the record in it says, beside the names of the files.

    Raises:
        InputError: an object store, which cannot do this; or there is something at this place that was not written by
            an earlier call.
    """
    check_replaceable(directory)
    target = Path(os.path.realpath(directory))
    aside = target.parent / f".{target.name}.jtransfer-old"
    draft = target.parent / f".{target.name}.{os.getpid()}.jtransfer-draft"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _settle(target, aside)
        _clear(target)
        draft.mkdir()
        yield draft
        record = dict(about) | {"files": sorted(_files(draft) | {RECORD})}
        (draft / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        for path in [*draft.rglob("*"), draft]:
            _sync(path)
        if not target.exists():
            draft.rename(target)
        elif not _exchange(draft, target):
            target.rename(aside)
            draft.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {error}") from error
    finally:
        _settle(target, aside)
        shutil.rmtree(draft, ignore_errors=True)  # the old directory, if it changed places with the new one


def check_replaceable(directory: epath.PathLike) -> None:
    """Refuse a directory that `replacing` must not replace.

    Raises:
        InputError: an object store; or there is something at this place that was not written by an earlier call.
    """
    if "://" in os.fspath(directory):
        raise InputError(
            f"{directory}: an object store cannot replace a directory as a whole; write to a disk, and copy that"
        )
    target = Path(os.path.realpath(directory))
    if target.exists() and not target.is_dir():
        raise InputError(f"{directory} is a file; expected a directory, or nothing at all")
    there = _files(target)
    if there and not (target / RECORD).exists():
        raise InputError(f"{directory} is not empty, and holds no earlier export; choose another place")
    written = read_json(target / RECORD).get("files") if there else []
    extra = sorted(there.difference(map(str, written if isinstance(written, list) else [])))
    if extra:
        raise InputError(
            f"{directory} holds more than an earlier export ({', '.join(extra[:5])}), which would be lost; move it away"
        )


def _settle(target, aside):
    """What became of an old directory that was renamed: it comes back, or goes where the new one is there."""
    if aside.exists() and not target.exists():
        aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _clear(target):
    """Remove the drafts that calls left behind whose process was killed."""
    for draft in target.parent.glob(f".{target.name}.*.jtransfer-draft"):
        process = draft.name.split(".")[-2]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(draft, ignore_errors=True)


def _runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # there is one, of another user
        return True
    return process != os.getpid()


def _files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def _sync(path):
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _exchange(one, other):
    """Let two directories change places in one step; false where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, exchange = -100, 2
    both = at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other)
    return rename is not None and rename(*both, exchange) == 0
