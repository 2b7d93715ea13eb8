"""FourierFT (Gao et al. 2024, arXiv:2405.03003): updates of kernels with few Fourier coefficients.

LAYER/fourierft/spectrum
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, SEED, by_name, checked, choice, whole
from jtransfer.methods.method import Method
from jtransfer.methods.updates import (
    DENSE,
    TARGET,
    Delta,
    Makes,
    Site,
    adding,
    by_rule,
    dense,
    updating,
    with_default,
)
from jtransfer.tree import Rules

NUMBER = whole(1, 2**24)
STARTS = {"normal": nn.initializers.normal(1.0), "zero": nn.initializers.zeros}


@dataclass(frozen=True)
class FourierFT:
    """The options of `fourierft`; `numbers` are rules on whole paths of layers, of which the last matches all."""

    target: str
    numbers: Rules[int]
    scale: float
    seed: int
    start: str

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer.

        Raises:
            InputError: more coefficients than the kernel has entries.
        """
        number, most = by_rule(self.numbers, site.path), site.rows * site.outputs
        if number > most:
            raise InputError(
                f"fourierft: {number} coefficients are more than the {most} entries of layer '{site.path}'; expected "
                f"{most} at most, here by numbers={{'{site.path}': {most}}}"
            )
        return {"spectrum": (STARTS[self.start], (number,))}

    def delta(self, site: Site, leaves: Mapping[str, jax.Array]) -> Delta:
        """What is added: the real part of the inverse transform of a spectrum that is zero elsewhere."""
        spectrum = leaves["spectrum"].astype(jnp.float32)
        places = entries(site.rows * site.outputs, len(spectrum), self.seed)
        whole = jnp.zeros(site.rows * site.outputs).at[places].set(spectrum).reshape(site.outputs, site.rows)
        return dense(site, (self.scale * jnp.fft.ifft2(whole).real).T.astype(leaves["spectrum"].dtype))


@checked
def fourierft(
    number: Annotated[int, NUMBER] = 1000,
    scale: float = 150.0,
    target: Annotated[str, PATTERN] = TARGET,
    numbers: Annotated[Mapping[str, int], by_name(NUMBER)] | None = None,
    seed: Annotated[int, SEED] = 777,
    start: Annotated[str, choice(*STARTS)] = "normal",
) -> Method:
    """`W + scale Re(F⁻¹(S))`, with a spectrum S of few entries, for the dense layers that `target` names.

    `number` entries of S `[out, in]` and the head learn (equations 2 to 4 of the paper). A seed says where they stand,
    which is one and the same for all layers of a shape. A layer has `number` parameters, whatever its size. Unlike
    other updates by few numbers this one makes its kernel, and the gradient of that.

    Args:
        number: Of entries; this default and the others are PEFT's.
        scale: Of the update.
        target: Pattern that must match the whole path of a layer.
        numbers: Other numbers for the layers whose whole path a pattern matches; the first that does decides.
        seed: Of the places, which are those that PyTorch draws from it.
        start: "normal" for N(0, 1), as in the paper, so that outputs are not those of the base at first; or "zero".

    Raises:
        InputError: an option out of its range; and, of a model, a pattern that matches no layer, or more entries than a
            kernel has.
    """
    rules = (with_default("fourierft", "numbers", numbers, number),)
    options = FourierFT(target, *rules, scale, seed, start)
    return updating("fourierft", options, options.makes, adding(options.delta), kinds=(DENSE,), rules=rules)


@lru_cache(maxsize=256)
def entries(size: int, number: int, seed: int) -> np.ndarray:
    """The first numbers of a random order of `range(size)`, as `torch.randperm` gives it after `manual_seed(seed)`.

    PEFT's files have the seed and not the places. The order is Fisher's and Yates's, of the draws of MT19937.
    """
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)
    draws = generator.random_raw(number)
    moved: dict[int, int] = {}
    for i, draw in enumerate(draws.tolist()):
        other = i + draw % (size - i)
        moved[i], moved[other] = moved.get(other, other), moved.get(i, i)
    return np.array([moved[i] for i in range(number)])
