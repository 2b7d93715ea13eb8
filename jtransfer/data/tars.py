"""Images and what is said of them in tar files, in the layout of WebDataset and img2dataset: `tar:PATTERN`."""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data import shards
from jtransfer.data.columns import dataset
from jtransfer.data.dataset import Context, Dataset
from jtransfer.data.downloads import shown
from jtransfer.data.encoded import SUFFIXES
from jtransfer.data.joined import Table
from jtransfer.data.options import parse as parse_options
from jtransfer.errors import InputError, first_line
from jtransfer.storage import parts

IMAGE, TEXT, CLASS, JSON = "image", "txt", "cls", "json"
"""The columns of a shard: its images, and what else stands beside them under the same key; a JSON file has more."""

LARGEST_TEXT = 1 << 24
"""Bytes of a text, a class or a JSON file, at most."""

PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstd begin."""


def read(rest: str, context: Context) -> Dataset:
    """The dataset in some tar files, with the options that `sources.load` describes.

    A sample is what has one key, the part of a name before the first dot: `KEY.jpg` (or another image), `KEY.txt`,
    `KEY.json` and `KEY.cls`, in any order. They are the columns `image`, `txt`, `cls` and the keys of the JSON object.
    Captions are `txt` unless `?caption=` names another, classes are `cls`: numbers, of which `classes.txt` beside the
    shards may have the names, one a line, or names.

    Only headers are read to find where members lie, and every byte for the fingerprint. Nothing is unpacked; a row is
    read when it is asked for. A part of the samples is held out: see `splits.hold_out`.

    Args:
        rest: What follows `tar:`: a file, a directory of `.tar` files, or files by numbers in braces, as
            `shards/{00000..00099}.tar`.
        context: With the name of the dataset, and what is asked of it.

    Raises:
        InputError: a file is missing, packed, damaged or cut off; a member is a link, has a name that leads out, or
            stands there twice; a sample has no image, or lacks what others have; or as `columns.dataset`.
    """
    where, _, query = rest.partition("?")
    options = parse_options(context.name, query, ("input", "label", "caption", "test"))
    splits = {"train": shards.found(where, context.name, (".tar",))}
    if test := options.get("test"):
        splits[test] = shards.found(test, context.name, (".tar",))
    opened = {split: lambda own=own: [_shard(path) for path in own] for split, own in splits.items()}
    return dataset(context, options, opened, "?test=PATTERN")


def _shard(path: epath.Path) -> Table:
    """A tar file, of which an index is kept."""
    where, keys, places = shown(path), {}, {}
    for column, key, place in _members(path):
        row = keys.setdefault(key, len(keys))
        own = places.setdefault(column, {})
        if row in own:
            what = "images" if column == IMAGE else f"members .{column}"
            raise InputError(f"{where}: sample '{shown(key)}' has two {what}; expected one")
        own[row] = place
    names = list(keys)
    for column, own in {IMAGE: {}, **places}.items():
        if lacking := next((key for row, key in enumerate(names) if row not in own), None):
            what = f"image; expected one of {', '.join(SUFFIXES)}" if column == IMAGE else f".{column}, as others have"
            raise InputError(f"{where}: sample '{shown(lacking)}' has no {what}")
    index = {column: np.array([own[row] for row in range(len(names))], np.int64) for column, own in places.items()}

    def content(column: str, row: int) -> bytes:
        start, size = index[column][row].tolist()
        with _reading(where):
            found = parts.part(path, start, size)
        if len(found) < size:
            raise InputError(f"{at(row)} is cut off")
        return found

    def text(column: str, row: int) -> str:
        try:
            return content(column, row).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{at(row)} has a .{column} that is no UTF-8 (byte {error.start})") from None

    def about(row: int) -> Mapping[str, Any]:
        try:
            found = json.loads(text(JSON, row))
            if not isinstance(found, dict):
                raise ValueError(f"{type(found).__name__}, expected an object")
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"{at(row)} has a .json that cannot be read ({first_line(error)})") from None
        return found

    def values(column: str, rows: np.ndarray) -> list:
        if column == IMAGE:
            return [content(IMAGE, row) for row in rows.tolist()]
        if column == CLASS and column in index:
            return [_class(text(CLASS, row).strip(), classes, at(row)) for row in rows.tolist()]
        if column in index:
            return [text(column, row) for row in rows.tolist()]
        return [about(row).get(column) for row in rows.tolist()]

    def at(row: int) -> str:
        return f"{where}: sample '{shown(names[row])}'"

    classes = shards.names(path.parent)
    told = about(0) if JSON in index and names else {}
    sample = {key: value for key, value in told.items() if value is not None} | {
        column: b"" if column == IMAGE else "text" if column == TEXT else "0" for column in index if column != JSON
    }
    named = {CLASS: classes} if classes else {}
    return Table(where, len(names), sample, values, files.digest(path).hex(), at, named)


def _members(path: epath.Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Column, key, and place and length of every member that is an image or stands beside one."""
    where, end = shown(path), 0
    with _reading(where):
        whole = files.length(path)
        with parts.opened(path) as opened:
            if opened.read(6).startswith(PACKED):
                raise InputError(f"{where} is packed, and has no access by row; expected a plain tar file: unpack it")
            opened.seek(0)
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # which it keeps, of millions
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if member.isdir():
                        continue
                    name, own = member.name, shown(member.name)
                    if name.startswith("/") or ".." in name.split("/"):
                        raise InputError(f"{where}: member '{own}' leads out of it; expected a name within")
                    if not member.isreg() or member.issparse():
                        raise InputError(f"{where}: member '{own}' is a link or no plain file; expected files alone")
                    column, key = _of_name(name)
                    if column not in (IMAGE, "") and member.size > LARGEST_TEXT:
                        raise InputError(f"{where}: member '{own}' has {member.size:,} bytes; expected a text")
                    if column:
                        yield column, key, (member.offset_data, member.size)
            opened.seek(end)
            if whole < end + tarfile.BLOCKSIZE or any(opened.read(tarfile.BLOCKSIZE)):
                raise InputError(
                    f"{where} is cut off or damaged at byte {min(end, whole):,}; expected the end of a tar file"
                )


def _of_name(name: str) -> tuple[str, str]:
    """The column and the key of a member; no column for what is not read.

    >>> _of_name("part/000000001.seg.JPG"), _of_name("000000001.jpg")
    (('', ''), ('image', '000000001'))
    """
    directory, _, base = name.rpartition("/")
    key, dot, ending = base.partition(".")
    ending = dot + ending.lower()
    column = IMAGE if ending in SUFFIXES else ending[1:] if ending[1:] in (TEXT, CLASS, JSON) else ""
    return (column, f"{directory}/{key}" if directory else key) if column and key else ("", "")


def _class(value: str, names: tuple[str, ...], at: str) -> int | str:
    """A number if it counts `names`, or as it is."""
    if not names:
        return value
    if not re.fullmatch(r"\d{1,9}", value) or int(value) >= len(names):
        most = len(names) - 1
        raise InputError(
            f"{at} has the class '{shown(value[:80])}'; expected 0 to {most}, which {shards.NAMES} has names for"
        )
    return int(value)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what a disk or the tar reader refuses within this block into one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; expected a tar file, or a directory of them") from None
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{where} is no tar file, or is cut off or damaged ({first_line(error)})") from None
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or first_line(error)})") from None
