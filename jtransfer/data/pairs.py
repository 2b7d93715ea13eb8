"""Images and the texts that describe them: batches for contrastive training, and pairs held out from it.

As in streams.py, a batch is a function of the number of its step, which is the cursor. If an image has several
captions, one is drawn each time that the image comes; it is put into a template, if there are any.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from jtransfer import kinds
from jtransfer.data import glyphs, pictures
from jtransfer.data.damage import left_out
from jtransfer.data.dataset import Context, Dataset, blocks, fingerprint
from jtransfer.data.mixtures import order
from jtransfer.data.streams import At, Cursor, HostBatch, Rows, counted
from jtransfer.errors import InputError

HELD_OUT = 2048
"""The most pairs that are held out."""

PLAIN = ("{}",)
"""The template that leaves a caption as it is."""


@dataclass(frozen=True)
class HeldOut:
    """Images that are never trained on, and the names of what they show.

    Attributes:
        what: The prefix of their metrics, as "test".
        images: Indexed by row numbers.
        names: One for each thing that is shown.
        labels: `[n]` int32, the name of each image as an index into `names`.
        templates: Texts with `{}` for the name.
    """

    what: str
    images: Any
    names: tuple[str, ...]
    labels: np.ndarray
    templates: tuple[str, ...]


@dataclass(frozen=True)
class PairStream:
    """A source of batches of images and texts that describe them; docs/data.md says what a stream promises.

    Attributes:
        name: As the config writes it.
        images: Images that are known beforehand, indexed by row numbers; the model's image size is taken from these.
        batches: From a cursor to the batches that come after it, each with the cursor after it: `{"images": n images
            indexed by rows, "texts": [n]}`, this process's share of each.
        held_out: Images that are never trained on, for evaluation.
        fingerprint: Digest of the data, and of the templates and the crop.
        kind: Of the inputs: "pair".
        rows: As in a `Stream`, of `images`; None if images are made anew, or cropped.
        at: As in a `Stream`.
        damaged: How many pairs were left out, as they are damaged or have no caption.
    """

    parts: ClassVar[tuple[str, ...]] = ("images", "texts")

    name: str
    images: Any
    batches: Callable[[Cursor], Iterator[tuple[HostBatch, Cursor]]]
    held_out: HeldOut
    fingerprint: str
    kind: str = "pair"
    rows: np.ndarray | None = None
    at: At | None = None
    damaged: int = 0

    @property
    def inputs(self) -> Any:
        """The images, by the name that they have in a `Stream`."""
        return self.images

    def wrong(self, batch: HostBatch) -> str:
        """What in a batch is no text, in words; empty where all are."""
        others = [text for text in batch["texts"] if not isinstance(text, str)]
        return f"{kinds.shown(others[0])} as a text; expected a string" if others else ""


def of_dataset(dataset: Dataset, context: Context) -> PairStream:
    """The pool of a dataset whose rows have captions, in shuffled epochs; the cursor is the number of the step.

    A row whose captions are all empty is a damaged one. Of the test rows at most `HELD_OUT` are held out, evenly
    spaced, each named by its first caption.

    Args:
        dataset: With `captions`.
        context: With batch, seed, share, templates and crop.

    Raises:
        InputError: more damaged rows than may be left out; captions of the first `HELD_OUT` rows of the pool that are
            all the same; or fewer than two names among the test rows.
    """
    dataset, lost = left_out(dataset, context.damaged, partial(_without_captions, dataset))
    some = dataset.pool[:HELD_OUT]
    if len({text for own in _captions(dataset, some) for text in own}) < 2:
        raise InputError(f"config.data: the captions of the first {len(some)} rows of {dataset.name} are all the same")
    batch, seed, share, crop = context.batch, context.seed, context.share, context.crop
    templates = context.templates or PLAIN

    rows_of = order(dataset, batch, seed)

    def at(step):
        draws, own_rows = np.random.default_rng((seed, step)).random((batch, 6))[share], rows_of(step)[share]
        texts = [
            pick(templates, other).replace("{}", pick(own, one))
            for own, (one, other) in zip(_captions(dataset, own_rows), draws[:, :2], strict=True)
        ]
        images = Rows(dataset.inputs, own_rows)
        return {"images": Crops(images, crop, draws[:, 2:]) if crop else images, "texts": texts}

    test = dataset.test[np.linspace(0, len(dataset.test) - 1, min(HELD_OUT, len(dataset.test))).astype(int)]
    called = {row: own[0] for row, own in zip(test.tolist(), _captions(dataset, test), strict=True) if own}
    test, (names, labels) = np.array(list(called)), np.unique(list(called.values()), return_inverse=True)
    if len(names) < 2:
        what = f"called '{names[0]}'" if len(names) else "without a caption"
        raise InputError(f"config.data: the rows that {dataset.name} holds out are all {what}; two names are needed")
    held_out = HeldOut("test", Rows(dataset.inputs, test), tuple(names.tolist()), labels.astype(np.int32), templates)
    named, *contents = fingerprint(dataset).split(".")
    digest = f"{named}\n{dataset.captions.identity}\n{templates} {crop}"
    identity = ".".join([hashlib.sha256(digest.encode()).hexdigest()[:16], *contents])

    rows = None if crop else dataset.pool
    batches = partial(counted, at)
    return PairStream(dataset.name, dataset.inputs, batches, held_out, identity, rows=rows, at=at, damaged=lost)


def _captions(dataset: Any, rows: np.ndarray) -> list[list[str]]:
    """The captions of some rows that are not empty."""
    return [[text for text in own if text.strip()] for own in dataset.captions[rows]]


def _without_captions(dataset: Any, rows: np.ndarray) -> dict[int, str]:
    """A line, by row, for each of some rows whose captions are all empty."""
    return {
        int(row): f"the caption of row {row} of {dataset.name} is empty"
        for rows in blocks(rows)
        for row, own in zip(rows, _captions(dataset, rows), strict=True)
        if not own
    }


@dataclass(frozen=True, eq=False)
class Crops:
    """Images indexed by row numbers, each cropped by draws of its own when it is asked for.

    Attributes:
        images: The whole images.
        crop: The least and the largest share of an image's area: see `cropped`.
        draws: `[n, 4]`, four numbers in [0, 1) for each image.
    """

    images: Rows
    crop: Sequence[float]
    draws: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> list[np.ndarray]:
        draws = self.draws[rows]
        if (files := self.images.files(rows)) is not None:  # what is cut off stays coded
            boxes = [partial(crop_box, crop=self.crop, draws=own) for own in draws]
            return [pictures.part(*file, box) for file, box in zip(files, boxes, strict=True)]
        return [cropped(image, self.crop, own) for image, own in zip(self.images[rows], draws, strict=True)]


def cropped(image: np.ndarray, crop: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """A part of an image, with an area between two shares and an aspect ratio between 3:4 and 4:3, as in open_clip.

    The area is uniform between the shares, and the aspect ratio uniform in its logarithm. A side that would be longer
    than the image's is cut to it, where torchvision's `RandomResizedCrop` draws again. The image processor then resizes
    the part to a square, whatever its aspect ratio.

    Args:
        image: `[height, width, channels]`.
        crop: The least and the largest share of the area.
        draws: Four numbers in [0, 1): for the area, the aspect ratio, and the place from the top and from the left.

    Returns:
        A view of the image, `[height, width, channels]` of the part.
    """
    left, top, wide, high = crop_box(image.shape[1], image.shape[0], crop, draws)
    return image[top : top + high, left : left + wide]


def crop_box(width: int, height: int, crop: Sequence[float], draws: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part that `cropped` cuts out of an image of this width and height."""
    area = height * width * (crop[0] + draws[0] * (crop[1] - crop[0]))
    aspect = (3 / 4) ** (1 - 2 * draws[1])
    high, wide = (min(side, max(1, round(np.sqrt(x)))) for side, x in ((height, area * aspect), (width, area / aspect)))
    return int(draws[3] * (width - wide + 1)), int(draws[2] * (height - high + 1)), wide, high


