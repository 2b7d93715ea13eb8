"""Photographs of any sides to patches, as SigLIP 2 "NaFlex" takes them, by PIL and NumPy alone.

An image keeps its aspect ratio to within a patch: it is resized to the most whole patches that it may have. What this
does is what transformers' PIL-backed `Siglip2ImageProcessor` does, to the bit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jtransfer.data import images
from jtransfer.data.coded import scaling
from jtransfer.data.dataset import each
from jtransfer.data.pictures import to_pil
from jtransfer.errors import InputError

MOST = 1 << 16
"""Patches of one image: the attention scores of one head between so many take 17 GB in float32."""


@dataclass(frozen=True, eq=False)
class PatchProcessor:
    """An image processor: a resize, `(factor * pixel - mean) / std`, and patches, filled up with zeros.

    Attributes:
        patch: Side of a patch in pixels.
        most: The most patches of an image; every image is filled up to it.
        resizes: Whether images are resized; if not, their sides must be whole patches.
        resample: PIL's number of the resampling filter.
        factor: Multiplies each pixel; usually 1/255, so that 0..255 become 0..1.
        mean: `[channels]` float32, subtracted from the product.
        std: `[channels]` float32, divides the difference.
    """

    patch: int
    most: int
    resizes: bool
    resample: int
    factor: float
    mean: np.ndarray
    std: np.ndarray

    own = None
    scale = None  # the padding is of no pixel's value

    def __call__(self, photographs: Sequence[Image.Image | np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """The model's inputs for some images.

        Args:
            photographs: As of `images.Processor`.

        Returns:
            `pixel_values [n, most, patch * patch * channels]` float32, `pixel_attention_mask [n, most]` int32, 1 for a
            patch and 0 for padding, and `spatial_shapes [n, 2]` int32, the rows and columns of patches.

        Raises:
            InputError: as `images.Processor`, or an image that is not resized and has no whole patches, or too many.
        """
        given = images.check_images(photographs)
        pixels = np.zeros((len(given), self.most, self.patch**2 * len(self.mean)), np.float32)
        shapes = np.empty((len(given), 2), np.int32)

        def fill(row, image):
            found = self._array(image, row)
            rows, columns = (side // self.patch for side in found.shape[:2])
            parts = found.reshape(rows, self.patch, columns, self.patch, -1).transpose(0, 2, 1, 3, 4)
            pixels[row, : rows * columns] = parts.reshape(rows * columns, -1)
            shapes[row] = rows, columns

        each(fill, range(len(given)), given)
        mask = (np.arange(self.most) < shapes.prod(1, keepdims=True)).astype(np.int32)
        return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def _array(self, image, row):
        """The pixels of an image in whole patches, `[height, width, channels]` float32."""
        image = to_pil(image, row, len(self.mean))
        width, height = image.size
        if self.resizes:
            rows, columns = grid(height, width, self.patch, self.most)
            image = image.resize((columns * self.patch, rows * self.patch), self.resample)
        elif height % self.patch or width % self.patch or height * width > self.most * self.patch**2:
            raise InputError(
                f"image {row} is {height}x{width}; expected whole patches of {self.patch}x{self.patch}, {self.most} at "
                "most: nothing is resized here"
            )
        found = np.asarray(image)
        found = found.reshape(*found.shape[:2], -1)
        return ((found * self.factor).astype(np.float32) - self.mean) / self.std

    def takes(self, photographs: Any) -> bool:
        """Whether images need no processing, which all do."""
        return False

    @property
    def values(self) -> dict[str, Any]:
        """The values of a `preprocessor_config.json` that describes this processor."""
        return {
            "image_processor_type": "Siglip2ImageProcessor",
            "do_resize": self.resizes,
            "patch_size": self.patch,
            "max_num_patches": self.most,
            "resample": int(self.resample),
            "do_rescale": True,
            "rescale_factor": self.factor,
            "do_normalize": True,
            "image_mean": [float(x) for x in self.mean],
            "image_std": [float(x) for x in self.std],
        }


def grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches that an image is resized to: the most that its aspect ratio gives, up to `most`.

    The scale is found to 1e-5 by bisection between 1e-6 and 100; either side is rounded up to whole patches.
    """

    def at(scale):
        return tuple(max(1, math.ceil(side * scale / patch)) for side in (height, width))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        low, high = (scale, high) if math.prod(at(scale)) <= most else (low, scale)
    return at(low)


def processor(values: Mapping[str, Any], patch: int, channels: int) -> PatchProcessor:
    """The processor that a file describes, for a model.

    Args:
        values: Of the file, as of a `preprocessor_config.json`.
        patch: Side of the model's patches in pixels.
        channels: That the model takes, 1 or 3.

    Raises:
        InputError: values that cannot be used, or another type of processor. The error does not name the file.
        Exception: any error that values of a wrong type cause.
    """
    if (name := images.type_of(values) or KIND) != KIND:
        raise InputError(f"image processor '{name}' makes images of one size, but the model takes patches of '{KIND}'")
    settings = images.COMMON | DEFAULTS | {"patch_size": patch} | dict(values)
    if settings["patch_size"] != patch:
        raise InputError(f"'patch_size' is {settings['patch_size']}; the model's patches are {patch}x{patch}")
    most = settings["max_num_patches"]
    if type(most) is not int or not 1 <= most <= MOST:
        raise InputError(f"'max_num_patches' is {most!r}; expected a whole number from 1 to {MOST:,}")
    factor, mean, std = scaling(settings, channels)
    return PatchProcessor(
        patch, most, bool(settings["do_resize"]), Image.Resampling(settings["resample"]), factor, mean, std
    )


KIND = "Siglip2ImageProcessor"
DEFAULTS = images.HALF | {"resample": Image.Resampling.BILINEAR, "max_num_patches": 256}
"""What the processor does where its file does not say, beside `images.COMMON`."""
