"""Photographs to `pixel_values`, as a checkpoint's `preprocessor_config.json` says, by PIL and NumPy alone.

The values of such a file, and the defaults of the class that it names for those it leaves out, become steps on PIL
images (resize, crop) and three numbers for each channel (rescale, normalise). Both do what the PIL-backed processors of
transformers 5 do, to the bit; DINOv3's has no such backend and resizes floats, so that pixels here, whole numbers until
they are normalised, are off by less than one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from jtransfer.data.coded import Scale, scaling
from jtransfer.data.dataset import each
from jtransfer.data.pictures import to_pil
from jtransfer.errors import InputError, nearest

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": 224,
}

COMMON = {
    "do_resize": True,
    "default_to_square": True,
    "resample": Image.Resampling.BICUBIC,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}

TYPES: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": HALF | {"size": 224, "resample": Image.Resampling.BILINEAR},
    "DeiTImageProcessor": HALF | {"size": 256, "do_center_crop": True, "crop_size": 224},
    "BitImageProcessor": OPENAI,
    "DINOv3ViTImageProcessor": IMAGENET | {"size": 224, "resample": Image.Resampling.BILINEAR},
    "CLIPImageProcessor": OPENAI,
    "SiglipImageProcessor": HALF | {"size": [224, 224], "default_to_square": False},
    "ConvNextImageProcessor": HALF | {"size": 384, "default_to_square": False, "crop_pct": 224 / 256},
    "EfficientNetImageProcessor": HALF | {"size": 346, "crop_size": 289, "include_top": True},
    "MobileNetV2ImageProcessor": HALF
    | {"size": {"shortest_edge": 256}, "resample": 2, "do_center_crop": True, "crop_size": 224},
}
"""What each type of processor does where its file does not say, beside `COMMON`."""

OF_MODELS = {
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "swin": "ViTImageProcessor",
}
"""The type of processor by `model_type`, for a file that names none."""

REFUSED = ("do_pad", "do_flip_channel_order", "use_square_size", "rescale_offset")
"""Settings that are not supported; no type of processor sets them by default."""

LARGEST = 16384
"""The longest side, in pixels, that an image is resized or cropped to."""


@dataclass(frozen=True)
class Fixed:
    """Resize to a given size, whatever the aspect ratio."""

    height: int
    width: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of any image after the resize."""
        return self.height, self.width


@dataclass(frozen=True)
class Shortest:
    """Resize so that the shorter side is `edge`, or less where the longer one would pass `longest` (0 for no bound)."""

    edge: int
    longest: int = 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of this height and width after the resize."""
        short, long = sorted((height, width))
        bounded = self.longest and long / short * self.edge > self.longest
        exact = self.longest * short / long if bounded else self.edge
        near, far = round(exact), int(exact * long / short)
        if near == short:
            return height, width
        return (near, far) if height <= width else (far, near)


@dataclass(frozen=True)
class Crop:
    """Crop the centre; an image that is smaller is padded with black."""

    height: int
    width: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of any image after the crop."""
        return self.height, self.width


Resizing = Fixed | Shortest | Crop


