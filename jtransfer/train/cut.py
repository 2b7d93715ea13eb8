"""Where a model may be cut in two, so that what its frozen part makes of each example is computed once.

Leaves that no step changes give the same activations in every epoch, as frozen parts run in evaluation mode and draw
nothing. Where these activations end is not declared by a method: it is read off the loss as JAX traces it, of which a
value that depends on no leaf that learns, on no statistic that moves and on no random number is known beforehand. The
outputs of modules are the places where it may be cut.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from jtransfer.methods import Adapted
from jtransfer.methods.intercepted import Intercepted, Interceptor
from jtransfer.methods.statistics import moving
from jtransfer.models import STATISTICS, apply
from jtransfer.objectives import Objective, make_loss
from jtransfer.objectives.contrastive import in_parts
from jtransfer.objectives.objective import forward
from jtransfer.train.operations import operations
from jtransfer.tree import FROZEN, Tree

log = logging.getLogger("jtransfer")

LEAST = 0.1
"""Share of the operations of a forward pass that a cut must save."""
EXAMPLES = 3
"""In the batch that is traced, for each device."""
TAG = "output of "


@dataclass(frozen=True)
class Cut:
    """A place between two parts of a model.

    Attributes:
        place: Path and type of a module, and which of its outputs, as `encoder/block_3:Block`.
        one: Shape and dtype of the output for one example, `[1, ...]`.
        reads: Names of the model's inputs that the second part reads beside it, as a mask.
        saved: Share of the operations of the forward pass that the first part has.
    """

    place: str
    one: jax.ShapeDtypeStruct
    reads: tuple[str, ...]
    saved: float

    @property
    def features(self) -> bool:
        """Whether it is behind a whole backbone, at what a new head reads."""
        return self.place.startswith(":") and self.place.endswith("['features']")

    @property
    def shown(self) -> str:
        """The path of the module."""
        return self.place.partition(":")[0] or "the features"

    @property
    def bytes(self) -> int:
        """Of the output for one example."""
        return math.prod(self.one.shape) * self.one.dtype.itemsize


def cuts(
    adapted: Adapted, objective: Objective, parts: Mapping[str, Any], devices: int = 1, drawn: Collection[str] = ()
) -> list[Cut | None]:
    """For each phase of a method where its model may be cut; None where nothing, or too little, is known beforehand.

    Args:
        adapted: The model under the method.
        objective: What is learned; one that makes its own targets, or runs the model itself, allows no cut.
        parts: Shape and dtype of one example of what a batch has beside `inputs`.
        devices: Number of devices that a batch is split over.
        drawn: Names of inputs that are drawn anew whenever an example comes.
    """
    if isinstance(objective.forward, partial) and objective.forward.func is in_parts:
        objective = replace(objective, forward=forward)  # which gives the same
    plain = objective.targets is None and objective.forward is forward
    if not plain or not isinstance(adapted.example, Mapping):
        return [None] * len(adapted.phases)
    found, changed = [], adapted.shapes.keys() - adapted.base.keys()
    for phase in adapted.phases:
        changed |= {path for path, rate in phase.rates.items() if rate != FROZEN} | set(adapted.solved)
        moved = moving(phase)
        frozen = adapted.shapes.keys() - changed
        found.append(_cut(phase, objective, parts, changed, moved, EXAMPLES * devices, drawn) if frozen else None)
        changed |= set(moved)
    return found


def fitting(found: Sequence[Cut | None], rows: int, cache: int, name: str) -> list[Cut | None]:
    """The cuts before which what is computed of all rows fits into a cache; says which do not.

    Args:
        found: Those of each phase.
        rows: Number of rows.
        cache: MiB that may be taken at each cut.
        name: Of the method.
    """
    sizes = [one.bytes * rows / 2**20 if one else 0 for one in found]
    for one, size in dict(zip(found, sizes, strict=True)).items():
        if size > cache:
            log.warning(
                "%s: what its frozen layers make of all examples (%s) takes %.0f MiB, more than config.cache (%d): "
                "it is computed in every step",
                *(name, one.shown, size, cache),
            )
    return [one if size <= cache else None for one, size in zip(found, sizes, strict=True)]


def behind(adapted: Adapted, places: Sequence[Cut | None]) -> Adapted:
    """A model under a method, whose phases read activations in place of inputs, by the place of each cut."""
    each = tuple(
        phase if cut is None else _behind(phase, cut) for phase, cut in zip(adapted.phases, places, strict=True)
    )
    if not adapted.each:
        return each[0]
    return replace(adapted, each=each, model=each[-1].model, example=each[-1].example)


def before(phase: Adapted, cut: Cut) -> Callable[[Tree, Any], jax.Array]:
    """The first part of a model: from its leaves, as far as there are any, and inputs `[n, ...]` to activations.

    Call it under `jit`: what lies behind the cut is then never computed.
    """

    def call(tree, inputs):
        found = []

        def capture(place, x):
            found.extend([x] if place == cut.place else [])
            return x

        # Leaves behind the cut may be missing.
        there = {path: jnp.zeros(x.shape, x.dtype) for path, x in (phase.shapes | phase.state).items()} | tree
        apply(_around(phase.model, _of_outputs(capture)), there, inputs, train=False)
        return found[0]

    return call


def _behind(phase, cut):
    inputs = {cut.place: cut.one} | {name: phase.example[name] for name in cut.reads}
    return replace(phase, model=_around(phase.model, _replaying(cut, phase.example)), example=inputs)


def _around(model: Intercepted, interceptor: Interceptor) -> Intercepted:
    """A model under one more interceptor, which is the outermost."""
    return Intercepted(model.model, (interceptor, *model.adds))


def _of_outputs(change: Callable[[str, jax.Array], jax.Array]) -> Interceptor:
    """The interceptor that puts `change(place, output)` in place of each output of each module."""

    def interceptor(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        module = f"{'/'.join(context.module.path)}:{type(context.module).__name__}"
        return jax.tree_util.tree_map_with_path(lambda at, x: change(module + jax.tree_util.keystr(at), x), outputs)

    return interceptor


def _replaying(cut: Cut, example: Mapping[str, Any]) -> Interceptor:
    """The interceptor under which a model is called with activations, which take the place of what it computes."""
    given: ContextVar[jax.Array | None] = ContextVar("activations", default=None)
    replacing = _of_outputs(lambda place, x: given.get() if place == cut.place else x)

    def interceptor(call, args, kwargs, context):
        if cut.place not in kwargs:
            return call(*args, **kwargs) if given.get() is None else replacing(call, args, kwargs, context)
        x = kwargs.pop(cut.place)
        # What the first part reads is of no matter, as nothing of it is.
        unread = {name: jnp.zeros((len(x), *of.shape[1:]), of.dtype) for name, of in example.items()}
        token = given.set(x)
        try:
            return call(*args, **unread | kwargs)
        finally:
            given.reset(token)

    return interceptor


def _cut(phase, objective, parts, changed, moved, examples, drawn):
    """The best place for a cut in one phase, before which leaves have `changed`."""
    norms = {path.removeprefix(STATISTICS).rpartition("/")[0] for path in moved}
    frozen = phase.shapes | jax.eval_shape(phase.held, phase.base | phase.told)
    leaves = {path: x for path, x in (frozen | phase.state).items() if path not in changed}
    learning = {path: x for path, x in (frozen | phase.state).items() if path in changed}
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype), {"inputs": dict(phase.example), **parts}
    )
    unknown = learning, jax.ShapeDtypeStruct((), jnp.float32), jax.eval_shape(lambda: jax.random.key(0))

    def trace(batch, leaves, unknown):
        learning, moves, key = unknown

        def tag(place, x):
            # What a norm gives that follows its batch is of the batch, not of the example.
            x = x + moves.astype(x.dtype) if place.partition(":")[0] in norms else x
            return checkpoint_name(x, TAG + place) if isinstance(x, jax.Array) else x

        tree, state = {}, {}
        for path, x in (leaves | learning).items():
            (state if path in phase.state else tree)[path] = x
        loss = make_loss(_around(phase.model, _of_outputs(tag)), objective, phase.scores)
        value, (metrics, _) = loss(tree, state, batch, key)
        return value, metrics

    closed = jax.make_jaxpr(trace)(batch, leaves, unknown)
    graph = _Graph(closed.jaxpr)
    named = [jax.tree_util.keystr(at) for at, _ in jax.tree_util.tree_leaves_with_path(batch)]
    of_batch = dict(zip(graph.given, named, strict=False))  # the first arguments are those of the batch
    rows = graph.reached(of_batch)
    others = {f"['inputs']['{name}']" for name in drawn}
    unsure = graph.reached(
        [*graph.given[len(graph.given) - len(jax.tree.leaves(unknown)) :]]
        + [value for value, name in of_batch.items() if name in others]
    )
    known = [rows.intersection(one.makes) and not unsure.intersection(one.makes) for one in graph.operations]

    def left(stop=None):
        """How much of the known part is still done where one value is given, and the inputs that it reads."""
        needed, read = graph.needed(stop)
        asked = {of_batch.get(value) for value in read}
        reads = tuple(name for name in phase.example if f"['inputs']['{name}']" in asked)
        return sum(graph.operations[i].count for i in needed if known[i]), reads

    times = Counter(one.place for one in graph.operations)
    found = []
    for one, sure in zip(graph.operations, known, strict=True):
        if sure and one.place and times[one.place] == 1 and one.shapes[0].shape[:1] == (examples,):
            rest, reads = left(one.makes[0])
            found.append((rest, math.prod(one.shapes[0].shape), len(found), one, reads))
    if not found:
        return None
    rest, _, _, best, reads = min(found)
    everything = sum(graph.operations[i].count for i in graph.needed()[0])
    saved = (left()[0] - rest) / max(everything, 1)
    if saved < LEAST:
        return None
    (shape,) = best.shapes
    return Cut(best.place, jax.ShapeDtypeStruct((1, *shape.shape[1:]), shape.dtype), reads, saved)


class _Operation(NamedTuple):
    """What a traced function does in one place.

    Attributes:
        reads: Numbers of the values that it reads.
        makes: Numbers of those that it makes.
        shapes: Of these.
        count: Of its operations: two for each product of a matrix or a convolution, else one for each number it makes.
        place: Where a model may be cut here, as `Cut` has it; empty for nowhere.
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    shapes: tuple[Any, ...]
    count: float
    place: str


