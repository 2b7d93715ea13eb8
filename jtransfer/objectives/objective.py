"""What an objective is: all that is learned of a batch, which a task joins to data and a start.

It says what the model sees, what its outputs are worth and how they are measured. The score never runs the model, so
that a method can add a term to it without a second forward pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax

from jtransfer import models
from jtransfer.data.answers import Answers
from jtransfer.models import Architecture, Head
from jtransfer.tree import Tree, flat

Batch = dict[str, Any]
Outputs = dict[str, Any]
Metrics = dict[str, jax.Array]

Score = Callable[[Tree, Outputs, Batch], tuple[jax.Array, Metrics]]
"""From all leaves, the model's outputs and the batch to the value that is minimised, and metrics.

A metric `WEIGHT` is what the batch counts beside others, where that is not the number of its examples: a mean over
tokens counts as many as there are tokens. It is not reported.
"""
WEIGHT = "weight"
CARRIED = "carried/"
"""Prefix, in the state of training, of what the model has kept of a batch for the one that goes on with its rows."""
Forward = Callable[[nn.Module, Tree, Tree, Any, jax.Array | None], tuple[Outputs, Tree]]
"""`forward(model, params, state, inputs, key) -> (outputs, state)`, flat trees in and out.

The key is that of dropout; that of an objective that `begins` is None in evaluation mode.
"""
Loss = Callable[[Tree, Tree, Batch, jax.Array], tuple[jax.Array, tuple[Metrics, Tree]]]
"""`loss(params, state, batch, key) -> (value, (metrics, state))`, what a training step takes."""


def forward(model: nn.Module, params: Tree, state: Tree, inputs: Any, key: jax.Array) -> tuple[Outputs, Tree]:
    """Run a model in training mode, once; `key` is that of dropout."""
    mutable = ["batch_stats"] if state else []
    outputs, updated = models.apply(model, params | state, inputs, train=True, rngs={"dropout": key}, mutable=mutable)
    return outputs, state | flat(updated)


def no_head(architecture: Architecture, outputs: int) -> None:
    """No head: the model as it is predicts what is learned."""


@dataclass(frozen=True)
class Objective:
    """What a run learns of a batch `{"inputs": one array or several by name, ...}`.

    Attributes:
        score: See `Score`.
        head: From the model's architecture and the number of classes or values of the data to the head that is put on
            the model, which learns; None for none.
        targets: From a key and a batch to the batch with what is asked of the model, as masked words are: in training
            with a new key each step, in evaluation with one that never changes. None where the data have it.
        augment: From a key and a batch to the batch that the model sees in training alone, as mixup does.
        forward: Runs the model; see `Forward`.
        measure: From the outputs in evaluation mode and their batch to metrics of every example, `[n]` each, whose
            means are reported. An entry `loss` chooses between equal metrics in a curve, which needs it; an entry
            `weight` is what each example counts in the means. None only for pairs, which are measured as a whole set.
        metrics: Names of what is measured of a whole set (see `metrics.METRICS`). The first chooses between runs, and
            is what a curve shows.
        reads: What the data must have: "classes" (one a row), "labels" (several a row), "values", "tags" (a class for
            every word, of which each token gets one, `[n, tokens]`), "spans" (where answers start and end), "texts" or
            "pairs".
        words: How a corpus becomes rows of words, of an objective that reads no text as a whole: a `NearWords` or a
            `Together`; None for texts as they are.
        answers: How a row becomes a prompt and an answer, whose tokens alone are the batch's `labels [n, tokens]`; None
            where rows are read as they are.
        limits: The least and the largest value of some leaves, by path, which every step keeps to.
        notice: From a row of training metrics to what is to be said of it, empty for nothing; it is said once.
        begins: From the model and a number of rows to leaves under `CARRIED`, as they are before the first batch.
            `forward` reads and writes them, as each row of a batch goes on in that row of the next one. None where
            every batch stands for itself.
    """

    score: Score
    head: Callable[[Architecture, int], Head | None] = no_head
    targets: Callable[[jax.Array, Batch], Batch] | None = None
    augment: Callable[[jax.Array, Batch], Batch] | None = None
    forward: Forward = forward
    measure: Callable[[Outputs, Batch], Metrics] | None = None
    metrics: tuple[str, ...] = ()
    reads: str = "classes"
    words: Any = None
    answers: Answers | None = None
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notice: Callable[[Mapping[str, float]], str] = lambda row: ""
    begins: Callable[[nn.Module, int], Tree] | None = None


def make_loss(
    model: nn.Module,
    objective: Objective | Mapping[str, Objective],
    scores: Callable[[Score], Score] = lambda score: score,
) -> Loss | dict[str, Loss]:
    """The loss of a model under an objective; of several tasks, the loss of each by name.

    Args:
        model: As a method adapts it.
        objective: What is learned; of several tasks, by name, each as `of_task` makes it.
        scores: What a method makes of the objective's score; of several tasks, of the score of each.
    """
    if isinstance(objective, Mapping):
        return {name: make_loss(model, own, scores) for name, own in objective.items()}
    score = scores(objective.score)

    def loss(params, state, batch, key):
        for change in filter(None, (objective.targets, objective.augment)):
            change_key, key = jax.random.split(key)
            batch = change(change_key, batch)
        outputs, state = objective.forward(model, params, state, batch["inputs"], key)
        value, metrics = score(params, outputs, batch)
        return value, ({"loss": value} | metrics, state)

    return loss


def begun(objective: Objective | Mapping[str, Objective], model: nn.Module, rows: int) -> Tree:
    """What an objective, or one of several, carries from batch to batch, as it is before the first; often nothing."""
    each = objective.values() if isinstance(objective, Mapping) else (objective,)
    return {path: leaf for one in each if one.begins for path, leaf in one.begins(model, rows).items()}


def outputs_of(task: str, outputs: Outputs) -> Outputs:
    """The outputs as if the head of a task were alone; as they are for "", where there is one head.

    {"features": f, "digits": {"logits": x}, "fonts": {"logits": y}}  ->  {..., "logits": x}  of "digits"
    """
    return outputs | outputs[task] if task else outputs


def of_task(name: str, objective: Objective) -> Objective:
    """An objective that reads the outputs of one of several heads as if it were alone: see `outputs_of`.

    Args:
        name: Of the task and its head.
        objective: What is learned with it.
    """

    def forward(model, params, state, inputs, key):
        outputs, state = objective.forward(model, params, state, inputs, key)
        return outputs_of(name, outputs), state

    def measure(outputs, batch):
        return objective.measure(outputs_of(name, outputs), batch)

    return replace(objective, forward=forward, measure=objective.measure and measure)
