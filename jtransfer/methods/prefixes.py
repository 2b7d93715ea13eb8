"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190): learned keys and values that every token may attend to.

    encoder/block_0/attention/prefix/{key, value}       [length, width]
    encoder/prefix/{embedding, hidden, out}             which make those of all blocks, where there is a projection

No plain model has them, so they do not merge: what is kept is the keys and values, beside the name of their backbone.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import checked, whole
from jtransfer.methods.method import HEAD, Interceptor, Method, learn
from jtransfer.methods.prompts import LENGTH, TEXTS, by_name, check_places, lengthened, reads
from jtransfer.models import layers
from jtransfer.models.transformer import Attention, Encoder
from jtransfer.tree import Tree, nested, select

PLAIN, PROJECTED = ".*attention/prefix/(key|value)", ".*encoder/prefix/(embedding|(hidden|out)/(kernel|bias))"


class Prefix(nn.Module):
    """Keys and values `[length, width]` of one attention."""

    length: int
    width: int
    param_dtype: str

    @nn.compact
    def __call__(self):
        start, shape = nn.initializers.normal(0.02), (self.length, self.width)
        return self.param("key", start, shape, self.param_dtype), self.param("value", start, shape, self.param_dtype)


class Projection(nn.Module):
    """Keys and values of all blocks, `[blocks, 2, length, width]`, that one small MLP makes of `length` embeddings."""

    length: int
    width: int
    hidden: int
    blocks: int
    param_dtype: str

    @nn.compact
    def __call__(self):
        embedding = self.param("embedding", nn.initializers.normal(1), (self.length, self.width), self.param_dtype)
        start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's

        def dense(features, name):
            return layers.Dense(features, kernel_init=start, param_dtype=self.param_dtype, name=name)

        own = dense(2 * self.blocks * self.width, "out")(jnp.tanh(dense(self.hidden, "hidden")(embedding)))
        return _by_block(own, self.width)


def _by_block(own, width):
    """`[length, blocks * 2 * width]` to `[blocks, 2, length, width]`, in PEFT's order."""
    return own.reshape(len(own), -1, 2, width).transpose(1, 2, 0, 3)


@checked
def prefix(
    length: Annotated[int, LENGTH] = 10, projection: Annotated[int, whole(0, 2**16)] = 0, shift: bool = True
) -> Method:
    """Learned keys and values before those of the tokens in the attention of every block; they and the head learn.

    Of a transformer of `depth` blocks and width d they are `2 depth length d` parameters. With a projection of width h
    those that learn are `length d` of embeddings, and `(d + 1) h + (h + 1) 2 depth d` of an MLP that makes the keys and
    values of them (section 4.3); when the training is over, the keys and values alone are kept.

    Args:
        length: Keys and values before those of the tokens.
        projection: Width of the hidden layer of that MLP (PEFT's `encoder_hidden_size`, with `prefix_projection`); 0
            for keys and values that learn as they are.
        shift: Whether the positions of texts count from `length` on, as PEFT's do; of images none are shifted.

    Raises:
        InputError: an option out of its range; and, of a model, one without attention, blocks of several widths under
            a projection, or fewer places than a shift needs.
    """

    def shifts(call, args, kwargs, context):
        model = context.module
        if not (shift and context.method_name == "__call__" and reads(model, TEXTS)):
            return call(*args, **kwargs)
        with nn.intercept_methods(_shifting(length, model.config)):
            return call(*args, **kwargs)

    def projects(call, args, kwargs, context):
        module, c = context.module, context.module.config
        own = Projection(length, c.kv_width, projection, c.depth, c.param_dtype, parent=module, name="prefix")()
        with nn.intercept_methods(_attending(lambda attention: own[int(attention.path[-2].removeprefix("block_"))])):
            return call(*args, **kwargs)

    plain = _attending(
        lambda attention: Prefix(
            *(length, attention.config.kv_width, attention.config.param_dtype), parent=attention, name="prefix"
        )()
    )

    def attends(call, args, kwargs, context):
        if not projection:
            return plain(call, args, kwargs, context)
        encodes = isinstance(context.module, Encoder) and context.method_name == "__call__"
        return projects(call, args, kwargs, context) if encodes else call(*args, **kwargs)

    def learns(paths):
        own = PROJECTED if projection else PLAIN
        if not any(re.fullmatch(own, path) for path in paths):
            swin = any(re.fullmatch(".*attention/.*", path) for path in paths)
            why = "blocks of several widths, which one projection does not serve" if swin else "no attention"
            raise InputError(f"prefix: the model has {why}; expected {'projection=0' if swin else 'a transformer'}")
        return learn(HEAD, (own, 1.0))(paths)

    method = Method("prefix", learns, adds=(shifts, attends), merge=None)
    if not projection:
        return method
    kept = replace(prefix(length, shift=shift), name=f"prefix(length={length}{'' if shift else ', shift=False'})")
    return replace(method, fold=_folded, kept=kept)