class _Graph:
    """The operations of a traced function on numbered values, those inside of recomputed blocks among them.

    Attributes:
        given: The values of its arguments.
        outs: Those of its results.
        operations: In the order in which they are done.
        made_by: The operation that makes a value, by its number.
    """

    def __init__(self, jaxpr: Jaxpr):
        self.operations: list[_Operation] = []
        self._next = count().__next__
        self.given = [self._next() for _ in jaxpr.invars]
        self.outs = self._add(jaxpr, self.given)
        self.made_by = {value: i for i, one in enumerate(self.operations) for value in one.makes}

    def _add(self, jaxpr, given, inside=False):
        values = dict(zip(jaxpr.invars, given, strict=True)) | {var: self._next() for var in jaxpr.constvars}

        def read(atoms):
            return [self._next() if isinstance(atom, Literal) else values[atom] for atom in atoms]

        for eqn in jaxpr.eqns:
            inner = list(jaxprs_in_params(eqn.params))
            if eqn.primitive.name in ("checkpoint", "remat2"):
                # It is given all keys, whether it draws or not. No value can be taken out of it.
                values |= dict(zip(eqn.outvars, self._add(inner[0], read(eqn.invars), inside=True), strict=True))
                continue
            makes = tuple(self._next() for _ in eqn.outvars)
            values |= dict(zip(eqn.outvars, makes, strict=True))
            name = eqn.params["name"] if eqn.primitive.name == "name" and not inside else ""
            place = name.removeprefix(TAG) if name.startswith(TAG) else ""
            shapes = tuple(var.aval for var in eqn.outvars)
            self.operations.append(_Operation(tuple(read(eqn.invars)), makes, shapes, operations(eqn), place))
        return read(jaxpr.outvars)

    def reached(self, values: Collection[int]) -> set[int]:
        """All values that depend on some values, these among them."""
        found = set(values)
        for one in self.operations:
            if found.intersection(one.reads):
                found.update(one.makes)
        return found

    def needed(self, stop: int | None = None) -> tuple[list[int], set[int]]:
        """The places of the operations that the results need where the value `stop` is given, and the values read."""
        found, read, todo = set(), set(), list(self.outs)
        while todo:
            value = todo.pop()
            if value == stop or value in read:
                continue
            read.add(value)
            if value in self.made_by and self.made_by[value] not in found:
                found.add(self.made_by[value])
                todo.extend(self.operations[self.made_by[value]].reads)
        return sorted(found), read
