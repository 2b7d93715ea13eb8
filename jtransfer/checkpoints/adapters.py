"""Adapters of one base: read whatever their layout, and several at once, of which each example has its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.checkpoints import calls, deltas, hub, peft, peft_prompts
from jtransfer.checkpoints.adapter import HEAD, Adapter
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.errors import InputError
from jtransfer.methods.method import Intercepted
from jtransfer.models import Head, apply
from jtransfer.tree import Tree


def load_adapter(
    backbone: Backbone,
    name: str,
    *,
    head: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    trust: Iterable[str] = (),
) -> Adapter:
    """Load an adapter of a backbone: one that PEFT wrote, or one in our own layout.

    Args:
        backbone: What it was trained on.
        name: A directory (local or in an object store), of PEFT's `adapter_config.json` and
            `adapter_model.safetensors` or of `jtransfer export --format=adapter`, or a name on the Hugging Face hub.
        head: Of PEFT's, the kind of head that it was trained with, where neither its config nor the backbone tells.
        revision: As of `jtransfer.load`.
        subfolder: As of `jtransfer.load`.
        trust: As of `jtransfer.load`.

    Returns:
        The adapter. A head that it was saved with is that of the adapted task; where one of PEFT's changed layers of
        the backbone's head, the rest of that head is copied to it.

    Raises:
        InputError: an adapter of another base, what is not supported, by name; tensors that have no place, layers that
            lack theirs, shapes and ranks that differ: one line that lists every offender.
    """
    where = hub.find(str(name), "adapter", revision, subfolder)
    if deltas.is_one(where):
        return deltas.adapter(backbone, str(name), where, trust)
    if peft_prompts.is_one(where):
        return peft_prompts.load(backbone, where, head)
    return peft.load_adapter(backbone, name, head=head, revision=revision, subfolder=subfolder)


@dataclass(frozen=True)
class Adapters:
    """Several adapters of one base, which they share. Each example of a batch may have its own.

    All are of one method, and their leaves are of equal shapes but for a head's number of classes: where one has fewer
    than another, its logits of the classes that it lacks are minus infinity.

    Attributes:
        each: The adapters.

    Raises:
        InputError: no adapter, or adapters of other bases, methods or heads.
    """

    each: Sequence[Adapter]

    def __post_init__(self):
        if not self.each:
            raise InputError("Adapters: expected at least one adapter")
        first, *others = self.each
        for number, other in enumerate(others, 1):
            what = f"Adapters: number {number}"
            if other.backbone is not first.backbone and other.backbone.fingerprint != first.backbone.fingerprint:
                one, two = other.backbone.name, first.backbone.name
                raise InputError(f"{what} is an adapter of another base, '{one}'; number 0 is one of '{two}'")
            if _program(other) != _program(first):
                raise InputError(
                    f"{what} is '{_program(other)}', number 0 '{_program(first)}'; expected one method for all, as one "
                    "program computes them"
                )
            if _kind(other) != _kind(first):
                raise InputError(f"{what} has another kind of head than number 0, or only one of the two has any")
            if differ := sorted(_shapes(other).items() ^ _shapes(first).items()):
                raise InputError(f"{what} and number 0 differ in '{differ[0][0]}'; expected leaves of equal shapes")

    def __call__(self, batch: Mapping[str, Any], which: int | Sequence[int]) -> dict[str, jax.Array]:
        """The outputs on a batch, compiled once for each shape, whichever adapters are asked for.

        Args:
            batch: As of a `Backbone`, with one row of every input for each example.
            which: The number of the adapter for the whole batch, or `[batch]` one for each example.

        Raises:
            InputError: as a call of a `Backbone`, or a number that is none of an adapter.
        """
        backbone = self.each[0].backbone
        inputs, which = calls.checked(backbone, batch), np.asarray(which)
        rows = max(map(len, inputs.values()))
        if not np.issubdtype(which.dtype, np.integer) or which.shape not in ((), (rows,)):
            raise InputError(
                f"Adapters: which has {which.dtype} {list(which.shape)}; expected the number of an adapter, or one for "
                f"each of {rows} examples"
            )
        if which.size and not 0 <= which.min() <= which.max() < len(self.each):
            wrong = next(n for n in np.ravel(which) if not 0 <= n < len(self.each))
            raise InputError(f"Adapters: there is no adapter {wrong}; expected 0 to {len(self.each) - 1}")
        if not which.ndim:
            return _all(self._model, self._base, self._stacked, which, inputs)
        if odd := [name for name, x in inputs.items() if len(x) not in (1, rows)]:
            raise InputError(
                f"Adapters: {odd[0]} has {len(inputs[odd[0]])} rows; expected {rows}, one for each adapter"
            )
        inputs = {name: jnp.broadcast_to(x, (rows, *x.shape[1:])) for name, x in inputs.items()}
        return _each(self._model, self._base, self._stacked, which, inputs)

    @cached_property
    def _model(self):
        largest = max(self.each, key=_classes)
        return Intercepted(largest.model, largest.method.adds)

    @cached_property
    def _base(self) -> Tree:
        first = self.each[0]
        return {path: leaf for path, leaf in first.tree.items() if path not in first.params}

    @cached_property
    def _stacked(self) -> Tree:
        most = max(map(_classes, self.each))

        def filled(one, path):
            leaf = one.params[path]
            if not _of_classes(one, path):
                return leaf
            missing = [(0, 0)] * (leaf.ndim - 1) + [(0, most - leaf.shape[-1])]
            return jnp.pad(leaf, missing, constant_values=-jnp.inf if path.endswith("bias") else 0)

        return {path: jnp.stack([filled(one, path) for one in self.each]) for path in self.each[0].params}


def _program(adapter):
    """What must be equal for one program to compute two adapters."""
    parts = adapter.method.parts
    return " and ".join(map(str, parts)) if parts else adapter.method.name


def _kind(adapter):
    """A head, whatever its number of classes where it is a single layer."""
    head = adapter.head
    return replace(head, classes=0) if isinstance(head, Head) and not head.hidden else head


def _classes(adapter):
    return adapter.head.classes if isinstance(adapter.head, Head) else 0


def _of_classes(adapter, path):
    """Whether the last axis of a leaf is that of the classes."""
    return isinstance(adapter.head, Head) and not adapter.head.hidden and path in (f"{HEAD}kernel", f"{HEAD}bias")


def _shapes(adapter):
    return {path: x.shape[:-1] if _of_classes(adapter, path) else x.shape for path, x in adapter.params.items()}


@partial(jax.jit, static_argnums=0)
def _all(model, base, stacked, which, inputs):
    return apply(model, base | {path: leaf[which] for path, leaf in stacked.items()}, inputs)


@partial(jax.jit, static_argnums=0)
def _each(model, base, stacked, which, inputs):
    def one(own, example):
        outputs = apply(model, base | own, {name: x[None] for name, x in example.items()})
        return jax.tree.map(lambda x: x[0], outputs)

    return jax.vmap(one)({path: leaf[which] for path, leaf in stacked.items()}, inputs)
