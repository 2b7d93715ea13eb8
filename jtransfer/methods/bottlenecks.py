"""Bottleneck adapters: two small dense layers, beside or behind the branches of every block.

    BLOCK/attention_adapter/{down, up}    BLOCK/mlp_adapter/{down, up}    BLOCK/convolutions_adapter/{down, up}

No plain model has them, so they do not merge: what is kept is the adapter, beside the name of its backbone.
"""

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
from jtransfer.models.transformer import Block, Mlp

WIDTH = whole(1, 2**16)
ADAPTER = r".*_adapter/(down|up)/(kernel|bias)"


class BottleneckAdapter(nn.Module):
    """`up(activation(down(x)))` of `x [..., features]`, without the skip.

    Attributes:
        width: Of the hidden layer.
        activation: A key of `ACTIVATIONS`.
        start: Initialisers of the kernels of `down` and `up`; biases start at zero.
        dtype: Type in which it computes, and `param_dtype` of its leaves.
    """

    width: int
    activation: str
    start: tuple[Callable, Callable]
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
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

    return _method("houlsby", interceptor, (r".*/norm[^/]*/(scale|bias)", 1.0), of="block")


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


def _normalised(norm: nn.LayerNorm, x: jax.Array) -> jax.Array:
    """What a norm that was called already makes of another `x [..., features]`."""
    scale, bias = (norm.get_variable("params", name) for name in ("scale", "bias"))
    y = jax.nn.standardize(x.astype(jnp.float32), epsilon=norm.epsilon) * scale + bias
    return y.astype(norm.dtype or x.dtype)


def _method(name: str, interceptor: Interceptor, *others: tuple[str, float], of: str = "transformer block") -> Method:
    """Adapters and the head learn, and what other rules say."""

    def learns(paths):
        if not any(path.endswith("_adapter/up/kernel") for path in paths):
            raise InputError(f"{name}: the model has no {of}, whose branches it adapts")
        return learn(HEAD, (ADAPTER, 1.0), *others)(paths)

    return Method(name, learns, adds=(interceptor,), merge=None)
