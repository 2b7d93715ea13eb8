"""Directories that somebody else filled: their entries, each directory once, and nothing outside of them."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from jtransfer import files
from jtransfer.errors import InputError


class Entry(NamedTuple):
    """Something in a directory: its name, its path, and whether it is a "directory", a "file", or "other"."""

    name: str
    path: str
    kind: str

    @property
    def hidden(self) -> bool:
        """Whether the name begins with a dot, or is `__MACOSX`, a directory that macOS puts into archives."""
        return self.name.startswith(".") or self.name == "__MACOSX"


def entries(directory: str, root: str) -> Iterator[Entry]:
    """The entries of a directory, in the order of their names.

    Args:
        directory: On a disk, or in an object store, where nothing is checked.
        root: The place that no link may lead out of, hidden ones excepted; it may be a link itself.

    Raises:
        InputError: the directory cannot be read, or has a link that leads out of `root` or to nothing.
    """
    if "://" in directory:
        for entry in sorted(files.patiently(lambda: [*epath.Path(directory).iterdir()], directory)):
            yield Entry(entry.name, os.fspath(entry), "directory" if files.is_directory(entry) else "file")
        return
    try:
        with os.scandir(directory) as found:
            ordered = sorted(found, key=lambda entry: entry.name)
        for entry in ordered:
            one = Entry(entry.name, entry.path, "other")
            if entry.is_symlink() and not one.hidden:
                inside(entry.path, root)
            is_directory, is_file = entry.is_dir(), entry.is_file()
            yield one._replace(kind="directory" if is_directory else "file" if is_file else "other")
    except OSError as error:
        raise InputError(f"{shown(directory)} cannot be read ({error.strerror or error})") from None


def inside(path: str, root: str) -> str:
    """Return a path on a disk as it is, if it leads to something inside of `root` when all links are followed.

    Raises:
        InputError: the path leads out of `root`, or to nothing.
    """
    try:
        real = os.path.realpath(path, strict=True)
    except OSError as error:
        link = "is a link that cannot be followed" if os.path.islink(path) else "cannot be read"
        raise InputError(f"{shown(path)} {link} ({error.strerror or error})") from None
    within = os.path.realpath(root)
    if os.path.commonpath([real, within]) != within:
        raise InputError(
            f"{shown(path)} leads to {shown(real)}, outside of {shown(root)}; data is read from its own place alone: "
            f"copy it there"
        )
    return path


TRAIN, TEST = ("train",), ("test", "dev", "valid", "val")
"""How the names of the files of a directory begin; of those for testing the first kind that there is."""


def beginning(directory: epath.Path, names: Sequence[str], suffixes: tuple[str, ...] = ("",)) -> list[epath.Path]:
    """The files of a directory whose names begin with the first of some words with which any begins, in their order.

    Args:
        directory: On a disk, or in an object store.
        names: The words, as `TRAIN` or `TEST`.
        suffixes: Endings of files, of which each has one, in lower or upper case.

    Raises:
        InputError: as `entries`.
    """
    root = os.fspath(directory)
    inside = [entry for entry in entries(root, root) if not entry.hidden and entry.name.lower().endswith(suffixes)]
    found = ([entry for entry in inside if entry.name.startswith(name)] for name in names)
    return [epath.Path(entry.path) for entry in next(filter(None, found), [])]


class Places:
    """Directories that were entered: each may be entered once, so that links cannot form a cycle."""

    def __init__(self):
        self.seen = {}

    def enter(self, path: str) -> str:
        """Note a directory as entered, and return its path; directories in an object store are not noted.

        Raises:
            InputError: the directory was entered before, by this or another name.
        """
        if "://" not in path:
            status = os.stat(path)
            before = self.seen.setdefault((status.st_dev, status.st_ino), path)
            if before is not path:
                raise InputError(
                    f"{shown(path)} is a link to {shown(before)}, which is read already; remove one of them"
                )
        return path


def shown(path: str | os.PathLike) -> str:
    """A path as one line: control characters, line separators and bytes that are not UTF-8 are escaped."""
    return "".join(c.encode("unicode_escape").decode() if _unclean(c) else c for c in os.fspath(path))


def printable(name: str) -> bool:
    """Whether a name can be written into tables and JSON: UTF-8, without control characters or line separators."""
    return not any(map(_unclean, name))


def _unclean(c: str) -> bool:
    return not c.isprintable() and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
