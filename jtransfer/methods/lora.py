"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): `y = x W + scale x A B`, with W frozen."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, SHARE, by_name, check, checked, whole
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.models.architecture import CONVOLUTION
from jtransfer.models.layers import flat_dot_general
from jtransfer.tree import Rules, Tree, label

RANK = whole(1, 2**16)
TARGET = r".*attention/(query|value|qkv)"


class LowRank(nn.Module):
    """The side path, `[..., in]` to `[..., out]`.

    A `[in, rank]` starts as U(-1/sqrt(in), 1/sqrt(in)) (PEFT), and B `[rank, out]` at zero: at first it adds nothing.
    """

    rank: int
    features: int
    scale: float
    dropout: float
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = self.param("a", init, (x.shape[-1], self.rank), self.param_dtype)
        b = self.param("b", nn.initializers.zeros, (self.rank, self.features), self.param_dtype)
        if self.dropout and self.has_rng("dropout"):  # a layer is not told of training, but only training has this key
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        x, a, b = nn.dtypes.promote_dtype(x, a, b, dtype=self.dtype)
        last = (((x.ndim - 1,), (0,)), ((), ()))
        return self.scale * flat_dot_general(flat_dot_general(x, a, last), b, last)


@dataclass(frozen=True)
class LoRA:
    """The options of `lora`; rules are `(pattern, value)` on whole paths of layers, of which the last matches all.

    Attributes:
        target: Pattern of the layers that have a low-rank path.
        ranks: Rules for the rank of a layer.
        alphas: Rules for its alpha.
        rs: Whether `scale` divides by the root of the rank.
        dropout: Rate at which inputs of the low-rank path are dropped in training.
    """

    target: str
    ranks: Rules[int]
    alphas: Rules[float]
    rs: bool
    dropout: float

    def of(self, layer: str) -> tuple[int, float]:
        """Rank and alpha of a layer."""
        rank, alpha = (next(x for p, x in rules if re.fullmatch(p, layer)) for rules in (self.ranks, self.alphas))
        return rank, alpha

    def scale(self, layer: str) -> float:
        """What the product of A and B of a layer is multiplied by."""
        rank, alpha = self.of(layer)
        return alpha / (math.sqrt(rank) if self.rs else rank)


@checked
def lora(
    rank: Annotated[int, RANK] = 8,
    alpha: float = 8.0,
    target: Annotated[str, PATTERN] = TARGET,
    rs: bool = False,
    dropout: Annotated[float, SHARE] = 0.0,
    ranks: Annotated[Mapping[str, int], by_name(RANK)] | None = None,
    alphas: Mapping[str, float] | None = None,
) -> Method:
    """A low-rank path beside every dense layer that `target` names; it and the head learn.

    The path of `LAYER/kernel [in, out]` is `LAYER/lora/a [in, rank]` and `LAYER/lora/b [rank, out]`.

    Args:
        rank: Of the update; the defaults of `rank` and `alpha` are PEFT's.
        alpha: The update is scaled by `alpha / rank`.
        target: Pattern that must match the whole path of a layer, as `encoder/block_0/attention/query`.
        rs: Scale by `alpha / sqrt(rank)` instead (Kalajdzievski 2023, arXiv:2312.03732).
        dropout: Rate at which the inputs of the side path, and only of it, are dropped in training.
        ranks: Other ranks for the layers whose whole path a pattern matches; the first that does decides.
        alphas: Other alphas, by patterns as in `ranks`.

    Raises:
        InputError: an option out of its range, or a pattern that is none; and, of a model, a `target` that matches no
            dense layer, or a pattern of `ranks` or `alphas` that matches none of those with a low-rank path.
    """
    rules = (*(ranks or {}).items(), (".*", rank)), (*(alphas or {}).items(), (".*", alpha))
    options = LoRA(target, *rules, rs, dropout)
    for pattern, _ in (*options.ranks, *options.alphas):
        check(pattern, PATTERN, "lora: a key of ranks or alphas")

    def interceptor(call, args, kwargs, context):
        y, layer = call(*args, **kwargs), context.module
        path = "/".join(layer.path)
        if isinstance(layer, nn.Dense) and context.method_name == "__call__" and re.fullmatch(target, path):
            shape = options.of(path)[0], layer.features
            types = layer.dtype, layer.param_dtype
            y += LowRank(*shape, options.scale(path), dropout, *types, parent=layer, name="lora")(args[0])
        return y

    def learns(paths):
        adapted = [path.removesuffix("/lora/a") for path in paths if path.endswith("/lora/a")]
        if not adapted:
            layers = [path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")]
            dense = {re.sub(r"\d+", "0", layer) for layer in layers if not re.fullmatch(CONVOLUTION, layer)}
            found = f"there are {', '.join(sorted(dense))}" if dense else "the model has convolutions alone"
            raise InputError(f"lora: target '{target}' matches no dense layer; {found}")
        for rules in (options.ranks, options.alphas):
            label(adapted, rules)  # refuses a pattern that matches none of them
        return learn(HEAD, (r".*/lora/[ab]", 1.0))(paths)

    def merge(tree: Tree) -> Tree:
        merged = {path: leaf for path, leaf in tree.items() if not re.fullmatch(r".*/lora/[ab]", path)}
        for path in tree:
            if path.endswith("/lora/a"):
                layer = path.removesuffix("/lora/a")
                update = options.scale(layer) * tree[path] @ tree[f"{layer}/lora/b"]
                merged[f"{layer}/kernel"] = tree[f"{layer}/kernel"] + update
        return merged

    return Method("lora", learns, adds=(interceptor,), merge=merge, parts=(options,))
