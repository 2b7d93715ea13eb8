"""An own `.npz` file of images as a dataset; whatever is wrong with it is named in one line."""

import hashlib
import io
import zipfile
import zlib

import numpy as np

from jtransfer.data.dataset import Dataset, Lazy
from jtransfer.data.splits import hold_out_a_fifth, hold_out_the_last
from jtransfer.errors import InputError, nearest

KEYS = ("images", "labels", "captions", "test_images", "test_labels", "test_captions", "classes")


def read(name: str, file: str) -> Dataset:
    """The dataset in a file, with the keys that `sources.load` describes.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    arrays = _arrays(file)
    _check_keys(file, arrays, "labels")
    images, labels = _floats(_images(file, arrays, "")), _labels(file, arrays, "")
    if "test_images" in arrays:
        test_images, test_labels = _floats(_images(file, arrays, "test_")), _labels(file, arrays, "test_")
        _check_sides(file, images, test_images)
    else:
        test_images, test_labels = images[:0], labels[:0]

    if test_labels.shape[1:] != labels.shape[1:]:
        raise InputError(
            f"{file}: 'test_labels' has shape {list(test_labels.shape)}, 'labels' {list(labels.shape)}; expected the "
            f"same but for the rows"
        )
    several = labels.ndim > 1
    count = labels.shape[1] if several else max(labels.max(), test_labels.max(initial=0)) + 1
    classes = _classes(file, arrays, count)
    if several and len(classes) != count:
        raise InputError(f"{file}: 'classes' has {len(classes)} names for the {count} columns of 'labels'")
    for key, values in (("labels", labels), ("test_labels", test_labels)):
        _check_range(file, key, values, len(classes))
    if not several and len(np.unique(labels)) < 2:
        raise InputError(f"{file}: 'labels' hold only class {labels[0]}; at least two classes are expected")

    if "test_images" in arrays:
        pool, test = np.arange(len(labels)), len(labels) + np.arange(len(test_labels))
    else:
        pool, test = hold_out_a_fifth(labels, file, "'test_images' and 'test_labels'")
    labels = np.concatenate([labels, test_labels]).astype(np.int32)
    captions = _captions(file, arrays) if "captions" in arrays else None
    return Dataset(name, np.concatenate([images, test_images]), labels, classes, pool, test, captions=captions)


def read_pairs(name: str, file: str) -> Dataset:
    """The images in a file and their `captions`; it need have no labels, and those that it has are not read.

    Images are uint8, as those of other sources of pairs, for the model's image processor to make its own of.
    Where there are no `test_images`, the last hundredth of the rows is held out: `splits.hold_out_the_last`.

    Raises:
        InputError: as `read`, or no captions.
    """
    arrays = _arrays(file)
    _check_keys(file, arrays, "captions")
    images = _bytes(file, arrays, "")
    pool, test = hold_out_the_last(len(images))
    if "test_images" in arrays:
        test_images = _bytes(file, arrays, "test_")
        _check_sides(file, images, test_images)
        pool, test = np.arange(len(images)), len(images) + np.arange(len(test_images))
        images = np.concatenate([images, test_images])
    lazy = Lazy(len(images), lambda rows: list(images[rows]), hashlib.sha256(images).hexdigest()[:16])
    labels = np.zeros(len(images), np.int8)
    return Dataset(name, lazy, labels, ("",), pool, test, captions=_captions(file, arrays))


def _check_keys(file: str, arrays: dict, needed: str) -> None:
    """Refuse keys that nothing reads, and a file without `images`, without those that are needed, or half a test."""
    for key in arrays:
        if key not in KEYS:
            raise InputError(f"{file}: unknown key {key!r}; {nearest(key, KEYS)}")
    for key in ("images", needed):
        if key not in arrays:
            raise InputError(f"{file}: key {key!r} is missing; found {', '.join(sorted(arrays)) or 'no keys'}")
    both = dict.fromkeys(("images", needed, *({"captions"} & arrays.keys())))
    there = [key for key in both if f"test_{key}" in arrays]
    if there and (lacks := [key for key in both if key not in there]):
        raise InputError(
            f"{file}: key 'test_{there[0]}' is there, but 'test_{lacks[0]}' is missing; give both or neither"
        )


def _check_sides(file: str, images: np.ndarray, test_images: np.ndarray) -> None:
    if test_images.shape[1:] != images.shape[1:]:
        raise InputError(
            f"{file}: 'test_images' are {list(test_images.shape[1:])} each, expected {list(images.shape[1:])} "
            f"as in 'images' [height, width, channels]"
        )


def _captions(file: str, arrays: dict) -> Lazy:
    """Of each row, those of the test split last, a list of texts; empty ones fill up rows that have fewer."""
    rows, digest = [], hashlib.sha256()
    for prefix in ("", "test_") if "test_images" in arrays else ("",):
        key, count = f"{prefix}captions", len(arrays[f"{prefix}images"])
        found = arrays[key]
        if found.ndim not in (1, 2) or found.dtype.kind != "U":
            raise InputError(
                f"{file}: {key!r} has shape {list(found.shape)} and dtype {found.dtype}; expected strings, [n] or "
                f"[n, captions]"
            )
        if len(found) != count:
            raise InputError(
                f"{file}: '{prefix}images' has {count} rows and {key!r} has {len(found)}; expected as many"
            )
        rows += np.atleast_2d(found.T).T.tolist()
        digest.update(np.ascontiguousarray(found))
    texts = [[text for text in row if text.strip()] or row[:1] for row in rows]
    return Lazy(len(texts), lambda asked: [texts[row] for row in asked], digest.hexdigest()[:16])


def _arrays(file: str) -> dict[str, np.ndarray]:
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


def _images(file: str, arrays: dict, prefix: str) -> np.ndarray:
    """Images [n, h, w, c] of one split, uint8 or float32."""
    key = f"{prefix}images"
    images = arrays[key]
    if images.ndim not in (3, 4):
        raise InputError(
            f"{file}: {key!r} has shape {list(images.shape)}; "
            f"expected [n, height, width] or [n, height, width, channels]"
        )
    if not images.size:
        raise InputError(f"{file}: {key!r} is empty, shape {list(images.shape)}; expected at least one pixel")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{file}: {key!r} has dtype {images.dtype}; expected uint8 (0..255) or float (0..1)")
    if images.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what overflows float32 is reported as infinite just below
            images = images.astype(np.float32)
    broken = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if broken.any():
        raise InputError(f"{file}: {key!r} row {broken.argmax()} holds NaN or infinite values; expected finite ones")
    return images if images.ndim == 4 else images[..., None]


def _floats(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def _bytes(file: str, arrays: dict, prefix: str) -> np.ndarray:
    images = _images(file, arrays, prefix)
    if images.dtype == np.uint8:
        return images
    if not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"{file}: '{prefix}images' are floats from {images.min():.4g} to {images.max():.4g}; expected 0 to 1, or "
            f"uint8 (0..255)"
        )
    return (images * 255).round().astype(np.uint8)


def _labels(file: str, arrays: dict, prefix: str) -> np.ndarray:
    """Labels [n] or [n, classes] of one split, whatever their range."""
    images_key, key = f"{prefix}images", f"{prefix}labels"
    labels, count = arrays[key], len(arrays[images_key])
    if labels.ndim != 1 and (labels.ndim != 2 or labels.shape[1] < 2):
        raise InputError(
            f"{file}: {key!r} has shape {list(labels.shape)}; expected [n], one integer a row, or [n, classes] "
            f"of 0 and 1, several labels a row"
        )
    if count != len(labels):
        raise InputError(f"{file}: {images_key!r} has {count} rows and {key!r} has {len(labels)}; expected as many")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{file}: {key!r} has dtype {labels.dtype}; expected integers")
    return labels


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
    several = labels.ndim > 1
    outside = (labels < 0) | (labels >= (2 if several else count))
    if outside.any():
        row, value = np.argwhere(outside)[0][0], labels[outside][0]
        expected = "0 or 1 in each column" if several else f"0..{count - 1} ({count} classes)"
        raise InputError(f"{file}: {key!r} row {row} {'holds' if several else 'is'} {value}; expected {expected}")
