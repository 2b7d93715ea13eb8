"""Bottleneck adapters after both branches of every block (Houlsby et al. 2019, arXiv:1902.00751)."""

import flax.linen as nn
import jax

from jtransfer.methods import Method, learn


class Bottleneck(nn.Module):
    """`y + up(gelu(down(y)))` of a branch `y [batch, tokens, features]`; it starts as the identity."""

    width: int

    @nn.compact
    def __call__(self, y):
        """The branch as the block adds it."""
        hidden = jax.nn.gelu(nn.Dense(self.width, name="down")(y))
        return y + nn.Dense(y.shape[-1], kernel_init=nn.initializers.zeros, name="up")(hidden)


def houlsby(width: int = 16) -> Method:
    """The bottlenecks and the head learn; the backbone stays as it is."""

    def interceptor(call, args, kwargs, context):
        if context.method_name == "residual":
            x, y, branch = args
            y = Bottleneck(width, parent=context.module, name=f"{branch}_bottleneck")(y)
            return call(x, y, branch)
        return call(*args, **kwargs)

    return Method("houlsby", learn(("head/.*", 1.0), (".*_bottleneck/.*", 1.0)), adds=(interceptor,), merge=None)
