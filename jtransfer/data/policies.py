"""RandAugment and AutoAugment: operations on PIL images, how much of each a level is, and which are drawn.

Operations and amounts are torchvision's on PIL images; those of `RandAug` are big_vision's, at whose levels its recipes
were tuned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jtransfer import kinds

Picture = Image.Image
Random = np.random.Generator


def _affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhanced(name):
    return lambda image, amount: getattr(ImageEnhance, name)(image).enhance(1 + amount)


OPERATIONS: dict[str, Callable[[Picture, float], Picture]] = {
    "Identity": lambda image, amount: image,
    "ShearX": lambda image, amount: _affine(image, (1, amount, 0, 0, 1, 0)),
    "ShearY": lambda image, amount: _affine(image, (1, 0, 0, amount, 1, 0)),
    "TranslateX": lambda image, amount: _affine(image, (1, 0, -int(amount), 0, 1, 0)),
    "TranslateY": lambda image, amount: _affine(image, (1, 0, 0, 0, 1, -int(amount))),
    "Rotate": lambda image, amount: image.rotate(amount, Image.Resampling.NEAREST),
    "Brightness": _enhanced("Brightness"),
    "Color": _enhanced("Color"),
    "Contrast": _enhanced("Contrast"),
    "Sharpness": _enhanced("Sharpness"),
    "Posterize": lambda image, amount: ImageOps.posterize(image, int(amount)),
    "Solarize": lambda image, amount: ImageOps.solarize(image, amount),
    "AutoContrast": lambda image, amount: ImageOps.autocontrast(image),
    "Equalize": lambda image, amount: ImageOps.equalize(image),
    "Invert": lambda image, amount: ImageOps.invert(image),
}
"""What RandAugment and AutoAugment do to an image, by an amount: of slope, pixels, degrees, factor less 1, or bits."""

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
"""Operations whose amount is negated half of the time."""

COLOURLESS = ("Invert",)
"""Operations of AutoAugment that RandAugment does not draw."""


def amount(name: str, level: float, size: tuple[int, int]) -> float:
    """The amount of an operation at a level from 0 to 1, for an image of this width and height.

    Translations are by up to 150 of 331 parts of the side; the paper's images had 331 pixels.
    """
    most = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}
    most |= {"TranslateX": 150 / 331 * size[0], "TranslateY": 150 / 331 * size[1]}
    most |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9)
    if name == "Posterize":
        return 8 - round(4 * level)
    if name == "Solarize":
        return 255 - 255 * level
    return most.get(name, 0.0) * level


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al. 2019, arXiv:1909.13719): some operations, each drawn from all, at one level.

    Attributes:
        layers: Number of operations that are done, one after another.
        magnitude: The level, a number from 0 to 30.
    """

    layers: int = 2
    magnitude: int = 9

    def __post_init__(self):
        kinds.check(self.layers, kinds.whole(0, 100), "augment: layers of RandAugment")
        kinds.check(self.magnitude, kinds.whole(0, 30), "augment: magnitude of RandAugment")

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image after the operations."""
        names = [name for name in OPERATIONS if name not in COLOURLESS]
        for _ in range(self.layers):
            name = names[draws.integers(len(names))]
            image = _signed(image, name, self.magnitude / 30, draws)
        return image


def _signed(image, name, level, draws):
    """An operation at a level, its amount negated half of the time where it has a sign."""
    sign = -1 if name in SIGNED and draws.random() < 0.5 else 1
    return OPERATIONS[name](image, sign * amount(name, level, image.size))


IMAGENET: tuple[tuple[tuple[str, float, float], tuple[str, float, float]], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
"""The policy for ImageNet of AutoAugment's appendix: pairs of an operation, its probability and its level of 0 to 9."""


