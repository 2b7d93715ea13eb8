"""The head that a run starts with where its method solves for one, as `logistic >> finetune`: LP-FT with the optimum.

The solver reads features of the frozen backbone for all rows that are trained on. A tenth of these rows chooses its
hyper-parameters by the metric, as the penalty of a logistic regression, and the head is fitted on the others. The steps
that follow train on all rows. `zero_shot` looks at no row: its head is what a text tower makes of the classes' names.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer.data.splits import stratified
from jtransfer.data.streams import Stream
from jtransfer.data.views import view
from jtransfer.devices import hosts, sharding
from jtransfer.errors import InputError
from jtransfer.models import apply
from jtransfer.objectives.metrics import Metric
from jtransfer.solvers.few_shot import Fit
from jtransfer.starts.inputs import Prepare, of_all
from jtransfer.train.by_names import EMBEDS, ClassNames
from jtransfer.tree import Tree

PART = 10
"""One row in this many chooses the hyper-parameters."""


def check(name: str, fit: Fit, stream: Any) -> None:
    """Refuse data on which no head can be solved for.

    Args:
        name: Name of the method.
        fit: The solver of the method.
        stream: The data that are trained on.

    Raises:
        InputError: data without one class a row, without an end, or with too few rows of a class to fit.
    """
    if not isinstance(stream, Stream) or stream.targets != "classes":
        raise InputError(f"config.method '{name}' solves for a head of one class a row, which {stream.name} has not")
    if not fit.least:
        return
    if stream.pool is None:
        raise InputError(
            f"config.method '{name}' solves for a head on all rows, and {stream.name} has no end; begin with a method "
            "that is trained, as 'probe >> finetune'"
        )
    train, _ = _split(stream.pool[1])
    counts = np.bincount(stream.pool[1][train], minlength=len(stream.classes))
    few = int(counts.argmin())
    if counts[few] < fit.least:
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
    names: ClassNames | None,
    fit: Fit,
    base: Tree,
) -> tuple[Tree, dict[str, float]]:
    """A linear head at the optimum of a solver.

    Args:
        stream: Data that `check` accepts.
        prepare: Makes the model's inputs of the stream's.
        metric: Name of the metric that chooses hyper-parameters, and the metric.
        module: The backbone without a head.
        mesh: The devices.
        batch: Number of examples that the backbone reads at once, over all devices.
        names: The names of the classes, where the head reads embeddings of images; None for one on features.
        fit: The solver.
        base: Leaves and statistics of the backbone, laid out on the mesh.

    Returns:
        `head/kernel [width, classes]`, `head/bias [classes]` and perhaps others of `fit.leaves`, float32, alike in all
        processes; and metrics of a row:
        the hyper-parameters that were chosen, as `solved_l2`, and the metric on the rows that chose them, as
        `solved_accuracy`.

    Raises:
        InputError: features that the solver refuses, as NaN, or a head that is not finite.
    """
    named = {"named": names.head} if fit.names else {}
    name, measure = metric
    if fit.least:
        inputs, labels = stream.pool
        read = partial(_features, prepare, module, mesh, batch, base, inputs, EMBEDS if names else "features")
        features = read()
        if fit.views:
            named["keys"] = read(fit.views, fit.flip) / fit.views
        draws = [(rows[None], np.ones((1, len(rows)), np.float32)) for rows in _split(labels)]
    else:
        features, labels, draws = None, None, [(np.zeros((1, 0)),) * 2] * 2
    found = fit.call(features, labels, len(stream.classes), *draws, measure, **named)
    leaves = {path: np.asarray(x[0], np.float32) for path, x in found.leaves.items()}
    if not all(np.isfinite(x).all() for x in leaves.values()):
        raise InputError(f"config.method: the head that is solved for on {stream.name} is not finite")
    about = {**found.chosen[0], name: float(found.values[0])} if fit.least else {}
    leaves = dict(zip(leaves, hosts.as_the_first([*leaves.values()]), strict=True))
    return leaves, {f"solved_{key}": x for key, x in about.items()}


def fitted(stream: Stream) -> int:
    """How many rows of a stream a head is fitted on; 0 if they have no end."""
    return 0 if stream.pool is None else (count := len(stream.pool[1])) - _choosing(count)


def _choosing(count):
    return max(1, count // PART)


def _split(labels):
    """Rows to fit on, and rows to choose on: each class in its proportion, the same every time."""
    rows = np.arange(len(labels))
    validation = stratified(labels, rows, _choosing(len(labels)))
    return np.setdiff1d(rows, validation), validation


def _features(prepare, module, mesh, batch, base, inputs, reads, views=0, flip=False):
    """Features `[rows, width]` of all inputs, float32, whole in every process; of views, their sum over all views."""

    def features(base, inputs):
        return apply(module, base, inputs, train=False)[reads].astype(np.float32)

    @jax.jit
    def read(base, inputs, rows):
        def of_view(number):
            images = view(inputs["pixel_values"], rows, number, flip)
            return features(base, inputs | {"pixel_values": images})

        found = jax.lax.map(of_view, np.arange(views)).sum(0) if views else features(base, inputs)
        return jax.lax.with_sharding_constraint(found, sharding.everywhere(mesh))

    return of_all(partial(read, base), inputs, prepare, batch, mesh)
