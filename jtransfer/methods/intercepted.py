"""A model run under interceptors, which change it from outside while every path in its tree stays as it was."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax.errors import NameInUseError

from jtransfer import imports
from jtransfer.errors import InputError
from jtransfer.models import outputs_and_leaves
from jtransfer.tree import Tree

Interceptor = Callable[[Callable, tuple, dict, nn.module.InterceptorContext], Any]


@dataclass(frozen=True)
class Inner:
    """Holds a module so that Flax makes it no part, whose name no other part of a shared scope could have."""

    module: nn.Module


class Intercepted(nn.Module):
    """A model run under interceptors. It shares the model's scope, so every path stays as it was.

    The model may be an `Intercepted` itself, or have one as its backbone. The first of `adds` is the outermost.
    """

    inner: nn.Module | Inner
    adds: tuple[Interceptor, ...]

    def __post_init__(self):
        if isinstance(self.inner, nn.Module):
            self.inner = Inner(self.inner)
        super().__post_init__()

    @property
    def model(self) -> nn.Module:
        """The model under the interceptors."""
        return self.inner.module

    @nn.compact
    def __call__(self, *args, **kwargs):
        model = self.model.copy(name=None)
        nn.share_scope(self, model)
        call = model
        for interceptor in reversed(self.adds):
            call = partial(_intercepted, interceptor, call)
        return call(*args, **kwargs)

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.model.config


def under_those_of(model: nn.Module, plain: nn.Module) -> nn.Module:
    """A plain model under the interceptors that another one runs under; as it is where there are none."""
    if not isinstance(model, Intercepted):
        return plain
    return Intercepted(under_those_of(model.model, plain), model.adds)


def _intercepted(interceptor, call, *args, **kwargs):
    with nn.intercept_methods(interceptor):
        return call(*args, **kwargs)


def leaves_under(
    name: str, adds: tuple[Interceptor, ...], model: nn.Module, example: Any, outputs: Mapping[str, Any]
) -> Tree:
    """Shapes of the leaves of a model under interceptors, which must not change the shapes of its outputs.

    Args:
        name: Name of the method, for errors.
        adds: The interceptors.
        model: The model.
        example: Shapes of its inputs.
        outputs: Shapes of its outputs without them.

    Raises:
        InputError: an output of another shape, a part that the model has already, or what a user's function raises.
    """
    with imports.calling(f"method '{name}': file", *adds):
        try:
            found, leaves = outputs_and_leaves(Intercepted(model, adds), example)
        except NameInUseError as error:
            part = named[1] if (named := re.search(r'"(\w+)"', str(error))) else "a part"
            raise InputError(
                f"method '{name}' adds '{part}' where the model has it already, of a method that it runs under; "
                "choose another method, or a backbone without that one"
            ) from None
    for key, before in outputs.items():
        after = found.get(key) if isinstance(found, Mapping) else None
        if _sides(key, before) != _sides(key, after):
            raise InputError(
                f"method '{name}' makes {_shown(after)} of the model's output '{key}', {_shown(before)}; expected the "
                "same shape: a method may change values, and how many tokens last_hidden_state has"
            )
    return leaves


def _sides(name, output):
    """The shapes in an output that a method must not change."""
    leaves = jax.tree_util.tree_leaves_with_path({name: output})  # of towers too, whose outputs lie in those of both
    free = [(1,) if "'last_hidden_state'" in jax.tree_util.keystr(path) else () for path, _ in leaves]
    return [[n for i, n in enumerate(x.shape) if i not in own] for own, (_, x) in zip(free, leaves, strict=True)]


def _shown(output):
    return " and ".join(str(list(x.shape)) for x in jax.tree.leaves(output)) or "nothing"
