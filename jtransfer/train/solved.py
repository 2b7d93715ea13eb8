"""The head that a run starts with where its method solves for one, as `logistic >> finetune`: LP-FT with the optimum.

The solver reads features of the frozen backbone, of all rows that are trained on. What it has to choose, as the penalty
of a logistic regression, is chosen by the metric on a tenth of these rows, which are fitted no more in the head than
the examples that are held out; the steps that follow train on all of them.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer.data.splits import stratified
from jtransfer.data.streams import Stream
from jtransfer.devices import hosts, sharding
from jtransfer.errors import InputError
from jtransfer.methods.method import SOLVED
from jtransfer.models import apply
from jtransfer.objectives.metrics import Metric
from jtransfer.solvers.few_shot import Fit
from jtransfer.starts.inputs import Prepare, gathered
from jtransfer.tree import Tree

PART = 10
"""Of so many rows one chooses the hyper-parameters."""


def check(name: str, fit: Fit, stream: Any) -> None:
    """Refuse data on which no head can be solved for.

    Args:
        name: Of the method.
        fit: Its solver.
        stream: What is trained on.

    Raises:
        InputError: data of another kind than one class a row, without an end, or with too few rows of a class.
    """
    if not isinstance(stream, Stream) or stream.targets != "classes":
        raise InputError(f"config.method '{name}' solves for a head of one class a row, which {stream.name} has not")
    if stream.pool is None:
        raise InputError(
            f"config.method '{name}' solves for a head on all rows, and {stream.name} has no end; begin with a method "
            "that is trained, as 'probe >> finetune'"
        )
    train, _ = _split(stream.pool[1])
    counts = np.bincount(stream.pool[1][train], minlength=len(stream.classes))
    if (few := int(counts.argmin())) is not None and counts[few] < fit.least:
        raise InputError(
            f"config.method '{name}' solves for a head, which needs {fit.least} rows of each class; class "
            f"'{stream.classes[few]}' of {stream.name} has {counts[few]} to fit"
        )


def head(
    stream: Stream,
    prepare: Prepare,
    metric: tuple[str, Metric],
    module: nn.Module,
    mesh: Mesh,
    batch: int,
    fit: Fit,
    base: Tree,
) -> tuple[Tree, dict[str, float]]:
    """A linear head at the optimum of a solver.

    Args:
        stream: Which `check` accepts.
        prepare: Makes the model's inputs of its inputs.
        metric: Chooses hyper-parameters; with its name.
        module: The backbone without a head.
        mesh: The devices.
        batch: Examples at once, over all devices.
        fit: The solver.
        base: Leaves and statistics of the backbone, laid out on the mesh.

    Returns:
        `head/kernel [width, classes]` and `head/bias [classes]`, float32, alike in all processes; and what was chosen
        and by which value of the metric, as metrics of a row.

    Raises:
        InputError: features of which no finite head comes.
    """
    inputs, labels = stream.pool
    features = _features(prepare, module, mesh, batch, base, inputs)
    train, validation = _split(labels)
    draws = [(rows[None], np.ones((1, len(rows)), np.float32)) for rows in (train, validation)]
    name, measure = metric
    found = fit.call(features, labels, len(stream.classes), *draws, measure)
    leaves = [np.asarray(x[0], np.float32) for x in (found.kernels, found.biases)]
    if not all(np.isfinite(x).all() for x in leaves):
        raise InputError(f"config.method: the head that is solved for on {stream.name} is not finite")
    about = {**found.chosen[0], name: float(found.values[0])}
    return dict(zip(SOLVED, hosts.as_the_first(leaves), strict=True)), {f"solved_{key}": x for key, x in about.items()}


def _split(labels):
    """Rows to fit on, and rows to choose on: each class in its proportion, the same every time."""
    rows = np.arange(len(labels))
    validation = stratified(labels, rows, max(1, len(labels) // PART))
    return np.setdiff1d(rows, validation), validation


def _features(prepare, module, mesh, batch, base, inputs):
    """Features `[rows, width]` of all inputs, float32, whole in every process."""
    own, count = sharding.rows(mesh, batch), len(inputs)

    @jax.jit
    def read(base, inputs):
        features = apply(module, base, inputs, train=False)["features"].astype(np.float32)
        return jax.lax.with_sharding_constraint(features, sharding.everywhere(mesh))

    found = []
    for first in range(0, count, batch):
        rows = np.minimum(first + own, count - 1)  # the last block is filled up, so that one program serves
        found.append(np.asarray(read(base, sharding.assemble(gathered(prepare, inputs, rows), batch, mesh))))
    return np.concatenate(found)[:count]
