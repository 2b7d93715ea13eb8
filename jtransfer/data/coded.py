"""Images kept as the bytes that they were made of, and what makes the model's floats of these where they are used."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Scale:
    """What 8 bits stand for: `(factor * code - mean) / std`, in float32 and in this order.

    Attributes:
        factor: That brings 0..255 to 0..1, as a rule.
        mean: Of each channel, or one for all, and so is `std`.
        std: See `mean`.
    """

    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def table(self) -> np.ndarray:
        """The value of each code: `[256, channels]` float32, one column where all channels have the same."""
        scaled = (np.arange(256, dtype=np.uint8)[:, None] * self.factor).astype(np.float32)
        found = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return found[:, :1] if (found == found[:, :1]).all() else found

    def encode(self, images: np.ndarray) -> np.ndarray | None:
        """The codes that images `[n, height, width, channels]` are the values of, to the bit; None if they are not."""
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
    """Images that take a fourth of the memory of the floats which indexing gives.

    Attributes:
        codes: `[n, height, width, channels]` uint8.
        scale: What they stand for.
    """

    codes: Any
    scale: Scale

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def __getitem__(self, rows: Any) -> jax.Array:
        # A table gives what NumPy computes, to the bit; XLA would multiply where that divides.
        codes, table = self.codes[rows], self.scale.table
        columns = table.shape[1]
        if columns > 1:
            codes = codes.astype(jnp.int32) + 256 * jnp.arange(columns)
        return jnp.asarray(table.T.reshape(-1)).at[codes].get(mode="promise_in_bounds")


def take(inputs: Any, rows: Any) -> Any:
    """Some rows of one array, or of several by name, as the model takes them."""
    return jax.tree.map(lambda x: x[rows], inputs, is_leaf=lambda x: isinstance(x, Coded))
