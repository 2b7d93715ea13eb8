"""Named datasets: the embedded digits, an own `.npz` file or folder of images, or a prepared TensorFlow Dataset."""

import numpy as np

from jtransfer.data import folder, npz, tfds
from jtransfer.data.dataset import Dataset, Lazy, fingerprint
from jtransfer.errors import InputError, nearest

__all__ = ["EMBEDDED", "READERS", "Dataset", "Lazy", "fingerprint", "forms", "load"]


def load(name: str, data_dir: str = "") -> Dataset:
    """The dataset called `name`, checked before anything compiles.

    | name | what |
    |---|---|
    | one of `EMBEDDED` | in memory |
    | `npz:FILE` | any path that etils.epath opens, in memory |
    | `folder:DIR` | images below `DIR/CLASS/`, or below `DIR/train/CLASS/` and `DIR/test/CLASS/` (or `val`) |
    | `tfds:NAME[:VERSION][?OPTIONS]` | prepared by TensorFlow Datasets, as `tfds:glue/rte?test=validation` |

    A folder's images end in `.bmp`, `.gif`, `.jpeg`, `.jpg`, `.png`, `.tif`, `.tiff` or `.webp`; they may lie in
    sub-folders, and are turned as their EXIF orientation says. Where there is no `test`, the rows of `val` (`valid`,
    `validation`, `dev`) are for testing; where there is, those of `val` are not used, and the note says so. Nothing
    outside of the folder is read, whatever links lead there.

    An `.npz` file holds `images` [n, height, width] or [n, height, width, channels], uint8 (scaled by 1/255) or float
    (taken as they are), and `labels` [n] integers, or [n, classes] of 0 and 1 for several labels a row; optionally
    `classes` (their names), `captions` ([n] or [n, k] texts), and `test_images` with the same keys of theirs. Where
    there are no test rows, a fixed fifth of every class is held out for testing. The options of a prepared dataset,
    joined by `&`, are `input` (a feature, or two texts as `input=a+b`), `label` (one of a row, or a sequence of them),
    `caption` (texts that describe an image, as `caption=a+b`, or a sequence of them), `train` and `test` (splits, as
    `train=train[:1000]`), `only` and `test_only` (classes that the rows of pool and test must have, as
    `only=style:noto+twemoji`).

    Args:
        name: As above.
        data_dir: Where prepared datasets lie; empty for the environment's `TFDS_DATA_DIR`, or TFDS's own directory.

    Raises:
        InputError: when the name is unknown, or what it names cannot be used as it is.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](name)
    prefix, colon, rest = name.partition(":")
    if prefix == "tfds" and colon:
        return tfds.read(name, rest, data_dir)
    if prefix in READERS and colon:
        return READERS[prefix](name, rest)
    file = name.rpartition(":")[2] if colon or name.endswith(".npz") else ""
    raise InputError(f"dataset {name!r} is unknown; {nearest(name, [*EMBEDDED, *forms(file)])}")


def forms(rest: str = "") -> list[str]:
    """What the names of datasets with a prefix look like, with `rest` after it if that is known."""
    return [f"npz:{rest or 'FILE'}", f"folder:{rest or 'DIR'}", f"tfds:{rest or 'NAME'}"]


def _digits(name: str) -> Dataset:
    """1797 handwritten digits of 8x8 (Alpaydin & Kaynak) in scikit-learn's order; the first 1000 are the pool."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images / 16).astype(np.float32)[..., None]
    classes = tuple("0123456789")
    return Dataset(name, images, raw.target.astype(np.int32), classes, np.arange(1000), np.arange(1000, len(images)))


EMBEDDED = {"digits": _digits}
READERS = {"npz": npz.read, "folder": folder.read}