def pick(choices: Sequence[str], share: float) -> str:
    """The choice at a share in [0, 1) of their number."""
    return choices[int(share * len(choices))]


WORDS = dict(
    zip("0123456789", ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), strict=True)
)
GLYPH_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of the {}",
    "a handwritten {}",
    "a drawing of the {}",
    "the {}",
    "{}",
)
STRAYED = glyphs.Warp(stray=0.35)
"""Handwriting has bars and flags that no font has: a random half of the characters gets a stroke, whatever its name."""


def glyph_names(character: str) -> tuple[str, ...]:
    """What a character is called, its own sign first; the second names it in full.

    >>> glyph_names("7")
    ('7', 'digit seven', 'number seven', 'seven', 'digit 7')
    """
    if character in WORDS:
        word = WORDS[character]
        return character, f"digit {word}", f"number {word}", word, f"digit {character}"
    kind = "capital letter" if character.isupper() else "small letter"
    return character, f"{kind} {character}", f"letter {character}", f"{character} of the alphabet"


def glyph_captions(rest: str, context: Context, digits: bool = True) -> PairStream:
    """Warped characters of fonts and what they are called; the cursor is the number of the step.

    The held-out images are `HELD_OUT` characters of the validation fonts, each named by the second of `glyph_names`.

    Args:
        rest: Not read.
        context: With batch, seed, share and templates.
        digits: Draw digits too, about as often as all letters together.

    Raises:
        InputError: a crop, which would cut the characters.
    """
    import jax

    if context.crop:
        raise InputError(f"config.crop: the characters of {context.name} fill their images; leave it empty")
    batch, seed, share, templates = context.batch, context.seed, context.share, context.templates or GLYPH_TEMPLATES
    train, validation = glyphs.bases("train"), glyphs.bases("validation")
    letters = np.arange(10, len(glyphs.CLASSES))
    classes = np.concatenate([np.repeat(np.arange(10), 5), letters]) if digits else letters
    called = [glyph_names(character) for character in glyphs.CLASSES]

    def after(step):
        bases = jax.device_put(train)
        while True:
            rows = np.arange(batch)[share] + step * batch
            images, labels = glyphs.examples(bases, jax.random.key(seed), rows, classes, STRAYED)
            draws = np.random.default_rng((seed, step)).random((batch, 2))[share]
            texts = [
                pick(templates, other).replace("{}", pick(called[label], one))
                for label, (one, other) in zip(np.asarray(labels), draws, strict=True)
            ]
            step += 1
            yield {"images": np.asarray(images), "texts": texts}, step

    examples = glyphs.examples(validation, jax.random.key(0), np.arange(HELD_OUT), classes, STRAYED)
    images, labels = map(np.asarray, examples)
    shown, labels = np.unique(labels, return_inverse=True)
    held_out = HeldOut("validation", images, tuple(called[i][1] for i in shown), labels.astype(np.int32), templates)
    digest = hashlib.sha256(np.ascontiguousarray(train[:, np.unique(classes)]))
    digest.update(repr((classes.tolist(), called, templates, STRAYED)).encode())
    return PairStream(context.name, images, after, held_out, digest.hexdigest()[:16])
