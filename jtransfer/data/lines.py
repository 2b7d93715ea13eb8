"""A file of texts, one a line, as a dataset without labels: `texts:FILE`."""

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np
from etils import epath

from jtransfer.data.dataset import Context, Dataset, Lazy, refused, unlabelled
from jtransfer.data.splits import hold_out_the_last
from jtransfer.errors import InputError
from jtransfer.storage import parts

BLOCK = 1 << 22
"""Bytes that are read at a time."""

LONGEST = 1 << 24
"""Bytes of a line, at most; a line that ends within the next `BLOCK` bytes may pass."""


def read(file: str, context: Context) -> Dataset:
    """The lines of a UTF-8 file that are not blank, stripped; a line is read when its row is asked for.

    The last hundredth of the lines is held out: see `splits.hold_out_the_last`.

    Args:
        file: Its path, on a disk or in an object store.
        context: Its `name` becomes that of the dataset.

    Raises:
        InputError: the file is missing or cannot be read, has a line of more than `LONGEST` bytes, or has fewer than
            three lines of text. Reading a row raises it too: the line is not UTF-8, or the file is gone.
    """
    path, starts, digest, done, rest = epath.Path(file), array("q"), hashlib.sha256(), 0, b""
    try:
        with parts.opened(path) as opened:
            while block := opened.read(BLOCK):
                digest.update(block)
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    if line.strip():
                        starts.extend((done, len(line)))
                    done += len(line) + 1
                if len(rest) > LONGEST:
                    raise InputError(f"{file}: a line has more than {LONGEST:,} bytes; expected a text on every line")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; expected a path to a file of texts, one a line") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    if rest.strip():
        starts.extend((done, len(rest)))
    places = np.array(starts).reshape(-1, 2)

    def lines(rows: np.ndarray) -> Iterator[bytes]:
        try:
            with parts.opened(path, parts.ROW) as opened:
                for start, size in places[rows].tolist():
                    opened.seek(start)
                    yield opened.read(size)
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None

    def text(row: int, line: bytes) -> str:
        try:
            return line.decode().strip()
        except UnicodeDecodeError as error:
            held = line[max(0, error.start - 20) :][:40]
            raise InputError(f"{file}: text {row} holds {held!r}, which is no UTF-8") from None

    pool, test = hold_out_the_last(len(places), file, "lines of text")
    inputs = Lazy(
        len(places),
        lambda rows: list(map(text, rows, lines(rows))),
        digest.hexdigest()[:16],
        damaged=lambda rows: refused(text, rows, lines(rows)),
    )
    return Dataset(context.name, inputs, unlabelled(len(places)), (), pool, test, "text")
