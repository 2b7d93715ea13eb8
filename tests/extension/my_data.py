"""Pictures in tar files, `KEY.png` beside `KEY.cls`, as WebDataset keeps them: a dataset, or in order a stream."""

import glob
import tarfile

import numpy as np

from jtransfer.data.dataset import Context, Dataset, Lazy
from jtransfer.data.pictures import decode
from jtransfer.data.splits import hold_out_a_fifth
from jtransfer.data.streams import Rows, Stream
from jtransfer.errors import InputError


def shards(directory: str, context: Context, suffix: str = "tar") -> Dataset:
    """All files of a directory, of which an index is kept, so that a row is one seek."""
    found = [member for path in sorted(glob.glob(f"{directory}/*.{suffix}")) for member in _members(path)]
    if not found:
        raise InputError(f"{context.name}: {directory} holds no .{suffix} files")
    labels = np.array([label for *_, label in found], np.int32)
    inputs = Lazy(len(found), lambda rows: [_picture(*found[row][:3]) for row in rows], repr(found))
    pool, test = hold_out_a_fifth(labels, directory, "other files")
    return Dataset(context.name, inputs, labels, tuple(map(str, range(labels.max() + 1))), pool, test)


def in_order(directory: str, context: Context, times: int = 1000) -> Stream:
    """The pool as it lies there, so many times; the cursor says which time it is and how far it came."""
    data = shards(directory, context)

    def after(cursor):
        at = cursor or {"time": 0, "row": 0}
        while at["time"] < times:
            rows, size = at["row"] + np.arange(context.batch), len(data.pool)
            own = data.pool[rows[context.share] % size]
            at = {"time": at["time"] + int(rows[-1] + 1) // size, "row": int(rows[-1] + 1) % size}
            yield {"inputs": Rows(data.inputs, own), "labels": data.labels[own]}, at

    held_out = ("test", Rows(data.inputs, data.test), data.labels[data.test])
    return Stream(data.name, data.classes, "image", data.inputs, after, held_out, data.fingerprint)


def _members(path):
    """Of each picture its file, place, length and class."""
    with tarfile.open(path) as tar:
        named = {member.name: member for member in tar}
        both = [(named[name], named[f"{name[:-3]}cls"]) for name in sorted(named) if name.endswith(".png")]
        return [(path, png.offset_data, png.size, int(tar.extractfile(cls).read())) for png, cls in both]


def _picture(path, start, size):
    with open(path, "rb") as file:
        file.seek(start)
        return decode(file.read(size), f"{path}:{start}")
