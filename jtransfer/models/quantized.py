"""Kernels of dense layers in 8 or 4 bits, which never learn: what stands in the tree in place of a `kernel`.

    8 bits:  kernel_q      int8   [in, out]               kernel = kernel_q * kernel_scale
             kernel_scale  float32 [out]                  the largest magnitude of an output's weights / 127
    4 bits:  kernel_q      uint8  [in / 2, out]           two places of `NF4` each, of two inputs that follow each other
             kernel_scale  int8   [in / 64, out]          of the largest magnitude in each block of 64 inputs
             kernel_step   float32 [in / 64, out / 256]   scale = kernel_scale * kernel_step + kernel_mean
             kernel_mean   float32 []

Four bits are NormalFloat with quantised scales (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3): 4.13 bits a
weight. The second quantisation is linear here, where the paper's is an 8-bit float.

A kernel is made again in every product, forward and backward, and no longer kept than that: the backward pass of a
frozen layer needs the kernel alone, not its inputs.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.models import layers
from jtransfer.tree import Tree

BITS = (0, 4, 8)
"""Bits in which kernels may be kept; 0 for floats."""
BLOCK, GROUP = 64, 256
"""Inputs that share a scale, and outputs whose scales share a step."""
LEAVES = ("kernel_q", "kernel_scale", "kernel_step", "kernel_mean")

NF4 = np.float32(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""NormalFloat4 as bitsandbytes has it (appendix E of the paper): quantiles of a normal distribution, and an exact 0."""


def is_part(path: str) -> bool:
    """Whether a leaf is a part of a quantised kernel."""
    return path.rpartition("/")[2] in LEAVES


def shapes(bits: int, inputs: int, outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of what stands for a kernel `[inputs, outputs]`, by name."""
    if bits == 8:
        said = {"kernel_q": ((inputs, outputs), jnp.int8), "kernel_scale": ((outputs,), jnp.float32)}
    else:
        blocks, groups = -(-inputs // BLOCK), -(-outputs // GROUP)
        said = {
            "kernel_q": ((blocks * BLOCK // 2, outputs), jnp.uint8),
            "kernel_scale": ((blocks, outputs), jnp.int8),
            "kernel_step": ((blocks, groups), jnp.float32),
            "kernel_mean": ((), jnp.float32),
        }
    return {name: jax.ShapeDtypeStruct(*of) for name, of in said.items()}


@partial(jax.jit, static_argnums=1)
def quantize(kernel: jax.Array, bits: int) -> dict[str, jax.Array]:
    """What stands for a kernel `[inputs, outputs]`, by name; see the top of this file."""
    kernel = jnp.asarray(kernel, jnp.float32)
    if bits == 8:
        scale = jnp.abs(kernel).max(0) / 127
        return {"kernel_q": jnp.rint(kernel / _some(scale)).astype(jnp.int8), "kernel_scale": scale}
    inputs, outputs = kernel.shape
    blocks = jnp.pad(kernel, ((0, -inputs % BLOCK), (0, 0))).reshape(-1, BLOCK, outputs)
    scale = jnp.abs(blocks).max(1)
    middles = (NF4[1:] + NF4[:-1]) / 2
    places = (blocks / _some(scale)[:, None] > middles[:, None, None, None]).sum(0, dtype=jnp.uint8)
    places = places.reshape(-1, 2, outputs)
    mean = scale.mean()
    groups = jnp.pad(scale - mean, ((0, 0), (0, -outputs % GROUP))).reshape(len(scale), -1, GROUP)
    step = jnp.abs(groups).max(2) / 127
    coarse = jnp.rint(groups / _some(step)[..., None]).astype(jnp.int8).reshape(len(scale), -1)[:, :outputs]
    return {
        "kernel_q": places[:, 0] << 4 | places[:, 1],  # as bitsandbytes packs them
        "kernel_scale": coarse,
        "kernel_step": step,
        "kernel_mean": mean,
    }


def _some(scale):
    """What is divided by: 1 in place of 0, as of weights that are all 0."""
    return jnp.where(scale == 0, 1, scale)


def kernel(kept: Mapping[str, jax.Array], inputs: int, dtype: Any = jnp.float32) -> jax.Array:
    """The kernel `[inputs, outputs]` that quantised leaves stand for; those of a dense layer may lie beside them."""
    q, scale = kept["kernel_q"], kept["kernel_scale"]
    if q.dtype == jnp.int8:
        return (q * scale).astype(dtype)
    outputs = q.shape[1]
    step = jnp.repeat(kept["kernel_step"], GROUP, axis=1)[:, :outputs]
    scale = scale * step + kept["kernel_mean"]
    places = jnp.stack([q >> 4, q & 15], axis=1).reshape(-1, BLOCK, outputs)
    values = _looked_up(places) * scale[:, None]
    return values.reshape(-1, outputs)[:inputs].astype(dtype)


def _looked_up(places):
    """The values of `NF4` at places, bit by bit: 15 choices, which TPUs make far faster than they look up numbers."""
    values = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        odd = (places >> bit & 1).astype(bool)
        values = [jnp.where(odd, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def weight(own: Tree, inputs: int) -> jax.Array:
    """The kernel of a dense layer by its own leaves, whether it is quantised or not."""
    return own["kernel"] if "kernel" in own else kernel(own, inputs)


class QuantizedDense(nn.Dense):
    """`flax.linen.Dense` whose kernel is kept in `bits`; its bias is as ever."""

    bits: int = 4

    @nn.compact
    def __call__(self, x):
        inputs, made = x.shape[-1], {}

        def start(name, key, *_):  # a layer of no checkpoint: all leaves of one kernel
            if not made:
                made.update(quantize(self.kernel_init(key, (inputs, self.features), jnp.float32), self.bits))
            return made[name]

        said = shapes(self.bits, inputs, self.features)
        kept = {name: self.param(name, partial(start, name), of.shape, of.dtype) for name, of in said.items()}
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
        y = _product(x, {name: jnp.asarray(leaf) for name, leaf in kept.items()})
        return y if bias is None else y + bias


@jax.custom_vjp
def _product(x, kept):
    """`x [..., in]` times the kernel of quantised leaves, in the type of `x`; the leaves have no gradient."""
    # Behind a barrier the kernel is made when it is needed: no kernel of another layer lies beside it.
    x, kept = jax.lax.optimization_barrier((x, kept))
    return layers.flat_dot_general(x, kernel(kept, x.shape[-1], x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


def _product_forward(x, kept):
    return _product(x, kept), (kept, x.shape[-1])


def _product_backward(saved, dy):
    kept, inputs = saved
    # Without it XLA would see the forward pass's kernel again, and keep that one.
    dy, kept = jax.lax.optimization_barrier((dy, kept))
    return layers.flat_dot_general(dy, kernel(kept, inputs, dy.dtype).T, (((dy.ndim - 1,), (0,)), ((), ()))), None


_product.defvjp(_product_forward, _product_backward)