def _attending(own: Callable[[Attention], tuple[jax.Array, jax.Array]]) -> Interceptor:
    """Put a key and a value `[length, width]` of each attention's own before those of the tokens."""

    def interceptor(call, args, kwargs, context):
        attention = context.module
        if not (isinstance(attention, Attention) and context.method_name == "attend"):
            return call(*args, **kwargs)
        query, *pair, mask = args

        def longer(x, prefix):
            prefix = prefix.astype(x.dtype).reshape(1, len(prefix), *x.shape[2:])
            return jnp.concatenate([jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:])), x], axis=1)

        key, value = map(longer, pair, own(attention))
        if mask is not None:  # [batch or 1, 1, tokens or 1, tokens]: every token may look at the prefix
            mask = jnp.pad(mask, [(0, 0)] * 3 + [(key.shape[1] - mask.shape[-1], 0)], constant_values=True)
        return call(query, key, value, mask)

    return interceptor


def _shifting(length: int, config: Any) -> Interceptor:
    """Count the positions of texts from `length` on, in the model of a config."""

    def interceptor(call, args, kwargs, context):
        if isinstance(context.module, Encoder) and context.method_name == "__call__":
            x, mask, *_ = args  # the mask covers the places of a cache too
            check_places("prefix", length, x.shape[1] if mask is None else mask.shape[-1], config)
        if context.method_name != "positions":
            return call(*args, **kwargs)
        inputs = by_name(context.module, args, kwargs, "positions")
        check_places("prefix", length, inputs["x"].shape[1], config)
        if inputs.get("position_ids") is not None:
            return call(**inputs | {"position_ids": inputs["position_ids"] + length})
        longer = lengthened(length, inputs, config)
        return call(**longer | {"x": jnp.pad(inputs["x"], ((0, 0), (length, 0), (0, 0)))})[:, length:]

    return interceptor


def _folded(tree: Tree) -> Tree:
    """The keys and values of all blocks in place of the projections that make them."""
    plain = {path: leaf for path, leaf in tree.items() if not re.fullmatch(PROJECTED, path)}
    for path in tree.keys() - plain.keys():
        if not path.endswith("/prefix/embedding"):
            continue
        own = {name: jnp.asarray(leaf) for name, leaf in select(tree, f"{path.removesuffix('embedding')}").items()}
        (length, width), (hidden,) = own["embedding"].shape, own["hidden/bias"].shape
        projection = Projection(length, width, hidden, len(own["out/bias"]) // (2 * width), "float32")
        made = projection.apply({"params": nested(own)})
        for i, name in itertools.product(range(len(made)), range(2)):
            block = path.replace("prefix/embedding", f"block_{i}/attention/prefix")
            plain[f"{block}/{('key', 'value')[name]}"] = made[i, name].astype(own["embedding"].dtype)
    return plain
