"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): `y = x W + scale x A B`, with W frozen."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, SHARE, by_name, check, checked, whole
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.methods.targets import there_are
from jtransfer.models.architecture import CONVOLUTION
from jtransfer.models.layers import flat_dot_general
from jtransfer.tree import Rules, Tree, label

RANK = whole(1, 2**16)
TARGET = r".*attention/(query|value|qkv)"


class LowRank(nn.Module):
    """The side path of a dense layer, `[..., in]` to `[..., out]`, or of a convolution of one group.

    A `[*window, in, rank]` has the window of the layer's kernel, which a dense layer's lacks; B is `[rank, out]`. Where
    an output of A is the sum of n products, A starts as U(-1/sqrt(n), 1/sqrt(n)) (PEFT), and B at zero: at first the
    path adds nothing.

    Attributes:
        convolve: From inputs and A to `[..., rank]`; None for the product.
    """

    rank: int
    features: int
    scale: float
    dropout: float
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype
    window: tuple[int, ...] = ()
    convolve: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = self.param("a", init, (*self.window, x.shape[-1], self.rank), self.param_dtype)
        b = self.param("b", nn.initializers.zeros, (self.rank, self.features), self.param_dtype)
        if self.dropout and self.has_rng("dropout"):  # a layer is not told of training, but only training has this key
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        x, a, b = nn.dtypes.promote_dtype(x, a, b, dtype=self.dtype)
        low = self.convolve(x, a) if self.convolve else _product(x, a)
        return self.scale * _product(low, b)


def _product(x, kernel):
    return flat_dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _convolving(layer: nn.Conv) -> dict[str, Any]:
    """The options of `LowRank` that make its A a convolution as the layer is one, but for the number of outputs."""
    window = tuple(layer.kernel_size)

    def each(value):
        return (value or 1,) * len(window) if isinstance(value, int | None) else tuple(value)

    padding = layer.padding
    if not isinstance(padding, str):
        padding = [(side, side) if isinstance(side, int) else tuple(side) for side in each(padding)]
    convolve = partial(
        layer.conv_general_dilated or jax.lax.conv_general_dilated,
        window_strides=each(layer.strides),
        padding=padding,
        rhs_dilation=each(layer.kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return {"window": window, "convolve": convolve}


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
    """A low-rank path beside every dense layer and every convolution that `target` names; it and the head learn.

    The path of `LAYER/kernel [in, out]` is `LAYER/lora/a [in, rank]` and `LAYER/lora/b [rank, out]`. That of a
    convolution's `[height, width, in, out]` is a convolution `a [height, width, in, rank]` with the same stride and
    padding, and `b [rank, out]` (as in PEFT). Convolutions in groups, as depthwise ones, have none: their kernels are
    small already.

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
            such layer, or a pattern of `ranks` or `alphas` that matches none of those with a low-rank path.
    """
    rules = (*(ranks or {}).items(), (".*", rank)), (*(alphas or {}).items(), (".*", alpha))
    options = LoRA(target, *rules, rs, dropout)
    for pattern, _ in (*options.ranks, *options.alphas):
        check(pattern, PATTERN, "lora: a key of ranks or alphas")

    def interceptor(call, args, kwargs, context):
        y, layer = call(*args, **kwargs), context.module
        path = "/".join(layer.path)
        takes = isinstance(layer, nn.Dense) or (isinstance(layer, nn.Conv) and layer.feature_group_count == 1)
        if takes and context.method_name == "__call__" and re.fullmatch(target, path):
            shape = options.of(path)[0], layer.features
            types = layer.dtype, layer.param_dtype
            more = _convolving(layer) if isinstance(layer, nn.Conv) else {}
            y += LowRank(*shape, options.scale(path), dropout, *types, **more, parent=layer, name="lora")(args[0])
        return y

    def learns(paths):
        adapted = [path.removesuffix("/lora/a") for path in paths if path.endswith("/lora/a")]
        if not adapted:
            convolves = any(re.fullmatch(f"{CONVOLUTION}/kernel", path) for path in paths)
            either = " and no convolution of one group" if convolves else ""
            raise InputError(f"lora: target '{target}' matches no dense layer{either}; {there_are(paths)}")
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
