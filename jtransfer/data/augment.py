"""Random changes of images, by name: what training sees of a picture each time that it comes.

    augment = ("inception_crop(224)", "flip", "randaugment(layers=2, magnitude=9)")

Each is a small frozen dataclass, called with a PIL image and a generator of random numbers, whose draws follow from the
seed and the place of the example in the whole of training alone: neither processes nor threads change them. What is
drawn, and what is then done to pixels, is as in torchvision's operations on PIL images, or in those of big_vision where
a docstring says so; the numbers drawn are others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jtransfer import expressions, kinds
from jtransfer.data import pictures
from jtransfer.data.policies import AutoAugment, Picture, RandAug, RandAugment, Random
from jtransfer.errors import InputError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SIDE = kinds.whole(1, 16384)
SHARES = kinds.several(kinds.number(above=0, most=1), 2, 2)
RATIOS = kinds.several(kinds.POSITIVE, 2, 2)
CHANCE = kinds.number(least=0, most=1)


def _checked(augmentation: Any, **expected: kinds.Kind) -> None:
    for name, kind in expected.items():
        kinds.check(getattr(augmentation, name), kind, f"augment: {name} of {type(augmentation).__name__}")


def _ascending(augmentation: Any, *names: str) -> None:
    for name in names:
        low, high = getattr(augmentation, name)
        if low > high:
            what = f"augment: {name} of {type(augmentation).__name__}"
            raise InputError(f"{what}: expected the least first, found {(low, high)}")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image, resized to a square: of a random share of the area and a random aspect ratio.

    The share is uniform, the ratio uniform in its logarithm. After ten draws that do not fit into the image its largest
    centred part within the ratios is taken (Szegedy et al. 2014, arXiv:1409.4842).

    Attributes:
        size: Side of the result, in pixels.
        scale: The least and the largest share of the area.
        ratio: The least and the largest ratio of width and height.
        resample: "nearest", "bilinear" or "bicubic".
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resample: str = "bilinear"

    def __post_init__(self):
        _checked(self, size=SIDE, scale=SHARES, ratio=RATIOS, resample=kinds.choice(*FILTERS))
        _ascending(self, "scale", "ratio")

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The part, resized."""
        left, top, width, height = self.box(image.width, image.height, draws)
        return self.resized(image.crop((left, top, left + width, top + height)))

    def resized(self, part: Picture) -> Picture:
        """A part that was cut out of an image already, resized."""
        return part.resize((self.size, self.size), FILTERS[self.resample])

    def box(self, width: int, height: int, draws: Random) -> tuple[int, int, int, int]:
        """Left, top, width and height of the part of an image of this width and height."""
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area = width * height * draws.uniform(*self.scale)
            ratio = math.exp(draws.uniform(low, high))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                return int(draws.integers(width - wide + 1)), int(draws.integers(height - tall + 1)), wide, tall
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, tall = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (width - wide) // 2, (height - tall) // 2, wide, tall


def inception_crop(size: int, area: tuple[float, float] = (0.05, 1.0)) -> RandomResizedCrop:
    """`RandomResizedCrop` with the shares of area of big_vision's `inception_crop`, from 5% on, and its ratios."""
    return RandomResizedCrop(size, tuple(area))


@dataclass(frozen=True)
class ResizeSmall:
    """Resize so that the shorter side has `size` pixels, as big_vision's `resize_small`."""

    size: int
    resample: str = "bilinear"

    def __post_init__(self):
        _checked(self, size=SIDE, resample=kinds.choice(*FILTERS))

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image, resized."""
        short = min(image.size)
        wide, tall = (max(1, round(side * self.size / short)) for side in image.size)
        return image.resize((wide, tall), FILTERS[self.resample])


@dataclass(frozen=True)
class Resize:
    """Resize to a square of `size` pixels a side, whatever the aspect ratio."""

    size: int
    resample: str = "bilinear"

    def __post_init__(self):
        _checked(self, size=SIDE, resample=kinds.choice(*FILTERS))

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image, resized."""
        return image.resize((self.size, self.size), FILTERS[self.resample])


