"""Files on a disk or in an object store: where they are, written whole, and read back only as they were written."""

import errno
import hashlib
import importlib.util
import json
import logging
import os
import secrets
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from jtransfer.errors import LATER, MAKE_ROOM, Damaged, Gone, InputError, MachineError, Newer, first_line, unavailable

log = logging.getLogger("jtransfer")

T = TypeVar("T")

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}
"""Schemes of the object stores that paths may name, and the package that reads each; TensorFlow reads both."""


def path(words: epath.PathLike, what: str) -> epath.Path:
    """The path that a user's words name; every path of a config or a command line is made here.

    Args:
        words: `~` is the home directory; `gs://...` is an object store.
        what: What names it, for errors, as "--workdir".

    Raises:
        InputError: no words, a user or an object store that is not known, a character that such a path cannot have, or
            an object store whose package is not installed.
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
    if colon and not any(map(_is_installed, (SCHEMES[scheme], "tensorflow"))):
        raise InputError(f"{what} {text}: {scheme}:// takes the package {SCHEMES[scheme]}, which is not installed")
    if not colon and text.startswith("~"):
        text = os.path.expanduser(text)
        if text.startswith("~"):
            raise InputError(f"{what} {text}: there is no user of that name; for a directory called so, write ./{text}")
    return epath.Path(text)


def user_cache() -> epath.Path:
    """The directory of what jtransfer keeps for a user between runs, which may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or epath.Path("~/.cache").expanduser()
    return epath.Path(base) / "jtransfer"


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


PATIENCE = 300.0
"""Seconds for which an object store is asked again that gives no answer; its client asks a few times by itself."""


def patiently(call: Callable[[], T], path: epath.PathLike) -> T:
    """What a call gives that reads or writes a path; while an object store does not answer, it is called again.

    Between two calls there are 1, 2, 4, and in the end 32 seconds.

    Raises:
        Gone: there is no answer within `PATIENCE` seconds.
    """
    since, wait, said = time.monotonic(), 1.0, False
    while True:
        try:
            return call()
        except Exception as error:
            if "://" not in os.fspath(path) or not (why := unavailable(error)):
                raise
            if (waited := time.monotonic() - since) > PATIENCE:
                raise Gone(f"{path}: no answer within {waited:.0f} s: {why}; {LATER}") from error
            if not said:
                log.warning("%s: no answer (%s); trying again for %.0f s", path, why, PATIENCE)
            said = True
        time.sleep(wait)
        wait = min(2 * wait, 32.0)


def exists(path: epath.PathLike) -> bool:
    """Whether there is something at a path.

    Raises:
        Gone: as `patiently`.
    """
    return patiently(epath.Path(path).exists, path)


