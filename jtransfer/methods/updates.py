"""Updates of kernels by few numbers: the idea that LoRA and its relatives share.

The kernel W of a layer stays frozen. A few leaves beside it, `LAYER/NAME/...`, change what the layer computes, in one
of two ways that a plain kernel can say too:

    added     x W + D(x)    with a linear D, whose kernel is added to W
    turned    T(x) W        with a linear T, whose matrix is multiplied with W

A method of this family says which leaves a layer has, and which D or T they stand for; all else is here. A gradient of
W is never formed, nor one of the sum or of the product.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, by_name, check, whole
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.methods.targets import there_are
from jtransfer.models import Head, Headed, quantized
from jtransfer.models.architecture import CONVOLUTION
from jtransfer.models.layers import Embed, dropped, flat_dot_general
from jtransfer.tree import Rules, Tree, label

RANK = whole(1, 2**16)
RANKS = by_name(RANK)
TARGET = r".*attention/(query|value|qkv)"
DENSE, CONV, EMBED = "dense layer", "convolution of one group", "embedding"
WEIGHTS = ("kernel", "embedding")
WORDS = "embeddings/word"

UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(n), 1/sqrt(n)) where an output is the sum of n products: the start of PEFT's matrices."""

Makes = Mapping[str, tuple[Callable, tuple[int, ...]]]
"""The leaves of a layer: the initialiser and the shape of each, by name, in the order in which they are drawn."""


@dataclass(frozen=True)
class Site:
    """A layer whose kernel is updated.

    Attributes:
        path: Of the layer.
        kind: `DENSE`, `CONV` or `EMBED`.
        shape: Of its kernel, `[*window, inputs, outputs]`, or of its table, `[inputs, outputs]`.
        along: What the layer does with `x` and a kernel of any number of outputs; None outside of a forward pass.
        patches: What a convolution's kernel meets, `[..., rows]`; None for other layers.
        dtype: In which the layer computes; None for that of its inputs and leaves.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    along: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    patches: Callable[[jax.Array], jax.Array] | None = None
    dtype: Any = None

    @property
    def outputs(self) -> int:
        """Of the layer."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Numbers that make an output."""
        return math.prod(self.shape[:-1])

    def kernel(self, matrix: jax.Array) -> jax.Array:
        """A matrix `[rows, n]`, whose rows go channel by channel as PyTorch's, as a kernel `[*window, inputs, n]`."""
        *window, inputs, _ = self.shape
        return jnp.moveaxis(matrix.reshape(inputs, *window, -1), 0, -2)

    def matrix(self, kernel: jax.Array) -> jax.Array:
        """The inverse of `kernel`."""
        return jnp.moveaxis(kernel, -2, 0).reshape(-1, kernel.shape[-1])


def product(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """`x [..., in]` times `kernel [in, out]`, in the type that a layer of `dtype` computes in."""
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=dtype)
    return flat_dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


class Delta(NamedTuple):
    """What is added to a layer.

    Attributes:
        path: Of inputs, what is added to the outputs.
        whole: Gives the kernel that does the same.
    """

    path: Callable[[jax.Array], jax.Array]
    whole: Callable[[], jax.Array]


def dense(site: Site, kernel: jax.Array) -> Delta:
    """The delta that a kernel is."""
    return Delta(lambda x: site.along(x, kernel), lambda: kernel)


def low_rank(site: Site, a: jax.Array, b: jax.Array, scale: float) -> Delta:
    """`scale x A B`, with A `[*window, inputs, rank]` and B `[rank, outputs]`."""
    return Delta(lambda x: scale * product(site.along(x, a), b, site.dtype), lambda: scale * a @ b)


class Leaves(nn.Module):
    """The leaves beside a layer's, by name, and `x` as it is with dropout in training."""

    dropout: float = 0.0
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, makes: Makes, x):
        leaves = {name: self.param(name, init, shape, self.param_dtype) for name, (init, shape) in makes.items()}
        if self.dropout and self.has_rng("dropout") and jnp.issubdtype(x.dtype, jnp.floating):
            # A layer is not told of training, but only training has this key.
            x = dropped(x, self.dropout, self.make_rng("dropout"))
        return leaves, x


def together(makes: Callable[[jax.Array], Mapping[str, jax.Array]], shapes: Mapping[str, tuple[int, ...]]) -> Makes:
    """Leaves that one function of a key makes at once."""
    made: dict[str, jax.Array] = {}

    def start(name, key, shape, dtype):
        made.update({} if made else makes(key))
        return made[name].reshape(shape).astype(dtype)

    return {name: (partial(start, name), shape) for name, shape in shapes.items()}


