"""Pictures in tar files and what is said of them, `KEY.png` beside `KEY.txt`, in the order in which they lie."""

import glob
import hashlib
import tarfile

import numpy as np

from jtransfer.data.dataset import Context, Lazy
from jtransfer.data.pairs import PLAIN, HeldOut, PairStream, pick
from jtransfer.data.pictures import decode
from jtransfer.data.streams import Rows
from jtransfer.errors import InputError


def shards(directory: str, context: Context, held: int = 4) -> PairStream:
    """All pairs but the last few, which are held out, again and again; the cursor is the pair that comes next."""
    if context.crop:
        raise InputError(f"config.crop: {context.name} gives whole images; leave it empty")
    files, texts = zip(
        *(pair for path in sorted(glob.glob(f"{directory}/*.tar")) for pair in _pairs(path)), strict=True
    )
    images = Lazy(len(files), lambda rows: [_picture(*files[row]) for row in rows], repr(files))
    templates, size = context.templates or PLAIN, len(files) - held

    def after(cursor):
        while True:
            rows = (cursor + np.arange(context.batch)) % size
            draws = np.random.default_rng((context.seed, cursor)).random(context.batch)
            cursor = int(rows[-1] + 1) % size
            own, said = rows[context.share], draws[context.share]
            captions = [pick(templates, draw).replace("{}", texts[row]) for row, draw in zip(own, said, strict=True)]
            yield {"images": Rows(images, own), "texts": captions}, cursor

    names, labels = np.unique(texts[size:], return_inverse=True)
    held_out = HeldOut("last", Rows(images, size + np.arange(held)), tuple(names), labels.astype(np.int32), templates)
    fingerprint = hashlib.sha256(repr((files, texts, templates, held)).encode()).hexdigest()
    return PairStream(context.name, images, after, held_out, fingerprint[:16])


def _pairs(path):
    """Of each picture its file, place and length, and its text."""
    with tarfile.open(path) as tar:
        named = {member.name: member for member in tar}
        for name in sorted(name for name in named if name.endswith(".png")):
            text = tar.extractfile(named[f"{name[:-3]}txt"]).read().decode()
            yield (path, named[name].offset_data, named[name].size), text


def _picture(path, start, size):
    with open(path, "rb") as file:
        file.seek(start)
        return decode(file.read(size), f"{path}:{start}")
