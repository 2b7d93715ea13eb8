"""Images kept as 8-bit codes; indexing gives the floats that the model takes, equal to those before they were coded."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError

CODES = np.arange(256, dtype=np.uint8)


def _scaled(codes, factor):
    return (codes * factor).astype(np.float32)


@lru_cache(maxsize=8)
def _rows(values: tuple[float, ...], channels: int, width: int) -> np.ndarray:
    """Numbers by channel for a row of pixels: NumPy takes far longer to work on three at a time."""
    return np.tile(np.broadcast_to(np.float32(values), channels), width)


@dataclass(frozen=True)
class Scale:
    """The value of an 8-bit code: `(factor * code - mean) / std`, the product rounded to float32, the rest in float32.

    Attributes:
        factor: Multiplies each code; usually 1/255, so that 0..255 become 0..1.
        mean: Subtracted from the product: one number for each channel, or one for all channels.
        std: Divides the difference: one number for each channel, or one for all channels.
    """

    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def table(self) -> np.ndarray:
        """The value of each code: `[256, channels]` float32, or `[256, 1]` if all channels share their values."""
        found = (_scaled(CODES[:, None], self.factor) - np.array(self.mean, np.float32)) / np.array(
            self.std, np.float32
        )
        return found[:, :1] if (found == found[:, :1]).all() else found

    @cached_property
    def _divisor(self) -> np.float32 | None:
        """A float32 by which codes are divided in place of the product, if all 256 quotients equal the products."""
        divisor = np.float32(1 / self.factor) if self.factor else np.float32(1)
        return divisor if (np.divide(CODES, divisor) == _scaled(CODES, self.factor)).all() else None

    def fill(self, values: np.ndarray, codes: np.ndarray) -> None:
        """Write the values of codes `[height, width, channels]` uint8 into a contiguous float32 array of that shape."""
        height, width, channels = codes.shape
        codes, rows = codes.reshape(height, -1), values.reshape(height, -1)
        if self._divisor is None:
            rows[:] = _scaled(codes, self.factor)
        else:
            np.divide(codes, self._divisor, out=rows)
        mean, std = _rows(self.mean, channels, width), _rows(self.std, channels, width)
        np.divide(np.subtract(rows, mean, out=rows), std, out=rows)

    def encode(self, images: np.ndarray) -> np.ndarray | None:
        """Codes, uint8, whose values equal images `[n, height, width, channels]` exactly; None if there are none."""
        table = self.table
        found = np.rint((images - table[0]) * (255 / (table[255] - table[0])))
        if not ((found >= 0) & (found <= 255)).all():
            return None
        codes = found.astype(np.uint8)
        columns = np.broadcast_to(table, (256, images.shape[-1])).T
        same = (np.array_equal(column[codes[..., i]], images[..., i]) for i, column in enumerate(columns))
        return codes if all(same) else None


@partial(jax.tree_util.register_dataclass, data_fields=["codes"], meta_fields=["scale"])
@dataclass(frozen=True, eq=False)
class Coded:
    """Images as codes, indexed like an array `[n, height, width, channels]` float32 in a quarter of its memory.

    Attributes:
        codes: `[n, height, width, channels]` uint8.
        scale: The values of the codes.
    """

    codes: Any
    scale: Scale

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, channels)`."""
        return self.codes.shape

    def __getitem__(self, rows: Any) -> jax.Array:
        # A table gives what NumPy computes, to the bit; XLA would multiply where that divides.
        codes, table = self.codes[rows], self.scale.table
        columns = table.shape[1]
        if columns > 1:
            codes = codes.astype(jnp.int32) + 256 * jnp.arange(columns)
        return jnp.asarray(table.T.reshape(-1)).at[codes].get(mode="promise_in_bounds")


def take(inputs: Any, rows: Any) -> Any:
    """Index the rows of an array, or of each array in a tree, as of inputs by name; `Coded` images become floats."""
    return jax.tree.map(lambda x: x[rows], inputs, is_leaf=lambda x: isinstance(x, Coded))


def scaling(settings: Mapping[str, Any], channels: int) -> tuple[float, np.ndarray, np.ndarray]:
    """What pixels are multiplied by, and mean and standard deviation `[channels]`; 0 and 1 change no float.

    Raises:
        InputError: other than 1 or 3 channels, or values that are not finite or not of so many channels.
    """
    if channels not in (1, 3):
        raise InputError(f"images have 1 or 3 channels, but the model takes {channels}")
    factor = float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0
    if not np.isfinite(factor):
        raise InputError(f"'rescale_factor' is {factor}")
    mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    if settings["do_normalize"]:
        mean, std = (_per_channel(settings[key], key, channels) for key in ("image_mean", "image_std"))
    if settings.get(
        "include_top"
    ):  # EfficientNet's processor divides once more: its file has the root of what is meant
        std = std * _per_channel(settings["image_std"], "image_std", channels)
    if not (np.isfinite(mean).all() and (std > 0).all()):
        raise InputError(f"'image_mean' is {settings['image_mean']}, 'image_std' is {settings['image_std']}")
    return factor, mean, std


def _per_channel(value, key, channels):
    array = np.asarray(value, np.float64)
    array = np.repeat(array[None], channels) if array.ndim == 0 else array
    if channels == 1 and array.shape == (3,):
        array = array.mean(keepdims=True)
    if array.shape != (channels,):
        raise InputError(f"'{key}' is {value}; expected {channels} numbers")
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        return array.astype(np.float32)
