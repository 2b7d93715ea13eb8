"""What a method of transfer is: the leaves it adds, and the leaves that learn, at which rate.

Models know nothing of methods. A method adds to the forward pass from outside, with `flax.linen.intercept_methods`,
and its parameters live in the model's own tree beside the layer that they change.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer import kinds
from jtransfer.errors import InputError
from jtransfer.models import SOURCE_HEAD, STATISTICS, complete, shapes_of
from jtransfer.models.layers import BatchNorm
from jtransfer.tree import FROZEN, Tree, label, mismatches

Rates = dict[str, float]
Interceptor = Callable[[Callable, tuple, dict, nn.module.InterceptorContext], Any]

HEAD = ("head/.*", 1.0)
"""The rule of every method: the head of the new task learns at the full rate, where the model has one."""


@dataclass(frozen=True)
class Method:
    """One way of transferring.

    Attributes:
        name: As reports show it.
        learns: From the paths of the tree (the source head's left out) to the rate of each, relative to the
            schedule; `FROZEN` leaves neither get a gradient nor optimiser state. `learn(*rules)` makes one.
        adds: Interceptors around the model's methods; the first is the outermost.
        merge: From an adapted tree to the tree with which the plain model computes the same.
        pretrained: Whether the leaves start as the backbone's; if not, all of them start at random.
        parts: The options of what it adds, for those who write them in other formats.

    `a + b` trains what either trains (at the rate of `a` where both do) and adds what either adds.
    """

    name: str
    learns: Callable[[Collection[str]], Rates]
    adds: tuple[Interceptor, ...] = ()
    merge: Callable[[Tree], Tree] = dict
    pretrained: bool = True
    parts: tuple[Any, ...] = ()

    def __add__(self, other: "Method") -> "Method":
        if self.parts and other.parts:  # each would add leaves of the same names, and merge the other's
            raise InputError(
                f"method '{self.name} + {other.name}': both add low-rank paths; write one lora, whose target "
                "matches the layers of both, with ranks and alphas of each"
            )

        def learns(paths):
            mine, theirs = self.learns(paths), other.learns(paths)
            return {path: mine[path] if mine[path] != FROZEN else theirs[path] for path in paths}

        return Method(
            name=f"{self.name}+{other.name}",
            learns=learns,
            adds=self.adds + other.adds,
            merge=lambda tree: other.merge(self.merge(tree)),
            pretrained=self.pretrained and other.pretrained,
            parts=self.parts + other.parts,
        )


def learn(*rules: tuple[str, float]) -> Callable[[Collection[str]], Rates]:
    """Rates by rules of `(pattern, rate)`, first match wins; every leaf that they do not name is frozen.

    A rule with the pattern of `HEAD`, whatever its rate, is left out for a model that has no new head, as one of two
    towers that is trained on pairs.

    Raises:
        InputError: a rate that is negative, infinite or no number.
    """
    for pattern, rate in rules:
        kinds.check(rate, kinds.number(least=0), f"learn: the rate of {pattern!r}")

    def rates(paths):
        headed = any(path.startswith("head/") for path in paths)
        own = [rule for rule in rules if headed or rule[0] != HEAD[0]]
        return label(paths, [*own, (".*", FROZEN)])

    return rates


class Intercepted(nn.Module):
    """A model run under interceptors. It shares the model's scope, so every path stays as it was."""

    model: nn.Module
    adds: tuple[Interceptor, ...]

    @nn.compact
    def __call__(self, *args, **kwargs):
        model = self.model.copy(name=None)
        nn.share_scope(self, model)
        call = model
        for interceptor in reversed(self.adds):
            call = partial(_intercepted, interceptor, call)
        return call(*args, **kwargs)


def _intercepted(interceptor, call, *args, **kwargs):
    with nn.intercept_methods(interceptor):
        return call(*args, **kwargs)


@dataclass(frozen=True)
class Adapted:
    """A model as a method changes it: everything that training needs to know of both.

    Attributes:
        model: The Flax module to apply.
        shapes: Shape and dtype of every leaf of its tree, the source head's included.
        rates: The rate of every leaf; `FROZEN` where it does not learn.
        base: The leaves taken over from the backbone, its batch statistics (`batch_stats/...`) among them.
        state: Shape and dtype of the leaves that are no parameters, by `collection/path` (batch statistics).
        example: Shape and dtype of the inputs, one example each.
    """

    model: nn.Module
    shapes: Tree
    rates: Rates
    base: Tree
    state: Tree
    example: Any

    def start(self, key: jax.Array, base: Tree) -> tuple[Tree, Tree]:
        """The whole tree and the state at the start; only leaves that `base` lacks are initialised.

        Call it under `jit`: the rest of the model is then never computed.
        """
        return _split(complete(self.model, key, base, self.example))


def adapt(
    method: Method,
    model: nn.Module,
    pretrained: Tree,
    inputs: tuple[int, ...] | Mapping[str, jax.ShapeDtypeStruct],
    wrap: tuple[Interceptor, ...] = (),
    fresh: tuple[str, ...] = ("head/",),
) -> Adapted:
    """Put a method on a model.

    Args:
        method: What to add and what learns.
        model: A Flax module called with `(inputs, train=...)`, usually a `Classifier`.
        pretrained: Leaves to start from: all of the model's but its head, and perhaps a source head, which stays
            frozen. Empty to start at random.
        inputs: Shape of one image without the batch axis, or one example of every input by name.
        wrap: More interceptors, inside those of the method; they add no leaves.
        fresh: What the paths of leaves begin with that may start at random beside pretrained ones.

    Raises:
        InputError: a rule of the method that matches nothing, no leaf that learns, or pretrained leaves that are not
            the model's: every offender by name.
    """
    example = dict(inputs) if isinstance(inputs, Mapping) else jax.ShapeDtypeStruct((1, *inputs), jnp.float32)
    base = dict(pretrained) if method.pretrained else {}
    plain = shapes_of(model, example)
    if base:
        own = {path: leaf for path, leaf in base.items() if path in plain or not path.startswith(SOURCE_HEAD)}
        # A leaf that the backbone lacks would silently start at random.
        expected = {path: leaf for path, leaf in plain.items() if path in own or not path.startswith(fresh)}
        offenders = mismatches(expected, own)
        if offenders:
            raise InputError(f"the backbone does not fit the model: {'; '.join(offenders)}")
    shapes, state = _split(shapes_of(Intercepted(model, method.adds), example))
    shapes |= {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in _split(base)[0].items()}
    own = [path for path in shapes if not path.startswith(SOURCE_HEAD)]
    rates = dict.fromkeys(shapes, FROZEN) | method.learns(own)
    if not any(rate != FROZEN for rate in rates.values()):
        raise InputError(f"method '{method.name}': nothing learns; add what does, as in 'finetune + {method.name}'")
    frozen_mode = evaluation_mode({path: rates[path] for path in _split(plain)[0]})
    return Adapted(Intercepted(model, (*method.adds, frozen_mode, *wrap)), shapes, rates, base, state, example)


def evaluation_mode(rates: Mapping[str, float]) -> Interceptor:
    """Run every frozen part of a model in evaluation mode, whatever mode the model is called in.

    A part is the module around a dropout or a batch normalisation: where none of its own leaves (those in `rates`)
    learns, nothing is dropped and no statistics are updated.
    """
    learning = [path for path, rate in rates.items() if rate != FROZEN]

    def frozen(module):
        part = "".join(f"{name}/" for name in module.path[:-1])
        return not any(path.startswith(part) for path in learning)

    return evaluating(DROPOUTS | BATCH_NORMS, frozen)


DROPOUTS = {nn.Dropout: "deterministic"}
BATCH_NORMS = {nn.BatchNorm: "use_running_average", BatchNorm: "use_running_average"}
"""Layers that differ in training, and what switches each to evaluation."""


def evaluating(switches: Mapping[type, str], chosen: Callable[[nn.Module], bool] = lambda module: True) -> Interceptor:
    """Run the layers of the types in `switches` that are `chosen` in evaluation mode."""

    def interceptor(call, args, kwargs, context):
        switch = switches.get(type(context.module))
        if switch and context.method_name == "__call__" and chosen(context.module):
            # The model may have set it on the layer or passed it by position; Flax takes it in one place only.
            object.__setattr__(context.module, switch, None)
            args, kwargs = args[:1], kwargs | {switch: True}
        return call(*args, **kwargs)

    return interceptor


def _split(tree: Tree) -> tuple[Tree, Tree]:
    """Parameters, and the leaves that are none."""
    state = {path: leaf for path, leaf in tree.items() if path.startswith(STATISTICS)}
    return {path: leaf for path, leaf in tree.items() if path not in state}, state
