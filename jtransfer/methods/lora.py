"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): `y = x W + (alpha / rank) x A B`, with W frozen."""

import re

import flax.linen as nn
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.models.layers import flat_dot_general
from jtransfer.tree import Tree


class LowRank(nn.Module):
    """The side path. A starts as U(-1/sqrt(in), 1/sqrt(in)) (PEFT), and B at zero: at first it adds nothing."""

    rank: int
    features: int
    scale: float
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = self.param("a", init, (x.shape[-1], self.rank), self.param_dtype)
        b = self.param("b", nn.initializers.zeros, (self.rank, self.features), self.param_dtype)
        x, a, b = nn.dtypes.promote_dtype(x, a, b, dtype=self.dtype)
        last = (((x.ndim - 1,), (0,)), ((), ()))
        return self.scale * flat_dot_general(flat_dot_general(x, a, last), b, last)


def lora(rank: int = 8, alpha: float = 8.0, target: str = r".*attention/(query|value)") -> Method:
    """A low-rank path beside every dense layer that `target` names; it and the head learn.

    Args:
        rank: Of the update; the defaults of `rank` and `alpha` are PEFT's.
        alpha: The update is scaled by `alpha / rank`.
        target: Pattern that must match the whole path of a layer, as `encoder/block_0/attention/query`.

    Raises:
        InputError: when the method meets a model without such a layer.
    """
    if rank < 1:
        raise InputError(f"lora: rank={rank} must be at least 1")
    scale = alpha / rank
    try:
        pattern = re.compile(target)
    except re.error as error:
        raise InputError(f"lora: target '{target}' is not a regular expression: {error}") from None

    def interceptor(call, args, kwargs, context):
        y, layer = call(*args, **kwargs), context.module
        if (
            isinstance(layer, nn.Dense)
            and context.method_name == "__call__"
            and pattern.fullmatch("/".join(layer.path))
        ):
            y += LowRank(rank, layer.features, scale, layer.dtype, layer.param_dtype, parent=layer, name="lora")(
                args[0]
            )
        return y

    def learns(paths):
        if not any(path.endswith("/lora/a") for path in paths):
            layers = sorted({re.sub(r"\d+", "0", p.removesuffix("/kernel")) for p in paths if p.endswith("/kernel")})
            raise InputError(f"lora: target '{target}' matches no dense layer; there are {', '.join(layers)}")
        return learn(HEAD, (r".*/lora/[ab]", 1.0))(paths)

    def merge(tree: Tree) -> Tree:
        merged = {path: leaf for path, leaf in tree.items() if not re.fullmatch(r".*/lora/[ab]", path)}
        for path in tree:
            if path.endswith("/lora/a"):
                layer = path.removesuffix("/lora/a")
                merged[f"{layer}/kernel"] = tree[f"{layer}/kernel"] + scale * tree[path] @ tree[f"{layer}/lora/b"]
        return merged

    return Method("lora", learns, adds=(interceptor,), merge=merge)
