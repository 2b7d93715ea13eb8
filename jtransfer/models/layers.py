"""What the architectures share. The one place where a layer's form depends on the platform."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jtransfer.errors import InputError


def gelu(x: jax.Array) -> jax.Array:
    """`x Φ(x)` (Hendrycks and Gimpel 2016, arXiv:1606.08415) by `erf`, in float32 at least, as PyTorch has it.

    `jax.nn.gelu` goes by `erfc`, for which XLA computes two functions and chooses.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


FEW = 32
"""Queries up to which attention's backward pass sums products by itself."""

_drop: ContextVar[tuple[float, jax.Array] | None] = ContextVar("drop", default=None)
_target: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Choose the forms of another platform ("cpu", "gpu", "tpu") than this process runs on, to compile for it."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """The platform whose forms are traced: that of the default device, unless `compiling_for` says otherwise."""
    return _target.get() or jax.default_backend()


@contextmanager
def dropping(rate: float, key: jax.Array) -> Iterator[None]:
    """Let `attend` drop a share of its weights `[batch * heads, tokens, key tokens]`, as `dropped`."""
    token = _drop.set((rate, key))
    try:
        yield
    finally:
        _drop.reset(token)


def dropped(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """`x` with a share `rate` of its values dropped at random, and the others scaled up to the same sum.

    On a TPU it is written down which are dropped before a product reads `x`: where XLA fuses the draw with the product,
    each number of Threefry's key schedule is read from memory as an array of the shape of `x`, 25 of them.
    """
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    kept = jax.lax.optimization_barrier(kept) if platform() == "tpu" else kept
    return jnp.where(kept, x / (1 - rate), 0)


def flat_dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, **kwargs):
    """`lax.dot_general` of a dense layer, with the leading axes of `lhs [..., in]` flattened on the CPU.

    XLA's CPU products are about twice as fast on two-dimensional operands in the backward pass; elsewhere the axes
    stay apart, so that a sharding of either survives.
    """
    product = partial(lax.dot_general, precision=precision, preferred_element_type=preferred_element_type, **kwargs)
    last = (((lhs.ndim - 1,), (0,)), ((), ()))
    if platform() != "cpu" or lhs.ndim <= 2 or dimension_numbers != last:
        return product(lhs, rhs, dimension_numbers)
    out = product(lhs.reshape(-1, lhs.shape[-1]), rhs, (((1,), (0,)), ((), ())))
    return out.reshape(*lhs.shape[:-1], -1)


Dense = partial(nn.Dense, dot_general=flat_dot_general)
"""`flax.linen.Dense` with the product above; its type, names and parameters are Flax's."""


def depthwise(lhs, rhs, window_strides, padding, feature_group_count=1, **kwargs):
    """`lax.conv_general_dilated` of a depthwise convolution, as a sum of shifted products on the CPU.

    XLA's CPU backend has no kernel for convolutions of each channel alone, and goes through them value by value.

    Args:
        lhs: `[batch, height, width, channels]`.
        rhs: `[kernel height, kernel width, 1, channels]`; any other kernel is left to XLA.
        window_strides: Along height and width.
        padding: "SAME", "VALID", or what is added before and behind, along height and width.
        feature_group_count: The number of channels.
        **kwargs: As for `lax.conv_general_dilated`; none may dilate.
    """
    channels, dilations = lhs.shape[-1], (kwargs.get("lhs_dilation"), kwargs.get("rhs_dilation"))
    alone = lhs.ndim == 4 and feature_group_count == channels == rhs.shape[-1]
    if platform() != "cpu" or not alone or any(set(each or (1,)) != {1} for each in dilations):
        options = {"feature_group_count": feature_group_count, **kwargs}
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    return _depthwise(tuple(window_strides), tuple((*sides, 0) for sides in padding), lhs, rhs[:, :, 0])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))  # blocks of one shape are traced once
def _depthwise(strides, padding, x, kernel):
    """`x [batch, height, width, channels]` with `kernel [kernel height, kernel width, channels]`.

    Padding is before, behind and between the values, along height and width; sums are float32 at least.
    """
    x, wide, total = _padded(x, padding), jnp.promote_types(x.dtype, jnp.float32), 0
    spans = [side - of for side, of in zip(x.shape[1:3], kernel.shape, strict=False)]
    for i, j in np.ndindex(*kernel.shape[:2]):
        end = (len(x), i + spans[0] + 1, j + spans[1] + 1, x.shape[-1])
        total += lax.slice(x, (0, i, j, 0), end, (1, *strides, 1)).astype(wide) * kernel[i, j].astype(wide)
    return total.astype(x.dtype)


def _padded(x, padding):
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))


def _depthwise_forward(strides, padding, x, kernel):
    return _depthwise(strides, padding, x, kernel), (x, kernel)


