"""Updates of kernels that are products of small matrices, entry by entry or of Kronecker's kind (LyCORIS).

LAYER/loha/{a_1, b_1, a_2, b_2}
LAYER/lokr/{outer | outer_a, outer_b, inner | inner_a, inner_b}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, Kind, checked
from jtransfer.methods.method import Method
from jtransfer.methods.updates import (
    RANK,
    RANKS,
    TARGET,
    UNIFORM,
    Delta,
    Makes,
    Site,
    adding,
    by_rule,
    dense,
    low_rank,
    product,
    updating,
    with_default,
)
from jtransfer.tree import Rules

FACTOR = Kind("-1 or a whole number from 1 to 65,536", lambda x: x == -1 or RANK.takes(x))


@dataclass(frozen=True)
class LoHa:
    """The options of `loha`; rules are `(pattern, value)` on whole paths of layers, of which the last matches all."""

    target: str
    ranks: Rules[int]
    alphas: Rules[float]

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer.

        Raises:
            InputError: a rank above the layer's width.
        """
        rank = by_rule(self.ranks, site.path)
        if rank > (most := max(site.rows, site.outputs)):
            raise InputError(
                f"loha: rank {rank} is above the width of layer '{site.path}'; expected {most} at most, here by "
                f"ranks={{'{site.path}': {most}}}"
            )
        a, b = (site.rows, rank), (rank, site.outputs)
        return {
            "a_1": (UNIFORM, a),
            "b_1": (UNIFORM, b),
            "a_2": (nn.initializers.zeros, a),
            "b_2": (UNIFORM, b),
        }

    def delta(self, site: Site, leaves: Mapping[str, jax.Array]) -> Delta:
        """What is added: of rank r² by products of columns, or the kernel where that is fewer products."""
        rank, scale = by_rule(self.ranks, site.path), by_rule(self.alphas, site.path) / by_rule(self.ranks, site.path)
        if rank**2 * (site.rows + site.outputs) >= site.rows * site.outputs:
            one, other = (leaves[f"a_{i}"] @ leaves[f"b_{i}"] for i in (1, 2))
            return dense(site, site.kernel(scale * one * other))
        a = (leaves["a_1"][:, :, None] * leaves["a_2"][:, None]).reshape(site.rows, -1)
        b = (leaves["b_1"][:, None] * leaves["b_2"][None]).reshape(-1, site.outputs)
        return low_rank(site, site.kernel(a), b, scale)


@checked
def loha(
    rank: Annotated[int, RANK] = 8,
    alpha: float = 8.0,
    target: Annotated[str, PATTERN] = TARGET,
    ranks: Annotated[Mapping[str, int], RANKS] | None = None,
    alphas: Mapping[str, float] | None = None,
) -> Method:
    """`W + alpha / rank (A1 B1) * (A2 B2)`, the latter entry by entry, for dense layers and convolutions of `target`.

    These four matrices and the head learn (FedPara, Hyeon-Woo et al. 2022, arXiv:2108.06098, section 2.2; LoHa of Yeh
    et al. 2024, arXiv:2309.14859). The rank of the update is up to rank², as that of `x A B` where the columns of A are
    the products of each column of A1 with each of A2, and the rows of B those of the rows of B1 and B2: so it is
    computed, unless the whole kernel takes fewer products. A layer of n inputs (of a convolution, times its window) and
    m outputs has `2 rank (n + m)` parameters. A2 is zero at first, the others are uniform as the A of LoRA (PEFT).

    Args:
        rank: Of both products; the defaults of `rank` and `alpha` are PEFT's.
        alpha: The update is scaled by `alpha / rank`.
        target: Pattern that must match the whole path of a layer.
        ranks: Other ranks for the layers whose whole path a pattern matches; the first that does decides.
        alphas: Other alphas, by patterns as in `ranks`.

    Raises:
        InputError: an option out of its range; and, of a model, a pattern that matches no layer, or a rank above both
            the inputs and the outputs of a layer.
    """
    rules = with_default("loha", "ranks or alphas", ranks, rank), with_default("loha", "ranks or alphas", alphas, alpha)
    options = LoHa(target, *rules)
    return updating("loha", options, options.makes, adding(options.delta), rules=rules)


