"""A user's `.npz` file of images or texts as a dataset; an error is one line that names the file and the key."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from jtransfer.data.dataset import CLASSES, Context, Dataset, Images, Lazy, blocks, unlabelled
from jtransfer.data.labels import columns, distinct, numbers, texts
from jtransfer.data.splits import hold_out, hold_out_the_last
from jtransfer.errors import InputError, nearest
from jtransfer.storage.arrays import NpzArray, open_npz

log = logging.getLogger("jtransfer")

OF_ROWS = ("images", "texts", "labels", "captions")
KEYS = (*OF_ROWS, *(f"test_{key}" for key in OF_ROWS), "classes")

LONGEST_NAME, MOST_CLASSES = 1000, 1 << 20
"""Characters of a class's name, and how many names there may be."""

STEP = 1 / 255
"""The step of an 8-bit scale; values beyond 0..1 by less than half of it come from rounding, not from another scale."""

DARK = 0.25
"""Images whose brightest value is below this are logged, as they may be of another scale."""


def read(file: str, context: Context) -> Dataset:
    """The dataset in a file, with the keys that `sources.load` describes; if "pairs" are asked for, see `read_pairs`.

    Images keep the dtype that they have in the file: see `dataset.Images`. If they are not compressed, and the file is
    on a disk, they take no memory: their rows are read when they are asked for.

    Args:
        file: Its path, on a disk or in an object store.
        context: With the name of the dataset, and what is asked of it.

    Raises:
        InputError: the file is missing or damaged, has an unknown key or lacks one, or an array has a shape, a dtype or
            values that cannot be used.
    """
    if "pairs" in context.reads:
        return read_pairs(file, context)
    arrays = open_npz(file)
    if "texts" in arrays:
        return _read_texts(file, arrays, context)
    _check_keys(file, arrays, "images", "labels")
    prefixes = ("", "test_") if "test_images" in arrays else ("",)
    for prefix in prefixes:
        _check_shape(file, arrays, prefix)
    wrong: dict[int, str] = {}
    classes, labels = _targets(file, arrays, prefixes, "images", context, wrong)
    images = _images(file, arrays, prefixes)
    pool, test = _split(file, labels, "images")
    captions = _captions(file, arrays) if "captions" in arrays else None
    whole = np.concatenate(labels)
    return Dataset(context.name, images, whole, classes, pool, test, captions=captions, damaged=wrong)


def _read_texts(file: str, arrays: Mapping[str, NpzArray], context: Context) -> Dataset:
    """Texts, or pairs of them, with labels or without."""
    _check_keys(file, arrays, "texts", *({"labels"} & arrays.keys()))
    prefixes = ("", "test_") if "test_texts" in arrays else ("",)
    rows, digest = [], hashlib.sha256()
    for key in (f"{prefix}texts" for prefix in prefixes):
        shape, dtype, read, _ = arrays[key]
        if dtype.kind != "U" or shape[1:] not in ((), (2,)) or 0 in shape or shape[1:] != arrays["texts"].shape[1:]:
            raise InputError(
                f"{file}: {key!r} has shape {list(shape)} and dtype {dtype}; expected strings, [n], or pairs [n, 2]"
            )
        found = read()
        rows += list(map(tuple, found.tolist())) if len(shape) > 1 else found.tolist()
        digest.update(repr(found.tolist()).encode("utf-8", "surrogateescape"))
    wrong: dict[int, str] = {}
    if "labels" in arrays:
        classes, labels = _targets(file, arrays, prefixes, "texts", context, wrong)
    else:
        classes, labels = (), [unlabelled(arrays[f"{prefix}texts"].shape[0]) for prefix in prefixes]
    pool, test = _split(file, labels, "texts")
    inputs = Lazy(len(rows), lambda asked: [rows[row] for row in asked], digest.hexdigest()[:16])
    return Dataset(context.name, inputs, np.concatenate(labels), classes, pool, test, "text", damaged=wrong)


