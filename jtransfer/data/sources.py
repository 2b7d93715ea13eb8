"""Named datasets: the embedded digits, an own `.npz` file or folder of images, or a prepared TensorFlow Dataset."""

from dataclasses import replace

import numpy as np

from jtransfer import files, kinds
from jtransfer.data import folder, npz, tfds
from jtransfer.data.dataset import Dataset, Images, Lazy, fingerprint
from jtransfer.errors import InputError, nearest

__all__ = ["EMBEDDED", "READERS", "Dataset", "Images", "Lazy", "fingerprint", "forms", "load"]


def load(name: str, data_dir: str = "") -> Dataset:
    """The dataset called `name`, checked before anything compiles.

    | name | what |
    |---|---|
    | one of `EMBEDDED` | in memory |
    | `npz:FILE` | any path, in memory |
    | `folder:DIR` | images below `DIR/CLASS/`, or below `DIR/train/CLASS/` and `DIR/test/CLASS/` (or `val`) |
    | `tfds:NAME[:VERSION][?OPTIONS]` | prepared by TensorFlow Datasets, as `tfds:glue/rte?test=validation` |

    A folder's images end in `.bmp`, `.gif`, `.jpeg`, `.jpg`, `.png`, `.tif`, `.tiff` or `.webp`; they may lie in
    sub-folders, and are turned as their EXIF orientation says. Where there is no `test`, the rows of `val` (`valid`,
    `validation`, `dev`) are for testing; where there is, those of `val` are not used, and the note says so. Nothing
    outside of the folder is read, whatever links lead there.

    An `.npz` file holds `images` [n, height, width] or [n, height, width, channels], uint8 (scaled by 1/255) or float
    of 0 to 1, and `labels`; optionally `classes` (their names), `captions` ([n] or [n, k] texts), and `test_images`
    with the same keys of theirs. Labels are [n] indices into `classes`, or names, or without `classes` whatever
    integers or texts, of which each distinct one becomes a class; or [n, classes] of 0 and 1 for several labels a row.
    Where there are no test rows, a fixed fifth of every class is held out for testing. The options of a prepared
    dataset, joined by `&`, are `input` (a feature, or two texts as `input=a+b`), `label` (one of a row, or a sequence
    of them), `caption` (texts that describe an image, as `caption=a+b`, or a sequence of them), `train` and `test`
    (splits, as `train=train[:1000]`), `only` and `test_only` (classes that the rows of pool and test must have, as
    `only=style:noto+twemoji`).

    Args:
        name: As above.
        data_dir: Where prepared datasets lie; empty for the environment's `TFDS_DATA_DIR`, or TFDS's own directory.

    Raises:
        InputError: when the name is unknown, or what it names cannot be used as it is.
    """
    kinds.check(name, kinds.TEXT, "dataset")
    kinds.check(data_dir, kinds.either(kinds.TEXT, kinds.NONE), "data_dir")
    if name in EMBEDDED:
        return EMBEDDED[name](name)
    prefix, colon, rest = name.partition(":")
    if prefix == "tfds" and colon:
        return _counted(tfds.read(name, rest, directory(data_dir)))
    if prefix in READERS and colon:
        if not rest:
            what, form = ("file", "npz:FILE") if prefix == "npz" else ("directory", "folder:DIR")
            raise InputError(f"{name}: no such {what}; expected {form}")
        return _counted(READERS[prefix](name, str(files.path(rest, f"{prefix}:"))))
    file = name.rpartition(":")[2] if colon or name.endswith(".npz") else ""
    raise InputError(f"dataset {name!r} is unknown; {nearest(name, [*EMBEDDED, *forms(file)])}")


def forms(rest: str = "") -> list[str]:
    """What the names of datasets with a prefix look like, with `rest` after it if that is known."""
    return [f"npz:{rest or 'FILE'}", f"folder:{rest or 'DIR'}", f"tfds:{rest or 'NAME'}"]


def directory(data_dir: str) -> str:
    """Where a config says that prepared datasets lie, with `~` as the home directory; empty for nowhere in particular.

    Raises:
        InputError: no path.
    """
    return str(files.path(data_dir, "config.data_dir")) if data_dir else ""


def _counted(dataset: Dataset) -> Dataset:
    """The same, with a note of the classes that have no row for training, or none for testing."""
    if dataset.labels.ndim > 1:
        return dataset
    said = [dataset.note] if dataset.note else []
    for what, rows in (("training", dataset.pool), ("testing", dataset.test)):
        lacking = np.flatnonzero(np.bincount(dataset.labels[rows], minlength=len(dataset.classes)) == 0)
        if len(rows) and len(lacking):
            first = dataset.classes[lacking[0]]
            said.append(f"{len(lacking)} of {len(dataset.classes)} classes, as '{first}', have no row for {what}.")
    return replace(dataset, note=" ".join(said))


def _digits(name: str) -> Dataset:
    """1797 handwritten digits of 8x8 (Alpaydin & Kaynak) in scikit-learn's order; the first 1000 are the pool."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images / 16).astype(np.float32)[..., None]
    classes = tuple("0123456789")
    return Dataset(name, images, raw.target.astype(np.int32), classes, np.arange(1000), np.arange(1000, len(images)))


EMBEDDED = {"digits": _digits}
READERS = {"npz": npz.read, "folder": folder.read}