@dataclass(frozen=True)
class AutoAugment:
    """AutoAugment's policy for ImageNet (Cubuk et al. 2018, arXiv:1805.09501): one of 25 pairs of operations."""

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image after the operations of the pair that are done."""
        for name, probability, level in IMAGENET[draws.integers(len(IMAGENET))]:
            if draws.random() < probability:
                image = _signed(image, name, level / 9, draws)
        return image


GREY = 128
"""What big_vision puts where an operation leaves nothing, in every channel."""


def _moved(image: Picture, matrix: tuple[float, ...]) -> Picture:
    colour = GREY if image.mode == "L" else (GREY,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=colour)


def _contrasted(image: Picture, factor: float) -> Picture:
    """Away from a grey that is not the mean: TensorFlow's operation takes the number of pixels by 256 for it."""
    grey = min(255, image.width * image.height // 256)
    return Image.blend(Image.new(image.mode, image.size, grey if image.mode == "L" else (grey,) * 3), image, factor)


@dataclass(frozen=True)
class RandAug:
    """big_vision's RandAugment (`pp/autoaugment.py`): some of 16 operations, each drawn from all, at one level.

    Beside those of `RandAugment` there are Invert, Cutout and SolarizeAdd. Brightness, colour, contrast and sharpness
    are changed by one factor of 0.1 to 1.9, at level 0 to almost nothing, and what moves out leaves grey.

    Attributes:
        layers: Number of operations that are done, one after another.
        magnitude: The level, 10 for the amounts of AutoAugment at their most, and up to 30 beyond.
    """

    layers: int = 2
    magnitude: int = 10

    def __post_init__(self):
        kinds.check(self.layers, kinds.whole(0, 100), "augment: layers of RandAug")
        kinds.check(self.magnitude, kinds.whole(0, 30), "augment: magnitude of RandAug")

    def __call__(self, image: Picture, draws: Random) -> Picture:
        """The image after the operations."""
        for _ in range(self.layers):
            image = self.done(NAMES[draws.integers(len(NAMES))], image, draws)
        return image

    def done(self, name: str, image: Picture, draws: Random) -> Picture:
        """An image after one operation, a key of `NAMES`."""
        level = self.magnitude / 10
        sign = -1 if name in SIGNED[:5] and draws.random() < 0.5 else 1
        if name in ("ShearX", "ShearY"):
            x, y = (0.3 * level * sign, 0) if name == "ShearX" else (0, 0.3 * level * sign)
            return _moved(image, (1, x, 0, y, 1, 0))
        if name in ("TranslateX", "TranslateY"):
            x, y = (100 * level * sign, 0) if name == "TranslateX" else (0, 100 * level * sign)
            return _moved(image, (1, 0, x, 0, 1, y))
        if name == "Rotate":
            colour = GREY if image.mode == "L" else (GREY,) * 3
            return image.rotate(30 * level * sign, Image.Resampling.NEAREST, fillcolor=colour)
        if name == "Contrast":
            return _contrasted(image, 1.8 * level + 0.1)
        if name in ("Brightness", "Color", "Sharpness"):
            return OPERATIONS[name](image, 1.8 * level + 0.1 - 1)
        if name == "SolarizeAdd":
            added = int(110 * level)
            return image.point([min(255, x + added) if x < 128 else x for x in range(256)] * len(image.getbands()))
        if name == "Cutout":
            return _cut(image, int(40 * level), draws)
        if name == "Posterize":
            kept = 256 - 2 ** (8 - min(8, int(4 * level)))  # the highest bits, of which there may be none
            return image.point([x & kept for x in range(256)] * len(image.getbands()))
        return OPERATIONS[name](image, int(256 * level) if name == "Solarize" else 0)


NAMES = (*(name for name in OPERATIONS if name != "Identity"), "SolarizeAdd", "Cutout")
"""The operations of `RandAug`."""


def _cut(image: Picture, half: int, draws: Random) -> Picture:
    """Grey over a square of twice `half` pixels a side around any pixel, cut at the border."""
    x, y = int(draws.integers(image.width)), int(draws.integers(image.height))
    box = max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half)
    found = image.copy()
    found.paste(GREY if image.mode == "L" else (GREY,) * 3, box)
    return found