@dataclass(frozen=True, eq=False)
class Processor:
    """An image processor: `steps`, then `(factor * pixel - mean) / std`.

    Attributes:
        shape: `[height, width, channels]` of the model's images.
        steps: Resizes and crops, in this order.
        resample: PIL's number of the resampling filter.
        factor: Multiplies each pixel; usually 1/255, so that 0..255 become 0..1.
        mean: `[channels]` float32, subtracted from the product.
        std: `[channels]` float32, divides the difference.
        own: Height and width that the file gives, before they were scaled to `shape`; None if the file neither resizes
            nor crops.
    """

    shape: tuple[int, int, int]
    steps: tuple[Resizing, ...]
    resample: int
    factor: float
    mean: np.ndarray
    std: np.ndarray
    own: tuple[int, int] | None

    def __call__(self, images: Sequence[Image.Image | np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """The model's input for some images.

        Args:
            images: PIL images or uint8 arrays `[height, width, 3]`, `[height, width, 1]` or `[height, width]` of any
                sizes, or one array `[n, height, width, channels]`. Transparent parts become white. If pixels are only
                scaled to 0..1, floats of the model's shape are taken as they are.

        Returns:
            `pixel_values [n, height, width, channels]` float32.

        Raises:
            InputError: no list or array of images, or none in it; an image that `pictures.to_pil` refuses; or one of
                another shape than the model's, if there are no steps.
        """
        if self.takes(images):
            return {"pixel_values": np.asarray(images, np.float32).reshape(-1, *self.shape)}
        if self.shape[-1] == 1 and hasattr(images, "shape") and np.ndim(images) == 3:
            images = np.asarray(images)[..., None]
        images = check_images(images)
        pixels, scale = np.empty((len(images), *self.shape), np.float32), self.scale

        def fill(row, image):
            found = image
            if not self._is_stepped(image):
                found = np.asarray(self.stepped(to_pil(image, row, self.shape[-1])))
                found = found.reshape(*found.shape[:2], -1)
            if found.shape != self.shape:
                raise InputError(
                    f"image {row} is {list(found.shape)}; expected {list(self.shape)}: nothing is resized here"
                )
            scale.fill(pixels[row], found)

        each(fill, range(len(images)), images)
        return {"pixel_values": pixels}

    def _is_stepped(self, image: Any) -> bool:
        """Whether an image is bytes of the model's shape, which no step changes."""
        side, fits = self.shape[:2], getattr(image, "dtype", None) == np.uint8 and image.shape == self.shape
        return fits and all(step.size(*side) == side for step in self.steps)

    @property
    def square(self) -> "Processor":
        """The processor for parts of images: these are resized, whatever their aspect ratio."""
        return replace(self, steps=(Fixed(*self.shape[:2]),))

    @cached_property
    def scale(self) -> Scale:
        """The values of the pixels after the steps, as of 8-bit codes."""
        return Scale(self.factor, tuple(self.mean.tolist()), tuple(self.std.tolist()))

    @cached_property
    def plain(self) -> bool:
        """Whether pixels are scaled from 0..255 to 0..1, and not normalised."""
        return bool(np.isclose(self.factor, 1 / 255)) and not self.mean.any() and bool((self.std == 1).all())

    def takes(self, images: Any) -> bool:
        """Whether images need no processing: floats of the model's shape, where the processor is `plain`."""
        parts = images if isinstance(images, list | tuple) else [images]
        if not self.plain or not parts or not all(_is_float(part) for part in parts):
            return False
        shapes = {np.shape(part) for part in parts} if parts is images else {np.shape(images)[1:]}
        return shapes in ({self.shape}, {self.shape[:2]} if self.shape[-1] == 1 else set())

    @property
    def values(self) -> dict[str, Any]:
        """The values of a `preprocessor_config.json` that describes this processor."""
        sizes: dict[str, Any] = {}
        for step in self.steps:
            size = dict(vars(step))
            if isinstance(step, Shortest):
                size = {"shortest_edge": step.edge} | ({"longest_edge": step.longest} if step.longest else {})
            sizes["crop_size" if isinstance(step, Crop) else "size"] = size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": "size" in sizes,
            "do_center_crop": "crop_size" in sizes,
            **sizes,
            "resample": int(self.resample),
            "do_rescale": True,
            "rescale_factor": self.factor,
            "do_normalize": True,
            "image_mean": [float(x) for x in self.mean],
            "image_std": [float(x) for x in self.std],
            **({"do_convert_rgb": False} if self.shape[-1] == 1 else {}),
        }

    def stepped(self, image: Image.Image) -> Image.Image:
        """The image after all steps."""
        for step in self.steps:
            width, height = image.size
            if isinstance(step, Crop):
                left, top = (width - step.width) // 2, (height - step.height) // 2
                image = image.crop((left, top, left + step.width, top + step.height))
            else:
                image = image.resize(step.size(height, width)[::-1], self.resample)
        return image


def plain(shape: tuple[int, int, int]) -> Processor:
    """The processor that resizes images to `[height, width, channels]` and scales 0..255 to 0..1, no more.

    Raises:
        InputError: other than 1 or 3 channels.
    """
    size = {"size": {"height": shape[0], "width": shape[1]}, "do_center_crop": False, "do_normalize": False}
    return processor(size, "CLIPImageProcessor", shape)


def processor(values: Mapping[str, Any], kind: str, shape: tuple[int, int, int]) -> Processor:
    """The processor that a file describes, made to fit the model.

    If the model takes images of another size than the file gives (it was loaded with `image=`, or its checkpoint was
    trained at another resolution than the file's), every size in the file is scaled by the same factor and rounded
    down: 256 and a crop of 224 become 438 and 384. A model of one channel takes grey images (the luma of PIL),
    normalised by the average of the channels' means and of their standard deviations.

    Args:
        values: Of the file, as of a `preprocessor_config.json`.
        kind: The type of processor, a key of `TYPES`, if the file names none.
        shape: `[height, width, channels]` that the model takes.

    Raises:
        InputError: an unknown type of processor, or values that cannot be used. The error does not name the file.
        Exception: any error that values of a wrong type cause.
    """
    name = type_of(values) or kind
    if name not in TYPES:
        raise InputError(f"image processor '{name}' is unknown; {nearest(name, TYPES)}")
    if refused := next(filter(values.get, REFUSED), None):
        raise InputError(f"'{refused}' is not supported")
    settings = COMMON | TYPES[name] | dict(values)
    factor, mean, std = scaling(settings, shape[-1])
    steps = _steps(settings, with_crop_pct="crop_pct" in TYPES[name])
    resample = Image.Resampling(settings["resample"])
    if steps and isinstance(steps[-1], Shortest):
        raise InputError(
            f"'size' {settings['size']} without 'do_center_crop' gives images of many shapes; the model takes one"
        )
    own = (steps[-1].height, steps[-1].width) if steps else None
    fitting = tuple(_scaled(step, shape[:2], own) for step in steps)
    for step in fitting:
        if not all(1 <= side <= LARGEST for name, side in vars(step).items() if name != "longest"):
            raise InputError(f"sizes must lie in 1..{LARGEST}; found {step}")
    return Processor(shape, fitting, resample, factor, mean, std, own)


def type_of(values: Mapping[str, Any]) -> str:
    """The type of processor that a file names, in the present vocabulary; "" for none.

    >>> type_of({"feature_extractor_type": "CLIPFeatureExtractor"})
    'CLIPImageProcessor'
    """
    name = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    return name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")


def check_images(images: Any) -> Sequence:
    """Return images as they are, if they are a list or tuple, or one array `[n, height, width, channels]`.

    Raises:
        InputError: they are something else, or there are none.
    """
    expected = "expected a list of PIL images or arrays, or one array [n, height, width, channels]"
    if hasattr(images, "shape"):
        images = np.asarray(images)
        if images.ndim != 4:
            raise InputError(f"images have shape {list(images.shape)}; {expected}")
    elif not isinstance(images, list | tuple):
        raise InputError(f"images are given as {type(images).__name__}; {expected}")
    if not len(images):
        raise InputError(f"there are no images; {expected}")
    return images


def _is_float(image):
    return np.issubdtype(getattr(image, "dtype", np.object_), np.floating)


def _steps(settings, with_crop_pct) -> tuple[Resizing, ...]:
    steps = []
    if settings["do_resize"]:
        size = _size(settings["size"], "size", settings["default_to_square"])
        if not with_crop_pct:
            steps += [_resize(size)]
        elif size.keys() != {"shortest_edge"}:
            raise InputError(f"'size' is {size}; expected 'shortest_edge' alone beside 'crop_pct'")
        elif (side := size["shortest_edge"]) < 384:
            steps += [Shortest(int(side / settings["crop_pct"])), Crop(side, side)]
        else:  # Liu et al. 2022 (arXiv:2201.03545) evaluate at 384 without a crop
            steps += [Fixed(side, side)]
    if settings["do_center_crop"]:
        size = _size(settings.get("crop_size"), "crop_size", True)
        if size.keys() != {"height", "width"}:
            raise InputError(f"'crop_size' is {size}; expected 'height' and 'width'")
        steps += [Crop(**size)]
    return tuple(steps)


def _size(value, key, square):
    """Old files have one number or two; the others name what they mean."""
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, dict) or not all(isinstance(side, int) and side >= 1 for side in value.values()):
        raise InputError(f"'{key}' is {value!r}; expected whole numbers of pixels")
    return value


def _resize(size):
    if size.keys() == {"height", "width"}:
        return Fixed(**size)
    if size.keys() in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return Shortest(size["shortest_edge"], size.get("longest_edge", 0))
    raise InputError(f"'size' has {', '.join(size) or 'no keys'}; expected height and width, or shortest_edge")


def _scaled(step, new, old):
    (height, width), (old_height, old_width) = new, old
    if not isinstance(step, Shortest):
        return type(step)(step.height * height // old_height, step.width * width // old_width)
    edge, longest = (max(side * height // old_height, side * width // old_width) for side in vars(step).values())
    return Shortest(edge, longest)
