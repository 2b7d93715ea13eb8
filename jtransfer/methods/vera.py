"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454): one random pair of matrices for all layers, and vectors of each.

vera/{a, b}    LAYER/vera/{d, b}
"""

import re
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax

from jtransfer.kinds import PATTERN, SEED, SHARE, checked
from jtransfer.methods.method import Method
from jtransfer.methods.updates import DENSE, RANK, TARGET, Delta, Makes, Site, adding, product, updating
from jtransfer.tree import Tree, select

SHARED = "vera"
"""The module at the root of a tree that holds the two matrices."""


@dataclass(frozen=True)
class VeRA:
    """The options of `vera`."""

    target: str
    rank: int
    start: float
    dropout: float
    seed: int

    def makes(self, site: Site, kernel=None) -> Makes:
        """The leaves beside a layer."""
        constant = nn.initializers.constant(self.start)
        return {"d": (constant, (self.rank,)), "b": (nn.initializers.zeros, (site.outputs,))}

    def shared(self, widest: tuple[int, int]) -> Makes:
        """The two matrices, for the most inputs and the most outputs of a layer."""
        uniform = nn.initializers.he_uniform()
        one, other = jax.random.split(jax.random.key(self.seed))
        return {
            "a": (lambda key, *kind: uniform(one, *kind), (widest[0], self.rank)),
            "b": (lambda key, *kind: uniform(other, *kind), (self.rank, widest[1])),
        }


class Shared(nn.Module):
    """The two matrices at the root."""

    options: VeRA
    widest: tuple[int, int]

    @nn.compact
    def __call__(self):
        return {name: self.param(name, *made) for name, made in self.options.shared(self.widest).items()}


@checked
def vera(
    rank: Annotated[int, RANK] = 256,
    start: float = 0.1,
    target: Annotated[str, PATTERN] = TARGET,
    dropout: Annotated[float, SHARE] = 0.0,
    seed: Annotated[int, SEED] = 0,
) -> Method:
    """`W + A diag(d) B diag(b)` with random A and B that all layers share, for the dense layers that `target` names.

    d, b and the head learn (equation 2 of the paper). A and B are `vera/a` and `vera/b` at the root of the tree, frozen
    and as large as the widest layers; others use the first rows of A and columns of B. A layer of m outputs has
    `rank + m` parameters. b is zero at first, so that outputs are the base's.

    Args:
        rank: Of the update; this default and the others are PEFT's.
        start: Of every entry of d.
        target: Pattern that must match the whole path of a layer.
        dropout: Rate at which the inputs of the side path, and only of it, are dropped in training.
        seed: Of A and B, which are the same whatever the seed of a run is. They are saved with an adapter, as PyTorch
            draws others from this number.

    Raises:
        InputError: an option out of its range; and, of a model, a target that matches no dense layer.
    """
    options = VeRA(target, rank, start, dropout, seed)
    found: ContextVar[Tree | None] = ContextVar("found", default=None)

    def delta(site: Site, leaves: Mapping[str, jax.Array]) -> Delta:
        a, b = (found.get()[name] for name in "ab")
        a, b = a[: site.rows], b[:, : site.outputs]

        def path(x):
            low = product(x, a, site.dtype)
            y = product(low * leaves["d"].astype(low.dtype), b, site.dtype)
            return y * leaves["b"].astype(y.dtype)

        return Delta(path, lambda: (a * leaves["d"]) @ b * leaves["b"])

    method = updating("vera", options, options.makes, adding(delta), (("[db]", 1.0),), (DENSE,), dropout)
    (beside,) = method.adds

    def interceptor(call, args, kwargs, context):
        layer, now = context.module, found.get()
        if isinstance(now, list) and isinstance(layer, nn.Dense) and re.fullmatch(target, "/".join(layer.path)):
            now.append((args[0].shape[-1], layer.features))
        if isinstance(now, list):
            return call(*args, **kwargs)
        if now is not None:
            return beside(call, args, kwargs, context)
        # The whole model, whose call is the first: the shapes of its layers say how large A and B are.
        sizes: list[tuple[int, int]] = []
        with _holding(found, sizes):
            jax.eval_shape(lambda: layer.clone(parent=None, name=None).init(_keys(), *args, **kwargs))
        shared = Shared(options, tuple(map(max, *sizes, (0, 0))), parent=layer, name=SHARED)() if sizes else {}
        with _holding(found, shared):
            return call(*args, **kwargs)

    def merge(tree: Tree) -> Tree:
        with _holding(found, select(tree, f"{SHARED}/")):
            return method.merge({path: leaf for path, leaf in tree.items() if not path.startswith(f"{SHARED}/")})

    return Method("vera", method.learns, adds=(interceptor,), merge=merge, parts=(options,))


@contextmanager
def _holding(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _keys():
    return {name: jax.random.key(0) for name in ("params", "dropout")}
