"""One pass of a model over all rows of a file: batches of few shapes, split over the devices, and their times."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import jax
import numpy as np

from jtransfer import models
from jtransfer.checkpoints import Backbone
from jtransfer.data.coded import take
from jtransfer.data.streams import ahead
from jtransfer.devices import sharding
from jtransfer.starts.batches import batches, separable
from jtransfer.starts.inputs import Prepare

Read = Callable[[Mapping[str, Any]], dict[str, jax.Array]]
"""From the outputs of a model to what is taken from the device, `[n, ...]` by name."""


@dataclass
class Clock:
    """Times of batches; the first batch of each shape, which is compiled, is counted apart.

    Attributes:
        begun: When the first pass began, in seconds.
        shapes: Shapes that were compiled.
        batches: Rows of each batch that came after the first of its shape, seconds in the model, and seconds since the
            batch before it.
    """

    begun: float = field(default_factory=time.perf_counter)
    shapes: set = field(default_factory=set)
    batches: list[tuple[int, float, float]] = field(default_factory=list)
    _last: float = 0.0

    def again(self) -> None:
        """A pass begins."""
        self._last = time.perf_counter()

    def batch(self, shape: Any, rows: int, seconds: float) -> None:
        """A batch is done."""
        now = time.perf_counter()
        if shape in self.shapes:
            self.batches.append((rows, seconds, now - self._last))
        self.shapes.add(shape)
        self._last = now

    def said(self, rows: int) -> str:
        """In words: all of it, and what a batch takes and how many rows come in a second once all is compiled."""
        whole = f"{rows} row{'s' * (rows != 1)} in {time.perf_counter() - self.begun:.1f} s, with compiling"
        shapes = f"{len(self.shapes)} shape{'s' * (len(self.shapes) != 1)}"
        if not self.batches:
            return f"{whole} ({shapes}); no batch was the second of its shape, so that no speed is told"
        most, (count, seconds, since) = max(own for own, _, _ in self.batches), zip(*self.batches, strict=True)
        return (
            f"{whole} ({shapes}); then {sum(count) / sum(since):,.1f} rows/s, and a batch of up to {most} rows takes "
            f"{1000 * median(seconds):.1f} ms (median of {len(seconds)}; slowest {1000 * max(seconds):.1f} ms)"
        )


def over(
    backbone: Backbone, inputs: Any, prepare: Prepare, read: Read, batch: int, clock: Clock, needs: Iterable[str] = ()
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """What a model says of all rows.

    Args:
        backbone: Run with its head, in evaluation mode.
        inputs: Indexed by rows.
        prepare: Makes the model's inputs.
        read: What is kept of the outputs.
        batch: Rows at once, over all devices; on the CPU no more than are worth it, and of texts see `starts.batches`.
        clock: Is told of every batch.
        needs: Outputs of the model without its head that `read` depends on, by name: where padding changes none of
            them, texts of about one length are read together.

    Yields:
        Numbers of rows, not in their order, and what was read `[rows, ...]`.
    """
    mesh = sharding.make_mesh({"data": -1})
    split, whole = sharding.batch_sharding(mesh), sharding.everywhere(mesh)
    program = jax.jit(lambda tree, arrays: read(models.apply(backbone.whole, tree, take(arrays, slice(None)))))
    tree = jax.device_put(backbone.params | backbone.state, whole)
    by_length = bool(needs) and separable(backbone, prepare, needs)
    made = batches(prepare, inputs, np.arange(len(inputs)), batch, sharding.batch_parts(mesh), by_length)
    clock.again()
    for rows, arrays in ahead((rows, jax.device_put(arrays, split)) for rows, arrays in made):
        shape, since = tuple(x.shape for x in jax.tree.leaves(arrays)), time.perf_counter()
        found = jax.device_get(program(tree, arrays))
        clock.batch(shape, len(rows), time.perf_counter() - since)
        yield rows, {name: x[: len(rows)] for name, x in found.items()}


def in_order(parts: Iterable[tuple[np.ndarray, Iterable[Any]]]) -> Iterator[Any]:
    """What was made of each row, from row 0 on, of parts in any order: numbers of rows, and something for each."""
    waiting, following = {}, 0
    for rows, made in parts:
        waiting |= dict(zip(rows.tolist(), made, strict=True))
        while following in waiting:
            yield waiting.pop(following)
            following += 1
