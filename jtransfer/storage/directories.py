"""Directories whose files belong together: written with a record of them, replaced whole, told from damage."""

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged, InputError
from jtransfer.storage.locks import runs

RECORD = "jtransfer.json"
"""The file in a directory that lists the files which were written together with it, and the SHA-256 of each."""


def write_together(directory: epath.PathLike, contents: Mapping[str, bytes]) -> None:
    """Write some files of a directory, local or in an object store, and a record of them, which `verify` reads.

    Args:
        directory: It is made if it does not exist.
        contents: The bytes of each file, by its path in the directory.

    Raises:
        InputError, MachineError: as `files.write`.
    """
    directory = epath.Path(directory)
    for name, content in contents.items():
        files.write(directory / name, content)
    of_each = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    files.write_record(directory / RECORD, {"files": of_each})


def verify(directory: epath.PathLike) -> None:
    """Check the files of a directory against the record that was written with them, if there is one.

    Raises:
        Damaged: a file is missing or not as it was written, there is a further file that a loader may read, or the
            record is damaged.
    """
    record = epath.Path(directory) / RECORD
    if not record.exists():
        return
    way_out = f"write the directory again, or remove its {RECORD} if you changed it yourself"
    version, values = files.read_record(record, way_out)
    of_each = values.get("files") if version > 1 else {}
    if not isinstance(of_each, dict):
        raise Damaged(f"{record} is damaged (it lists no files); {way_out}")
    for name, sha256 in of_each.items():
        path = record.parent / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise Damaged(f"{record} names {name!r}, which is outside its directory; {way_out}")
        try:
            same = files.digest(path).hex() == sha256
        except OSError as error:
            raise Damaged(f"{path}, which was written with {record}, cannot be read ({error}); {way_out}") from error
        if not same:
            raise Damaged(f"{path} is damaged (its checksum differs); {way_out}")
    if added := sorted(_loadable(record.parent) - {RECORD, *of_each}) if version > 1 else ():
        raise Damaged(
            f"{record.parent / added[0]} was not written with the files beside it; move it away, or remove "
            f"{record} if you put it there yourself"
        )


LOADABLE = (".json", ".safetensors", ".npz", ".model", "vocab.txt", "merges.txt")
"""Endings of the files from which loaders read weights and settings."""


def _loadable(directory):
    """Such files in a directory and, as of a sentence encoder's modules, one below."""
    folders = [directory, *(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))]
    return {
        path.name if folder == directory else f"{folder.name}/{path.name}"
        for folder in folders
        for path in folder.iterdir()
        if path.name.endswith(LOADABLE) and not path.name.startswith(".")
    }


@contextmanager
def replacing(directory: epath.PathLike, about: Mapping[str, Any]) -> Iterator[Path]:
    """Write a whole directory at once: yield a draft to fill, which takes the directory's name when the block ends.

    After a crash the directory is either as it was before or wholly new. A directory that an earlier call wrote is
    replaced; anything else is refused. On Linux old and new change places in one step. Elsewhere there is an instant in
    which the old one has only its hidden name beside the new one's place, from where the next call takes it back.

    Args:
        directory: On a disk.
        about: What the record says beside the files and the SHA-256 of each.

    Raises:
        InputError: as `check_replaceable`, or no directory can be made at this path.
        Damaged: the record of the earlier call is damaged.
        MachineError: it cannot be written.
    """
    check_replaceable(directory)
    target = Path(os.path.realpath(directory))
    aside = target.parent / f".{target.name}.jtransfer-old"
    draft = target.parent / f".{target.name}.{os.getpid()}.jtransfer-draft"
    try:
        with files.writing(directory):
            target.parent.mkdir(parents=True, exist_ok=True)
            _settle(target, aside)
            _clear(target)
            draft.mkdir()
            yield draft
            of_each = {name: files.digest(draft / name).hex() for name in sorted(_files(draft))}
            (draft / RECORD).write_text(files.as_json(files.seal(dict(about) | {"files": of_each})))
            for path in [*draft.rglob("*"), draft]:
                files.sync(path)
            if not target.exists():
                draft.rename(target)
            elif not _exchange(draft, target):
                target.rename(aside)
                draft.rename(target)
            files.sync(target.parent)
    finally:
        _settle(target, aside)
        shutil.rmtree(draft, ignore_errors=True)  # the old directory, if it changed places with the new one


def check_replaceable(directory: epath.PathLike) -> None:
    """Refuse a directory that `replacing` must not replace.

    Raises:
        InputError: an object store, where a directory cannot be replaced at once; or there is something at this place
            that was not written by an earlier call.
        Damaged: the record of the earlier call is damaged.
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
    written = files.read_record(target / RECORD, "move it away")[1].get("files") if there else ()
    known = {RECORD, *map(str, written if isinstance(written, list | dict) else ())}  # a list in format 1
    extra = sorted(there - known)
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
        if process.isdigit() and not runs(int(process)):
            shutil.rmtree(draft, ignore_errors=True)


def _files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def _exchange(one, other):
    """Let two directories change places in one step; false where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, exchange = -100, 2
    both = at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other)
    return rename is not None and rename(*both, exchange) == 0