@dataclass(frozen=True)
class LoKr:
    """The options of `lokr`; rules are `(pattern, value)` on whole paths of layers, of which the last matches all."""

    target: str
    ranks: Rules[int]
    alphas: Rules[float]
    factor: int
    both: bool

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer, the inner kernel with the layer's window."""
        rank, window = by_rule(self.ranks, site.path), site.shape[:-2]
        (outer_in, inner_in), (outer_out, inner_out) = (factors(n, self.factor) for n in site.shape[-2:])
        zero, inner_rows = nn.initializers.zeros, site.rows // outer_in
        if self.both and rank < max(outer_in, outer_out) / 2:
            made = {"outer_a": (UNIFORM, (outer_in, rank)), "outer_b": (zero, (rank, outer_out))}
        else:
            made = {"outer": (zero, (outer_in, outer_out))}
        if rank < max(inner_in, inner_out) / 2:
            return made | {"inner_a": (UNIFORM, (inner_rows, rank)), "inner_b": (UNIFORM, (rank, inner_out))}
        return made | {"inner": (UNIFORM, (*window, inner_in, inner_out))}

    def delta(self, site: Site, leaves: Mapping[str, jax.Array]) -> Delta:
        """What is added: the inner kernel along each part of the inputs, and the outer matrix across these parts."""
        scale = by_rule(self.alphas, site.path) / by_rule(self.ranks, site.path)
        outer = leaves["outer"] if "outer" in leaves else leaves["outer_a"] @ leaves["outer_b"]
        part = Site(
            site.path, site.kind, (*site.shape[:-2], site.shape[-2] // len(outer), 0), site.along, None, site.dtype
        )
        if "inner" in leaves:
            inner = dense(part, leaves["inner"])
        else:
            inner = low_rank(part, part.kernel(leaves["inner_a"]), leaves["inner_b"], 1.0)

        def path(x):
            parts = jnp.moveaxis(x.reshape(*x.shape[:-1], len(outer), -1), -2, 0)
            y = jnp.moveaxis(jax.vmap(inner.path)(parts), 0, -1)
            y = jnp.swapaxes(product(y, outer, site.dtype), -1, -2)
            return scale * y.reshape(*y.shape[:-2], -1)

        def whole():
            kernel = jnp.einsum("ce,...df->...cdef", outer, inner.whole())
            return scale * kernel.reshape(site.shape)

        return Delta(path, whole)


@checked
def lokr(
    rank: Annotated[int, RANK] = 8,
    alpha: float = 8.0,
    target: Annotated[str, PATTERN] = TARGET,
    ranks: Annotated[Mapping[str, int], RANKS] | None = None,
    alphas: Mapping[str, float] | None = None,
    factor: Annotated[int, FACTOR] = -1,
    both: bool = False,
) -> Method:
    """`W + alpha / rank C ⊗ D`, a Kronecker product, for the dense layers and convolutions of `target`.

    C `[c, e]` and D `[d, f]` (of a convolution, with its window) and the head learn, where the n inputs are `c d` and
    the m outputs `e f` (KronA, Edalati et al. 2022, arXiv:2212.10650, equation 3; LoKr of Yeh et al. 2024,
    arXiv:2309.14859). D is a product of two of `rank` where that is below half of its larger side, and C too if `both`.
    A layer has `c e + d f` parameters, with the two products `rank (c + e) + rank (d + f)`; of a convolution, d counts
    its window. C (or its second factor) is zero at first, the others are uniform as the A of LoRA (PEFT). The kernel is
    never made: D is applied to each of the c parts of the inputs, and C across them.

    Args:
        rank: Of the products; the defaults of `rank` and `alpha` are PEFT's. The update is scaled by it in any case.
        alpha: The update is scaled by `alpha / rank`.
        target: Pattern that must match the whole path of a layer.
        ranks: Other ranks for the layers whose whole path a pattern matches; the first that does decides.
        alphas: Other alphas, by patterns as in `ranks`.
        factor: c and e, where it divides n and m; else the divisors nearest below it. -1 for those nearest the root.
        both: Whether C may be a product of two as well.

    Raises:
        InputError: an option out of its range; and, of a model, a pattern that matches no layer.
    """
    rules = with_default("lokr", "ranks or alphas", ranks, rank), with_default("lokr", "ranks or alphas", alphas, alpha)
    options = LoKr(target, *rules, factor, both)
    return updating("lokr", options, options.makes, adding(options.delta), rules=rules)


def factors(number: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is a number, the first as in LyCORIS.

    >>> factors(128, -1), factors(128, 4), factors(127, -1), factors(12, 5)
    ((8, 16), (4, 32), (1, 127), (3, 4))
    """
    if factor > 0 and number % factor == 0:
        return factor, number // factor
    most = number if factor == -1 else factor
    first = max(n for n in range(1, int(number**0.5) + 1) if number % n == 0 and n <= most)
    return first, number // first
