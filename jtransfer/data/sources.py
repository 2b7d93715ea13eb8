"""Named datasets as arrays in memory: the embedded digits, or an own `.npz` file, checked before anything compiles."""

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from jtransfer.errors import InputError, nearest


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images and the two sets of rows they are split into.

    Attributes:
        name: the name that `load` was given.
        images: [n, height, width, channels] float32, 0 (background) to 1.
        labels: [n] int32, an index into `classes`.
        classes: one name per class.
        pool: [p] row numbers that training and validation may use.
        test: [t] row numbers for the final report only.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    pool: np.ndarray
    test: np.ndarray


def load(name: str) -> Dataset:
    """The dataset called `name`: one of `EMBEDDED`, or `npz:FILE` with any path that etils.epath opens.

    Such a file holds `images` [n, height, width] or [n, height, width, channels], uint8 (scaled by 1/255) or float
    (taken as they are), and `labels` [n] integers; optionally `classes` (their names), and `test_images` with
    `test_labels`. Without these a fixed fifth of every class is held out for testing.

    Raises:
        InputError: when the name is unknown, or the file cannot be used as it is.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](name)
    for prefix, read in FILES.items():
        if name.startswith(prefix):
            return read(name, name.removeprefix(prefix))
    looks_like_file = ":" in name or name.endswith(".npz")
    file = name.rpartition(":")[2] if looks_like_file else "FILE"
    raise InputError(f"dataset {name!r} is unknown; {nearest(name, [*EMBEDDED, *(p + file for p in FILES)])}")


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a SHA-256 over arrays, dtypes, shapes, classes and splits; the name does not count."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for array in (dataset.images, dataset.labels, dataset.pool, dataset.test):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def _digits(name: str) -> Dataset:
    """1797 handwritten digits of 8x8 (Alpaydin & Kaynak) in scikit-learn's order; the first 1000 are the pool."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images / 16).astype(np.float32)[..., None]
    classes = tuple("0123456789")
    return Dataset(name, images, raw.target.astype(np.int32), classes, np.arange(1000), np.arange(1000, len(images)))


NPZ_REQUIRED = ("images", "labels")
NPZ_OPTIONAL = ("classes", "test_images", "test_labels")


def _npz(name: str, file: str) -> Dataset:
    """An own file, with the keys that `load` describes; whatever is wrong with it is named in one line."""
    arrays = _read_npz(file)
    for key in arrays:
        if key not in NPZ_REQUIRED + NPZ_OPTIONAL:
            raise InputError(f"{file}: unknown key {key!r}; {nearest(key, NPZ_REQUIRED + NPZ_OPTIONAL)}")
    for key in NPZ_REQUIRED:
        if key not in arrays:
            raise InputError(f"{file}: key {key!r} is missing; found {', '.join(sorted(arrays)) or 'no keys'}")
    if ("test_images" in arrays) != ("test_labels" in arrays):
        has, lacks = ("images", "labels") if "test_images" in arrays else ("labels", "images")
        raise InputError(f"{file}: key 'test_{has}' is there, but 'test_{lacks}' is missing; give both or neither")

    images, labels = _examples(file, arrays, "")
    if "test_images" in arrays:
        test_images, test_labels = _examples(file, arrays, "test_")
        if test_images.shape[1:] != images.shape[1:]:
            raise InputError(
                f"{file}: 'test_images' are {list(test_images.shape[1:])} each, expected {list(images.shape[1:])} "
                f"as in 'images' [height, width, channels]"
            )
    else:
        test_images, test_labels = images[:0], labels[:0]

    classes = _classes(file, arrays, max(labels.max(), test_labels.max(initial=0)) + 1)
    for key, values in (("labels", labels), ("test_labels", test_labels)):
        _check_range(file, key, values, len(classes))
    if len(np.unique(labels)) < 2:
        raise InputError(f"{file}: 'labels' hold only class {labels[0]}; at least two classes are expected")

    if "test_images" in arrays:
        pool, test = np.arange(len(labels)), len(labels) + np.arange(len(test_labels))
    else:
        pool, test = _hold_out_a_fifth(file, labels)
    labels = np.concatenate([labels, test_labels]).astype(np.int32)
    return Dataset(name, np.concatenate([images, test_images]), labels, classes, pool, test)