@dataclass(frozen=True)
class RandomCrop:
    """A random square of `size` pixels a side, after `padding` black pixels were put on each side of the image."""

    size: int
    padding: int = 0

    def __post_init__(self):
        _checked(self, size=SIDE, padding=kinds.whole(0, 16384))

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The square; of an image that is smaller, padded with black further."""
        image = ImageOps.expand(image, self.padding)
        short = [max(0, self.size - side) for side in image.size]
        image = ImageOps.expand(image, (short[0] // 2, short[1] // 2, -(-short[0] // 2), -(-short[1] // 2)))
        left, top = (int(draws.integers(side - self.size + 1)) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True)
class Flip:
    """Mirror the image, left to right, with a probability."""

    probability: float = 0.5

    def __post_init__(self):
        _checked(self, probability=CHANCE)

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image or its mirror image."""
        return ImageOps.mirror(image) if draws.random() < self.probability else image


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue by random factors, in a random order.

    Factors are uniform between 1 - x and 1 + x, not below 0; the hue moves by a uniform share of the circle of colours
    between -hue and hue.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        amounts = dict.fromkeys(("brightness", "contrast", "saturation"), kinds.NOT_NEGATIVE)
        _checked(self, **amounts, hue=kinds.number(least=0, most=0.5))

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image in other colours."""
        for which in draws.permutation(4):
            if which == 3:
                image = hue(image, draws.uniform(-self.hue, self.hue)) if self.hue else image
            elif x := (self.brightness, self.contrast, self.saturation)[which]:
                name = ("Brightness", "Contrast", "Color")[which]
                image = getattr(ImageEnhance, name)(image).enhance(draws.uniform(max(0.0, 1 - x), 1 + x))
        return image


def hue(image: Picture, share: float) -> Picture:
    """An image whose hue is moved by a share of the circle of colours; a grey one as it is."""
    if image.mode == "L":
        return image
    channels = [*image.convert("HSV").split()]
    moved = np.asarray(channels[0]) + np.int32(share * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(moved), *channels[1:])).convert(image.mode)


@dataclass(frozen=True)
class Erase:
    """Put one colour over a box of the image, with a probability (Zhong et al. 2017, arXiv:1708.04896).

    The share of the area is uniform, the ratio uniform in its logarithm. If ten draws do not fit, the image stays as it
    is.

    Attributes:
        probability: Of a box.
        scale: The least and the largest share of the area.
        ratio: The least and the largest ratio of height and width.
        fill: The colour, by default ImageNet's mean, which is 0 where it is taken off; of a grey image its mean.
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self):
        fill = kinds.several(kinds.whole(0, 255), 3, 3)
        _checked(self, probability=CHANCE, scale=SHARES, ratio=RATIOS, fill=fill)
        _ascending(self, "scale", "ratio")

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image, perhaps with a box."""
        if draws.random() >= self.probability:
            return image
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area = image.width * image.height * draws.uniform(*self.scale)
            ratio = math.exp(draws.uniform(low, high))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < tall < image.height and 0 < wide < image.width:
                top, left = int(draws.integers(image.height - tall + 1)), int(draws.integers(image.width - wide + 1))
                erased = image.copy()
                erased.paste(
                    self.fill if image.mode == "RGB" else round(sum(self.fill) / 3),
                    (left, top, left + wide, top + tall),
                )
                return erased
        return image


AUGMENTATIONS: Mapping[str, Callable[..., Callable[[Picture, Random], Picture]]] = {
    "random_resized_crop": RandomResizedCrop,
    "inception_crop": inception_crop,
    "resize": Resize,
    "resize_small": ResizeSmall,
    "random_crop": RandomCrop,
    "flip": Flip,
    "color_jitter": ColorJitter,
    "randaugment": RandAugment,
    "randaug": RandAug,
    "autoaugment": AutoAugment,
    "erase": Erase,
}
"""By the name that a config writes; `my_module.function` is one of the user's, which returns such a function."""


def parse(texts: Sequence[str]) -> tuple[Callable[[Picture, Random], Picture], ...]:
    """The augmentations that a config names.

    Args:
        texts: As `flip` or `random_resized_crop(224)`.

    Raises:
        InputError: an unknown name, with the nearest, or options that do not fit.
    """
    return tuple(
        expressions.call(expressions.parse(text, "augmentation"), text, "augmentation", AUGMENTATIONS, kind=Callable)()
        for text in texts
    )


@dataclass(frozen=True, eq=False)
class Augmented:
    """Images indexed by row numbers, each changed by draws of its own: the same whenever it is asked for.

    Attributes:
        images: The images as they are: uint8 `[height, width, channels]` of any sizes, or floats from 0 to 1.
        augmentations: What is done to them, in this order.
        seed: Of the draws.
        positions: `[n]`, the place of each image in the whole of training, as a number of examples.
    """

    images: Any
    augmentations: tuple[Callable[[Picture, Random], Picture], ...]
    seed: int
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> list[np.ndarray]:
        draws = [np.random.default_rng((self.seed, int(position))) for position in self.positions[rows]]
        first = self.augmentations[0]
        if isinstance(first, RandomResizedCrop) and (files := _files(self.images, rows)):  # what is cut off stays coded
            parts = [
                pictures.part(*file, partial(first.box, draws=own)) for file, own in zip(files, draws, strict=True)
            ]
            found = [first.resized(_picture(part)) for part in parts]
            return [self._after(1, *both) for both in zip(found, draws, strict=True)]
        found = self.images[rows]
        return [self._after(0, _picture(image), own) for image, own in zip(found, draws, strict=True)]

    def _after(self, number, picture, draws):
        for augmentation in self.augmentations[number:]:
            picture = augmentation(picture, draws)
        return np.asarray(picture).reshape(picture.height, picture.width, -1)


def _files(images, rows):
    return images.files(rows) if hasattr(images, "files") else None


def _picture(image: np.ndarray) -> Picture:
    if np.issubdtype(np.asarray(image).dtype, np.floating):
        image = np.clip(np.asarray(image) * 255, 0, 255).round().astype(np.uint8)
    channels = image.shape[-1] if np.ndim(image) == 3 else 1
    if channels not in (1, 3):
        raise InputError(f"config.augment: an image has {channels} channels; expected 1 or 3")
    return pictures.to_pil(image, "to augment", channels)
