"""A checkpoint on images of another size or number of channels: positions resized, kernels summed over colours."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.models import Architecture

Change = Callable[[np.ndarray], np.ndarray]


def resize(
    source: Architecture,
    config: Architecture,
    image: int | tuple[int, int] | None,
    channels: int | None,
    positions: str,
) -> tuple[Architecture, dict[str, Change]]:
    """The config for other inputs, and what becomes of the leaves that depend on their size.

    Args:
        source: The config of the checkpoint.
        config: `source` in the dtypes that are wanted, which is returned with other sizes. Both are of a model of
            images, or have one as `vision`.
        image: Height and width in pixels, or both as one; None for the checkpoint's own.
        channels: 1 for grey images; None for the checkpoint's own.
        positions: A key of `RESIZERS`.

    Returns:
        The config, and functions of the loaded arrays by path.

    Raises:
        InputError: a model without images, an unknown way to resize, sides that patches do not divide or that are too
            large, or channels that nothing can be made of.
    """
    if source.towers:
        vision, changes = resize(source.vision, config.vision, image, channels, positions)
        return dataclasses.replace(config, vision=vision), {f"vision/{path}": f for path, f in changes.items()}
    if "pixel_values" not in source.inputs:
        raise InputError(f"image and channels are sizes of images; this model takes {', '.join(source.inputs)}")
    if "spatial_shapes" in source.inputs:
        asked = f"image={image}" if image is not None else f"channels={channels}"
        raise InputError(
            f"{asked}: this model takes colour images of any sides as they are; how many patches they become is the "
            "max_num_patches of preprocessor_config.json"
        )
    if positions not in RESIZERS:
        raise InputError(f"positions: unknown '{positions}'; {nearest(positions, RESIZERS)}")
    if channels not in (None, source.channels, 1):
        raise InputError(f"channels={channels}: the checkpoint takes {source.channels}, and can be made to take 1")
    sides, patch = _sides(image, source.image), source.patch
    _check_size(sides, patch, source.channels)
    resized = dataclasses.replace(config, image=sides, channels=channels or source.channels)
    seen = resized.grid or [side // patch for side in sides]
    if sides != source.image and any(number * patch < side for number, side in zip(seen, sides, strict=True)):
        raise InputError(f"image={list(sides)} is not a multiple of the checkpoint's patches of {patch}x{patch}")
    changes: dict[str, Change] = {}
    if resized.channels != source.channels:
        patched = source.grid is not None
        path = "embeddings/patch/kernel" if patched else "stem/conv/kernel"
        changes[path] = partial(grey_patches if patched else grey_convolution, channels=source.channels)
    if (old := source.grid) != (new := resized.grid):
        changes["embeddings/positions"] = partial(resize_positions, old=old, new=new, how=positions)
    return resized, changes


MOST_TOKENS = 1 << 16
"""Patches of one image: the attention scores of one head between so many take 17 GB in float32."""

LARGEST_IMAGE = 1 << 28
"""Values in one image that a model may take: a gigabyte in float32."""


def _check_size(sides, patch, channels):
    """Refuse images that no machine could compute with, before anything is made of that size."""
    tokens, values = math.prod(side // patch for side in sides), math.prod(sides) * channels
    if patch > 1 and tokens > MOST_TOKENS:
        raise InputError(
            f"image={list(sides)} has {tokens:,} patches of {patch}x{patch}, whose attention scores take "
            f"{4 * tokens**2:,} bytes a head; expected {MOST_TOKENS:,} patches at most"
        )
    if values > LARGEST_IMAGE:
        raise InputError(f"image={list(sides)} has {values:,} values; expected {LARGEST_IMAGE:,} at most")


def _sides(image, own):
    if image is None:
        return own
    sides = tuple(image) if isinstance(image, list | tuple) else (image, image)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"image={image!r}: expected height and width in pixels, or one number for both")
    return sides


def resize_positions(x: np.ndarray, old: tuple[int, int], new: tuple[int, int], how: str = "bicubic") -> np.ndarray:
    """Position embeddings of another grid of patches, in float32.

    Args:
        x: `[1, others + patches, width]`; the first ones, of class, distillation or register tokens, stay as they are.
        old: Patches along height and width that `x` is for.
        new: Those that the result is for.
        how: A key of `RESIZERS`.

    Returns:
        `[1, others + new patches, width]`.
    """
    x = np.asarray(x, np.float32)
    others = x.shape[1] - math.prod(old)
    grid = RESIZERS[how](x[0, others:].reshape(*old, -1), new)
    return np.concatenate([x[:, :others], grid.reshape(1, -1, x.shape[-1])], axis=1)


def _bicubic(grid, new):
    """As timm: PyTorch's and PIL's cubic (Keys 1981, a = -1/2), which widens its support where it shrinks."""
    import jax

    return np.asarray(jax.image.resize(grid, (*new, grid.shape[-1]), "cubic", antialias=True))


def _bicubic_torch(grid, new):
    """As PyTorch without antialias, and so transformers' DINOv2: four neighbours, a = -3/4, edges repeated."""
    for axis, after in enumerate(new):
        before = grid.shape[axis]
        at = (np.arange(after) + 0.5) * (before / after) - 0.5
        first = np.floor(at).astype(int) - 1
        out = 0.0
        for tap in range(4):
            distance = np.abs(at - first - tap)
            inner = (1.25 * distance - 2.25) * distance**2 + 1
            outer = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
            weight = np.where(distance <= 1, inner, outer).reshape(-1, *[1] * (grid.ndim - axis - 1))
            out = out + weight * np.take(grid, np.clip(first + tap, 0, before - 1), axis)
        grid = out
    return grid.astype(np.float32)


def _bilinear(grid, new):
    """As vision_transformer and big_vision: corners stay on corners, no antialias."""
    from scipy import ndimage

    factors = [after / before for after, before in zip(new, grid.shape, strict=False)]
    return ndimage.zoom(grid, (*factors, 1), order=1)


RESIZERS: dict[str, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "bicubic": _bicubic,
    "bicubic_torch": _bicubic_torch,
    "bilinear": _bilinear,
}
"""From a grid `[height, width, features]` and the new height and width to the new grid."""


def grey_patches(kernel: np.ndarray, channels: int) -> np.ndarray:
    """`[patch * patch * channels, width]` summed to `[patch * patch, width]`: a grey image has all colours alike."""
    return kernel.reshape(-1, channels, kernel.shape[-1]).sum(1)


def grey_convolution(kernel: np.ndarray, channels: int) -> np.ndarray:
    """`[height, width, channels, out]` summed to `[height, width, 1, out]`."""
    return kernel.sum(2, keepdims=True)
