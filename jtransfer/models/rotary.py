"""Rotary positions (Su et al. 2021, arXiv:2104.09864): the angles by which places turn queries and keys.

Unit i and unit i + half the head width are one plane, which turns by `place * frequency[i]`.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest

KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """Options of the angles.

    Attributes:
        theta: The wavelengths grow from 2 pi towards 2 pi theta.
        kind: "default"; "linear" divides all frequencies by `factor`; "llama3" does so for wavelengths above
            `original / low`, leaves those below `original / high`, and goes smoothly between (Llama 3.1's
            `apply_scaling`, Grattafiori et al. 2024, arXiv:2407.21783).
        factor: See `kind`.
        low: See `kind`.
        high: See `kind`, above `low`.
        original: Positions of the model before its context was made longer.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"unknown kind of rotary positions '{self.kind}'; {nearest(self.kind, KINDS)}")
        if min(self.theta, self.factor, self.low) <= 0 or self.high <= self.low or self.original < 1:
            raise InputError(
                "rotary positions: theta, factor and low must be above 0, high above low, original above 0"
            )

    def frequencies(self, width: int) -> np.ndarray:
        """`[width / 2]`, in radians a place, for heads of a width."""
        found = self.theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        if self.kind == "linear":
            found = found / self.factor
        if self.kind == "llama3":
            turns = self.original * found / (2 * math.pi)  # over all places that there were
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            found = kept * found + (1 - kept) * found / self.factor
        return found.astype(np.float32)

    def at(self, places: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines at `places [batch or 1, tokens]`, as `layers.rotate` takes them, float32."""
        angles = places[..., None, None].astype(jnp.float32) * self.frequencies(width)
        return jnp.cos(angles), jnp.sin(angles)
