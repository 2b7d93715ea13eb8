"""From the names of data to what is read: one table of readers, for datasets, streams of batches and pairs.

A name is a key of `READERS`, with what the reader is to read after a colon (`npz:FILE`), or a reader in a module of the
user's, as `my_data.shards:DIR` or `my_data.shards(size=3):DIR`.
"""

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from jtransfer import expressions, files, kinds
from jtransfer.data import (
    array_records,
    arrow,
    folder,
    lines,
    marked,
    marks,
    mixtures,
    npz,
    pairs,
    streams,
    tables,
    tars,
    tfds,
    users,
)
from jtransfer.data import augment as augmentations
from jtransfer.data.dataset import CLASSES, Context, Dataset, Images, Lazy, check_targets, fingerprint
from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Stream
from jtransfer.data.users import Data
from jtransfer.errors import InputError, nearest

__all__ = [
    "READERS",
    "Context",
    "Dataset",
    "Images",
    "Lazy",
    "Stream",
    "fingerprint",
    "load",
    "modules",
    "open_pairs",
    "open_stream",
]


def _digits(rest: str, context: Context) -> Dataset:
    """1797 handwritten digits of 8x8 (Alpaydin & Kaynak) in scikit-learn's order; the first 1000 are the pool."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images, labels = (raw.images / 16).astype(np.float32)[..., None], raw.target.astype(np.int32)
    return Dataset(context.name, images, labels, tuple("0123456789"), np.arange(1000), np.arange(1000, len(images)))


READERS: dict[str, Callable[[str, Context], Data]] = {
    "digits": _digits,
    "glyphs": streams.glyphs,
    "letters": partial(streams.glyphs, first=10),
    "glyph_captions": pairs.glyph_captions,
    "letter_captions": partial(pairs.glyph_captions, digits=False),
    "npz": npz.read,
    "folder": folder.read,
    "tfds": tfds.read,
    "table": tables.read,
    "hf": arrow.read,
    "tar": tars.read,
    "array_record": array_records.read,
    "texts": lines.read,
    "conll": marked.conll,
    "squad": marked.squad,
}
"""Readers by the name, or by what precedes the colon; each is called with what follows the colon and a `Context`."""

TABLES = ("table:FILE", "hf:DIR", "tar:FILE", "array_record:FILE")
ENDINGS = {
    "npz": (".npz",),
    "table": tuple(tables.OPENED),
    "tar": (".tar",),
    "array_record": array_records.ENDINGS,
}
"""How the files of some readers end."""

LABELLED = ("digits", "npz:FILE", "folder:DIR", "tfds:NAME", *TABLES)
STREAMED = ("glyphs", "letters", *LABELLED)
MARKED = ("conll:FILE", "squad:FILE")
TEXTS = ("texts:FILE", "npz:FILE", "tfds:NAME", *TABLES)
PAIRED = ("glyph_captions", "letter_captions", "tfds:NAME?caption=FEATURE", "npz:FILE", *TABLES)
"""The names that have columns, labels, batches, labels of parts of texts, texts and pairs; FILE, DIR, NAME and FEATURE
stand for the user's own."""


