"""NumPy's `.npz` files from anywhere: every header is checked against the file before a byte of its array is read.

A zip archive of `.npy` members can claim whatever it likes: a shape of 10^17 values, pickled objects that run code, or
gigabytes that are packed into a megabyte. So the headers are read first, and an array is only made where the size that
it claims, the size of its member and the size of the file agree. An array is read once, into its own
memory, or row by row, where it lies unpacked in a file on a disk.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.errors import InputError, first_line
from jtransfer.kinds import shown
from jtransfer.storage import parts

MOST_ARRAYS = 4096
"""Arrays in one file, at most; the largest checkpoints in this format have some hundreds."""

LONGEST_DIRECTORY = 1 << 21
"""Bytes of a zip archive's list of members, which is read as a whole."""

LONGEST_HEADER = 10_000
"""Bytes of the header of one array; NumPy's own limit."""

UNQUESTIONED, PACKED = 1 << 28, 100
"""An archive may unpack to `UNQUESTIONED` bytes, or to `PACKED` times its size if that is more."""

CHUNK = 1 << 20
"""Bytes that are read at once."""


class NpzArray(NamedTuple):
    """One array of a file, known by its header.

    Attributes:
        shape: Of the array.
        dtype: Of its values.
        read: Reads the array into memory.
        rows: An `NpzRows`, if the array lies uncompressed and in C order in a file on a disk; else as `read`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    rows: Callable[[], "np.ndarray | NpzRows"]


class NpzRows:
    """An array in a file, indexed by rows, which are read from the file when they are asked for.

    Attributes:
        what: The array's name, for errors.
        file: The open file.
        start: Where the values begin in the file, in bytes.
        shape: `[rows, ...]`.
        dtype: Of the values.
    """

    def __init__(self, what: str, file: Any, start: int, shape: tuple[int, ...], dtype: np.dtype, opened: Any = None):
        self.what, self.file, self.start, self.shape, self.dtype = what, file, start, shape, dtype
        self._opened = opened or self._now()

    def __reduce__(self):
        return _opened_again, (self.file.name, self.what, self.start, self.shape, self.dtype, self._opened)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, shape: tuple[int, ...]) -> "NpzRows":
        """The array with other axes after the first: a `shape` of as many rows, and as many values in each row."""
        return NpzRows(self.what, self.file, self.start, shape, self.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read rows from the file.

        Args:
            index: Of rows alone: row numbers, a slice or a mask.

        Raises:
            InputError: the file has changed since it was opened.
        """
        rows = np.arange(len(self))[index]
        found, flat = np.empty((*rows.shape, *self.shape[1:]), self.dtype), rows.reshape(-1)
        into, length = found.reshape(-1).view(np.uint8), math.prod(self.shape[1:]) * self.dtype.itemsize
        # Rows that follow each other are read together.
        ends = [*np.flatnonzero(np.diff(flat) != 1) + 1, len(flat)] if len(flat) else []
        for first, end in zip([0, *ends], ends, strict=False):
            part, where = memoryview(into[first * length : end * length]), self.start + int(flat[first]) * length
            while part and (read := os.preadv(self.file.fileno(), [part], where)):
                part, where = part[read:], where + read
        if self._now() != self._opened:
            raise InputError(f"{self.what} has changed since it was opened; start again, and leave the file as it is")
        return found

    def _now(self):
        now = os.fstat(self.file.fileno())
        return now.st_size, now.st_mtime_ns


def _opened_again(path: str, what: str, start: int, shape: tuple[int, ...], dtype: np.dtype, opened: Any) -> NpzRows:
    """An array in a file, in a process that it was sent to."""
    try:
        file = parts.opened(path)
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror or error})") from None
    return NpzRows(what, file, start, shape, dtype, opened)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array, aligned to 64 bytes so that JAX's CPU device takes its memory over and copies nothing."""
    size, alignment = math.prod(shape) * np.dtype(dtype).itemsize, 64
    buffer = np.empty(size + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size].view(dtype).reshape(shape)