def _split(file: str, labels: Sequence[np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Pool and test rows."""
    if len(labels) > 1:
        return tuple(np.split(np.arange(sum(map(len, labels))), [len(labels[0])]))
    return hold_out(labels[0], file, f"'test_{what}' and 'test_labels'", what)[:2]


def _targets(
    file: str,
    arrays: Mapping[str, NpzArray],
    prefixes: Sequence[str],
    what: str,
    context: Context,
    wrong: dict[int, str],
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The names of classes or values, and the labels of each split: floats where values are asked for.

    Labels that are no class are put into `wrong`, where some may be left out.
    """
    values = "values" in context.reads and (
        not {*CLASSES} & {*context.reads} or any(arrays[f"{own}labels"].dtype.kind == "f" for own in prefixes)
    )
    labels = [_labels(file, arrays, prefix, what, values) for prefix in prefixes]
    if labels[-1].shape[1:] != labels[0].shape[1:]:
        raise InputError(
            f"{file}: 'test_labels' has shape {list(labels[1].shape)}, 'labels' {list(labels[0].shape)}; expected the "
            f"same but for the rows"
        )
    one_each = partial(distinct, damaged=wrong if context.damaged else None)
    read = numbers if values else columns if labels[0].ndim > 1 else one_each
    return read(file, _names(file, arrays), labels)


def read_pairs(file: str, context: Context) -> Dataset:
    """The images in a file and their `captions`; labels are not read, and the file need not have any.

    Images become uint8, which the model's image processor takes; floats are rounded. If there are no `test_images`, the
    last hundredth of the rows is held out: see `splits.hold_out_the_last`. The labels of the dataset are all 0, of one
    class without a name.

    Args:
        file: Its path, on a disk or in an object store.
        context: With the name of the dataset.

    Raises:
        InputError: as `read`, or there are no captions.
    """
    arrays = open_npz(file)
    _check_keys(file, arrays, "images", "captions")
    prefixes = ("", "test_") if "test_images" in arrays else ("",)
    for prefix in prefixes:
        _check_shape(file, arrays, prefix)
    images, captions = _images(file, arrays, prefixes), _captions(file, arrays)
    if len(prefixes) > 1:
        pool, test = np.split(np.arange(len(images)), [len(images.parts[0])])
    else:
        pool, test = hold_out_the_last(len(images), file, "images")
    digest = hashlib.sha256()
    for block in blocks(images):
        digest.update(_bytes(block))
    lazy = Lazy(len(images), lambda rows: list(_bytes(images[rows])), digest.hexdigest()[:16])
    none = np.zeros(len(images), np.int8)
    return Dataset(context.name, lazy, none, ("",), pool, test, captions=captions)


def _check_keys(file: str, arrays: Mapping[str, NpzArray], *needed: str) -> None:
    """Refuse keys that nothing reads, and a file without those that are needed, or half a test."""
    for key in arrays:
        if key not in KEYS:
            raise InputError(f"{file}: unknown key {key[:80]!r}; {nearest(key[:80], KEYS)}")
    for key in needed:
        if key not in arrays:
            raise InputError(f"{file}: key {key!r} is missing; found {', '.join(sorted(arrays)) or 'no keys'}")
    if "texts" in needed and (other := next((key for key in ("images", "captions") if key in arrays), None)):
        raise InputError(f"{file}: 'texts' and {other!r} are both there; give images, with captions or not, or texts")
    both = dict.fromkeys((*needed, *({"captions"} & arrays.keys())))
    there = [key for key in both if f"test_{key}" in arrays]
    if there and (lacks := [key for key in both if key not in there]):
        raise InputError(
            f"{file}: key 'test_{there[0]}' is there, but 'test_{lacks[0]}' is missing; give both or neither"
        )


def _check_shape(file: str, arrays: Mapping[str, NpzArray], prefix: str) -> None:
    """Refuse images of one split for what their header says."""
    key = f"{prefix}images"
    (shape, dtype, *_), (others, *_) = arrays[key], arrays["images"]
    if len(shape) not in (3, 4):
        raise InputError(
            f"{file}: {key!r} has shape {list(shape)}; expected [n, height, width] or [n, height, width, channels]"
        )
    if 0 in shape:
        raise InputError(f"{file}: {key!r} is empty, shape {list(shape)}; expected at least one pixel")
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[2] > 4 and shape[3] > 4:
        raise InputError(
            f"{file}: {key!r} has shape {list(shape)}, channels first; expected [n, height, width, channels]: save "
            f"{key}.transpose(0, 2, 3, 1)"
        )
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise InputError(f"{file}: {key!r} has dtype {dtype}; expected uint8 (0..255) or float (0..1)")
    one, other = ([*shape[1:], 1][:3] for shape in (shape, others))
    if one != other:
        raise InputError(
            f"{file}: 'test_images' are {one} each, expected {other} as in 'images' [height, width, channels]"
        )


def _images(file: str, arrays: Mapping[str, NpzArray], prefixes: Sequence[str]) -> Images:
    """The images [n, h, w, c] of all splits, if their values are of the scale that they are read by."""
    parts = []
    for key in (f"{prefix}images" for prefix in prefixes):
        part = arrays[key].rows().reshape((*arrays[key].shape, 1)[:4])
        low, high = _range(file, key, Images((part,)))
        if low < -STEP / 2 or high > 1 + STEP / 2:
            raise InputError(
                f"{file}: {key!r} are floats from {low:.4g} to {high:.4g}; expected 0 to 1, or uint8 (0..255): save "
                f"{_mended(key, low, high)}"
            )
        if 0 < high < 1.001 * STEP:
            raise InputError(
                f"{file}: {key!r} hold no value above 1 of 255, which is black; expected uint8 (0..255) or float "
                f"(0..1): save {key} * 255"
            )
        if 0 < high < DARK:
            log.warning(
                "%s: the brightest value of '%s' is %.0f of 255; are they of another scale?", file, key, high * 255
            )
        parts.append(part)
    return Images(tuple(parts))


def _range(file: str, key: str, images: Images) -> tuple[float, float]:
    """The least and the largest value."""
    (part,) = images.parts
    if part.dtype == np.uint8:
        return 0.0, max(int(block.max()) for block in blocks(part)) / 255
    low, high, start = np.inf, -np.inf, 0
    with np.errstate(over="ignore"):  # what overflows float32 is reported as infinite
        for block in blocks(images):
            finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            if not finite.all():
                row = start + int((~finite).argmax())
                raise InputError(f"{file}: {key!r} row {row} holds NaN or infinite values; expected finite ones")
            low, high, start = min(low, block.min()), max(high, block.max()), start + len(block)
    return float(low), float(high)


def _mended(key: str, low: float, high: float) -> str:
    """How images of another scale become floats of 0 to 1."""
    if low >= -0.25 and 0.5 + STEP < high <= 1.25:
        return f"np.clip({key}, 0, 1)"
    if low < 0:
        way_out = {0.5: f"{key} + 0.5", 1: f"({key} + 1) / 2"}
        return next(
            (said for half, said in way_out.items() if max(-low, high) <= half + STEP),
            "them as they were before they were normalised",
        )
    scale = next((scale for scale in (16, 100, 255, 1023, 4095, 65535) if scale / 2 < high <= scale), 0)
    return f"{key} / {scale}" if scale else f"{key} over the largest value that they can have"


def _bytes(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)


def _labels(file: str, arrays: Mapping[str, NpzArray], prefix: str, what: str, values: bool) -> np.ndarray:
    """Labels [n] or [n, classes] of one split, whatever their range; texts for classes by name."""
    images_key, key = f"{prefix}{what}", f"{prefix}labels"
    (shape, dtype, read, _), count = arrays[key], arrays[images_key].shape[0]
    if len(shape) != 1 and (len(shape) != 2 or shape[1] < 2):
        way_out = f": save {key}[:, 0]" if shape[1:] == (1,) else ""
        raise InputError(
            f"{file}: {key!r} has shape {list(shape)}; expected [n], one integer a row, or [n, classes] "
            f"of 0 and 1, several labels a row{way_out}"
        )
    if count != shape[0]:
        raise InputError(f"{file}: {images_key!r} has {count} rows and {key!r} has {shape[0]}; expected as many")
    if values and dtype.kind not in "iuf":
        raise InputError(f"{file}: {key!r} has dtype {dtype}; expected numbers, [n] or [n, values]")
    if values:
        return read().astype(np.float32)
    if dtype.kind not in ("iuUS" if len(shape) == 1 else "iu"):
        names = ", or names of classes" if len(shape) == 1 else ""
        way_out = f": save {key}.astype(int)" if dtype.kind in "fb" else ""
        raise InputError(f"{file}: {key!r} has dtype {dtype}; expected integers{names}{way_out}")
    _check_length(file, key, dtype)
    return read()


def _check_length(file: str, key: str, dtype: np.dtype) -> None:
    """Refuse an array of texts that has room for longer ones than names are, before it is read."""
    characters = np.dtype(dtype).itemsize // (4 if dtype.kind == "U" else 1)
    if dtype.kind in "US" and characters > LONGEST_NAME:
        raise InputError(
            f"{file}: {key!r} has names of up to {characters:,} characters; expected {LONGEST_NAME:,} at most"
        )


def _names(file: str, arrays: Mapping[str, NpzArray]) -> tuple[str, ...]:
    """The names of classes in the file; none where it has none."""
    if "classes" not in arrays:
        return ()
    shape, dtype, read, _ = arrays["classes"]
    if len(shape) != 1 or dtype.kind not in "US":
        raise InputError(f"{file}: 'classes' has shape {list(shape)} and dtype {dtype}; expected a list of strings")
    if shape[0] > MOST_CLASSES:
        raise InputError(f"{file}: 'classes' has {shape[0]:,} names; expected {MOST_CLASSES:,} at most")
    _check_length(file, "classes", dtype)
    names = texts(file, "classes", read())
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{file}: 'classes' names {name!r} twice; expected each name once")
        seen.add(name)
    return names


def _captions(file: str, arrays: Mapping[str, NpzArray]) -> Lazy:
    """Of each row, those of the test split last, a list of texts; empty ones fill up rows that have fewer."""
    rows, digest = [], hashlib.sha256()
    for prefix in ("", "test_") if "test_images" in arrays else ("",):
        key, count = f"{prefix}captions", arrays[f"{prefix}images"].shape[0]
        shape, dtype, read, _ = arrays[key]
        if len(shape) not in (1, 2) or dtype.kind != "U":
            raise InputError(
                f"{file}: {key!r} has shape {list(shape)} and dtype {dtype}; expected strings, [n] or [n, captions]"
            )
        if shape[0] != count:
            raise InputError(f"{file}: '{prefix}images' has {count} rows and {key!r} has {shape[0]}; expected as many")
        found = read()
        rows += np.atleast_2d(found.T).T.tolist()
        digest.update(np.ascontiguousarray(found))
    rows = [[text for text in row if text.strip()] or row[:1] for row in rows]
    return Lazy(len(rows), lambda asked: [rows[row] for row in asked], digest.hexdigest()[:16])