class Effect(NamedTuple):
    """How leaves change a layer.

    Attributes:
        run: Of the call of the layer, its inputs, `leaves(x)` as in `Leaves`, its site and itself, the outputs.
        merge: Of the layer's own leaves by name, its site and the leaves beside them, its own leaves as a plain layer.
    """

    run: Callable[..., jax.Array]
    merge: Callable[[Tree, Site, Tree], Tree]


def adding(delta: Callable[[Site, Tree], Delta]) -> Effect:
    """Add to a layer what leaves stand for."""

    def run(call, x, beside, site, layer):
        y = call(x)
        leaves, x = beside(x)
        return y + delta(site, leaves).path(x)

    def merge(own, site, leaves):
        weight = "embedding" if site.kind == EMBED else "kernel"
        return own | {weight: own[weight] + delta(site, leaves).whole()}

    return Effect(run, merge)


def turning(
    turn: Callable[[Site, Tree], Callable[[jax.Array], jax.Array]], scale: Callable[[Tree], jax.Array] = lambda _: None
) -> Effect:
    """Turn the inputs of a layer, of a convolution all that makes an output, and perhaps scale its outputs.

    Args:
        turn: Gives a linear function of `x [..., rows]`, rows channel by channel as PyTorch's.
        scale: Gives a factor of every output, which the bias is added to; None for 1.
    """

    def run(call, x, beside, site, layer):
        leaves, _ = beside(x)
        turned, factor = turn(site, leaves), scale(leaves)
        if len(site.shape) == 2 or site.rows == site.shape[-2]:
            y = call(turned(x))
            own = layer.variables["params"]
        else:
            call(x)  # makes the layer's leaves at the start, and is not computed where nothing needs it
            own = layer.variables["params"]
            y = product(turned(site.patches(x)), site.matrix(own["kernel"]), layer.dtype)
            y += own["bias"].astype(y.dtype) if "bias" in own else 0
        if factor is None:
            return y
        bias = own["bias"].astype(y.dtype) if "bias" in own else 0
        return (y - bias) * factor.astype(y.dtype) + bias

    def merge(own, site, leaves):
        factor = scale(leaves)
        kernel = turn(site, leaves)(jnp.eye(site.rows)) @ site.matrix(own["kernel"])
        return own | {"kernel": site.kernel(kernel if factor is None else kernel * factor)}

    return Effect(run, merge)


def updating(
    name: str,
    options: Any,
    makes: Callable[[Site, Callable[[], jax.Array]], Makes],
    change: Effect,
    rates: tuple[tuple[str, float], ...] = (("[^/]+", 1.0),),
    kinds: tuple[str, ...] = (DENSE, CONV),
    dropout: float = 0.0,
    rules: tuple[Rules, ...] = (),
    head_rate: float = 1.0,
) -> Method:
    """The method that updates the kernels of the layers which `options.target` names.

    Args:
        name: Of the method, and of what stands beside a layer.
        options: The method's, with a `target`.
        makes: Of a site, and of a function that gives its kernel, the leaves beside it.
        change: What they do.
        rates: Rules of the rates of these leaves.
        kinds: Of the layers that may be updated.
        dropout: Rate at which inputs are dropped on the way to a delta, in training.
        rules: Rules on paths of layers, of which each must match a layer that is updated.
        head_rate: Rate at which the head learns.
    """
    own = re.compile(rf"(.*)/{name}/([^/]+)")

    def interceptor(call, args, kwargs, context):
        layer, path = context.module, "/".join(context.module.path)
        if EMBED in kinds and isinstance(layer, Headed):
            _check_tied(name, options.target, layer.config)
        kind = _kind(layer) if context.method_name == "__call__" else None
        if kind not in kinds or not re.fullmatch(options.target, path):
            return call(*args, **kwargs)
        site = _site(layer, kind, path, args[0])
        made = makes(site, lambda: weight_of(layer, site))
        beside = Leaves(dropout, layer.param_dtype, parent=layer, name=name)
        return change.run(lambda x: call(x, *args[1:], **kwargs), args[0], partial(beside, made), site, layer)

    def learns(paths):
        adapted = list(dict.fromkeys(found[1] for path in paths if (found := own.fullmatch(path))))
        if not adapted:
            raise InputError(
                f"{name}: target '{options.target}' matches no {_listed(kinds, paths)}; {there_are(paths)}"
            )
        for each in rules:
            label(adapted, each)  # refuses a pattern that matches none of them
        return learn((HEAD[0], head_rate), *((f".*/{name}/{leaf}", rate) for leaf, rate in rates))(paths)

    def merge(tree: Tree) -> Tree:
        merged, beside = {}, {}
        for path, leaf in tree.items():
            if found := own.fullmatch(path):
                beside.setdefault(found[1], {})[found[2]] = leaf
            else:
                merged[path] = leaf
        for path, leaves in beside.items():
            layer = {leaf: merged[f"{path}/{leaf}"] for leaf in (*WEIGHTS, "bias") if f"{path}/{leaf}" in merged}
            changed = change.merge(layer, site_of(path, layer), leaves)
            merged |= {f"{path}/{leaf}": value for leaf, value in changed.items()}
        return merged

    return Method(name, learns, adds=(interceptor,), merge=merge, parts=(options,))


