"""Orthogonal finetuning: the inputs of a layer are turned, so that angles between the columns of its kernel stay.

LAYER/oft/r    LAYER/boft/{r, scale}    LAYER/hra/u
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, by_name, checked, whole
from jtransfer.methods.method import Method
from jtransfer.methods.updates import (
    RANK,
    TARGET,
    Makes,
    Site,
    by_rule,
    product,
    turning,
    updating,
    with_default,
)
from jtransfer.tree import Rules

BLOCK = whole(2, 2**16)
TERMS = whole(3, 100)


@dataclass(frozen=True)
class OFT:
    """The options of `oft`; `blocks` are rules on whole paths of layers, of which the last matches all."""

    target: str
    blocks: Rules[int]
    share: bool
    terms: int | None

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer.

        Raises:
            InputError: a block size that does not divide the inputs, or a convolution with a window.
        """
        block = _check_block("oft", site, by_rule(self.blocks, site.path), "blocks")
        if site.rows != site.shape[-2]:
            raise InputError(
                f"oft: layer '{site.path}' is a convolution with a window of {site.shape[:-2]}, which PEFT's OFT does "
                "not leave as it is at first; expected 1x1 ones alone; boft and hra turn all"
            )
        number = 1 if self.share else site.rows // block
        return {"r": (nn.initializers.zeros, (number, block * (block - 1) // 2))}

    def turn(self, site: Site, leaves: Mapping[str, jax.Array]):
        """Turn the blocks of `x [..., rows]`."""
        block = by_rule(self.blocks, site.path)
        upper = np.triu_indices(block, 1)
        skew = jnp.zeros((len(leaves["r"]), block, block)).at[:, *upper].set(leaves["r"].astype(jnp.float32))
        turns = _cayley(skew - jnp.swapaxes(skew, 1, 2), self.terms)
        turns = jnp.broadcast_to(turns, (site.rows // block, block, block))
        return lambda x: _by_blocks(x, turns)


@checked
def oft(
    block: Annotated[int, BLOCK] = 32,
    target: Annotated[str, PATTERN] = TARGET,
    blocks: Annotated[Mapping[str, int], by_name(BLOCK)] | None = None,
    share: bool = False,
    terms: Annotated[int, TERMS] | None = 5,
) -> Method:
    """`R W` with R orthogonal, block by block, for the dense layers (and 1x1 convolutions) that `target` names.

    Each block is Cayley's `(I - Q) (I + Q)⁻¹` of a skew-symmetric Q, whose entries above the diagonal learn, and the
    head (Qiu et al. 2023, arXiv:2306.07280, section 3.3; here it turns the inputs, as in Qiu et al. 2025,
    arXiv:2506.19847, which is also the source of `terms`). Q is zero at first, and R the identity. A layer of n inputs
    has `n (block - 1) / 2` parameters, with `share` `block (block - 1) / 2`.

    Args:
        block: Size of a block, which must divide the inputs; the defaults are PEFT's.
        target: Pattern that must match the whole path of a layer.
        blocks: Other sizes for the layers whose whole path a pattern matches; the first that does decides.
        share: Whether all blocks of a layer are one.
        terms: Of the series `I + 2 Q + 2 Q² + ...`, which stands for the inverse, the last power once (as in PEFT);
            None for the inverse itself.

    Raises:
        InputError: an option out of its range; and, of a model, a pattern that matches no layer, a block size that does
            not divide the inputs, or a convolution with a window.
    """
    rules = (with_default("oft", "blocks", blocks, block),)
    options = OFT(target, *rules, share, terms)
    return updating("oft", options, options.makes, turning(options.turn), rules=rules)


@dataclass(frozen=True)
class BOFT:
    """The options of `boft`."""

    target: str
    block: int
    factors: int

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer.

        Raises:
            InputError: a block size, or a number of factors, that the inputs do not have.
        """
        _check_block("boft", site, self.block)
        if self.factors > 1 and (self.block % 2 or site.rows % (self.block * 2 ** (self.factors - 1))):
            raise InputError(
                f"boft: {self.factors} factors of blocks of {self.block} do not fit layer '{site.path}' of {site.rows} "
                f"inputs; expected an even block, and a multiple of {self.block * 2 ** (self.factors - 1)} inputs"
            )
        shape = (self.factors, site.rows // self.block, self.block, self.block)
        return {"r": (nn.initializers.zeros, shape), "scale": (nn.initializers.ones, (site.outputs,))}

    def turn(self, site: Site, leaves: Mapping[str, jax.Array]):
        """Turn `x [..., rows]` by one factor after another, each on other pairs of half blocks."""
        r = leaves["r"].astype(jnp.float32)
        turns = _cayley((r - jnp.swapaxes(r, -1, -2)) / 2)

        def turned(x):
            for i in reversed(range(self.factors)):
                order = butterfly(site.rows, self.block, i) if i else slice(None)  # of the first the order is its own
                x = _by_blocks(x[..., np.argsort(order)] if i else x, turns[i])[..., order]
            return x

        return turned


@checked
def boft(
    block: Annotated[int, BLOCK] = 4,
    factors: Annotated[int, whole(1, 16)] = 1,
    target: Annotated[str, PATTERN] = TARGET,
) -> Method:
    """`R W` times a scale of every output, with R a product of butterfly factors, for the layers that `target` names.

    Each factor is block-diagonal and orthogonal between two permutations, so that a few of them mix all inputs; the
    blocks are Cayley's, of the skew-symmetric part of full matrices (Liu et al. 2024, arXiv:2311.06243, section 4).
    These, the scales and the head learn; at first R is the identity and the scales are 1. A layer of n inputs (of a
    convolution, times its window) and m outputs has `factors n block + m` parameters.

    Args:
        block: Size of a block, which must divide the inputs; the defaults are PEFT's.
        factors: Number of factors.
        target: Pattern that must match the whole path of a dense layer or a convolution of one group.

    Raises:
        InputError: an option out of its range; and, of a model, a target that matches no layer, or blocks that do not
            fit the inputs.
    """
    options = BOFT(target, block, factors)
    return updating("boft", options, options.makes, turning(options.turn, lambda leaves: leaves["scale"]))


@dataclass(frozen=True)
class HRA:
    """The options of `hra`."""

    target: str
    rank: int

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer.

        Raises:
            InputError: more reflections than inputs.
        """
        if self.rank > site.rows:
            raise InputError(
                f"hra: rank {self.rank} is above the {site.rows} inputs of layer '{site.path}'; expected "
                f"{site.rows} at most"
            )

        uniform = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")

        def pairs(key, shape, dtype):
            u = uniform(key, (shape[0], (shape[1] + 1) // 2), dtype)
            return jnp.repeat(u, 2, axis=1)[:, : shape[1]]

        return {"u": (pairs, (site.rows, self.rank))}

    def turn(self, site: Site, leaves: Mapping[str, jax.Array]):
        """`x H_r ... H_1` by two thin products: the reflections together are `I - U T U'`, with a triangular T."""
        u = leaves["u"].astype(jnp.float32)
        u = u / jnp.linalg.norm(u, axis=0)
        inverse = jnp.tril(u.T @ u, -1) + jnp.eye(self.rank) / 2
        thin = jax.scipy.linalg.solve_triangular(inverse, u.T, lower=True)
        return lambda x: x - product(product(x, u, x.dtype), thin, x.dtype)


@checked
def hra(rank: Annotated[int, RANK] = 8, target: Annotated[str, PATTERN] = TARGET) -> Method:
    """`H W` with H a product of `rank` Householder reflections `I - 2 u u' / u'u`, for the layers that `target` names.

    The u and the head learn (Yuan et al. 2024, arXiv:2405.17484, equation 3; without its regulariser). At first they
    are equal in pairs, whose reflections undo each other; of an odd rank one is left, and outputs are not the base's.
    A layer of n inputs (of a convolution, times its window) has `rank n` parameters.

    Args:
        rank: Number of reflections; the default is PEFT's.
        target: Pattern that must match the whole path of a dense layer or a convolution of one group.

    Raises:
        InputError: an option out of its range; and, of a model, a target that matches no layer, or a rank above the
            inputs of a layer.
    """
    options = HRA(target, rank)
    return updating("hra", options, options.makes, turning(options.turn))


def _check_block(method, site, block, option="block"):
    if site.rows % block:
        near = min((n for n in range(2, site.rows + 1) if site.rows % n == 0), key=lambda n: abs(n - block))
        raise InputError(
            f"{method}: a block size of {block} does not divide the {site.rows} inputs of layer '{site.path}'; "
            f"expected a divisor, as {near}"
        )
    return block


def _by_blocks(x, turns):
    """The blocks of `x [..., rows]`, each times its matrix of `turns [number, block, block]`."""
    blocks = x.reshape(*x.shape[:-1], *turns.shape[:2])
    return jnp.einsum("...nb,nbc->...nc", blocks, turns.astype(x.dtype)).reshape(x.shape)


def _cayley(skew: jax.Array, terms: int | None = None) -> jax.Array:
    """`(I - Q) (I + Q)⁻¹` of each `Q [..., b, b]`, or with `terms` PEFT's series, which turns the other way."""
    eye = jnp.broadcast_to(jnp.eye(skew.shape[-1]), skew.shape)
    if terms is None:
        return jnp.linalg.solve(eye + skew, eye - skew)  # both factors commute
    total, power = eye + 2 * skew, skew
    for last in range(2, max(terms, 4)):
        power = power @ skew
        total += power if last == max(terms, 4) - 1 else 2 * power
    return total


def butterfly(rows: int, block: int, level: int) -> np.ndarray:
    """The order of rows of a factor, `[rows]`: of each run of `2 ** level` blocks the even half blocks, then the odd.

    >>> butterfly(8, 2, 1)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    halves = np.arange(rows).reshape(-1, 2 ** (level + 1), block // 2)
    return np.concatenate([halves[:, 0::2], halves[:, 1::2]], axis=1).reshape(-1)
