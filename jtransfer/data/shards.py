"""Files of one dataset by numbers or in a directory, and the names of classes beside them."""

import os
import re

from etils import epath

from jtransfer import files
from jtransfer.data.downloads import entries, shown
from jtransfer.errors import InputError, first_line

MOST = 1 << 17
"""Files that braces may stand for."""

NAMES = "classes.txt"
"""Beside the files: a name on every line for the numbers of classes."""

LARGEST_NAMES = 1 << 24
"""Bytes of the names, at most."""


def found(pattern: str, name: str, endings: tuple[str, ...]) -> list[epath.Path]:
    """The files that a pattern stands for, in their order.

    Args:
        pattern: A file, a directory, or files by numbers in braces, as `shards/{00000..00099}.tar`.
        name: Of the dataset, for errors.
        endings: How the names of the files of a directory end, perhaps before numbers: `.tar-00000-of-00010`.

    Raises:
        InputError: braces that stand for no files, or a directory without any.
    """
    path = files.path(pattern, name)
    if braces := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = map(int, braces.groups())
        if not first <= last < first + MOST:
            raise InputError(f"{name}: '{braces[0]}' stands for no files; expected {{FIRST..LAST}}")
        whole, width = os.fspath(path), len(braces[1])
        return [epath.Path(whole.replace(braces[0], f"{number:0{width}}")) for number in range(first, last + 1)]
    if not files.is_directory(path):
        return [path]
    there = [entry for entry in entries(os.fspath(path), os.fspath(path)) if not entry.hidden]
    own = [entry for entry in there if re.sub(r"-\d+-of-\d+$", "", entry.name).endswith(endings)]
    if not own:
        raise InputError(f"{name}: {path} holds no files that end in {' or '.join(endings)}")
    return [epath.Path(entry.path) for entry in own]


def names(directory: epath.Path) -> tuple[str, ...]:
    """The names of classes beside the files of a directory; none where there is no `classes.txt`.

    Raises:
        InputError: the file cannot be read, is no UTF-8, or has a name twice.
    """
    path = directory / NAMES
    if not files.exists(path):
        return ()
    try:
        told = tuple(filter(None, map(str.strip, files.read(path, LARGEST_NAMES).decode().splitlines())))
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: byte {error.start} is no UTF-8; expected a name on every line") from None
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read ({error.strerror or first_line(error)})") from None
    if len({*told}) < len(told):
        twice = next(name for name in told if told.count(name) > 1)
        raise InputError(f"{shown(path)} names '{shown(twice)}' twice; expected each name once")
    return told