def load(name: str, data_dir: str = "", reads: Sequence[str] = CLASSES) -> Dataset:
    """The dataset called `name`, checked before anything compiles.

    | name | what |
    |---|---|
    | `digits` | in memory |
    | `npz:FILE` | images or texts in a file of NumPy arrays; images that are not compressed stay on the disk |
    | `folder:DIR` | images below `DIR/CLASS/`, or below `DIR/train/CLASS/` and `DIR/test/CLASS/` (or `val`) |
    | `tfds:NAME[:VERSION][?OPTIONS]` | prepared by TensorFlow Datasets, as `tfds:glue/rte?test=validation` |
    | `table:FILE[?OPTIONS]` | a `.csv`, `.tsv`, `.jsonl`, `.ndjson` or `.parquet` file, or a directory of them |
    | `hf:DIR[?OPTIONS]` | saved on a disk by Hugging Face's `datasets` (`save_to_disk`) |
    | `tar:FILE[?OPTIONS]` | images beside texts or classes in tar files, as img2dataset and WebDataset write them |
    | `array_record:FILE[?OPTIONS]` | `tf.train.Example` in ArrayRecord files, as Grain and T5X read them |
    | `texts:FILE` | a text on every line, without labels; blank lines do not count |
    | `conll:FILE` | a word and its tag on every line, in a file or a directory: see `marked.conll` |
    | `squad:FILE` | questions, passages and answers in a JSON file or a directory: see `marked.squad` |
    | `my_data.shards:DIR` | what the function `shards` of your `my_data.py` returns for `DIR`: see docs/data.md |

    A folder's images end in `.bmp`, `.gif`, `.jpeg`, `.jpg`, `.png`, `.tif`, `.tiff` or `.webp`; they may lie in
    sub-folders, and are turned as their EXIF orientation says. If there is no `test`, the rows of `val` (`valid`,
    `validation`, `dev`) are for testing; if there is, those of `val` are not used, and the note says so. Links that
    lead out of the folder are refused.

    An `.npz` file holds `images` [n, height, width] or [n, height, width, channels], uint8 (scaled by 1/255) or float
    from 0 to 1, or `texts` [n] or [n, 2] (pairs), and `labels`, which texts need not have; optionally `classes` (their
    names), `captions` ([n] or [n, k] texts), and test rows under the same keys with `test_` in front. Labels are [n]
    indices into `classes`, or names; without `classes` they are integers or texts, and each distinct one becomes a
    class. Several labels a row are [n, classes] of 0 and 1. If "values" are asked for, labels are [n] or [n, values]
    numbers.

    If there are no test rows, a fixed part of the rows is held out for testing: a fifth of every class; a fifth of all
    rows, if a row has several labels or values; the last hundredth, if rows have no labels.

    The options of a prepared dataset, joined by `&`, are `input` (a feature, or two texts as `input=a+b`), `label` (a
    feature of one class a row, of a sequence of classes, or of floats; `label=` for none), `caption` (texts that
    describe an image, as `caption=a+b`, or a sequence of them), `train` and `test` (splits, as `train=train[:1000]`),
    `only` and `test_only` (classes that the rows of pool and test must have, as `only=style:noto+twemoji`).

    The options of `table:`, `hf:`, `tar:` and `array_record:` are `input`, a column of images, of paths of images or of
    texts (or two of texts, `input=a+b`); `label`, a column of one class a row, of lists of classes or of numbers
    (`label=` for none); `caption`, columns of texts, or of lists of texts, that describe an image; `train` and `test`,
    splits of a directory, or `test=FILE`. What is taken without them is said in `tables.read`, `arrow.read`,
    `tars.read` and `array_records.read`.

    Args:
        name: As above.
        data_dir: Where prepared datasets lie; empty for the environment's `TFDS_DATA_DIR`, or TFDS's own directory.
        reads: What the data must have; see `Context`.

    Raises:
        InputError: the name is unknown, it names data that cannot be read or have nothing of what `reads` asks for, or
            it names a stream.
    """
    kinds.check(name, kinds.TEXT, "dataset")
    kinds.check(data_dir, kinds.either(kinds.TEXT, kinds.NONE), "data_dir")
    if mixtures.parse(name):
        raise InputError(f"dataset {name!r} is a mixture, which jtransfer train alone reads")
    found = _read(Context(name, tuple(reads), _directory(data_dir)), [*LABELLED, *_texts(reads)])
    if not isinstance(found, Dataset):
        raise InputError(f"dataset {name!r} is a {type(found).__name__} of batches, which jtransfer train alone reads")
    check_targets(found, reads)
    return found


