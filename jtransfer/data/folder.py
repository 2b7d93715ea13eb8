"""A folder of image files as a dataset: one directory for each class, each file read when its row is asked for."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data import encoded
from jtransfer.data.dataset import Context, Dataset
from jtransfer.data.downloads import Places, entries, printable, shown
from jtransfer.data.encoded import SUFFIXES
from jtransfer.data.splits import hold_out_a_fifth
from jtransfer.errors import InputError, nearest

log = logging.getLogger("jtransfer")

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""The split that each name of a directory stands for, in lower or upper case."""

NAMED = re.compile(rf"({'|'.join(SPLITS)})[\W_]*(set|split|data|images|\d+)?", re.IGNORECASE)
"""A directory of a split, with what may follow the word, as in train2017, "Test Data" and val_set."""


class Folder(NamedTuple):
    """A folder while it is read: its path, the directories that were entered, and counts of what was left out."""

    root: str
    places: Places
    left_out: Counter


def read(directory: str, context: Context) -> Dataset:
    """The dataset in a folder, with the layouts that `sources.load` describes.

    Classes are the names of directories, sorted; a class has all images in its directory and in those below it. Names
    that begin with a dot, and files with other endings, are left out; the note counts them. Every file is read once,
    for the fingerprint of the data; it is decoded when its row is asked for.

    Args:
        directory: The folder, on a disk or in an object store.
        context: Its `name` becomes that of the dataset.

    Raises:
        InputError: there is no such folder, or it has fewer than two classes; a class holds no images, has a name that
            cannot be printed, or is not among those of `train`; `train` stands alone or is missing beside other splits,
            or two directories are of one split; an entry is no file, cannot be read, or leads out of the folder.
    """
    root = files.path(directory, context.name)
    if not _is_directory(root):
        raise InputError(f"{shown(directory)}: no such directory; expected folder:DIR with one directory a class")
    folder = Folder(os.fspath(root), Places(), Counter())
    splits, notes = _splits(folder)
    ways = [splits[split] for split in ("train", "test", "val") if split in splits]
    parts = [_classes(folder, way) for way in ways[:2] or [folder.root]]
    classes = tuple(parts[0])
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        raise InputError(f"{shown((ways or [folder.root])[0])}: expected at least two classes, found {found}")
    if unknown := [label for part in parts[1:] for label in part if label not in parts[0]]:
        raise InputError(f"{shown(ways[1])}: class '{unknown[0]}' is not in 'train'; {nearest(unknown[0], classes)}")
    numbers = {label: number for number, label in enumerate(classes)}
    paths = [path for part in parts for own in part.values() for path in own]
    labels = np.array([numbers[label] for part in parts for label, own in part.items() for _ in own], np.int32)
    if splits:
        pool, test = np.split(np.arange(len(paths)), [sum(map(len, parts[0].values()))])
    else:
        pool, test = hold_out_a_fifth(labels, directory, "DIR/train and DIR/test")
    for way in ways[2:]:
        count = len(_images(folder, way))
        notes += [f"The {count} images of '{os.path.basename(way)}' are not used: the test rows are those of 'test'."]
    notes += _said_of(folder)
    identified = encoded.identified(paths, folder.root)
    inputs = encoded.lazy(
        len(paths), lambda row: encoded.content(paths[row]), lambda row: shown(paths[row]), *identified
    )
    return Dataset(context.name, inputs, labels, classes, pool, test, note=" ".join(notes))


def _is_directory(root: epath.Path) -> bool:
    try:
        return files.is_directory(root)
    except OSError as error:
        raise InputError(f"{shown(root)} cannot be read ({error.strerror or error})") from None


