"""A folder of image files as a dataset: one directory for each class, each file read when its row is asked for."""

import io
import re
from collections.abc import Iterable

import numpy as np
from etils import epath

from jtransfer.data.dataset import Dataset, Lazy, each
from jtransfer.data.splits import hold_out_a_fifth
from jtransfer.errors import InputError, nearest

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def read(name: str, directory: str) -> Dataset:
    """The dataset in a folder, with the layouts that `sources.load` describes.

    Classes are the names of directories, in the order of the alphabet. Names that begin with a dot, and files with
    other endings, are left out.

    Raises:
        InputError: there is no such folder, or one that holds no two classes of images.
    """
    root = epath.Path(directory)
    if not directory or not root.is_dir():
        raise InputError(f"{directory or name}: no such directory; expected folder:DIR with one directory a class")
    entries = _directories(root)
    splits = [entry.name for entry in entries if entry.name in ("train", "test") and _directories(entry)]
    if splits and len(splits) < 2:
        (lone,) = splits
        other = {"train": "test", "test": "train"}[lone]
        raise InputError(f"{directory}: '{lone}' holds classes, but there is no '{other}' that does; give both or none")
    parts = [_files(root / split) for split in ("train", "test")] if splits else [_files(root)]
    classes = tuple(parts[0])
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        raise InputError(f"{root / 'train' if splits else root}: expected at least two classes, found {found}")
    if splits and (unknown := [label for label in parts[1] if label not in classes]):
        raise InputError(f"{root / 'test'}: class '{unknown[0]}' is not in 'train'; {nearest(unknown[0], classes)}")
    files = [file for part in parts for label in part for file in part[label]]
    labels = np.array([classes.index(label) for part in parts for label in part for _ in part[label]], np.int32)
    if splits:
        pool, test = np.split(np.arange(len(files)), [sum(map(len, parts[0].values()))])
    else:
        pool, test = hold_out_a_fifth(labels, directory, "DIR/train and DIR/test")

    def read_rows(rows: np.ndarray) -> list[np.ndarray]:
        return each(lambda row: decode(_content(files[row]), str(files[row])), rows)

    identity = "\n".join(f"{file.relative_to(root)} {file.stat().length}" for file in files)
    note = "The fingerprint of the data is over names and sizes of its files, not over every byte."
    return Dataset(name, Lazy(len(files), read_rows, identity), labels, classes, pool, test, note=note)


def decode(content: bytes, what: str) -> np.ndarray:
    """An image file as uint8 [height, width, 3], or [height, width, 1] if it is grey; transparent parts become white.

    Args:
        content: Of the file, in any format that PIL reads.
        what: Its name, for the error.

    Raises:
        InputError: it is damaged, no image, or one of more than 8 bits a channel.
    """
    from PIL import Image

    from jtransfer.data.images import to_pil

    try:
        image = Image.open(io.BytesIO(content))
    except Exception as error:  # each format has its own, and a picture that is too large another
        reason = re.sub(r" <.*>", "", str(error)) or type(error).__name__
        raise InputError(f"image {what} cannot be read ({reason})") from None
    channels = 1 if image.mode in ("1", "L") and "transparency" not in image.info else 3
    array = np.asarray(to_pil(image, what, channels))
    return array.reshape(*array.shape[:2], channels)


def _directories(path: epath.Path) -> list[epath.Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(path: epath.Path) -> dict[str, list[epath.Path]]:
    """The image files of each class."""
    found = {entry.name: sorted(filter(_is_image, entry.iterdir())) for entry in _directories(path)}
    if empty := [label for label, files in found.items() if not files]:
        raise InputError(f"{path / empty[0]} holds no images; expected files ending in {_listed(SUFFIXES)}")
    return found


def _is_image(path: epath.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _content(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"image {path} cannot be read ({error.strerror or error})") from None


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"