def open_stream(
    name: str,
    batch: int,
    seed: int,
    share: np.ndarray | slice = slice(None),
    data_dir: str = "",
    reads: Sequence[str] = CLASSES,
    augment: Sequence[str] = (),
    damaged: float = 0.0,
) -> Stream:
    """Open a source of batches of `batch` examples: a stream, or the pool of a dataset.

    Args:
        name: As `load` takes it, or `glyphs` or `letters`; or a mixture of datasets: see `mixtures`.
        batch: Examples of a step, over all processes.
        seed: Of the order of the examples, and of random draws.
        share: Positions in each batch that this process reads; see `Context`.
        data_dir: Where prepared datasets lie; empty for the environment's `TFDS_DATA_DIR`, or TFDS's own directory.
        reads: What the data must have; see `Context`.
        augment: What is done to images at random, as `augment.parse` takes it.
        damaged: The largest share of a dataset's pool that may be damaged, and is left out.

    Raises:
        InputError: an unknown name or augmentation, data that cannot be read or have nothing of what `reads` asks for,
            a stream of pairs, more damaged rows, or data that cannot be augmented.
    """
    drawn = augmentations.parse(augment)
    context = Context(name, tuple(reads), _directory(data_dir), batch, seed, share, augment=drawn, damaged=damaged)
    found = _mixed(context, [*STREAMED, *_texts(reads)])
    if isinstance(found, PairStream):
        raise InputError(f"config.data: {name} is a stream of pairs; expected {' or '.join(reads)}")
    check_targets(found, reads)
    return streams.of_dataset(found, context) if isinstance(found, Dataset) else found


def open_pairs(
    name: str,
    batch: int,
    seed: int,
    share: np.ndarray | slice = slice(None),
    data_dir: str = "",
    templates: Sequence[str] = (),
    crop: Sequence[float] = (),
    damaged: float = 0.0,
) -> PairStream:
    """Open a source of batches of `batch` pairs.

    Args:
        name: `glyph_captions` or `letter_captions`, a dataset with captions (`tfds:NAME?caption=FEATURE` or
            `npz:FILE`), or a reader of the user's that returns one or the other; or a mixture: see `mixtures`.
        batch: Pairs of a step, over all processes.
        seed: Of the order of the pairs, and of random draws.
        share: Positions in each batch that this process reads; see `Context`.
        data_dir: Where prepared datasets lie; empty for the environment's `TFDS_DATA_DIR`, or TFDS's own directory.
        templates: Texts with `{}` for the caption; empty for the source's own.
        crop: The least and the largest share of an image's area that is cut out, as in `pairs.cropped`; empty for whole
            images.
        damaged: The largest share of a dataset's pool that may be damaged or without a caption, and is left out.

    Raises:
        InputError: an unknown name, batch, seed, template or crop that cannot be used, data without captions, captions
            that are all the same or all empty, fewer than two names among the held-out rows, or damaged rows.
    """
    kinds.check(name, kinds.NAME, "config.data")
    kinds.check(batch, kinds.whole(1), "config.batch")
    kinds.check(seed, kinds.SEED, "config.seed")
    if bad := [template for template in templates if not isinstance(template, str) or "{}" not in template]:
        raise InputError(f"config.templates: {bad[0]!r} has no {{}} for the caption")
    if len(crop) not in (0, 2) or not all(0 < part <= 1 for part in crop) or list(crop) != sorted(crop):
        raise InputError(f"config.crop is {tuple(crop)}; expected the least and the largest share of an image's area")
    context = Context(
        name, ("pairs",), _directory(data_dir), batch, seed, share, tuple(templates), crop, damaged=damaged
    )
    found = _mixed(context, PAIRED)
    if isinstance(found, Dataset) and found.captions is not None:
        return pairs.of_dataset(found, context)
    if not isinstance(found, PairStream):
        raise InputError(f"config.data: {name} has no captions; expected a Dataset with captions, or a PairStream")
    return found


def modules(name: str) -> dict[str, str]:
    """The user's modules in a name of data, each with the digest of its source; empty if it is no dotted name.

    Raises:
        InputError: the name cannot be parsed, or a module is missing: see `expressions.modules`.
    """
    names = [own for _, own in mixtures.parse(name)] or [name]
    found = [expressions.modules(own[0], "reader") for own in map(_dotted, names) if own]
    return {module: digest for own in found for module, digest in own.items()}