def weight_of(layer: nn.Module, site: Site) -> jax.Array:
    """The kernel or the table of a layer that was called, a quantised kernel as floats."""
    own = layer.variables["params"]
    return own["embedding"] if site.kind == EMBED else quantized.weight(own, site.shape[0])


def site_of(path: str, leaves: Tree) -> Site:
    """The site that a layer is, by its kernel or table."""
    weight = next(name for name in WEIGHTS if name in leaves)
    shape = tuple(leaves[weight].shape)
    return Site(path, EMBED if weight == "embedding" else CONV if len(shape) > 2 else DENSE, shape)


def by_rule(rules: Rules, layer: str) -> Any:
    """The value of the first rule whose pattern matches the whole path of a layer."""
    return next(value for pattern, value in rules if re.fullmatch(pattern, layer))


def with_default(method: str, what: str, patterns: Mapping[str, Any] | None, default: Any) -> Rules:
    """Rules of the patterns of an option, and of a default for all else.

    Raises:
        InputError: a key that is no pattern.
    """
    for pattern in patterns or {}:
        check(pattern, PATTERN, f"{method}: a key of {what}")
    return (*(patterns or {}).items(), (".*", default))


def _check_tied(method, target, config):
    """Refuse to change the table of words where a head reads it too, which would not see the change."""
    heads = [config] if isinstance(config, Head) else dict(config.each).values()
    if re.fullmatch(target, WORDS) and any(head.tied for head in heads):
        raise InputError(
            f"{method}: target '{target}' matches '{WORDS}', the table that is also the output kernel of the head: the "
            "head would not see the update; choose other layers"
        )


def _listed(kinds, paths):
    there = [DENSE] if DENSE in kinds else []
    if CONV in kinds and any(re.fullmatch(f"{CONVOLUTION}/kernel", path) for path in paths):
        there.append(CONV)
    if EMBED in kinds and any(path.endswith("/embedding") for path in paths):
        there.append(EMBED)
    return " and no ".join(there)


def _kind(layer):
    if isinstance(layer, nn.Dense):
        return DENSE
    if isinstance(layer, Embed):
        return EMBED
    return CONV if isinstance(layer, nn.Conv) and layer.feature_group_count == 1 else None


def _site(layer, kind, path, x):
    if kind == EMBED:

        def look_up(ids, table):
            return (
                jnp.asarray(table)
                .at[ids]
                .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
                .astype(layer.dtype)
            )

        return Site(path, kind, (layer.number, layer.features), look_up, dtype=layer.dtype)
    if kind == DENSE:
        return Site(path, kind, (x.shape[-1], layer.features), partial(product, dtype=layer.dtype), dtype=layer.dtype)
    options, window = _convolving(layer)
    general = layer.conv_general_dilated or jax.lax.conv_general_dilated

    def along(x, kernel):
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=layer.dtype)
        return general(x, kernel, **options)

    patches = partial(jax.lax.conv_general_dilated_patches, filter_shape=window, **options)
    return Site(path, kind, (*window, x.shape[-1], layer.features), along, patches, layer.dtype)


def _convolving(layer: nn.Conv) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The options with which a layer convolves, and its window."""
    window = tuple(layer.kernel_size)
    sides = "DHW"[-len(window) :]

    def each(value):
        return (value or 1,) * len(window) if isinstance(value, int | None) else tuple(value)

    padding = layer.padding
    if not isinstance(padding, str):
        padding = [(side, side) if isinstance(side, int) else tuple(side) for side in each(padding)]
    options = {
        "window_strides": each(layer.strides),
        "padding": padding,
        "rhs_dilation": each(layer.kernel_dilation),
        "dimension_numbers": (f"N{sides}C", f"{sides}IO", f"N{sides}C"),
    }
    return options, window
