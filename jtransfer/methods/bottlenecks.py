"""Bottleneck adapters: two small dense layers, beside or behind the branches of every block.

    BLOCK/attention_adapter/{down, up}    BLOCK/mlp_adapter/{down, up}    BLOCK/convolutions_adapter/{down, up}

No plain model has them, so they do not merge: what is kept is the adapter, beside the name of its backbone.
"""

import re
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import checked, number, whole
from jtransfer.methods.method import HEAD, Interceptor, Method, learn
from jtransfer.models import layers
from jtransfer.models.swin import SwinBlock
from jtransfer.models.transformer import Block, Encoder, Mlp

WIDTH = whole(1, 2**16)
ADAPTER = r".*_adapter/(down|up)/(kernel|bias)"
NORMS = (r".*/norm[^/]*/(scale|bias)", 1.0)


class BottleneckAdapter(nn.Module):
    """`up(activation(down(x)))` of `x [..., features]`, without the skip.

    Attributes:
        width: Of the hidden layer.
        activation: A key of `ACTIVATIONS`.
        start: Initialisers of the kernels of `down` and `up`; biases start at zero.
        dtype: Type in which it computes, and `param_dtype` of its leaves.
        use_bias: Whether the layers have biases.
    """

    width: int
    activation: str
    start: tuple[Callable, Callable]
    dtype: str
    param_dtype: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "use_bias": self.use_bias}
        hidden = layers.Dense(self.width, kernel_init=self.start[0], name="down", **types)(x)
        hidden = layers.ACTIVATIONS[self.activation](hidden)
        return layers.Dense(x.shape[-1], kernel_init=self.start[1], name="up", **types)(hidden)


SMALL = (nn.initializers.truncated_normal(1e-3),) * 2
"""Near the identity, as Houlsby et al. start."""
NOTHING = (nn.initializers.he_normal(), nn.initializers.zeros)
"""The identity: nothing is added at first."""


TRANSFORMERS = (Block, SwinBlock)


def _adapter(
    block: nn.Module, name: str, width: int, activation: str, start: tuple[Callable, Callable]
) -> BottleneckAdapter:
    """The adapter of a name in a block, in the block's precision."""
    c = block.config
    return BottleneckAdapter(width, activation, start, c.dtype, c.param_dtype, parent=block, name=f"{name}_adapter")


@checked
def houlsby(width: Annotated[int, WIDTH] = 64) -> Method:
    """An adapter behind each branch of every block, before it is added: `y + up(gelu(down(y)))`.

    The adapters, all norms and the head learn (Houlsby et al. 2019, arXiv:1902.00751, section 2.1). Of a branch of
    width d it adds `2 d width + width + d` parameters; a transformer's block has two branches, a CNN's one.

    Args:
        width: Of the bottleneck.

    Raises:
        InputError: a width below 1; and, of a model, one without blocks.
    """

    def interceptor(call, args, kwargs, context):
        if context.method_name != "residual":
            return call(*args, **kwargs)
        x, y, branch = args
        return call(x, y + _adapter(context.module, branch, width, "gelu", SMALL)(y), branch)

    return _method("houlsby", interceptor, NORMS, of="block")


