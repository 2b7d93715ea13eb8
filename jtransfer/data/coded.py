"""Images kept as 8-bit codes; indexing gives the floats that the model takes, equal to those before they were coded."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
        scaled = (np.arange(256, dtype=np.uint8)[:, None] * self.factor).astype(np.float32)
        found = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return found[:, :1] if (found == found[:, :1]).all() else found

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
