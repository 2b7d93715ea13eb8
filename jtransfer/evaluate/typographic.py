"""How far written text misleads CLIP: a wrong class name is drawn on each image, and accuracy falls.

The typographic attack (Goh et al. 2021, Multimodal Neurons in Artificial Neural Networks, distill.pub), with a control:
a word of about the same length that names no class, drawn at the same place, tells what covering pixels costs alone.

    wrong = wrong_classes(labels, names, seed)
    texts = [names[i] for i in wrong]
    written, control = overlay(images, texts, seed), overlay(images, neutral_words(texts, names), seed)

The caller classifies the three sets of images, as with `zero_shot.text_classifier`, and `typographic` compares them.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtransfer.errors import InputError
from jtransfer.evaluate import metrics
from jtransfer.solvers import checks

NEUTRAL = ("as", "and", "with", "about", "unless", "through", "although", "therefore", "throughout", "nevertheless")
"""Words that name nothing one could see, of 2 to 12 letters."""

FONT = "DejaVuSans-Bold"
DRAWN = 64  # font size in pixels at which a text is drawn, once; then it is scaled
OUTLINE = DRAWN // 16  # around the letters, in the opposite of their colour, so that any background shows them
OUTLINED = 12  # pixels: in lower lines the outline is thinner than a pixel, and only greys the letters
LEGIBLE = 10  # pixels that a line has at least, where they fit
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601


def wrong_classes(labels: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    """A class other than its own for each image `[n]`, uniformly.

    Args:
        labels: `[n]`, indices into `names`.
        names: Of the classes.
        seed: Which draw; that of a row does not depend on how many rows follow.

    Raises:
        InputError: labels that are no classes, a single class, or a name that stands twice.
    """
    names = checks.names(names)
    if len(names) < 2:
        raise InputError(f"class names are {names[0]!r} alone; expected another that can be written on an image")
    labels = checks.labels(labels, np.size(labels), len(names), alike=True)
    steps = [np.random.default_rng([seed, row]).integers(1, len(names)) for row in range(len(labels))]
    return (labels + np.array(steps, np.int32)) % len(names)


def neutral_words(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Replace each word of each text by the word of `NEUTRAL` of the nearest length that is part of no class's name.

    Raises:
        InputError: every one of them does.
    """
    taken = {part for name in names for part in name.lower().split()}
    words = [word for word in NEUTRAL if word not in taken]
    if not words:
        raise InputError(f"class names hold all of {', '.join(NEUTRAL)}; draw a word of your own with overlay")
    return [" ".join(min(words, key=lambda w: abs(len(w) - len(part))) for part in text.split()) for text in texts]


def check(names: Sequence[str], size: float) -> None:
    """Refuse what `overlay` could not write of classes, before any image is read.

    Raises:
        InputError: a size that is no share, no neutral word that names no class, or a letter that the font lacks.
    """
    _check_size(size)
    neutral_words(names, names)
    font = _default_font()
    face = _face(font)
    for name in names:
        _letters(name, font, face)


def _check_size(size):
    if not 0 < size <= 1:
        raise InputError(f"size is {size}; expected a share of the image's height, above 0 and at most 1")


def overlay(
    images: Any,
    texts: Sequence[str],
    seed: int,
    *,
    size: float = 0.2,
    rows: Sequence[int] | None = None,
    font: str | None = None,
) -> Any:
    """Images with a text on each, white on dark places and black on bright ones, with an outline.

    Args:
        images: `[n, height, width, channels]`, or a list of `[height, width, channels]` or PIL images of any sizes; of
            1 or 3 channels, uint8 or floats from 0 to 1.
        texts: One an image. Its words go below each other where that makes them larger.
        seed: Of the places, which are uniform over those where the text fits; each depends on seed and row alone.
        size: Height of a line, as a share of the image's; but 10 pixels at least, and less where they do not fit.
        rows: Numbers of the images in their dataset, where they are a part of it; 0..n-1 by default.
        font: Path of a TrueType file; DejaVu Sans Bold by default, which has Latin, Greek and Cyrillic letters.

    Returns:
        As `images`: an array of that dtype, or a list of arrays. What comes in is not changed.

    Raises:
        InputError: another number of texts or rows than of images, images of another kind, a text that is empty or has
            letters that the font lacks.
    """
    _check_size(size)
    images = np.asarray(images) if hasattr(images, "dtype") else images
    if not len(images):
        raise InputError("overlay: there are no images; expected at least one")
    rows = range(len(images)) if rows is None else rows
    for what, values in (("texts", texts), ("rows", rows)):
        if isinstance(values, str) or len(values) != len(images):
            raise InputError(f"overlay: {len(values)} {what} for {len(images)} images; expected one each")
    font = font or _default_font()
    drawn = [
        _written(image, text, [seed, row], size, font) for image, text, row in zip(images, texts, rows, strict=True)
    ]
    return np.stack(drawn) if isinstance(images, np.ndarray) else drawn


def _written(image, text, seed, size, font):
    image = _checked(image)
    sides, most = image.shape[:2], 255 if image.dtype == np.uint8 else 1
    outline, letters = _fitted(text, font, sides, max(size * sides[0], LEGIBLE))
    share = np.random.default_rng(seed).random(2)
    top, left = (int(s * (side - part + 1)) for s, side, part in zip(share, sides, letters.shape, strict=False))
    place = image[top : top + letters.shape[0], left : left + letters.shape[1]]
    bright = bool((place @ LUMINANCE if image.shape[2] == 3 else place).mean() > most / 2)
    mixed = place.astype(np.float32)
    for mask, colour in ((outline, most * bright), (letters, most * (not bright))):
        mixed += (colour - mixed) * mask
    place[:] = mixed.round() if image.dtype == np.uint8 else mixed
    return image