def _splits(folder: Folder) -> tuple[dict[str, str], list[str]]:
    """The directories of splits by what is meant (none where those in the folder are classes), and what to say."""
    there = [entry for entry in entries(folder.root, folder.root) if entry.kind == "directory" and not entry.hidden]
    found: dict[str, str] = {}
    for entry in there:
        meant = _meant(entry.name)
        if meant and any(own.kind == "directory" and not own.hidden for own in entries(entry.path, folder.root)):
            if meant in found:
                one, other = os.path.basename(found[meant]), entry.name
                raise InputError(f"{shown(folder.root)}: '{one}' and '{other}' both hold classes; keep one of them")
            found[meant] = entry.path
    if not found:
        return {}, []
    if "train" not in found or len(found) < 2:
        missing = "'test' or 'val'" if "train" in found else "'train'"
        holding = " and ".join(f"'{os.path.basename(path)}'" for path in found.values())
        verb = "hold" if len(found) > 1 else "holds"
        raise InputError(
            f"{shown(folder.root)}: {holding} {verb} classes, but there is no {missing} that does; give both or none"
        )
    notes = []
    if "test" not in found:
        name = os.path.basename(found["val"])
        notes = [f"The test rows are those of '{name}', as there is no 'test'."]
    if others := [entry.name for entry in there if entry.path not in found.values()]:
        listed = ", ".join(f"'{shown(name)}'" for name in others[:5]) + (", ..." if len(others) > 5 else "")
        folder.left_out[f"of the directories beside the splits ({listed})"] = len(others)
    return found, notes


def _meant(name: str) -> str | None:
    """The split that a name of a directory stands for."""
    found = NAMED.fullmatch(name)
    return SPLITS[found[1].lower()] if found else None


def _refuse_splits(folder: Folder, directory: str) -> None:
    """Refuse a class whose images lie in directories of splits, which would be trained and tested on alike."""
    own = entries(directory, folder.root)
    found = [entry.name for entry in own if entry.kind == "directory" and not entry.hidden and _meant(entry.name)]
    if len({_meant(name) for name in found}) > 1:
        one, other = (shown(name) for name in found[:2])
        raise InputError(
            f"{shown(directory)}: a class holds '{one}' and '{other}'; expected splits above the classes, as "
            f"DIR/{one}/{shown(os.path.basename(directory))}"
        )


def _classes(folder: Folder, directory: str) -> dict[str, list[str]]:
    """The image files of each class, in the order of their names."""
    found = {}
    for entry in entries(directory, folder.root):
        if entry.kind != "directory" or entry.hidden:
            _leave_out(folder, entry, "beside the classes")
            continue
        if not printable(entry.name):
            raise InputError(
                f"{shown(directory)}: class {entry.name!a} is not UTF-8, or has control characters; rename it"
            )
        _refuse_splits(folder, entry.path)
        found[entry.name] = _images(folder, entry.path)
        if not found[entry.name]:
            raise InputError(f"{shown(entry.path)} holds no images; expected files ending in {_listed(SUFFIXES)}")
    return found


def _images(folder: Folder, directory: str) -> list[str]:
    images, todo = [], [directory]
    while todo:
        for entry in entries(folder.places.enter(todo.pop()), folder.root):
            if entry.kind == "directory" and not entry.hidden:
                todo.append(entry.path)
            elif entry.hidden or not entry.name.lower().endswith(SUFFIXES):
                _leave_out(folder, entry)
            elif entry.kind == "other":
                raise InputError(f"{shown(entry.path)} is a pipe, a socket or a device; expected an image file")
            else:
                images.append(entry.path)
    return sorted(images, key=lambda path: path.split("/"))


def _leave_out(folder, entry, where=""):
    """Count what is left out, by its ending or place."""
    if entry.kind == "directory" and entry.hidden:
        folder.left_out["hidden directories"] += 1
    elif entry.hidden:
        folder.left_out["hidden"] += 1
    else:
        folder.left_out[where or f"{shown(os.path.splitext(entry.name)[1].lower()) or 'without an ending'}"] += 1


def _said_of(folder: Folder) -> list[str]:
    """A sentence that counts what was left out, which is logged too where it is more than hidden files."""
    if not folder.left_out:
        return []
    listed = ", ".join(f"{count} {what}" for what, count in folder.left_out.most_common(8))
    more = len(folder.left_out) - 8
    said = f"Left out: {listed}" + (f", and others of {more} endings." if more > 0 else ".")
    if any(not what.startswith("hidden") for what in folder.left_out):
        log.warning("%s: %s Images end in %s", shown(folder.root), said, _listed(SUFFIXES))
    return [said]


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"
