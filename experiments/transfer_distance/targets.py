"""Targets of growing distance from photographs, each written as an `.npz` file that `jtransfer` reads.

`write(directory, data_dir)` makes one file for each name of `TARGETS`, and `source.npz`, other photographs of the same
kind, from which distances are measured. Every image has 32x32 pixels and three channels.
"""

import string
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from jtransfer.data import sources, splits
from jtransfer.data.glyphs import TRAIN_FONTS, VALIDATION_FONTS

SIDE = 32
POOL, TEST = 700, 600  # rows; of emoji and texts there are other numbers
LETTERS = "ABEGKMQRSW"
TEXTS = {  # of whole splits, so that no text is both trained and tested on
    "Shakespeare": ("tiny_shakespeare", ("train", "test"), ("text",)),
    "Wikipedia": ("wikitext2", ("validation", "test"), ("text",)),
    "news": ("ag_news_subset", ("train", "test"), ("title", "description")),
}
WINDOW, HOP = 64, 8  # of a spectrogram, in characters


class Labelled(NamedTuple):
    """Images `[n, 32, 32, 3]` uint8 and labels `[n]`, to train and to test on, and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> "Labelled":
        """These images after a change of each of them, `[32, 32, 3]`, values from 0 to 255."""
        images, tested = (
            np.stack([np.clip(np.round(change(x)), 0, 255).astype(np.uint8) for x in part])
            for part in (self.images, self.test_images)
        )
        return self._replace(images=images, test_images=tested)


def square(image: np.ndarray) -> np.ndarray:
    """A picture of any size and channels as 32x32 with three channels."""
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@cache
def photographs(data_dir: str, first: int = 0) -> Labelled:
    """CIFAR-10, from some row of the training split on."""
    name = f"tfds:cifar10?train=train[{first}:{first + POOL}]&test=test[:{TEST}]"
    data = sources.load(name, data_dir)
    images = [np.stack(data.inputs[rows]) for rows in (data.pool, data.test)]
    return Labelled(images[0], data.labels[data.pool], images[1], data.labels[data.test], data.classes)


def emoji(data_dir: str) -> Labelled:
    """Emoji in three styles by their group; whole emoji are held out."""
    data = sources.load("tfds:emoji_captions?label=group", data_dir)
    rows = [np.random.default_rng(0).permutation(data.pool[data.labels[data.pool] == k])[: POOL // 9] for k in range(9)]
    pool = np.concatenate(rows)
    images = [np.stack([square(x) for x in data.inputs[rows]]) for rows in (pool, data.test)]
    return Labelled(images[0], data.labels[pool], images[1], data.labels[data.test], data.classes)


def digits(data_dir: str) -> Labelled:
    """The handwritten digits of UCI, enlarged from 8x8."""
    data = sources.load("digits")
    everything = np.arange(len(data.labels))
    used = splits.stratified(data.labels, everything, POOL + TEST)
    test = splits.stratified(data.labels, used, TEST)
    pool = np.setdiff1d(used, test)
    images = [np.stack([square(np.uint8(255 * x)) for x in data.inputs[rows]]) for rows in (pool, test)]
    return Labelled(images[0], data.labels[pool], images[1], data.labels[test], data.classes)


def glyphs(data_dir: str) -> Labelled:
    """Ten capital letters, turned and moved; tested in fonts that are not trained on."""
    from matplotlib import get_data_path

    rng = np.random.default_rng(0)

    def draw(font, letter):
        path = f"{get_data_path()}/fonts/ttf/{font}.ttf"
        picture = Image.new("L", (SIDE, SIDE))
        place = tuple(SIDE / 2 + rng.uniform(-4, 4, 2))
        shape = ImageFont.truetype(path, rng.integers(14, 25))
        ImageDraw.Draw(picture).text(place, letter, int(rng.integers(120, 256)), shape, "mm")
        return square(np.asarray(picture.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC))[..., None])

    def some(fonts, each):
        labels = np.tile(np.arange(len(LETTERS)), each)
        return np.stack([draw(fonts[rng.integers(len(fonts))], LETTERS[k]) for k in labels]), labels

    return Labelled(*some(TRAIN_FONTS, POOL // 10), *some(VALIDATION_FONTS, TEST // 10), tuple(LETTERS))


@cache
def characters(data_dir: str, length: int) -> Labelled:
    """Pieces of texts of three kinds, `[n, length]` numbers of characters, in the place of images."""
    import tensorflow_datasets as tfds

    kept = string.printable.encode()
    parts = []
    for split in (0, 1):
        pieces = []
        for name, names, features in TEXTS.values():
            rows = tfds.data_source(name, data_dir=data_dir, split=names[split], download=False)
            taken = [rows[i] for i in range(min(len(rows), 3000))]
            text = b" ".join(b" ".join(row[feature] for feature in features) for row in taken)
            text = b" ".join(text.lower().translate(None, b"=@<>").split())  # wikitext's and the news' own signs
            codes = np.frombuffer(bytes(c for c in text if c in kept), np.uint8)
            whole = codes[: len(codes) // length * length].reshape(-1, length)
            pieces.append(np.random.default_rng(0).permutation(whole)[: (POOL // 3, 150)[split]])  # no more to test on
        parts += [np.concatenate(pieces), np.repeat(np.arange(len(TEXTS)), list(map(len, pieces)))]
    return Labelled(*parts, tuple(TEXTS))


def spectrograms(data_dir: str) -> Labelled:
    """Texts as sound: the logarithm of the power of their characters' numbers, 32 frequencies by 32 moments."""

    def image(codes):
        frames = np.lib.stride_tricks.sliding_window_view(codes.astype(float), WINDOW)[::HOP]
        frames = (frames - frames.mean(1, keepdims=True)) * np.hanning(WINDOW)
        power = np.log(np.abs(np.fft.rfft(frames, axis=1))[:, 1:] + 1).T[::-1]
        return np.repeat((255 * power / 8)[..., None], 3, 2)

    return characters(data_dir, WINDOW + (SIDE - 1) * HOP).mapped(image)


