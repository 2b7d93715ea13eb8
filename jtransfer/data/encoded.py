"""Images as the files that somebody encoded: read and decoded by row, and told apart by every byte."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jtransfer import files
from jtransfer.data.dataset import Lazy, each, refused
from jtransfer.data.downloads import shown
from jtransfer.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of image files, in lower or upper case: those of the formats that `pictures` decodes."""

BLOCK = 4096
"""Files that are handed to the threads at once."""


def lazy(
    count: int, content: Callable[[int], bytes], what: Callable[[int], str], identity: str, contents: str = ""
) -> Lazy:
    """Images that are read and decoded when their rows are asked for, in as many threads as there are cores.

    Args:
        count: Number of rows.
        content: From a row number to the bytes of an image file.
        what: From a row number to the name of the image, for errors.
        identity: As of a `Lazy`.
        contents: As of a `Lazy`.
    """
    from jtransfer.data import pictures

    def read_files(rows: np.ndarray) -> list[tuple[bytes, str]]:
        return each(lambda row: (content(row), what(row)), rows.tolist())

    def read_rows(rows: np.ndarray) -> list[np.ndarray]:
        return each(lambda row: pictures.decode(content(row), what(row)), rows.tolist())

    def damaged(rows: np.ndarray) -> dict[int, str]:
        def refuse(row):
            pictures.check(content(row), what(row))

        return dict(said for block in _blocks(rows.tolist()) for said in refused(refuse, block).items())

    return Lazy(count, read_rows, identity, contents, damaged, files=read_files)


def identified(paths: Sequence[str], root: str) -> tuple[str, str]:
    """Names and sizes of image files, and a digest of every byte of them.

    Args:
        paths: Of the files, below `root`.
        root: The directory that names are told from.

    Returns:
        A line for each file, and 16 hex digits.

    Raises:
        InputError: a file cannot be read.
    """
    lines, whole = [], hashlib.sha256()
    for block in _blocks(paths):
        for path, (size, digest) in zip(block, each(_measured, block), strict=True):
            lines.append(f"{path[len(root.rstrip('/')) + 1 :]} {size}")
            whole.update(digest)
    return "\n".join(lines), whole.hexdigest()[:16]


def content(path: str) -> bytes:
    """The bytes of an image file, on a disk or in an object store.

    Raises:
        InputError: there is no plain file, or it cannot be read or is larger than any picture.
    """
    from jtransfer.data.pictures import LARGEST_FILE

    try:
        return files.read(path, LARGEST_FILE)
    except OSError as error:
        raise InputError(f"image {shown(path)} cannot be read ({error.strerror or error})") from None


def _measured(path: str) -> tuple[int, bytes]:
    found = content(path)
    return len(found), hashlib.sha256(found).digest()


def _blocks(items: Sequence) -> Iterator[Sequence]:
    return (items[start : start + BLOCK] for start in range(0, len(items), BLOCK))
