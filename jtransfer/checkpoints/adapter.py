"""A backbone as a method left it: what was added and what was changed, apart from the base."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from jtransfer.checkpoints.backbone import Backbone, run
from jtransfer.errors import InputError
from jtransfer.methods import Method
from jtransfer.methods.method import Intercepted
from jtransfer.models import SOURCE_HEAD, STATISTICS, Head, Headed, Heads, quantized, shapes_of
from jtransfer.tree import Tree, prefixed, select

HEAD = "head/"


@dataclass(frozen=True)
class Adapter:
    """What a method made of a backbone. Called with a batch, it gives the outputs of the adapted model.

    Attributes:
        backbone: As it was before.
        method: What adds to it: `methods.adapt(method, model, backbone.params, inputs)` has the leaves of `params`.
        params: The leaves that it adds (as `.../lora/a`, `head/kernel`), or has in place of the backbone's.
        head: Of the adapted task, under `head/`; None where the backbone's own head, if any, predicts.
        classes: Names of the classes that are predicted.
    """

    backbone: Backbone
    method: Method
    params: Tree
    head: Head | Heads | None = None
    classes: tuple[str, ...] = ()

    def __call__(self, batch: Mapping[str, Any], **options: bool) -> dict[str, jax.Array]:
        """The outputs on a batch, in evaluation mode, as those of a `Backbone`.

        Raises:
            InputError: as a call of a `Backbone`.
        """
        return run(self.backbone, Intercepted(self.model, self.method.adds), self.tree, batch, options)

    @property
    def model(self) -> nn.Module:
        """The plain model with the head that predicts, as `methods.adapt` takes it."""
        return Headed(self.backbone.model, self.head, HEAD.rstrip("/")) if self.head else self.backbone.whole

    @property
    def tree(self) -> Tree:
        """All leaves, statistics and the source head among them."""
        return self.backbone.params | self.backbone.state | self.params

    def merged(self) -> Backbone:
        """The plain backbone that computes what the adapted one does, with the head that predicts as its own.

        Raises:
            InputError: no plain model does.
        """
        return self._replaced(self._merge(self.tree))

    def folded(self) -> "Adapter":
        """What is kept of it when the training is over, without the leaves that served the training alone."""
        method = self.method
        return dataclasses.replace(self, method=method.kept, params=method.fold(self.params)) if method.kept else self

    def hollow(self) -> Backbone:
        """What `merged` gives, with shapes and dtypes in place of leaves.

        Raises:
            InputError: as `merged`.
        """
        return self._replaced(jax.eval_shape(self._merge, dict(self.tree)))

    def _merge(self, tree):
        if self.method.merge is None:
            raise InputError(f"method '{self.method.name}' adds what no plain model has, and cannot be merged into one")
        if self.method.adds and any(map(quantized.is_part, tree)):
            raise InputError(
                f"method '{self.method.name}' cannot be merged into kernels of {self.backbone.config.bits} bits, which "
                "would round it away; keep it apart (--format=adapter or peft), or put it on the base without bits"
            )
        return self.method.merge(tree)

    def without_additions(self) -> Backbone:
        """The backbone as it was before, but with the head that predicts."""
        tree = self.backbone.params | self.backbone.state | prefixed(select(self.params, HEAD), HEAD)
        merges_to = dict if any(map(quantized.is_part, self.tree)) else self.method.merge or dict
        kept = merges_to(self.tree)  # whose leaves are those of the plain model
        return self._replaced({path: leaf for path, leaf in tree.items() if path in kept})

    def without_head(self) -> "Adapter":
        """What it does to the backbone alone, without the head that predicts."""
        params = {path: leaf for path, leaf in self.params.items() if not path.startswith((HEAD, SOURCE_HEAD))}
        backbone = self.backbone.without_head()
        return dataclasses.replace(self, backbone=backbone, params=params, head=None, classes=())

    def _replaced(self, tree):
        if self.head:
            own = prefixed(select(tree, HEAD), SOURCE_HEAD)
            tree = {path: leaf for path, leaf in tree.items() if not path.startswith((HEAD, SOURCE_HEAD))} | own
        state = {path: leaf for path, leaf in tree.items() if path.startswith(STATISTICS)}
        params = {path: leaf for path, leaf in tree.items() if path not in state}
        origin = self.backbone.origin and dataclasses.replace(self.backbone.origin, options=None)
        own = {"head": self.head or self.backbone.head, "classes": self.classes, "origin": origin}
        return dataclasses.replace(self.backbone, params=params, state=state, fresh=(), **own)


def merges(method: Method, model: nn.Module, example: Any, shapes: Tree, base: Iterable[str]) -> bool:
    """Whether the plain model computes what the adapted one does, on the leaves that `method.merge` gives.

    Args:
        method: Which may raise whatever a user's code does.
        model: The plain model with its head.
        example: Shapes of its inputs, as `methods.adapt` takes them.
        shapes: Of the leaves of the adapted model.
        base: Paths of the leaves that the backbone gives, a head of its own among them.
    """
    if not method.adds:
        return True
    if method.merge is None or any(map(quantized.is_part, shapes)):
        return False
    return jax.eval_shape(method.merge, dict(shapes)).keys() <= shapes_of(model, example).keys() | set(base)