def _depthwise_backward(strides, padding, kept, dy):
    """The gradients: a depthwise convolution of `dy` with the kernel turned round, and for each tap a sum of products.

    The taps come one after the other: XLA takes far longer to compile and to compute the sums of all at once.
    """
    x, kernel = kept
    spans = [(out - 1) * stride + 1 for out, stride in zip(dy.shape[1:3], strides, strict=True)]
    around = tuple(
        (of - 1 - before, before + side - span, stride - 1)
        for of, (before, *_), side, span, stride in zip(
            kernel.shape, padding, x.shape[1:3], spans, strides, strict=False
        )
    )
    dx = _depthwise((1, 1), around, dy, kernel[::-1, ::-1])
    padded, wide = _padded(x, padding), jnp.promote_types(x.dtype, jnp.float32)

    def tap(at):
        seen = lax.dynamic_slice(padded, (0, *at, 0), (len(x), *spans, x.shape[-1]))[:, :: strides[0], :: strides[1]]
        return (seen.astype(wide) * dy.astype(wide)).sum((0, 1, 2))

    taps = lax.map(tap, tuple(jnp.indices(kernel.shape[:2]).reshape(2, -1)))
    return dx, taps.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def pointwise(lhs, rhs, window_strides, padding, feature_group_count=1, **kwargs):
    """`lax.conv_general_dilated`, of which a 1x1 convolution is a product of matrices on the CPU.

    Args:
        lhs: `[batch, height, width, channels]`.
        rhs: `[kernel height, kernel width, channels, features]`; any but a 1x1 is left to XLA.
        window_strides: Along height and width; a stride is left to XLA.
        padding: What is added before and behind, along height and width.
        feature_group_count: More than one group is left to XLA.
        **kwargs: As for `lax.conv_general_dilated`.
    """
    alone = feature_group_count == 1 and rhs.shape[:2] == tuple(window_strides) == (1, 1)
    if platform() != "cpu" or not alone or isinstance(padding, str) or any(map(any, padding)):
        options = {"feature_group_count": feature_group_count, **kwargs}
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return flat_dot_general(lhs, rhs[0, 0], (((3,), (0,)), ((), ())), kwargs.get("precision"))


class Embed(nn.Module):
    """A table `embedding [number, features]`; called with integers, it looks their rows up.

    An integer that has no row gives NaN: where ids come from outside they are checked by name before anything compiles
    (`models.check_ids`), and what is not checked there must not pass for another word.

    Compact, unlike `flax.linen.Embed`, so that a method can put leaves of its own beside the table.
    """

    number: int
    features: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, ids):
        table = self.param("embedding", self.init, (self.number, self.features), self.param_dtype)
        rows = jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) of the last axis, step for step as PyTorch's.

    It differs from `flax.linen.BatchNorm` in the running variance alone, which follows the unbiased variance of the
    batch (divided by n - 1). Statistics are float32, in the collection `batch_stats`.

    Attributes:
        use_running_average: Whether to normalise by the running statistics, and leave them, instead of the batch's.
        momentum: What a step keeps of the running statistics; PyTorch's momentum is 1 minus this.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None):
        width, n = x.shape[-1], math.prod(x.shape[:-1])
        scale = self.param("scale", nn.initializers.ones, (width,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        mean, var, x = running_mean.value, running_var.value, x.astype(jnp.float32)
        if not nn.merge_param("use_running_average", self.use_running_average, use_running_average):
            if n < 2:
                raise InputError(f"{'/'.join(self.path)}: one value a channel has no variance; take a larger batch")
            # Both moments in one pass over x, taken about a mean that is near, so that little cancels.
            shifted = x - mean
            shift, square = shifted.mean(range(x.ndim - 1)), jnp.square(shifted).mean(range(x.ndim - 1))
            mean, var = mean + shift, jnp.maximum(square - jnp.square(shift), 0)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var * n / (n - 1)
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(self.dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn queries or keys by angles that tell the place of a token (Su et al. 2021, arXiv:2104.09864, section 3.2).

    Args:
        x: `[batch, tokens, heads, head width]`, of which unit i and unit i + half the width are one plane.
        cos: Of the angles of the last `n` tokens, `[n, 1, half the head width]` with the batch before or not, and so is
            `sin`. Tokens before these, as a class token, stay as they are.

    Returns:
        Of the shape of `x`.
    """
    number = cos.shape[-3]
    others, placed = x[:, :-number], x[:, -number:]
    one, other = jnp.split(placed, 2, axis=-1)
    turned = jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return jnp.concatenate([others, turned.astype(x.dtype)], axis=1)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, bias: jax.Array | None = None
) -> jax.Array:
    """Scaled dot-product attention.

    Args:
        query: `[batch, tokens, heads, head width]`; `key` and `value` may have another number of tokens, and fewer
            heads, each of which then serves as many of the query's that follow each other.
        mask: `[batch or 1, heads or 1, tokens, key tokens]`, true where attention may look; None for everywhere.
        bias: `[heads, tokens, key tokens]`, added to the scaled scores; None for nothing.

    Returns:
        `[batch, tokens, heads, head width]`.
    """
    if platform() == "cpu" or _drop.get():  # the fused kernels have no dropout
        if (served := query.shape[2] // key.shape[2]) > 1:
            key, value = jnp.repeat(key, served, axis=2), jnp.repeat(value, served, axis=2)
        return _attend_batched(query, key, value, mask, bias)
    implementation = kernel(query, key, mask, bias)
    if implementation and mask is not None:  # cuDNN takes no mask that is one for all queries
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], query.shape[1], key.shape[1]))
    bias = None if bias is None else bias[None].astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, bias, mask, implementation=implementation)


def kernel(query: jax.Array, key: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> str | None:
    """The fused kernel that `attend` asks for where there is no dropout, "cudnn"; None for XLA's own form."""
    # cuDNN's has to be asked for, and takes half precision only.
    half = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    even = query.shape[1] % 2 == key.shape[1] % 2 == 0  # JAX refuses the gradient of any other, mask or none
    return "cudnn" if half and even and bias is None and platform() == "gpu" else None


def _attend_batched(query, key, value, mask, bias):
    """`attend` as batched products of three dimensions, which XLA's CPU backend runs half again as fast."""
    batch, tokens, heads, width = query.shape

    def rows(x):
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, width)

    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, heads, tokens, key.shape[1])).reshape(-1, tokens, key.shape[1])
    operands = rows(query), rows(key), rows(value), bias, mask
    if drop := _drop.get():
        weights = dropped(_weights(*operands[:2], bias, mask).astype(value.dtype), *drop)
        out = jnp.einsum("bts,bsd->btd", weights, operands[2])
    else:
        out = _attention(*operands)
    return out.reshape(batch, heads, tokens, width).transpose(0, 2, 1, 3)


