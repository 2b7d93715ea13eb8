"""Files that are read a part at a time, on a disk or in an object store, of which every read waits for an answer."""

import io
import os
from typing import BinaryIO

from etils import epath

from jtransfer import files

AHEAD = 1 << 23
"""Bytes that are asked of an object store at once where a file is read from one end to the other."""

ROW = 1 << 16
"""Bytes that are asked of an object store at once where a few lines are read here and there."""


def opened(path: epath.PathLike, ahead: int = AHEAD) -> BinaryIO:
    """A file open for reading, at any place.

    Args:
        path: On a disk, or in an object store.
        ahead: Bytes that an object store is asked for at once.

    Raises:
        OSError: it cannot be read.
        Gone: as `files.patiently`, by each read too.
    """
    path = epath.Path(path)
    return io.BufferedReader(_Parts(path), ahead) if "://" in os.fspath(path) else path.open("rb")


def part(path: epath.PathLike, start: int, size: int) -> bytes:
    """`size` bytes of a file from a place on, by one request where it lies in an object store; fewer at its end.

    Raises:
        OSError: it cannot be read.
        Gone: as `files.patiently`.
    """
    path = epath.Path(path)
    if not size:
        return b""
    if "://" not in os.fspath(path):
        return _sought(path, start, size)
    return files.patiently(lambda: _asked(path, start, size), path)


def _asked(path: epath.Path, start: int, size: int) -> bytes:
    try:
        from fsspec.core import url_to_fs

        store, place = url_to_fs(os.fspath(path))
    except ImportError:  # where TensorFlow reads object stores
        return _sought(path, start, size)
    return store.cat_file(place, start, start + size)


def _sought(path: epath.Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


class _Parts(io.RawIOBase):
    """A file in an object store, which is asked for the bytes of each read."""

    def __init__(self, path: epath.Path):
        self.path, self.size, self.place = path, files.length(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer) -> int:
        found = part(self.path, self.place, max(0, min(len(buffer), self.size - self.place)))
        buffer[: len(found)] = found
        self.place += len(found)
        return len(found)

    def readall(self) -> bytes:
        found = part(self.path, self.place, max(0, self.size - self.place))
        self.place += len(found)
        return found
