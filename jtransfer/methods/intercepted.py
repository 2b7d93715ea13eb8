"""A model run under interceptors, which change it from outside while every path in its tree stays as it was."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn

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
