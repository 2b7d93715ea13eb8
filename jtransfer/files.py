"""Files on a disk or in an object store: where they are, written whole, and read back only as they were written."""

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from jtransfer.errors import Damaged, InputError, MachineError

SCHEMES = ("gs", "s3")
"""Of the object stores that paths may name."""


def path(words: epath.PathLike, what: str) -> epath.Path:
    """The path that a user's words name; every path of a config or a command line is made here.

    Args:
        words: `~` is the home directory; `gs://...` is an object store.
        what: What names it, for errors, as "--workdir".

    Raises:
        InputError: no words, a user or an object store that is not known, or a character that such a path cannot have.
    """
    text = os.fspath(words)
    if not text.strip():
        raise InputError(f"{what} is empty; expected a path")
    if "\0" in text:
        raise InputError(f"{what} {text!r} holds a NUL character, which no path can have")
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise InputError(f"{what} {text!r} is not UTF-8, in which results are written")
    scheme, colon, rest = text.partition("://")
    if colon and (scheme not in SCHEMES or not rest.strip("/")):
        expected = ", ".join(f"{name}://BUCKET/..." for name in SCHEMES)
        raise InputError(f"{what} {text}: expected a path on a disk, or {expected}")
    if colon and any(mark in rest for mark in "*?["):
        raise InputError(f"{what} {text} holds '*', '?' or '[', which clients of object stores take for a pattern")
    if not colon and text.startswith("~"):
        text = os.path.expanduser(text)
        if text.startswith("~"):
            raise InputError(f"{what} {text}: there is no user of that name; for a directory called so, write ./{text}")
    return epath.Path(text)


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Write all of a file at once, and have it on the disk when this returns.

    An object store replaces an object atomically; on a disk a temporary file beside it takes its name. No directory
    is renamed, and nothing is appended.

    Raises:
        MachineError: it cannot be written. What was there before is there still.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if "://" in os.fspath(path):
            path.write_bytes(content)
            return
        draft = path.parent / f".{secrets.token_hex(6)}.draft"  # hosts that share a disk share process numbers
        try:
            draft.write_bytes(content)
            _sync(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def writing(path: epath.PathLike | str) -> Iterator[None]:
    """What is refused within this block, said as one line that names the path and what to do.

    Raises:
        InputError: this can be no such path: something is in the way, or an object store's client is not installed.
        MachineError: any other `OSError`, as of a full disk.
    """
    try:
        yield
    except (OSError, ImportError) as error:
        why = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        if getattr(error, "errno", None) in NO_PATH or isinstance(error, IN_THE_WAY):
            raise InputError(f"{path} cannot be written: {why}; choose another place") from error
        raise MachineError(
            f"{path} cannot be written: {why}; make room or choose another place, and the same command goes on"
        ) from error


IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError, ImportError)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTEMPTY)
"""What is wrong with a path itself, whatever the machine does."""


def read(path: epath.PathLike, most: int) -> bytes:
    """All of a file that somebody else wrote, if it is a plain file of at most `most` bytes.

    A pipe or a device would keep a reader waiting for ever.

    Raises:
        OSError: it cannot be read, or is no plain file, or is larger.
    """
    if (found := length(path)) > most:
        raise OSError(f"{found:,} bytes; at most {most:,} are read")
    return epath.Path(path).read_bytes()


def length(path: epath.PathLike) -> int:
    """How many bytes a plain file has.

    Raises:
        OSError: there is none, or it is something else, as a directory, a pipe or a device.
    """
    if "://" in os.fspath(path):
        return epath.Path(path).stat().length
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{'a directory' if stat.S_ISDIR(status.st_mode) else 'a pipe or device'}, not a file")
    return status.st_size