@checked
def pfeiffer(reduction: Annotated[int, WIDTH] = 16) -> Method:
    """An adapter behind the MLP of every block: `y + up(relu(down(y)))`; it and the head learn.

    In a block with its norm behind (BERT's) the adapter reads what that norm makes of the sum, and is added to the sum,
    which is normalised again: `norm(s + up(relu(down(norm(s)))))` (Pfeiffer et al. 2021, arXiv:2005.00247, and 2020,
    arXiv:2007.07779). Of a block of width d it adds `2 d w + w + d` parameters, with `w = d / reduction`.

    Args:
        reduction: What the width of the block is divided by for that of the bottleneck, which is 1 at least.

    Raises:
        InputError: a reduction below 1; and, of a model, one without transformer blocks.
    """

    def adapter(block):
        return _adapter(block, "mlp", max(1, block.config.width // reduction), "relu", NOTHING)

    def interceptor(call, args, kwargs, context):
        module, method = context.module, context.method_name
        if isinstance(module, TRANSFORMERS) and method == "residual" and module.config.norm == "pre":
            x, y, branch = args
            return call(x, y + adapter(module)(y) if branch == "mlp" else y, branch)
        behind = isinstance(module, nn.LayerNorm) and module.name == "norm_2" and isinstance(module.parent, Block)
        y = call(*args, **kwargs)
        if behind and method == "__call__" and module.parent.config.norm == "post":
            return _normalised(module, args[0] + adapter(module.parent)(y))
        return y

    return _method("pfeiffer", interceptor)


@checked
def adaptformer(width: Annotated[int, WIDTH] = 64, scale: Annotated[float, number(above=0)] = 0.1) -> Method:
    """An adapter beside the MLP of every block: `mlp(x) + scale * up(relu(down(x)))`; it and the head learn.

    It reads what the MLP reads (Chen et al. 2022, arXiv:2205.13535, equation 3). Of a block of width d it adds
    `2 d width + width + d` parameters.

    Args:
        width: Of the bottleneck.
        scale: Of what it adds.

    Raises:
        InputError: an option out of its range; and, of a model, one without transformer blocks.
    """

    def interceptor(call, args, kwargs, context):
        y, module = call(*args, **kwargs), context.module
        beside = isinstance(module, Mlp) and isinstance(module.parent, TRANSFORMERS)
        if not (beside and context.method_name == "__call__"):
            return y
        return y + scale * _adapter(module.parent, "mlp", width, "relu", NOTHING)(args[0])

    return _method("adaptformer", interceptor)


@checked
def compacter(
    width: Annotated[int, WIDTH] = 24, n: Annotated[int, whole(1, 2**8)] = 4, rank: Annotated[int, WIDTH] = 1
) -> Method:
    """An adapter behind each branch of every block, whose kernels are sums of n Kronecker products.

    Each kernel is `sum_i kron(A_i, s_i t_i)` (Karimi Mahabadi et al. 2021, arXiv:2106.04647, equations 4 to 6): the
    `A [n, n, n]` is one for all adapters of an encoder, `s [n, in / n, rank]` and `t [n, rank, out / n]` are a kernel's
    own. The adapters, all norms and the head learn. Of a transformer of `depth` blocks of width d it adds
    `n³ + 2 depth (2 rank (d + width) + width + d)` parameters.

    Args:
        width: Of the bottleneck, a multiple of n.
        n: Number of products, which divides the width of the blocks too.
        rank: Of the factors that are a kernel's own.

    Raises:
        InputError: an option out of its range, or a width that n does not divide; and, of a model, one without an
            encoder of transformer blocks.
    """
    if width % n:
        raise InputError(f"compacter: width {width} is no multiple of n={n}; expected one, as {width + -width % n}")

    def interceptor(call, args, kwargs, context):
        encoder = context.module
        if not (isinstance(encoder, Encoder) and context.method_name == "__call__"):
            return call(*args, **kwargs)
        c = encoder.config
        if c.width % n:
            raise InputError(
                f"compacter: n={n} does not divide the width {c.width} of the blocks; expected one that does"
            )
        rule = _Rule(n, c.param_dtype, parent=encoder, name="compacter")()

        def inside(call, args, kwargs, context):
            if context.method_name != "residual":
                return call(*args, **kwargs)
            x, y, branch = args
            adapter = KroneckerAdapter(
                width, rank, c.dtype, c.param_dtype, parent=context.module, name=f"{branch}_adapter"
            )
            return call(x, y + adapter(y, rule), branch)

        with nn.intercept_methods(inside):
            return call(*args, **kwargs)

    def learns(paths):
        if not any(path.endswith("encoder/compacter/rule") for path in paths):
            raise InputError("compacter: the model has no encoder of transformer blocks, whose adapters share a rule")
        own = ".*(_adapter/(down|up)/(left|right|bias)|encoder/compacter/rule)"
        return learn(HEAD, (own, 1.0), NORMS)(paths)

    return Method("compacter", learns, adds=(interceptor,), merge=None)


class _Rule(nn.Module):
    """What the adapters of an encoder share, `[n, n, n]`."""

    n: int
    param_dtype: str

    @nn.compact
    def __call__(self):
        return self.param("rule", nn.initializers.normal(0.01), (self.n,) * 3, self.param_dtype)


class KroneckerAdapter(nn.Module):
    """`up(gelu(down(x)))` of `x [..., features]`, without the skip, where a rule `[n, n, n]` makes both kernels."""

    width: int
    rank: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x, rule):
        types = self.rank, self.dtype, self.param_dtype
        hidden = KroneckerDense(self.width, *types, name="down")(x, rule)
        return KroneckerDense(x.shape[-1], *types, name="up")(layers.ACTIVATIONS["gelu_tanh"](hidden), rule)


class KroneckerDense(nn.Module):
    """`x W + b` of `x [..., in]` with `W = sum_i kron(rule_i, left_i right_i)`, which is never formed."""

    features: int
    rank: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x, rule):
        n, start = len(rule), nn.initializers.glorot_uniform(batch_axis=(0,))
        left = self.param("left", start, (n, x.shape[-1] // n, self.rank), self.param_dtype)
        right = self.param("right", start, (n, self.rank, self.features // n), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, rule, left, right, bias = nn.dtypes.promote_dtype(x, rule, left, right, bias, dtype=self.dtype)
        parts = jnp.einsum("...ap,ipr->...air", x.reshape(*x.shape[:-1], n, -1), left)
        mixed = jnp.einsum("...air,iab->...bir", parts, rule)
        return jnp.einsum("...bir,irq->...bq", mixed, right).reshape(*x.shape[:-1], -1) + bias


def _normalised(norm: nn.LayerNorm, x: jax.Array) -> jax.Array:
    """What a norm that was called already makes of another `x [..., features]`."""
    scale, bias = (norm.get_variable("params", name) for name in ("scale", "bias"))
    y = jax.nn.standardize(x.astype(jnp.float32), epsilon=norm.epsilon) * scale + bias
    return y.astype(norm.dtype or x.dtype)


def _method(name: str, interceptor: Interceptor, *others: tuple[str, float], of: str = "transformer block") -> Method:
    """Adapters and the head learn, and what other rules say of leaves that are there."""

    def learns(paths):
        if not any(path.endswith("_adapter/up/kernel") for path in paths):
            raise InputError(f"{name}: the model has no {of}, whose branches it adapts")
        there = [rule for rule in others if any(re.fullmatch(rule[0], path) for path in paths)]  # ELMo has no norms
        return learn(HEAD, (ADAPTER, 1.0), *there)(paths)

    return Method(name, learns, adds=(interceptor,), merge=None)
