"""What an arm of a curve is: one method, as a function from shots and seeds to rows of results, compiled once."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import models
from jtransfer.checkpoints import Backbone
from jtransfer.data.coded import Coded
from jtransfer.data.dataset import Dataset
from jtransfer.data.subsets import few_shot
from jtransfer.data.views import view
from jtransfer.methods import Adapted
from jtransfer.objectives.metrics import METRICS, Metric
from jtransfer.starts import inputs, teachers
from jtransfer.starts.batches import groups, rows_at_once, separable
from jtransfer.starts.source import SourceTask
from jtransfer.starts.teachers import Teacher
from jtransfer.storage.cells import ResultRow
from jtransfer.train import cut, trials
from jtransfer.train.costs import StepShapes
from jtransfer.tree import Tree

Cell = Callable[[int, list[int]], list[ResultRow]]
"""From a number of shots and some seeds to one row for each seed."""


@dataclass(frozen=True, eq=False)
class Examples:
    """A dataset, and those of its rows that a curve uses, made ready for its backbone when they are first needed.

    Attributes:
        dataset: The whole dataset.
        test: Rows of the test split that are reported on.
        rows: `[u]` all rows that are used, ascending.
        prepare: From inputs of the dataset to inputs of the backbone.
        shots: Numbers of shots that the curve has.
        metrics: The metrics by name; the first chooses hyper-parameters and is what the curve shows.
        more: Frozen models by name, as a teacher, whose outputs are more parts of a batch.
        source: The task that the backbone comes from, on which forgetting is measured; None where none is named.
        read: What `features` and `activations` have computed, beside that whose `id` is part of its key, which so is no
            other's: of the backbone, and of the interceptors that the model ran under.
        reading: Held while they are computed, as arms compile side by side.
    """

    dataset: Dataset
    test: np.ndarray
    rows: np.ndarray
    prepare: inputs.Prepare
    shots: tuple[int, ...]
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": METRICS["accuracy"]})
    more: Mapping[str, Teacher] = field(default_factory=dict)
    source: SourceTask | None = None
    read: dict[tuple[int, Any], tuple[Any, jax.Array]] = field(default_factory=dict)
    reading: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def on_device(self) -> dict[str, Any]:
        """The parts of a batch for `rows`: `inputs` by name `[u, ...]`, `labels [u, ...]` and those of `more`.

        Images are kept as bytes where all of their values are exactly those of bytes.
        """
        arrays = inputs.gathered(self.prepare, self.dataset.inputs, self.rows, coded=True)
        arrays: dict[str, jax.Array | Coded] = jax.device_put(arrays, may_alias=True)
        found = {"inputs": arrays, "labels": jnp.asarray(self.dataset.labels[self.rows])}
        for one in self.more.values():
            found |= jax.device_put(one(self.dataset.inputs, self.rows))
        return found

    def features(self, backbone: Backbone, reads: str = "features") -> jax.Array:
        """Features of a backbone for `rows`, `[u, d]` float32: computed once, whichever arms ask for them."""
        key = id(backbone), reads
        with self.reading:
            if key not in self.read:
                self.read[key] = backbone, self._features(backbone, reads)
            return self.read[key][1]

    def said(self) -> str:
        """What was read of the rows, and the bytes that it takes on the device."""
        size = sum(values.nbytes for _, values in self.read.values())
        return f"Computed once: {size / 2**20:.1f} MiB that frozen layers made of {len(self.rows)} rows" if size else ""

    def _features(self, backbone, reads):
        @jax.jit
        def read(tree, inputs):
            def features(some):
                return models.apply(backbone.model, tree, some)[reads]

            rows = np.arange(len(jax.tree.leaves(inputs)[0]))
            return trials.in_blocks(features, inputs, rows, rows_at_once(inputs, trials.BLOCK)).astype(jnp.float32)

        tree, arrays = backbone.params | backbone.state, self.on_device["inputs"]
        if not separable(backbone, self.prepare, (reads,)):
            return read(tree, arrays)
        tokens = np.asarray(arrays["attention_mask"]).sum(1)
        by_length = groups(tokens, self.prepare.tokens, lambda length: trials.BLOCK)
        parts = [
            read(tree, {name: x[rows, :length] for name, x in arrays.items()}) for length, rows in by_length.items()
        ]
        return jnp.concatenate(parts)[np.argsort(np.concatenate([*by_length.values()]))]

    def activations(self, backbone: Backbone, phase: Adapted, place: cut.Cut) -> jax.Array:
        """What a model makes of `rows` before a cut, `[u, ...]`: computed once, whichever arms ask for it.

        Features under no method are those of `features`, which fitted arms read too.

        Args:
            backbone: That the model starts from.
            phase: The model under a method, in the phase that is cut.
            place: Where it is cut.
        """
        if not phase.under and place.features and place.one.dtype == jnp.float32:
            return self.features(backbone)
        key = id(backbone), (place.place, *map(id, phase.under))
        with self.reading:
            if key not in self.read:
                self.read[key] = (backbone, phase.under), self._before(phase, place)
            return self.read[key][1]

    def _before(self, phase, place):
        @jax.jit
        def read(tree, inputs):
            first = partial(cut.before(phase, place), tree)
            return trials.in_blocks(first, inputs, np.arange(len(self.rows)), rows_at_once(inputs, trials.BLOCK))

        return read(phase.base, trials.read_by(phase, self.on_device["inputs"]))

    def views(self, backbone: Backbone, reads: str, count: int, flip: bool) -> jax.Array:
        """The mean over random views of what `features` gives, `[u, d]`; of test rows, which have none, zeros."""
        own = np.setdiff1d(np.arange(len(self.rows)), self.places(self.test))

        @jax.jit
        def read(tree, inputs, number):
            def features(some):
                images = view(some["inputs"]["pixel_values"], some["rows"], number, flip)
                return models.apply(backbone.model, tree, some["inputs"] | {"pixel_values": images})[reads]

            return trials.in_blocks(features, {"inputs": inputs, "rows": jnp.asarray(self.rows)}, own)

        tree = backbone.params | backbone.state
        total = sum(read(tree, self.on_device["inputs"], number).astype(jnp.float32) for number in range(count))
        return jnp.zeros((len(self.rows), total.shape[1])).at[own].set(total / count)

    @cached_property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of one example of each input, `[1, ...]`; only one row is made ready to tell them."""
        return inputs.example(self.prepare(self.dataset.inputs[self.rows[:1]]))

    def shapes(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of the inputs of `batch` examples."""
        return {name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in self.example.items()}

    @cached_property
    def cut(self) -> int:
        """How many texts among `rows` are longer than the backbone's inputs, and are cut; only of texts."""
        blocks = np.split(self.rows, range(inputs.BLOCK, len(self.rows), inputs.BLOCK))
        return sum(self.prepare.cut(self.dataset.inputs[rows]) for rows in blocks)

    @cached_property
    def parts(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of one example of the parts of a batch beside `inputs`."""
        return teachers.parts(self.dataset.labels, self.more.values(), self.dataset.inputs)

    @property
    def metric(self) -> Metric:
        """The metric that chooses hyper-parameters."""
        return next(iter(self.metrics.values()))

    def measured(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """All metrics of predictions and their labels, `[metrics]`."""
        weights = jnp.ones(len(logits), jnp.float32)
        return jnp.stack([metric(logits, labels, weights) for metric in self.metrics.values()])

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where rows of the dataset stand among `rows`."""
        return np.searchsorted(self.rows, rows)

    def drawn(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows for training and for validation stand among `rows`, for one number of shots and one seed."""
        train, validation = few_shot(self.dataset.labels, self.dataset.pool, shots, seed)
        return self.places(train), self.places(validation)

    @cached_property
    def most(self) -> tuple[int, int]:
        """The most rows for training, and for validation, that a draw has."""
        train, validation = few_shot(self.dataset.labels, self.dataset.pool, max(self.shots), 0)
        return len(train), len(validation)


class Training(NamedTuple):
    """A part of an arm's training.

    Attributes:
        name: Name of the part, as reports show it.
        adapted: The model under the method, in this part.
        shapes: The step of this part, and its shapes.
        merge: That of the method.
    """

    name: str
    adapted: Adapted
    shapes: StepShapes
    merge: Callable[[Tree], Tree] | None


class Arm(ABC):
    """One method of a curve.

    Attributes:
        name: Name of the method, as the config writes it.
        examples: The examples that it learns from.
        how: How it comes to its predictions, as a row says it: "trained", "solved" or "zero-shot".
        draws: Whether it sees labels; an arm that sees none has a single cell, at 0 shots.
    """

    name: str
    examples: Examples
    how: ClassVar[str]
    draws: ClassVar[bool] = True

    @abstractmethod
    def compile(self, seeds: int) -> Cell:
        """Compile the arm for cells of `seeds` seeds; then every cell is a call.

        The cell raises an `InputError` for features or heads that are not finite, where nothing is trained by steps.
        """

    @abstractmethod
    def about(self, rows: list[ResultRow]) -> list[str]:
        """What the rows of the arm say, as sentences of the protocol."""

    def phases(self) -> list[Adapted]:
        """The model under the method in each part of its training; empty where nothing is trained by steps."""
        return []

    def training(self) -> list[Training]:
        """The parts of the arm's training; empty where nothing is trained by steps."""
        return []

    def row(
        self,
        shots: int,
        seed: int,
        hyper: dict[str, float],
        chosen_by: float | None,
        measured: Any,
        trainable: int,
        flops: float | None,
        seconds: float,
        after: float | None = None,
    ) -> ResultRow:
        """A row of results.

        Args:
            shots: Number of shots.
            seed: Seed of the draw.
            hyper: The hyper-parameters that were chosen; empty where every trial diverged.
            chosen_by: The metric on the validation rows; None where there are none, or where every trial diverged.
            measured: The metrics on the test rows, in the order of `examples.metrics`; None where every trial diverged.
            trainable: Number of parameters that learn.
            flops: FLOPs of one training step, or of one forward pass where nothing is trained by steps.
            seconds: Seconds that one trial took.
            after: The accuracy on the source task at the end; None where the backbone is not there, or diverged.
        """
        name, metric = next(iter(self.examples.metrics.items()))
        values = [None] * len(self.examples.metrics) if measured is None else map(_defined, measured)
        return {
            "method": self.name,
            "how": self.how,
            "shots": shots,
            "seed": seed,
            "hyper": hyper,
            "metric": name,
            "better": "higher" if metric.higher else "lower",
            "unit": "%" if metric.share else "",
            **({} if self.examples.dataset.targets == "classes" else {"labels": "rows"}),
            f"val_{name}": chosen_by,
            **{f"test_{name}": value for name, value in zip(self.examples.metrics, values, strict=True)},
            "trainable": trainable,
            "flops_per_step": flops,
            "seconds": seconds,
            **({"source_before": source.before, "source_after": after} if (source := self.examples.source) else {}),
        }


def _defined(value) -> float | None:
    """A metric as a row has it: None where it is not defined, as a correlation with predictions that are all alike."""
    return None if np.isnan(value) else float(value)


def family(name: str) -> str:
    """What `hyper` calls a method: the function of its first part, as "houlsby" of `my_methods.houlsby(width=2)`."""
    return name.partition("(")[0].partition("+")[0].strip().rpartition(".")[2]