def read_json(path: epath.Path, most: int | None = None) -> dict[str, Any]:
    """The object in a JSON file of at most `most` bytes that somebody else wrote.

    Raises:
        InputError: the file is damaged, or larger than any such file is.
    """
    try:
        values = json.loads(read(path, LARGEST_JSON if most is None else most).decode("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    return values


LARGEST_JSON = 1 << 28
"""Bytes; the largest `tokenizer.json` on the hub has a tenth of that."""

FORMAT, SEAL = "version", "sha256"
"""Keys of a sealed record: the version of its format, and the SHA-256 of the rest."""

VERSION = 2
"""Of the formats that docs/formats.md describes; in 1 nothing was sealed."""


def seal(values: Mapping[str, Any], version: int = VERSION) -> dict[str, Any]:
    """A record with its version and the SHA-256 of its values as canonical JSON, so that a change to it shows."""
    whole = {FORMAT: version, **values}
    return whole | {SEAL: _digest(whole)}


def unseal(values: Any, where: epath.PathLike, way_out: str, bare: tuple[type, ...] = (dict,)) -> tuple[int, Any]:
    """The version of a record and its values; 1 for one that was written before there were seals.

    Args:
        values: As they were read.
        where: Of what, for errors.
        way_out: What the user can do, for errors.
        bare: What the values were before there were seals: objects, or lists as well.

    Raises:
        Damaged: no record, or not as it was sealed.
    """
    if not isinstance(values, bare):
        raise Damaged(f"{where} is damaged ({type(values).__name__} where an object is due); {way_out}")
    if isinstance(values, list):
        return 1, values
    if FORMAT not in values and not isinstance(values.get(SEAL), str):
        return 1, values
    whole = {key: value for key, value in values.items() if key != SEAL}
    version = whole.get(FORMAT)
    if values.get(SEAL) != _digest(whole) or type(version) is not int:
        raise Damaged(f"{where} is damaged (its checksum differs); {way_out}")
    if version > VERSION:
        raise Damaged(f"{where} is of format {version}, which a newer jtransfer wrote; this one reads up to {VERSION}")
    return version, {key: value for key, value in whole.items() if key != FORMAT}


def write_record(path: epath.PathLike, values: Mapping[str, Any], version: int = VERSION) -> None:
    """Write a sealed record as a file."""
    write(path, json.dumps(seal(values, version), indent=2) + "\n")


def read_record(path: epath.Path, way_out: str, bare: tuple[type, ...] = (dict,)) -> tuple[int, Any]:
    """The version and the values of a record's file.

    Raises:
        Damaged: it is not as it was written.
    """
    try:
        values = json.loads(read(path, LARGEST_JSON).decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, OSError, RecursionError) as error:
        raise Damaged(
            f"{path} is damaged ({next(iter(str(error).splitlines()), type(error).__name__)}); {way_out}"
        ) from None
    return unseal(values, path, way_out, bare)


def _once(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _digest(values) -> str:
    as_read = json.loads(json.dumps(values))  # keys as texts, before they are sorted
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


RECORD = "jtransfer.json"
"""The file in a directory that says which others in it were written together with it, and the SHA-256 of each."""


def write_together(directory: epath.PathLike, contents: Mapping[str, bytes]) -> None:
    """Write some files of a directory, local or in an object store, and a record of them, by which `verify` knows them.

    Raises:
        MachineError: one of them cannot be written.
    """
    directory = epath.Path(directory)
    for name, content in contents.items():
        write(directory / name, content)
    of_each = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    write_record(directory / RECORD, {"files": of_each})


def verify(directory: epath.PathLike) -> None:
    """Check the files of a directory against the record that was written with them, if there is one.

    Raises:
        Damaged: one of them is not as it was written, or there is one more that a loader may read.
    """
    record = epath.Path(directory) / RECORD
    if not record.exists():
        return
    way_out = f"write the directory again, or remove its {RECORD} if you changed it yourself"
    version, values = read_record(record, way_out)
    of_each = values.get("files") if version > 1 else {}
    if not isinstance(of_each, dict):
        raise Damaged(f"{record} is damaged (it lists no files); {way_out}")
    for name, sha256 in of_each.items():
        path = record.parent / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise Damaged(f"{record} names {name!r}, which is outside its directory; {way_out}")
        try:
            length(path)
            same = _sha256(path) == sha256
        except OSError as error:
            raise Damaged(f"{path}, which was written with {record}, cannot be read ({error}); {way_out}") from error
        if not same:
            raise Damaged(f"{path} is damaged (its checksum differs); {way_out}")
    if added := sorted(_loadable(record.parent) - {RECORD, *of_each}) if version > 1 else ():
        raise Damaged(
            f"{record.parent / added[0]} was not written with the files beside it; move it away, or remove "
            f"{record} if you put it there yourself"
        )


LOADABLE = (".json", ".safetensors", ".npz", ".txt", ".model")
"""Ends of the names of files in which loaders find weights, or what is done with them."""


def _loadable(directory):
    """Such files in a directory and, as of a sentence encoder's modules, one below."""
    folders = [directory, *(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))]
    return {
        path.name if folder == directory else f"{folder.name}/{path.name}"
        for folder in folders
        for path in folder.iterdir()
        if path.name.endswith(LOADABLE) and not path.name.startswith(".")
    }


def _sha256(path):
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def replacing(directory: epath.PathLike, about: Mapping[str, Any]) -> Iterator[Path]:
    """Write a whole directory at once: give a draft to fill, which takes the directory's name when the block ends.

    Whenever a crash comes, the directory is as it was before or wholly new. What was written by an earlier call is
    replaced; anything else is not. On Linux old and new change places in one step. Elsewhere there is an instant in
    which the old one has only its hidden name beside the new one's place, from where the next call takes it back.

    Args:
        directory: On a disk.
        about: What the record in it says, beside the files and the SHA-256 of each.

    Raises:
        InputError: an object store, which cannot do this; or there is something at this place that was not written by
            an earlier call.
        MachineError: it cannot be written.
    """
    check_replaceable(directory)
    target = Path(os.path.realpath(directory))
    aside = target.parent / f".{target.name}.jtransfer-old"
    draft = target.parent / f".{target.name}.{os.getpid()}.jtransfer-draft"
    try:
        with writing(directory):
            target.parent.mkdir(parents=True, exist_ok=True)
            _settle(target, aside)
            _clear(target)
            draft.mkdir()
            yield draft
            of_each = {name: _sha256(draft / name) for name in sorted(_files(draft))}
            (draft / RECORD).write_text(json.dumps(seal(dict(about) | {"files": of_each}), indent=2) + "\n")
            for path in [*draft.rglob("*"), draft]:
                _sync(path)
            if not target.exists():
                draft.rename(target)
            elif not _exchange(draft, target):
                target.rename(aside)
                draft.rename(target)
            _sync(target.parent)
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
    written = read_record(target / RECORD, "move it away")[1].get("files") if there else ()
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


def runs(process: int) -> bool:
    """Whether another process of this number runs on this machine; one that ended and was not waited for does not."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except PermissionError:  # there is one, of another user
        return True
    status = Path(f"/proc/{process}/stat")
    ended = status.exists() and status.read_text().rpartition(")")[2].split()[0] in "ZX"
    return process != os.getpid() and not ended


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
