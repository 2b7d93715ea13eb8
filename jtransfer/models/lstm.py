"""One layer of an LSTM (Hochreiter and Schmidhuber 1997), as PyTorch's `nn.LSTM` computes it.

    {input,hidden}/{kernel,bias}

The products with the inputs are one for all tokens; a loop over the tokens has those with the last output alone.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.models import layers

_unroll: ContextVar[bool] = ContextVar("unroll", default=False)


@contextmanager
def unrolled():
    """Write loops over tokens out, because `cost_analysis` counts the body of a loop once."""
    token = _unroll.set(True)
    try:
        yield
    finally:
        _unroll.reset(token)


def unroll() -> bool | int:
    """How much of a loop over tokens a scan writes out: all within `unrolled`, else a turn at a time."""
    return _unroll.get() or 1


@jax.custom_vjp
def recurrence(
    gates: jax.Array, kernel: jax.Array, hidden: jax.Array, cell: jax.Array, kept: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The loop over tokens.

    The gradient of the kernel is one product over all tokens of the outputs and the gradients of the gates, where the
    loop's own derivative would add a matrix of the kernel's size in every step. There is no forward-mode derivative.

    Args:
        gates: `[tokens, batch, 4 * width]`, what the inputs and the biases give the gates: input, forget, cell, output.
        kernel: `[width, 4 * width]`.
        hidden: The output before the first token, `[batch, width]`, with the `cell` of that shape.
        kept: `[tokens, batch]`, false where a token is padding, which leaves both as they are; None for no padding.

    Returns:
        The outputs `[tokens, batch, width]`, and the cell after the last token.
    """
    return _loop(gates, kernel, hidden, cell, kept)


def _loop(gates, kernel, hidden, cell, kept):
    def step(carry, given):
        hidden, cell = carry
        own, keeps = given
        i, f, g, o = jnp.split(own + hidden @ kernel, 4, axis=-1)
        new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
        new = nn.sigmoid(o) * jnp.tanh(new_cell)
        if keeps is not None:
            new, new_cell = jnp.where(keeps[:, None], new, hidden), jnp.where(keeps[:, None], new_cell, cell)
        return (new, new_cell), new

    (_, cell), outputs = jax.lax.scan(step, (hidden, cell), (gates, kept), unroll=unroll())
    return outputs, cell


def _forward(gates, kernel, hidden, cell, kept):
    found, back = jax.vjp(lambda *given: _loop(given[0], kernel, *given[1:], kept), gates, hidden, cell)
    return found, (back, jnp.concatenate([hidden[None], found[0][:-1]]), kernel)


def _backward(saved, d_found):
    back, before, kernel = saved
    d_gates, d_hidden, d_cell = back(d_found)
    d_kernel = jnp.einsum("tbh,tbg->hg", before, d_gates, preferred_element_type=jnp.float32).astype(kernel.dtype)
    return d_gates, d_kernel, d_hidden, d_cell, None


recurrence.defvjp(_forward, _backward)


class Recurrent(nn.Module):
    """The recurrent part of a layer: `{kernel, bias}`.

    Attributes:
        width: Of the output.
        drop: Share of the kernel's values that are dropped in training, the same ones for all rows and tokens of a
            batch (weight drop, Merity et al. 2017, arXiv:1708.02182, section 2).
    """

    width: int
    drop: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, gates, hidden, cell, kept, train):
        span, size = self.width**-0.5, (self.width, 4 * self.width)
        kernel = self.param("kernel", uniform(span), size, self.param_dtype)
        bias = self.param("bias", uniform(span), size[1:], self.param_dtype)
        kernel = nn.Dropout(self.drop)(kernel, deterministic=not train).astype(self.dtype)
        return recurrence(gates + bias.astype(self.dtype), kernel, hidden, cell, kept)


class LSTM(nn.Module):
    """A layer; called with `x [batch, tokens, in]`, the state before and a mask `[batch, tokens]` or None.

    It returns the outputs `[batch, tokens, width]` and the state after the last token, `{"hidden", "cell"}` of
    `[batch, width]`. Where the mask is 0 state and output stay as they were, so that behind padding on the right the
    output is that of the last token.
    """

    width: int
    drop: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x, state, mask, train):
        init, dtypes = uniform(self.width**-0.5), {"dtype": self.dtype, "param_dtype": self.param_dtype}
        gates = layers.Dense(4 * self.width, kernel_init=init, bias_init=init, name="input", **dtypes)(x)
        kept = None if mask is None else mask.T > 0
        own = Recurrent(self.width, self.drop, **dtypes, name="hidden")
        outputs, cell = own(gates.swapaxes(0, 1), state["hidden"], state["cell"], kept, train)
        return outputs.swapaxes(0, 1), {"hidden": outputs[-1], "cell": cell}


def uniform(span: float) -> nn.initializers.Initializer:
    """An initialiser between -span and span, as PyTorch starts an LSTM."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -span, span)

    return init