EMBEDDED = {"digits": _digits}
FILES = {"npz:": _npz}


def _read_npz(file: str) -> dict[str, np.ndarray]:
    from etils import epath

    path = epath.Path(file)
    if not file or not path.exists():
        raise InputError(f"{file or 'npz:'}: no such file; expected npz:FILE with a path to an .npz file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise InputError(f"{file}: not an .npz file, or a truncated one; expected what numpy.savez writes")
    arrays, key = {}, "?"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for key in archive.files:
                arrays[key] = archive[key]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{file}: key {key!r} is damaged ({error}); write the file again") from error
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{file}: key {key!r} is a pickled object array; expected plain numbers or strings"
            ) from error
        raise InputError(f"{file}: key {key!r} is damaged ({error}); write the file again") from error
    return {key: np.asarray(value) for key, value in arrays.items()}


def _examples(file: str, arrays: dict, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, h, w, c] float32 and labels [n] of one split, whatever the range of the labels."""
    images_key, labels_key = f"{prefix}images", f"{prefix}labels"
    images, labels = arrays[images_key], arrays[labels_key]
    if images.ndim not in (3, 4):
        raise InputError(
            f"{file}: {images_key!r} has shape {list(images.shape)}; "
            f"expected [n, height, width] or [n, height, width, channels]"
        )
    if labels.ndim != 1:
        raise InputError(f"{file}: {labels_key!r} has shape {list(labels.shape)}; expected [n], one integer a row")
    if len(images) != len(labels):
        raise InputError(
            f"{file}: {images_key!r} has {len(images)} rows and {labels_key!r} has {len(labels)}; expected as many"
        )
    if not images.size:
        raise InputError(f"{file}: {images_key!r} is empty, shape {list(images.shape)}; expected at least one pixel")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{file}: {images_key!r} has dtype {images.dtype}; expected uint8 (0..255) or float (0..1)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{file}: {labels_key!r} has dtype {labels.dtype}; expected integers")

    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    with np.errstate(over="ignore"):  # what overflows float32 is reported as infinite just below
        images = images.astype(np.float32)
    broken = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if broken.any():
        raise InputError(
            f"{file}: {images_key!r} row {broken.argmax()} holds NaN or infinite values; expected finite ones"
        )
    return images if images.ndim == 4 else images[..., None], labels


def _classes(file: str, arrays: dict, count: int) -> tuple[str, ...]:
    """The names in the file, or "0", "1", ... up to the largest label."""
    if "classes" not in arrays:
        return tuple(map(str, range(count)))
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise InputError(
            f"{file}: 'classes' has shape {list(names.shape)} and dtype {names.dtype}; expected a list of strings"
        )
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist())
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise InputError(f"{file}: 'classes' names {twice!r} twice; expected each name once")
    return names


def _check_range(file: str, key: str, labels: np.ndarray, count: int) -> None:
    outside = (labels < 0) | (labels >= count)
    if outside.any():
        row = outside.argmax()
        raise InputError(f"{file}: {key!r} row {row} is {labels[row]}; expected 0..{count - 1} ({count} classes)")


def _hold_out_a_fifth(file: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pool and test rows: a fifth of each class (rounded down, one at least) is test, the same rows every time."""
    test = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise InputError(
                f"{file}: class {label} has a single row ({rows[0]}); without 'test_images' and 'test_labels' "
                f"every class needs two, one of them for testing"
            )
        test.append(np.random.default_rng([0, label]).permutation(rows)[: max(1, len(rows) // 5)])
    test = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test), test
