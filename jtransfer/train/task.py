"""The types of what a run learns: data, a start and an objective, with everything checked and nothing compiled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from jtransfer import objectives
from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Joined, Stream
from jtransfer.methods import Adapted
from jtransfer.solvers.few_shot import Fit
from jtransfer.starts.inputs import Prepare
from jtransfer.starts.source import SourceTask
from jtransfer.starts.start import Start
from jtransfer.train.combine import Combine, mean
from jtransfer.train.measured import Evaluate
from jtransfer.tree import Tree


@dataclass(frozen=True)
class TaskData:
    """What a run reads, and what it is measured on.

    Attributes:
        stream: The batches.
        ready: From a batch of the stream to the batch that the loss takes, without what `told` adds. Of a single task
            it may also be given what makes the model's inputs of rows, or of images, in place of `prepare`. Without
            this it computes nothing by JAX, so that worker processes may call a copy of it.
        example: Shape and dtype of one example of each of the model's inputs.
        evaluate: From the adapted model to the function that measures it on the held-out examples.
        parts: Shape and dtype of one example of what a batch has beside `inputs`; of several tasks, of all that the
            batch of each has, by task. Empty for pairs.
        solve: From a solver and the leaves of the backbone to a head at its optimum on the rows that are trained on, as
            `solved.head` returns it. None for pairs, for several tasks, and where the method solves for no head.
        source: The task that the backbone comes from; None where the config names none.
        prepare: Makes the model's inputs of the stream's, of pairs those of images; None for several tasks.
        told: From a batch of the stream to what frozen models say of it, as parts of the batch that the loss takes;
            None where none are asked.
    """

    stream: Stream | PairStream | Joined
    ready: Callable[..., dict[str, Any]]
    example: Mapping[str, jax.ShapeDtypeStruct]
    evaluate: Callable[[Adapted], Evaluate]
    parts: Mapping[str, Any] = field(default_factory=dict)
    solve: Callable[[Fit, Tree], tuple[Tree, dict[str, float]]] | None = None
    source: SourceTask | None = None
    prepare: Prepare | None = None
    told: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Task:
    """What a run learns.

    Attributes:
        data: What the run reads.
        start: The model before the first step.
        objective: What is learned; of several tasks, by name.
        combine: Makes one gradient of the gradients of several tasks.
        accumulate: Number of parts of a batch whose gradients are averaged; 1 for pairs, whose objective embeds the
            parts itself.
    """

    data: TaskData
    start: Start
    objective: objectives.Objective | Mapping[str, objectives.Objective]
    combine: Combine = mean
    accumulate: int = 1

    @property
    def objectives(self) -> tuple[objectives.Objective, ...]:
        """The objective of every task, in their order."""
        return tuple(self.objective.values()) if isinstance(self.objective, Mapping) else (self.objective,)