def bytes_of_texts(data_dir: str) -> Labelled:
    """Texts as grey levels: 256 characters in rows of 16, each two pixels wide and high."""

    def image(codes):
        grey = 2.0 * codes.reshape(16, 16).repeat(2, 0).repeat(2, 1)
        return np.repeat(grey[..., None], 3, 2)

    return characters(data_dir, 256).mapped(image)


def grey(x: np.ndarray) -> np.ndarray:
    """The brightness."""
    return np.repeat(x @ np.array([0.299, 0.587, 0.114]), 3).reshape(x.shape)


def noise(x: np.ndarray) -> np.ndarray:
    """Gaussian noise, whose standard deviation is 60 of 255."""
    return x + 60 * np.random.default_rng(int(x.sum())).standard_normal(x.shape)


def blur(x: np.ndarray) -> np.ndarray:
    """A Gaussian of 2 pixels."""
    return np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(2)))


def pixelate(x: np.ndarray) -> np.ndarray:
    """Means of 4x4 pixels."""
    return x.reshape(8, 4, 8, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)


def invert(x: np.ndarray) -> np.ndarray:
    """The negative."""
    return 255 - x


def edges(x: np.ndarray) -> np.ndarray:
    """The length of the gradient of the brightness."""
    slopes = np.gradient(grey(x)[..., 0])
    return np.repeat(3 * np.hypot(*slopes), 3).reshape(x.shape)


def tiles(x: np.ndarray) -> np.ndarray:
    """Sixteen tiles in another order, one for all images."""
    parts = x.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, 8, 8, 3)[np.random.default_rng(0).permutation(16)]
    return parts.reshape(4, 4, 8, 8, 3).swapaxes(1, 2).reshape(x.shape)


def permute(x: np.ndarray) -> np.ndarray:
    """All pixels in another order, one for all images."""
    return x.reshape(-1, 3)[np.random.default_rng(0).permutation(SIDE * SIDE)].reshape(x.shape)


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], Labelled]:
    """The photographs after a change of each of them."""
    return lambda data_dir: photographs(data_dir).mapped(change)


TARGETS: dict[str, Callable[[str], Labelled]] = {
    "photographs": photographs,
    "grey": changed(grey),
    "pixelated": changed(pixelate),
    "noise": changed(noise),
    "blurred": changed(blur),
    "inverted": changed(invert),
    "edges": changed(edges),
    "tiles": changed(tiles),
    "permuted": changed(permute),
    "emoji": emoji,
    "digits": digits,
    "letters": glyphs,
    "spectrograms": spectrograms,
    "bytes": bytes_of_texts,
}
"""How each target is made."""


def write(directory: Path, data_dir: str) -> None:
    """Write the files that are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in (TARGETS | {"source": lambda data_dir: photographs(data_dir, POOL)}).items():
        if not (file := directory / f"{name}.npz").exists():
            made = make(data_dir)
            partial = file.with_suffix(".part")
            with partial.open("wb") as stream:
                np.savez(stream, **made._asdict())
            partial.replace(file)
