"""What the frozen layers of a run make of the rows that it trains on: computed once, before the first step."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Joined, Rows, Stream
from jtransfer.devices import sharding
from jtransfer.methods import Adapted
from jtransfer.starts.inputs import Arrays, Prepare, gathered, of_all
from jtransfer.train import cut
from jtransfer.train.phases import Plan
from jtransfer.train.task import Task
from jtransfer.tree import Tree


def cuts(
    task: Task, adapted: Adapted, plan: Plan, batch: int, mesh: Mesh, cache: int, name: str
) -> list[cut.Cut | None]:
    """For each phase where its model is cut, so that training reads what lies before from a cache; None for nowhere.

    A model is cut where the inputs of a row are the same whenever it comes, and where more rows are trained on than
    there are: else each is read once, and there is nothing to gain.

    Args:
        task: What is learned.
        adapted: The model under the method.
        plan: Steps of each phase.
        batch: Number of examples in a step.
        mesh: The devices.
        cache: MiB that may be taken at each cut.
        name: Of the method.
    """
    stream = task.data.stream
    if isinstance(stream, Joined) or stream.rows is None or not cache:
        return [None] * len(adapted.phases)
    drawn = task.data.example.keys() - set(_names(stream, task.data.prepare))  # the texts of images
    found = cut.cuts(adapted, task.objective, task.data.parts, sharding.batch_parts(mesh), drawn)
    rows, reads = len(stream.rows), Counter()
    for one, steps in zip(found, plan.steps, strict=True):
        reads[one] += steps * batch
    return cut.fitting([one if reads[one] > rows else None for one in found], rows, cache, name)


def about(task: Task, cuts: Sequence[cut.Cut | None]) -> list[str]:
    """A sentence on each cut."""
    return [
        f"what frozen layers make of {len(task.data.stream.rows)} rows, up to {one.shown}, is computed once: "
        f"{one.bytes * len(task.data.stream.rows) / 2**20:.1f} MiB"
        for one in dict.fromkeys(cuts)
        if one
    ]


class Activations:
    """What lies before a cut, of every row that is trained on. Call it with `Rows` of the inputs of the stream.

    Attributes:
        one: The cut.
        prepare: Makes the model's inputs.
        values: `[rows of the stream, ...]`, whole in every process.
        places: Where a row of the stream's inputs stands in `values`.
    """

    def __init__(self, one: cut.Cut, stream: Stream | PairStream, prepare: Prepare, values: np.ndarray):
        self.one, self.prepare, self.values = one, prepare, values
        self.reads = [name for name in _names(stream, prepare) if name in one.reads]
        self.places = np.zeros(len(stream.inputs), int)
        self.places[stream.rows] = np.arange(len(values))

    def __call__(self, rows: Any) -> Arrays:
        """The inputs of what lies behind the cut, by name, of some rows."""
        found = {self.one.place: self.values[self.places[rows.rows]]}
        inputs = gathered(self.prepare, rows, np.arange(len(rows))) if self.reads else {}
        return found | {name: inputs[name] for name in self.reads}


def read(task: Task, phase: Adapted, one: cut.Cut, base: Tree, batch: int, mesh: Mesh) -> Activations:
    """Compute what lies before a cut.

    Args:
        task: What is learned.
        phase: The model under the method, in the phase that is cut.
        one: Where.
        base: Leaves and statistics of the backbone, laid out on the mesh.
        batch: Number of examples that are read at once, over all devices.
        mesh: The devices.
    """
    first = jax.jit(cut.before(phase, one), out_shardings=sharding.everywhere(mesh))
    stream, prepare = task.data.stream, task.data.prepare
    inputs = Rows(stream.inputs, stream.rows)
    return Activations(one, stream, prepare, of_all(lambda x, _: first(base, x), inputs, prepare, batch, mesh))


def _names(stream, prepare):
    """The inputs of a model that are made of a stream's rows."""
    return list(prepare(stream.inputs[np.arange(1)]))
