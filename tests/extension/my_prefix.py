"""Learned keys and values before those of every attention (Li and Liang 2021, arXiv:2101.00190, section 4)."""

import flax.linen as nn
import jax.numpy as jnp

from jtransfer.methods import Method, learn


class Prefix(nn.Module):
    """Keys and values `[batch, tokens, heads, head width]` behind `length` learned ones, the same for every input."""

    length: int

    @nn.compact
    def __call__(self, key, value):
        """Both, `length` tokens longer."""
        shape = (self.length, *key.shape[2:])

        def longer(name, x):
            own = self.param(name, nn.initializers.normal(0.02), shape).astype(x.dtype)
            return jnp.concatenate([jnp.broadcast_to(own, (len(x), *shape)), x], axis=1)

        return longer("key", key), longer("value", value)


def prefix(length: int = 4) -> Method:
    """The prefixes and the head learn; the backbone stays as it is.

    No plain model attends to a prefix, so `merge` is None: what is kept is the prefix, beside the name of the backbone.
    """

    def interceptor(call, args, kwargs, context):
        if context.method_name != "attend":
            return call(*args, **kwargs)
        query, key, value, mask = args
        key, value = Prefix(length, parent=context.module, name="prefix")(key, value)
        if mask is not None:  # [batch or 1, 1, tokens or 1, tokens]: every token may look at the prefix
            mask = jnp.pad(mask, [(0, 0)] * 3 + [(length, 0)], constant_values=True)
        return call(query, key, value, mask)

    return Method("prefix", learn(("head/.*", 1.0), (".*/prefix/.*", 1.0)), adds=(interceptor,), merge=None)