def open_npz(path: epath.PathLike) -> dict[str, NpzArray]:
    """The arrays of an `.npz` file by key, of which nothing but the headers is read yet.

    Args:
        path: Of the file, on a disk or in an object store.

    Raises:
        InputError: no plain file, no `.npz` file, a damaged one, or an array that is pickled, or larger than the file
            allows. An array's `read` and `rows` raise it too: they compare the bytes with their checksum.
    """
    path = epath.Path(path)
    try:
        length = files.length(path)
        file = parts.opened(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a path to an .npz file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        directory = _directory(file, length)
        if directory > LONGEST_DIRECTORY:
            raise InputError(f"{path}: its list of arrays has {directory:,} bytes; at most {LONGEST_DIRECTORY:,}")
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        file.close()
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not an .npz file, or a truncated one; expected what numpy.savez writes") from None
    if len(members) > MOST_ARRAYS:
        raise InputError(f"{path}: holds {len(members):,} arrays; at most {MOST_ARRAYS:,} are read")
    if sum(member.compress_size for member in members) > length:
        raise InputError(f"{path}: damaged, its arrays claim more bytes than the file has; write the file again")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(UNQUESTIONED, PACKED * length):
        raise InputError(
            f"{path}: {length:,} bytes that unpack to {unpacked:,}; at most {PACKED} times its size is unpacked; "
            f"write it with numpy.savez, which does not pack"
        )
    arrays, local = {}, "://" not in os.fspath(path)
    for member in members:
        key = member.filename.removesuffix(".npy")
        if key in arrays:
            raise InputError(f"{path}: key {key[:80]!r} stands twice; write the file again")
        arrays[key] = _array(f"{path}: key {key[:80]!r}", file, archive, member, local)
    return arrays


def _directory(file: Any, length: int) -> int:
    """How many bytes the list of members has, as the end of a zip archive says (APPNOTE.TXT 4.3.14 and 4.3.16)."""
    file.seek(max(0, length - (1 << 16) - 98))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0:
        raise zipfile.BadZipFile("no end")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    if tail[max(0, end - 76) :].startswith(b"PK\6\6") and tail[end - 20 : end].startswith(b"PK\6\7"):
        size = int.from_bytes(tail[end - 36 : end - 28], "little")  # of the record for numbers above 32 bits
    return size


def _array(what: str, file: Any, archive: zipfile.ZipFile, member: zipfile.ZipInfo, local: bool) -> NpzArray:
    """The header of one member, if it can be believed; of a file on a disk rows can be read."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise InputError(f"{what} is packed or encrypted in another way than numpy.savez and savez_compressed do")
    try:
        with archive.open(member) as opened:
            head = io.BytesIO(opened.read(LONGEST_HEADER + 12))
        version = np.lib.format.read_magic(head)
        # Version 3 differs from 2 in the names of fields alone, and no array with fields is read.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head, max_header_size=LONGEST_HEADER)
    except Exception as error:  # of zlib, of Python's parser, of NumPy's dtypes
        raise InputError(f"{what} is damaged ({first_line(error)[:120]}); write the file again") from None
    if dtype.hasobject:
        raise InputError(f"{what} is a pickled object array; expected plain numbers or strings")
    if dtype.names is not None or dtype.subdtype is not None:
        raise InputError(f"{what} is an array of records ({len(dtype.names or ())} fields); expected plain numbers")
    if version > (3, 0) or not all(type(side) is int and side >= 0 for side in shape):
        raise InputError(f"{what} is damaged (version {version}, shape {shown(list(shape))}); write the file again")
    claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - head.tell()
    if claimed != there or (not claimed and math.prod(shape)):
        raise InputError(
            f"{what} claims the shape {shown(list(shape))} of {dtype.name}, {_count(claimed)} bytes, but {there:,} are "
            f"there; write the file again"
        )
    read = partial(_read, what, archive, member, head.tell(), shape, fortran, dtype)
    if member.compress_type != zipfile.ZIP_STORED or fortran or not shape or not local:
        return NpzArray(shape, dtype, read, read)
    return NpzArray(shape, dtype, read, partial(_rows, what, file, archive, member, head.tell(), shape, dtype))


def _read(what, archive, member, start, shape, fortran, dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    if size > (memory := _memory()):
        raise InputError(f"{what} needs {size:,} bytes of memory; this machine has {memory:,}")
    with _damage(what):
        flat = np.empty(math.prod(shape), dtype)
        into, at = flat.view(np.uint8) if size else flat, 0
        for part in _parts(archive, member, start):
            into[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
        if at != size:
            raise EOFError(f"{at:,} bytes of {size:,}")
        return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _rows(what, file, archive, member, start, shape, dtype) -> NpzRows:
    with _damage(what):
        for _ in _parts(archive, member, start):
            pass
    head = os.pread(file.fileno(), 30, member.header_offset)  # of the member: APPNOTE.TXT 4.3.7
    name, extra = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
    return NpzRows(what, file, member.header_offset + 30 + name + extra + start, shape, dtype)


def _parts(archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int) -> Iterator[bytes]:
    """The bytes of a member from `start` on; its checksum is compared at their end."""
    with archive.open(member) as file:
        file.read(start)
        while part := file.read(CHUNK):
            yield part


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Whatever zlib and the file say in the block is an error of the input."""
    try:
        yield
    except MemoryError:
        raise InputError(f"{what} needs more bytes of memory than are free") from None
    except Exception as error:
        raise InputError(f"{what} is damaged ({first_line(error)[:120]}); write the file again") from None


def _count(size: int) -> str:
    return f"{size:,}" if size < 10**24 else "more than 10^24"


def _memory() -> int:
    """Bytes of memory that the machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 1 << 62
