"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): `y = x W + scale x A B`, with W frozen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, PATTERN, SHARE, checked, choice
from jtransfer.methods.method import Method
from jtransfer.methods.updates import (
    CONV,
    DENSE,
    EMBED,
    RANK,
    RANKS,
    TARGET,
    UNIFORM,
    Delta,
    Effect,
    Makes,
    Site,
    adding,
    by_rule,
    low_rank,
    together,
    updating,
    weight_of,
    with_default,
)
from jtransfer.tree import Rules

STARTS = ("uniform", "gaussian", "orthogonal", "pissa", "olora")
FROM_BASE = ("pissa", "olora")
"""The starts that are parts of the kernel itself, whose product is subtracted again."""


@dataclass(frozen=True)
class LoRA:
    """The options of `lora`; rules are `(pattern, value)` on whole paths of layers, of which the last matches all.

    Attributes:
        target: Pattern of the layers that have a low-rank path.
        ranks: Rules for the rank of a layer.
        alphas: Rules for its alpha.
        rs: Whether `scale` divides by the root of the rank.
        dropout: Rate at which inputs of the low-rank path are dropped in training.
        start: One of `STARTS`.
        dora: Whether the norms of the columns of the kernel are leaves of their own.
    """

    target: str
    ranks: Rules[int]
    alphas: Rules[float]
    rs: bool
    dropout: float
    start: str = "uniform"
    dora: bool = False

    def of(self, layer: str) -> tuple[int, float]:
        """Rank and alpha of a layer."""
        return by_rule(self.ranks, layer), by_rule(self.alphas, layer)

    def scale(self, layer: str) -> float:
        """What the product of A and B of a layer is multiplied by."""
        rank, alpha = self.of(layer)
        return alpha / (math.sqrt(rank) if self.rs else rank)

    def makes(self, site: Site, kernel: Callable[[], jax.Array]) -> Makes:
        """The leaves beside a layer.

        Raises:
            InputError: a rank that the layer cannot have.
        """
        rank = self.of(site.path)[0]
        most = (min if self.start in FROM_BASE else max)(site.rows, site.outputs)
        if rank > most:
            raise InputError(
                f"lora: rank {rank} is above the width of layer '{site.path}', of {site.rows} inputs and "
                f"{site.outputs} outputs; expected {most} at most, here by ranks={{'{site.path}': {most}}}"
            )
        if self.start in FROM_BASE and not self.scale(site.path) > 0:
            raise InputError(
                f"lora: a start of {self.start} needs an alpha above 0, found {self.of(site.path)[1]} for layer "
                f"'{site.path}'"
            )
        if self.start == "orthogonal" and rank % 2:
            raise InputError(f"lora: an orthogonal start needs an even rank, found {rank} for layer '{site.path}'")
        shapes = {"a": (*site.shape[:-1], rank), "b": (rank, site.outputs)}
        if self.start in FROM_BASE:
            shapes |= {f"{name}_start": shape for name, shape in shapes.items()}
            made = together(lambda key: _of_kernel(self.start, kernel(), rank, self.scale(site.path)), shapes)
        elif self.start == "orthogonal":
            made = together(lambda key: _orthogonal(key, site.rows, rank, site.outputs), shapes)
        else:
            zero, normal = nn.initializers.zeros, nn.initializers.normal
            start = normal(1 / rank) if self.start == "gaussian" else UNIFORM
            starts = (zero, normal(1.0)) if site.kind == EMBED else (start, zero)
            made = {name: (init, shape) for init, (name, shape) in zip(starts, shapes.items(), strict=True)}
        norms = (lambda key, shape, dtype: jnp.linalg.norm(_flat(kernel()), axis=0).astype(dtype), (site.outputs,))
        return made | ({"magnitude": norms} if self.dora else {})

    def factors(self, leaves: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """A and B whose product is added to the kernel: of a start from the kernel, of twice the rank."""
        a, b = leaves["a"], leaves["b"]
        if self.start not in FROM_BASE:
            return a, b
        before = [jax.lax.stop_gradient(leaves[f"{name}_start"]) for name in "ab"]
        return jnp.concatenate([a, before[0]], axis=-1), jnp.concatenate([b, -before[1]])

    def delta(self, site: Site, leaves: Mapping[str, jax.Array]) -> Delta:
        """What is added to a layer."""
        return low_rank(site, *self.factors(leaves), self.scale(site.path))


@checked
def lora(
    rank: Annotated[int, RANK] = 8,
    alpha: float = 8.0,
    target: Annotated[str, PATTERN] = TARGET,
    rs: bool = False,
    dropout: Annotated[float, SHARE] = 0.0,
    ranks: Annotated[Mapping[str, int], RANKS] | None = None,
    alphas: Mapping[str, float] | None = None,
    start: Annotated[str, choice(*STARTS)] = "uniform",
    dora: bool = False,
    a_rate: Annotated[float, NOT_NEGATIVE] = 1.0,
    b_rate: Annotated[float, NOT_NEGATIVE] = 1.0,
    head_rate: Annotated[float, NOT_NEGATIVE] = 1.0,
) -> Method:
    """A low-rank path beside every dense layer, convolution and embedding that `target` names; it and the head learn.

    The path of `LAYER/kernel [in, out]` is `LAYER/lora/a [in, rank]` and `LAYER/lora/b [rank, out]`. That of a
    convolution's `[height, width, in, out]` is a convolution `a [height, width, in, rank]` with the same stride and
    padding, and `b [rank, out]` (as in PEFT). Convolutions in groups, as depthwise ones, have none: their kernels are
    small already. That of a table `[rows, width]` is `a [rows, rank]`, whose rows are looked up, and `b [rank, width]`.
    A layer of n inputs (of a convolution, times its window) and m outputs has `rank (n + m)` new parameters that learn,
    with `dora` m more.

    Starts: `uniform` A is U(-1/sqrt(n), 1/sqrt(n)) and B zero (PEFT); of an embedding A is zero and B N(0, 1).
    `gaussian` A is N(0, 1/rank²). `orthogonal` A and B are random with `A B = 0` (as in PEFT). `pissa` A and B are the
    first singular vectors, each times the roots of the singular values (Meng et al. 2024, arXiv:2404.02948, equations 2
    and 3), and `olora` those of a QR decomposition (Buyukakyuz 2024, arXiv:2406.01775); both are divided so that
    `scale A B` is the part of W, which stays as it was: frozen leaves `a_start` and `b_start` are subtracted from it,
    `W + scale (A B - A_start B_start)`. In every start the outputs are those of the base at first.

    Args:
        rank: Of the update; the defaults of `rank` and `alpha` are PEFT's.
        alpha: The update is scaled by `alpha / rank`.
        target: Pattern that must match the whole path of a layer, as `encoder/block_0/attention/query`.
        rs: Scale by `alpha / sqrt(rank)` instead (Kalajdzievski 2023, arXiv:2312.03732).
        dropout: Rate at which the inputs of the side path, and only of it, are dropped in training.
        ranks: Other ranks for the layers whose whole path a pattern matches; the first that does decides.
        alphas: Other alphas, by patterns as in `ranks`.
        start: How A and B start.
        dora: The norm of each column of the updated kernel is a leaf of its own, `LAYER/lora/magnitude [out]`, and the
            column `magnitude (W + scale A B) / norm(W + scale A B)`, whose norm counts as a constant in the gradient
            (DoRA, Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3).
        a_rate: Rate at which A learns, relative to the schedule; 0 freezes it (LoRA-FA, Zhang et al. 2023,
            arXiv:2308.03303).
        b_rate: That of B; 16 is LoRA+ (Hayou et al. 2024, arXiv:2402.12354).
        head_rate: That of the head; 0 freezes it, as PEFT does with the output kernel of a language model.

    Raises:
        InputError: an option out of its range, or a pattern that is none; and, of a model, a `target` that matches no
            such layer, a pattern of `ranks` or `alphas` that matches none of those with a low-rank path, a rank above
            both the inputs and the outputs of a layer (of `pissa` and `olora`, above one of them), an odd rank with an
            orthogonal start, or an embedding that the head reads too.
    """
    rules = with_default("lora", "ranks or alphas", ranks, rank), with_default("lora", "ranks or alphas", alphas, alpha)
    options = LoRA(target, *rules, rs, dropout, start, dora)
    rates = [("a", a_rate), ("b", b_rate), *([("magnitude", 1.0)] if dora else [])]
    change = _weighed(options) if dora else adding(options.delta)
    return updating(
        "lora", options, options.makes, change, tuple(rates), (DENSE, CONV, EMBED), dropout, rules, head_rate
    )


def _weighed(options: LoRA) -> Effect:
    """Add the low-rank path, and give every column of the sum the norm that a leaf says."""

    def run(call, x, beside, site, layer):
        y = call(x)
        leaves, x = beside(x)
        own = layer.variables["params"]
        factor = leaves["magnitude"] / _norms(
            weight_of(layer, site), *options.factors(leaves), options.scale(site.path)
        )
        bias = own["bias"].astype(y.dtype) if "bias" in own else 0
        return (y - bias + options.delta(site, leaves).path(x)) * factor.astype(y.dtype) + bias

    def merge(own, site, leaves):
        plain = adding(options.delta).merge(own, site, leaves)
        weight = "embedding" if site.kind == EMBED else "kernel"
        norms = jnp.linalg.norm(_flat(plain[weight]), axis=0)
        return plain | {weight: plain[weight] * (leaves["magnitude"] / norms)}

    return Effect(run, merge)


def _norms(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """The norm of every column of `W + scale A B`, by products with the thin A: the sum is never made.

    `|w + s A b|² = |w|² + 2 s (A' w) b + s² b' (A' A) b`, for columns w of W and b of B. It is a constant in gradients.
    """
    w, a, b = (jax.lax.stop_gradient(_flat(x).astype(jnp.float32)) for x in (kernel, a, b))
    square = jnp.square(w).sum(0) + scale * ((2 * (a.T @ w) + scale * ((a.T @ a) @ b)) * b).sum(0)
    return jnp.sqrt(square)


def _flat(kernel):
    return kernel.reshape(-1, kernel.shape[-1])


def _of_kernel(start, kernel, rank, scale):
    """A and B of which `scale A B` is a part of a kernel, twice: as they learn, and as they were."""
    w = _flat(kernel).astype(jnp.float32)
    if start == "pissa":
        u, s, v = jnp.linalg.svd(w, full_matrices=False)
        roots = jnp.sqrt(s[:rank] / scale)
        a, b = u[:, :rank] * roots, roots[:, None] * v[:rank]
    else:
        q, r = jnp.linalg.qr(w.T)  # of the kernel as PyTorch has it
        a, b = r[:rank].T, q[:, :rank].T
    return {"a": a, "b": b, "a_start": a, "b_start": b}


def _orthogonal(key, rows, rank, outputs):
    """A and B in the spans of two halves of an orthonormal basis of the `rank` dimensions between them."""
    of_q, of_a, of_b = jax.random.split(key, 3)
    q = jnp.linalg.qr(jax.random.normal(of_q, (rank, rank)))[0]
    a = jax.random.normal(of_a, (rows, rank // 2)) @ q[0::2] / 10
    b = q[1::2].T @ jax.random.normal(of_b, (rank // 2, outputs)) / 10
    return {"a": a, "b": b}