def is_directory(path: epath.PathLike) -> bool:
    """Whether there is a directory at a path.

    Raises:
        Gone: as `patiently`.
    """
    return patiently(epath.Path(path).is_dir, path)


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Write all of a file at once, and have it on the disk when this returns.

    An object store replaces an object atomically; on a disk a temporary file beside it takes its name. No directory
    is renamed, and nothing is appended.

    Raises:
        InputError: as `writing`.
        MachineError: as `writing`. What was there before is there still.
        Gone: as `patiently`.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    with writing(path):
        patiently(lambda: path.parent.mkdir(parents=True, exist_ok=True), path)
        if "://" in os.fspath(path):
            patiently(lambda: path.write_bytes(content), path)
            return
        draft = path.parent / f".{secrets.token_hex(6)}.draft"  # hosts that share a disk share process numbers
        try:
            draft.write_bytes(content)
            sync(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync(path.parent)


def sync(path: epath.PathLike) -> None:
    """Have what was written to a file or a directory on the disk when this returns.

    Raises:
        OSError: it cannot be opened, or the disk refuses.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def writing(path: epath.PathLike | str) -> Iterator[None]:
    """Turn what is refused within this block into one line that names the path and what to do.

    Raises:
        InputError: this can be no such path: something is in the way, or an object store's client is not installed.
        MachineError: any other `OSError`, as of a full disk.
    """
    try:
        yield
    except (OSError, ImportError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        if getattr(error, "errno", None) in NO_PATH or isinstance(error, IN_THE_WAY):
            raise InputError(f"{path} cannot be written: {why}; choose another place") from error
        raise MachineError(f"{path} cannot be written: {why}; {MAKE_ROOM}") from error


IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError, ImportError)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTEMPTY)
"""Errors and error codes that are of a path itself, not of the machine."""


def check_directory(directory: epath.PathLike, what: str) -> None:
    """Refuse a place in which no directory can be made or filled, by the nearest part of its path that is there.

    Nothing is left behind, and an object store is not asked.

    Args:
        directory: Where it is to be.
        what: What names it, for errors, as "--workdir runs/mine".

    Raises:
        InputError: there is something else than a directory, or a path that no directory can have.
        MachineError: nothing can be written there.
    """
    if "://" in os.fspath(directory):
        return
    there = Path(directory)
    with writing(what):
        while not _is_there(there):
            there = there.parent
        if not there.is_dir():
            found = "a link to nothing" if not there.exists() else "a file" if there.is_file() else "a pipe or device"
            raise InputError(f"{what}: {there} is {found}; expected a directory, or nothing at all")
        tempfile.TemporaryFile(dir=there).close()


def _is_there(path):
    try:
        return bool(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def read(path: epath.PathLike, most: int) -> bytes:
    """All of a file that somebody else wrote, if it is a plain file of at most `most` bytes.

    A pipe or a device would keep a reader waiting for ever.

    Raises:
        OSError: it cannot be read, or is no plain file, or is larger.
    """
    if (found := length(path)) > most:
        raise OSError(f"{found:,} bytes; at most {most:,} are read")
    return patiently(epath.Path(path).read_bytes, path)


def length(path: epath.PathLike) -> int:
    """How many bytes a plain file has.

    Raises:
        OSError: there is none, or it is something else, as a directory, a pipe or a device.
    """
    if "://" in os.fspath(path):
        return patiently(epath.Path(path).stat, path).length
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{'a directory' if stat.S_ISDIR(status.st_mode) else 'a pipe or device'}, not a file")
    return status.st_size


def digest(path: epath.PathLike) -> bytes:
    """The SHA-256 of a plain file, 32 bytes; it is read a part at a time.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    length(path)

    def of_all():
        whole = hashlib.sha256()
        with epath.Path(path).open("rb") as file:
            while part := file.read(1 << 20):
                whole.update(part)
        return whole.digest()

    return patiently(of_all, path)


LARGEST_JSON = 1 << 28
"""Bytes of a JSON file; the largest `tokenizer.json` on the hub has a tenth of that."""


def read_json(path: epath.Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most `most` bytes that somebody else wrote.

    Raises:
        InputError: the file cannot be read, is larger, or holds no JSON object.
    """
    try:
        values = json.loads(read(path, most).decode("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    return values


def as_json(values: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(values, indent=2) + "\n"


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of pairs, as `object_pairs_hook` of `json.loads`, which else takes the last of two values.

    Raises:
        ValueError: a key stands twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key '{name}' stands there twice")
    return values


LARGEST_RECORD = 1 << 24
"""Bytes of a sealed record; one with the names of 100,000 classes has an eighth of that."""

FORMAT, SEAL = "version", "sha256"
"""Keys of a sealed record: the version of its format, and the SHA-256 of the rest."""

VERSION = 2
"""The version of the formats that docs/formats.md describes; in 1 nothing was sealed."""


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its version and the SHA-256 of its values as canonical JSON, so that a change to it shows."""
    whole = {FORMAT: VERSION, **values}
    return whole | {SEAL: _digest(whole)}


def unseal(values: Any, where: epath.PathLike, way_out: str, bare: tuple[type, ...] = (dict,)) -> tuple[int, Any]:
    """The version of a record and its values; 1 for one that was written before there were seals.

    Args:
        values: As they were read.
        where: Where they were read, for errors.
        way_out: What the user can do, for errors.
        bare: What the values were before there were seals: objects, or lists as well.

    Raises:
        Damaged: no record, or not as it was sealed.
        Newer: of a newer version.
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
        raise Newer(f"{where} is of format {version}, which a newer jtransfer wrote; this one reads up to {VERSION}")
    return version, {key: value for key, value in whole.items() if key != FORMAT}


def write_record(path: epath.PathLike, values: Mapping[str, Any]) -> None:
    """Write a sealed record as a file.

    Raises:
        InputError: as `write`.
        MachineError: as `write`.
    """
    write(path, as_json(seal(values)))


def read_record(path: epath.Path, way_out: str, bare: tuple[type, ...] = (dict,)) -> tuple[int, Any]:
    """The version and the values of a record's file.

    Raises:
        Damaged: it cannot be read, is not as it was written, or is of a newer version.
    """
    try:
        values = json.loads(read(path, LARGEST_RECORD).decode("utf-8"), object_pairs_hook=once)
    except (ValueError, OSError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)}); {way_out}") from None
    return unseal(values, path, way_out, bare)


def _digest(values) -> str:
    as_read = json.loads(json.dumps(values))  # keys as texts, before they are sorted
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
