"""The task that a backbone comes from: its data, what predicts its classes, and what the weights mean to it."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import files
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.data.sources import open_stream
from jtransfer.data.splits import stratified
from jtransfer.data.streams import Stream
from jtransfer.devices import hosts
from jtransfer.errors import InputError
from jtransfer.methods import Adapted
from jtransfer.methods.fisher import FISHER, Fisher, Predict, make_sums
from jtransfer.models import Heads, apply
from jtransfer.models.heads import source_logits
from jtransfer.starts.inputs import Prepare, gathered, prepare_for
from jtransfer.starts.teachers import source_columns
from jtransfer.storage import directories
from jtransfer.tree import Tree, prefixed

log = logging.getLogger("jtransfer")

BLOCK, BYTES = 64, 1 << 28
"""Examples whose gradients lie side by side, at most, and bytes of these gradients."""
CONTENT = "fisher.safetensors"


@dataclass(frozen=True, eq=False)
class SourceTask:
    """A task that a backbone knows already.

    Attributes:
        backbone: As it was before it is transferred; of a dual encoder the tower that is.
        data: The data of the task.
        prepare: Makes the backbone's inputs of them.
        predict: See `Predict`.
        columns: `[classes]`, the output for each class of the data.
        what: What predicts, in words for a report.
        most: Held-out rows that accuracy is measured on, at most; 0 for all.
    """

    backbone: Backbone
    data: Stream
    prepare: Prepare
    predict: Predict
    columns: np.ndarray
    what: str
    most: int = 0

    @cached_property
    def held_out(self) -> dict[str, Any]:
        """Held-out examples: `inputs` by name `[n, ...]` and `labels [n]`."""
        _, inputs, labels = self.data.held_out
        rows = np.arange(len(labels))
        rows = stratified(labels, rows, self.most) if 0 < self.most < len(rows) else rows
        return {"inputs": gathered(self.prepare, inputs, rows), "labels": labels[rows]}

    def accuracy(self, model: nn.Module, tree: Tree, examples: Mapping[str, Any], block: int = 256) -> jax.Array:
        """Share of examples of `held_out` whose class is told, by a model that has the backbone's outputs; traceable.

        Args:
            model: The backbone under a method, whatever head it has.
            tree: Its leaves and statistics, those of the source head among them.
            examples: What `held_out` has.
            block: Examples that are read at once, at most.
        """

        def right(some):
            logits = self.predict(tree, apply(model, tree, some["inputs"], train=False))[:, self.columns]
            return logits.argmax(1) == some["labels"]

        count = -(-len(examples["labels"]) // block)
        if count == 1:
            return right(examples).mean()
        size = -(-len(examples["labels"]) // count)
        filled = jax.tree.map(lambda x: jnp.resize(x, (count, size, *x.shape[1:])), dict(examples))
        return jax.lax.map(right, filled).reshape(-1)[: len(examples["labels"])].mean()

    @cached_property
    def before(self) -> float:
        """The accuracy of the backbone as it was."""
        tree = self.backbone.params | self.backbone.state
        return float(jax.jit(lambda tree, some: self.accuracy(self.backbone.model, tree, some))(tree, self.held_out))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the data."""
        return self.data.fingerprint

    def told(self, adapted: Adapted) -> Tree:
        """What a method asks of this task, by the paths of `adapted.told`; read back where it was found before."""
        own = [path.removeprefix(FISHER) for path in adapted.told]
        return {path: leaf for ask in adapted.asks for path, leaf in prefixed(self.fisher(ask, own), FISHER).items()}

    def fisher(self, ask: Fisher, paths: Collection[str]) -> Tree:
        """The diagonal of the Fisher information of some leaves of the backbone, float32; see `methods.fisher`.

        It is kept in the user's cache under the fingerprints of data and backbone, and read from there again.

        Raises:
            InputError: it is not finite.
        """
        from safetensors.numpy import load, save

        about = asdict(ask) | {"data": self.data.fingerprint, "backbone": self.backbone.fingerprint}
        about |= {"predicts": self.what, "inputs": self.prepare.identity, "leaves": sorted(paths)}
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        directory = files.user_cache() / "fisher" / key
        if (directory / CONTENT).exists():
            try:
                directories.verify(directory)
                return load((directory / CONTENT).read_bytes())
            except (InputError, OSError, ValueError) as error:
                log.warning("%s; the Fisher information is found again", error)
        found = {path: np.asarray(leaf) for path, leaf in self._fisher(ask, paths).items()}
        if not all(np.isfinite(leaf).all() for leaf in found.values()):
            raise InputError(f"config.source: the Fisher information of {self.backbone.name} is not finite")
        if hosts.is_first():
            content = {CONTENT: save(found), "about.json": json.dumps(about, indent=2).encode()}
            directories.write_together(directory, content)
        return found

    def _fisher(self, ask, paths):
        tree = self.backbone.params | self.backbone.state
        trainable = {path: jnp.asarray(tree[path]) for path in paths}
        frozen = {path: leaf for path, leaf in tree.items() if path not in trainable}
        size = sum(leaf.size for leaf in trainable.values())
        block = max(1, min(BLOCK, BYTES // (4 * size)))
        add = jax.jit(make_sums(self.backbone.model, self.predict, ask.drawn), donate_argnums=0)
        sums, seen = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in trainable.items()}, 0
        for number, (inputs, labels, weights) in enumerate(self._blocks(ask.rows, block)):
            key = jax.random.fold_in(jax.random.key(ask.seed), number)
            sums = add(sums, trainable, frozen, inputs, self.columns[labels], weights, key)
            seen += int(weights.sum())
        return {path: leaf / seen for path, leaf in sums.items()}

    def _blocks(self, rows: int, block: int) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Prepared inputs, labels and weights of the first examples to train on, `block` at a time."""
        if self.data.pool is not None:
            inputs, labels = self.data.pool
            every = np.arange(len(labels))
            chosen = stratified(labels, every, rows) if rows < len(labels) else every
            batches = ((inputs, labels, part) for part in np.split(chosen, range(block, len(chosen), block)))
        else:
            batches = self._drawn(rows, block)
        for inputs, labels, part in batches:
            padded = np.resize(part, block)
            yield gathered(self.prepare, inputs, padded), labels[padded], np.float32(np.arange(block) < len(part))

    def _drawn(self, rows, block):
        left = rows
        for batch, _ in self.data.batches(0):
            count = min(left, len(batch["labels"]))
            for part in np.split(np.arange(count), range(block, count, block)):
                yield batch["inputs"], np.asarray(batch["labels"]), part
            if (left := left - count) <= 0:
                return


def of(
    name: str,
    data_dir: str,
    backbone: Backbone,
    options: Mapping[str, Any],
    most: int = 0,
    classifies: Callable[[tuple[str, ...]], Predict] | None = None,
    what: str = "the source head",
) -> SourceTask:
    """The source task of a name for a backbone.

    Args:
        name: Of its data, as `config.data` of a training takes it.
        data_dir: Where prepared datasets lie; empty for the environment's own place.
        backbone: With its own head, whose outputs have the names of the data's classes.
        options: Of the section `load` of a config; only `tokens` is read.
        most: As of `SourceTask`.
        classifies: From the names of the classes to a `Predict` of as many outputs, for a backbone without a head of
            its own, as a tower of a dual encoder; None for the head.
        what: As of `SourceTask`.

    Raises:
        InputError: no such data, without one class a row or of another kind than the backbone's; no head, or one that
            lacks a class.
    """
    try:
        data = open_stream(name, BLOCK, 0, data_dir=data_dir)
    except InputError as error:
        raise InputError(f"config.source: {error}") from None
    if data.targets != "classes":
        raise InputError(f"config.source: {data.name} has not one class a row, by which accuracy could be measured")
    prepare = prepare_for(backbone, options, data)
    if classifies is not None:
        every = np.arange(len(data.classes))
        return SourceTask(backbone, data, prepare, classifies(data.classes), every, what, most)
    head = backbone.head
    if head is None or isinstance(head, Heads) or head.kind != "classification":
        raise InputError(
            f"config.source: '{backbone.name}' has no head of classes, which would tell those of {data.name}; load it "
            "with its head, or leave config.source out"
        )
    columns = np.array(source_columns("config.source", data, backbone))
    skipped = backbone.config.prefix_tokens
    return SourceTask(
        *(backbone, data, prepare, lambda tree, outputs: source_logits(head, skipped, tree, outputs), columns),
        *(what, most),
    )