def _mixed(context: Context, known: Sequence[str]) -> Data:
    """What `_read` gives; of a mixture its datasets as one."""
    if not (parts := mixtures.parse(context.name)):
        return _read(context, known)
    weights, names = zip(*parts, strict=True)
    datasets = [_read(replace(context, name=name), known) for name in names]
    if others := [name for name, own in zip(names, datasets, strict=True) if not isinstance(own, Dataset)]:
        raise InputError(f"config.data: {others[0]} is a stream of batches; a mixture is of datasets")
    return mixtures.joined(context.name, weights, datasets)


def _read(context: Context, known: Sequence[str]) -> Data:
    """What the reader returns that a name names; `known` are the names and forms that serve."""
    name = context.name
    if own := _dotted(name):
        (module,) = modules(name)
        return _counted(users.read(*own, module, context))
    prefix, colon, rest = name.partition(":")
    there = known if known is PAIRED else (*known, *MARKED)  # what has other labels is read, and then refused for them
    form = next((form for form in there if form.partition(":")[:2] == (prefix, colon)), None)
    if form is None:
        said = f"config.data: unknown pairs '{name}'" if known is PAIRED else f"dataset {name!r} is unknown"
        file = name.rpartition(":")[2]
        reader = next((own for own, ends in ENDINGS.items() if file.endswith(ends)), "")
        if f"{reader}:FILE" in known:
            raise InputError(f"{said}; did you mean '{reader}:{file}'?")
        choices = [f"{form.partition(':')[0]}:{file}" if colon and ":" in form else form for form in known]
        raise InputError(f"{said}; {nearest(name, choices)}")
    if form.endswith((":FILE", ":DIR")):
        place, *options = rest.split("?", 1) if form in TABLES else (rest,)
        if not place:
            what = "directory" if form.endswith("DIR") else "file"
            raise InputError(f"{name}: no such {what}; expected {form}")
        rest = "?".join((str(files.path(place, f"{prefix}:")), *options))
    return _counted(READERS[prefix](rest, context))


def _texts(reads: Sequence[str]) -> Sequence[str]:
    return (*(MARKED if {*marks.KINDS} & {*reads} else ()), *(TEXTS if "texts" in reads else ()))


def _directory(data_dir: str) -> str:
    """Where a config says that prepared datasets lie, with `~` as the home directory; empty for nowhere in particular.

    Raises:
        InputError: no path.
    """
    return str(files.path(data_dir, "config.data_dir")) if data_dir else ""


def _counted(found: Data) -> Data:
    """A dataset with a note of the classes that have no row for training, or none for testing."""
    if not isinstance(found, Dataset) or found.targets != "classes":
        return found
    said = [found.note] if found.note else []
    for what, rows in (("training", found.pool), ("testing", found.test)):
        known = found.labels[np.setdiff1d(rows, list(found.damaged))] if found.damaged else found.labels[rows]
        lacking = np.flatnonzero(np.bincount(known, minlength=len(found.classes)) == 0)
        if len(rows) and len(lacking):
            first = found.classes[lacking[0]]
            said.append(f"{len(lacking)} of {len(found.classes)} classes, as '{first}', have no row for {what}.")
    return replace(found, note=" ".join(said))


def _dotted(name: str) -> tuple[str, str] | None:
    """A dotted name, with its options, and what follows the colon; None for other names."""
    found = re.match(r"[^\W\d]\w*(\.[^\W\d]\w*)+(?=[(:]|$)", name)
    if not found or (name.endswith(sum(ENDINGS.values(), ())) and found.end() == len(name)):
        return None
    ends = [place.start() for place in re.finditer(":", name)]
    for end in ends[: expressions.LONGEST // 100]:  # of which some may stand in the options
        try:
            ast.parse(name[:end], mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        return name[:end], name[end + 1 :]
    return name, ""