def _weights(query, key, bias, mask):
    """The softmax of the scores of `[rows, tokens, width]`, float32; a mask is `[rows, tokens, key tokens]`."""
    scores = jnp.einsum("btd,bsd->bts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = (scores.reshape(-1, *bias.shape) + bias).reshape(scores.shape)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


@jax.custom_vjp
def _attention(query, key, value, bias, mask):
    """Attention of `[rows, tokens, width]`, whose backward pass keeps the weights alone of what it computes.

    The gradient of the scores is `w (dw - sum(dw w))`, and that sum is the product of the output and its gradient
    (Dao et al. 2022, arXiv:2205.14135, appendix B). There is no forward-mode derivative.
    """
    return _attention_forward(query, key, value, bias, mask)[0]


def _attention_forward(query, key, value, bias, mask):
    weights = _weights(query, key, bias, mask).astype(value.dtype)
    out = jnp.einsum("bts,bsd->btd", weights, value)
    return out, (query, key, value, bias, mask, weights, out)


def _attention_backward(kept, d_out):
    query, key, value, bias, mask, weights, out = kept
    wide = partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_value = _over_queries(weights, d_out).astype(value.dtype)
    total = jnp.sum((d_out * out).astype(jnp.float32), -1, keepdims=True)
    d_scores = weights.astype(jnp.float32) * (wide("btd,bsd->bts", d_out, value) - total)
    if mask is not None:  # where nothing may be looked at, all weights are equal and none counts
        d_scores = jnp.where(mask, d_scores, 0)
    d_bias = None if bias is None else d_scores.reshape(-1, *bias.shape).sum(0).astype(bias.dtype)
    d_scores = (d_scores * query.shape[-1] ** -0.5).astype(query.dtype)
    d_query = wide("bts,bsd->btd", d_scores, key).astype(query.dtype)
    d_key = _over_queries(d_scores, query).astype(key.dtype)
    return d_query, d_key, d_value, d_bias, None


def _over_queries(scores, x):
    """The product `bts,btd->bsd`, float32: a sum of products where there are few queries, as of small images.

    XLA's CPU backend takes products over the first of two axes matrix by matrix, at a cost for each: the sum is seven
    times as fast at 5 queries and twice at 32, and half as fast at 50.
    """
    if x.shape[1] > FEW:
        return jnp.einsum("bts,btd->bsd", scores, x, preferred_element_type=jnp.float32)
    return (scores.astype(jnp.float32)[..., None] * x.astype(jnp.float32)[:, :, None]).sum(1)


_attention.defvjp(_attention_forward, _attention_backward)