def _checked(image):
    """A copy `[height, width, channels]`, of a photograph as viewers show it."""
    if hasattr(image, "getexif"):
        from jtransfer.data.pictures import upright

        image = upright(image)
    image = np.array(image)
    plain = image.ndim == 3 and image.shape[2] in (1, 3) and image.size
    if not plain or not (image.dtype == np.uint8 or image.dtype.kind == "f"):
        raise InputError(
            f"overlay: an image has shape {list(image.shape)} and dtype {image.dtype}; "
            "expected [height, width, 1 or 3] of uint8 or floats"
        )
    if image.dtype.kind == "f" and not (image.min() >= 0 and image.max() <= 1):
        raise InputError(f"overlay: an image has values from {image.min():.4g} to {image.max():.4g}; expected 0 to 1")
    return image


@lru_cache
def _default_font():
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FONT}.ttf")


@lru_cache(maxsize=512)
def _fitted(text, font, sides, line):
    """Outline and letters `[height, width, 1]` of 0 to 1, in one line or a word a line, whichever is larger."""
    from PIL import Image

    def scale(drawing):
        letters = drawing.letters
        return min(line / drawing.line, sides[0] / letters.height, sides[1] / letters.width)

    drawing = max(_drawing(text, font), _drawing("\n".join(text.split()), font), key=scale)
    size = [max(1, round(ink * scale(drawing))) for ink in drawing.letters.size]
    masks = [mask.resize(size, Image.Resampling.BOX) for mask in (drawing.outline, drawing.letters)]
    outline, letters = (np.asarray(mask, np.float32)[..., None] / 255 for mask in masks)
    return outline * (drawing.line * scale(drawing) >= OUTLINED), letters


class _Drawing(NamedTuple):
    """A text as it is drawn once: grey images, cut to the ink of the outline, and the height of a line in them."""

    outline: Any
    letters: Any
    line: int


def _drawing(text, font):
    from PIL import Image, ImageDraw

    if not text.strip():
        raise InputError(f"overlay: a text is {text!r}; expected at least a letter")
    face = _face(font)
    _letters(text, font, face)
    lines = text.split("\n")
    _, top, _, bottom = face.getbbox("dg", stroke_width=OUTLINE)
    size = int(max(map(face.getlength, lines))) + 2 * DRAWN, (len(lines) + 2) * (bottom - top)
    masks = []
    for stroke in (OUTLINE, 0):
        mask = Image.new("L", size)
        for i, line in enumerate(lines):
            at = size[0] / 2, (i + 1.5) * (bottom - top)
            ImageDraw.Draw(mask).text(at, line, fill=255, font=face, anchor="ms", stroke_width=stroke)
        masks.append(mask)
    box = masks[0].getbbox()
    return _Drawing(*(mask.crop(box) for mask in masks), bottom - top)


def _face(font):
    from PIL import ImageFont

    try:
        return ImageFont.truetype(font, DRAWN)
    except OSError as error:
        raise InputError(f"{font}: this is no font that can be read ({error})") from None


def _letters(text, font, face):
    unknown = bytes(face.getmask("\U0010ffff"))
    if missing := [c for c in text if not c.isspace() and bytes(face.getmask(c)) == unknown]:
        raise InputError(f"overlay: {Path(font).stem} has no {missing[0]!r}, as in {text!r}; name another font")


class Typographic(NamedTuple):
    """What written text does to a classifier.

    Attributes:
        clean: Accuracy on the images as they are.
        neutral: Accuracy where a neutral word is written on them.
        written: Accuracy where the name of a wrong class is written on them.
        fooled: Share of the images that are taken for the class whose name is written.
        confused: Share of the images that are taken for that class with nothing written, by chance.
        occlusion: How far accuracy falls with a neutral word: `clean - neutral`.
        reading: How much further it falls with the name: `neutral - written`.
        interval: The 95% interval of `reading`, from differences between the same images, by the normal approximation.
    """

    clean: float
    neutral: float
    written: float
    fooled: float
    confused: float
    occlusion: float
    reading: float
    interval: tuple[float, float]


def typographic(
    clean: np.ndarray, neutral: np.ndarray, written: np.ndarray, labels: np.ndarray, wrong: np.ndarray
) -> Typographic:
    """Compare predictions on the same images as they are, with a neutral word, and with a wrong name.

    Args:
        clean: `[n, classes]` logits, or `[n]` predicted classes, of the images as they are.
        neutral: Logits or predicted classes of the images with a neutral word, the control.
        written: Logits or predicted classes of the images with the names of `wrong`.
        labels: `[n]` true classes.
        wrong: `[n]` classes whose names are written.

    Raises:
        InputError: rows that do not match, labels that are no classes, or a name written that is not wrong.
    """
    right = [metrics.hits(predicted, labels) for predicted in (clean, neutral, written)]
    fooled, confused = (metrics.accuracy(predicted, wrong) for predicted in (written, clean))
    if (same := np.asarray(labels) == wrong).any():
        raise InputError(f"wrong classes: row {same.argmax()} is the image's own class, {labels[same.argmax()]}")
    accuracy = [float(x.mean()) for x in right]
    falls = right[1].astype(np.float64) - right[2]
    reading, half = float(falls.mean()), float(1.96 * falls.std() / np.sqrt(len(falls)))
    interval = reading - half, reading + half
    return Typographic(*accuracy, fooled, confused, accuracy[0] - accuracy[1], reading, interval)
