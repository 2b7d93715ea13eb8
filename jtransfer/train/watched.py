"""What a run measures on other data while it trains: protocols of `jtransfer evaluate`, on the model as it is.

A config names them as "PROTOCOL on DATA", as `few_shot(shots=(5, 10)) on tfds:cifar100`. Features are extracted over
the mesh of the run, and images are made as those of the model that the run leaves, so that `jtransfer evaluate` finds
the last number again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jtransfer import models
from jtransfer.checkpoints import Backbone
from jtransfer.data import sources
from jtransfer.data.damage import check_whole
from jtransfer.data.sources import Dataset
from jtransfer.data.streams import Rows
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.evaluate import protocols
from jtransfer.evaluate.features import of_tower
from jtransfer.evaluate.protocols.names import EMBEDS
from jtransfer.evaluate.task import split
from jtransfer.evaluate.zero_shot import fingerprint
from jtransfer.methods import Adapted
from jtransfer.starts import texts as of_scratch
from jtransfer.starts.inputs import (
    Arrays,
    Prepare,
    as_they_are,
    described_processor,
    of_all,
    prepare_for,
    texts_for,
    through,
    within,
)
from jtransfer.starts.start import Start
from jtransfer.train.measured import BLOCK, BYTES, Evaluate

VALIDATION = 0.1
"""Share of each class of the labelled rows on which a protocol chooses, as `jtransfer evaluate` has it by default."""
LAYER = "sentence_embedding"
"""The layer that is read where a model has it; `features` of any other, as by default in `jtransfer evaluate`."""
PROJECTION, SCALES = "vision_projection/kernel", "scales"


@dataclass(frozen=True)
class Watch:
    """A protocol on a dataset.

    Attributes:
        text: As the config has it.
        protocol: The protocol as `protocols.parse` takes it.
        dataset: The dataset.
        label: Name of the dataset in the names of metrics.
        prepare: Makes the model's inputs of the dataset's.
        rows: Rows to fit on, and rows to choose on; both empty where the protocol fits nothing.
        held_out: How the latter were set aside, in words.
    """

    text: str
    protocol: str
    dataset: Dataset
    label: str
    prepare: Prepare
    rows: tuple[np.ndarray, np.ndarray]
    held_out: str

    @property
    def name(self) -> str:
        """Of the metric, but for few shots, of which there may be several numbers."""
        return f"{self.label}_{re.match(r'[a-z_]+', self.protocol)[0]}"

    def named(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Metrics from rows of results: `cifar100_10shot` of few shots, else the first metric, as `cifar100_knn`."""
        (row,) = rows
        if not self.name.endswith("_few_shot"):
            return {self.name: next(iter(row["metrics"].values()))}
        return {f"{self.label}_{key.split()[2]}shot": value for key, value in row["metrics"].items()}

    def task(self, read: Callable[[str, np.ndarray], np.ndarray], names: Any) -> "WatchedTask":
        """The task that the protocol is put on; for the arguments see there."""
        return WatchedTask(self.dataset, *self.rows, self.held_out, (LAYER,), names, read)


@dataclass(frozen=True, eq=False)
class DualEncoder:
    """A dual encoder in training, as `zero_shot.text_classifier` takes a backbone.

    Attributes:
        name: For errors.
        config: The architecture.
        params: The scale and the bias of its logits, where it has them.
        texts: Makes the inputs of texts.
        embed: From these inputs to embeddings of length 1.
        fingerprint: Empty, as the weights change.
    """

    name: str
    config: models.Architecture
    params: Mapping[str, Any]
    texts: Callable[[Sequence[str]], Arrays]
    embed: Callable[[Arrays], np.ndarray]
    fingerprint: str = ""

    def preprocess(self, text: Sequence[str]) -> Arrays:
        """The inputs of texts."""
        return self.texts(text)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The embeddings of texts by the name of the output."""
        return {"text_embeds": self.embed(inputs)}


@dataclass(frozen=True, eq=False)
class WatchedTask:
    """What a protocol may look at, as `evaluate.task.TargetTask` has it, of a model in training.

    Attributes:
        dataset: The dataset.
        train: Rows to fit on.
        validation: Rows to choose on.
        held_out: How these were set aside, in words.
        layers: The one layer that is read.
        backbone: What reads the names of classes.
        read: From a layer and rows `[some]` to their features `[some, width]`.
        also: As of `TargetTask`.
    """

    dataset: Dataset
    train: np.ndarray
    validation: np.ndarray
    held_out: str
    layers: tuple[str, ...]
    backbone: Backbone | DualEncoder
    read: Callable[[str, np.ndarray], np.ndarray]
    also: list[str] = field(default_factory=list)

    @property
    def test(self) -> np.ndarray:
        """Rows that are tested on."""
        return self.dataset.test

    @cached_property
    def _all(self) -> np.ndarray:
        return self.read(self.layers[0], np.arange(len(self.dataset.inputs)))

    def features(self, *layers: str) -> list[np.ndarray]:
        """Features `[rows, width]` of all rows, for the one layer that there is."""
        return [self._all for _ in layers]

    def features_of(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Features `[some, width]` of some rows `[some]`; no others are read."""
        return self.read(layer, rows)


@dataclass(frozen=True, eq=False)
class Watched:
    """Everything that a run watches, checked before anything is compiled.

    Attributes:
        each: The protocols and their datasets.
        mesh: The devices.
        batch: Examples of a step, which bound how many are read at once.
        reader: What reads the names of classes, if it is not trained: a dual encoder, or a backbone that cannot.
        texts: Makes the inputs of texts, if those are trained on, and the model itself reads the names; else None.
    """

    each: tuple[Watch, ...]
    mesh: Mesh
    batch: int
    reader: Backbone
    texts: Callable[[Sequence[str]], Arrays] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over protocols and data."""
        return fingerprint([[one.text, sources.fingerprint(one.dataset)] for one in self.each])

    def beside(self, evaluate: Callable[[Adapted], Evaluate], adapted: Adapted) -> Evaluate:
        """Measure what `evaluate` does, and what is watched."""

        @partial(jax.jit, static_argnums=0, out_shardings=sharding.everywhere(self.mesh))
        def look(name, state, frozen, inputs):
            tree = adapted.ended(state.average, frozen) | state.state
            if name == SCALES:
                return {path: tree[path] for path in ("logit_scale", "logit_bias") if path in tree}
            outputs = of_tower(models.apply(adapted.model, tree, inputs, train=False))[1]
            if name == EMBEDS and EMBEDS not in outputs:  # of a tower of images, without the projection of the whole
                kernel = self.reader.params.get(PROJECTION)
                return outputs["features"] if kernel is None else outputs["features"].astype(jnp.float32) @ kernel
            return outputs[name if name in outputs else "features"].astype(jnp.float32)

        first = evaluate(adapted)

        def measure(state, frozen):
            found = first(state, frozen)
            for one in self.each:
                read = partial(self._read, one, lambda name, inputs: look(name, state, frozen, inputs))
                names = self.reader
                if one.name.endswith("_zero_shot"):
                    names = self.names(lambda name, inputs=None: jax.device_get(look(name, state, frozen, inputs)))
                found |= one.named(protocols.parse(one.protocol, protocols.WATCHED)(one.task(read, names))())
            return found

        return measure

    def names(self, look: Callable[..., Any] | None = None) -> Backbone | DualEncoder:
        """What reads the names of classes, by a model in training; None for one that is asked nothing yet."""
        if self.texts is None:
            return self.reader
        scales = look(SCALES) if look else {}
        return DualEncoder(
            self.reader.name, self.reader.config, scales, self.texts, partial(look or dict, "text_embeds")
        )

    def _read(self, one, look, layer, rows):
        """Features of some rows `[some, width]`, extracted over the mesh."""
        inputs, parts = Rows(one.dataset.inputs, rows), self.mesh.shape[self.mesh.axis_names[0]]
        most = min(self.batch, parts * within(one.prepare(inputs[np.arange(1)]), BLOCK, BYTES), len(rows))
        return of_all(
            lambda arrays, rows: look(layer, arrays), inputs, one.prepare, -(-most // parts) * parts, self.mesh
        )


def of(
    watch: Sequence[str],
    start: Start,
    *,
    options: Mapping[str, Any],
    data_dir: str,
    mesh: Mesh,
    batch: int,
    dual: Backbone | None = None,
    texts: Callable[[Sequence[str]], Arrays] | None = None,
) -> Watched:
    """What a config asks to watch.

    Args:
        watch: Texts of the form "PROTOCOL on DATA".
        start: The model before its first step.
        options: The section `load` of the config.
        data_dir: Where prepared datasets lie.
        mesh: The devices.
        batch: Examples of a step.
        dual: A dual encoder whose tower of images is trained on rows; None if there is none.
        texts: Makes the inputs of texts, of a model that is trained on pairs; None of any other.

    Raises:
        InputError: a text of another form, a protocol that is unknown or cannot be watched, data that cannot be read or
            do not fit the model or the protocol, or two metrics of one name.
    """
    inputs = start.module.config.inputs
    each, loaded = [], {}
    reader = dual or start.base
    found = Watched((), mesh, batch, reader, texts)
    for text in watch:
        try:
            protocol, on, name = text.partition(" on ")
            if not on:
                raise InputError(f"'{text}': expected PROTOCOL on DATA, as 'few_shot(shots=(10,)) on tfds:cifar100'")
            if "." in (called := protocol.partition("(")[0].strip()):
                raise InputError(f"protocol '{called}' is not watched; expected one of {', '.join(protocols.WATCHED)}")
            put_on = protocols.parse(protocol, protocols.WATCHED)
            name = name.strip()
            dataset = loaded[name] = loaded.get(name) or sources.load(name, data_dir)
            if {"image": "pixel_values", "text": "input_ids"}[dataset.kind] not in inputs:
                raise InputError(f"{name} holds {dataset.kind}s, the model takes {', '.join(inputs)}")
            if protocol.strip().startswith("zero_shot"):
                if not len(dataset.test):
                    raise InputError(f"{name} has no test rows")
                rows, how, read = (dataset.test[:0], dataset.test[:0]), "", dataset.test
            else:
                *rows, how = split(dataset, VALIDATION)
                read = np.arange(len(dataset.inputs))
            check_whole(dataset, read)
            one = Watch(
                text, protocol.strip(), dataset, label(name), _prepare(start, dataset, options), tuple(rows), how
            )
            put_on(one.task(_unread, found.names()))
        except InputError as error:
            raise type(error)(f"config.watch: {error}") from None
        each.append(one)
    names = [one.name for one in each]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(f"config.watch: two are called '{twice}' in the metrics; expected one")
    return replace(found, each=tuple(each))


def label(name: str) -> str:
    """The name of a dataset in the names of metrics.

    >>> label("tfds:oxford_iiit_pet:3.2.0?test=test[:100]"), label("npz:data/my digits.npz")
    ('oxford_iiit_pet', 'my_digits')
    """
    prefix, _, rest = name.partition("?")[0].partition(":")
    rest = rest.partition(":")[0] if prefix == "tfds" else rest or prefix
    last = rest.rstrip("/").rpartition("/")[2]
    return (
        re.sub(r"\W+", "_", re.sub(r"\.(npz|csv|tsv|jsonl|ndjson|parquet|tar|array_?record)$", "", last)).strip("_")
        or prefix
    )


def _prepare(start: Start, dataset: Dataset, options: Mapping[str, Any]) -> Prepare:
    """What makes the model's inputs of a dataset's, as the model that the run leaves will have it."""
    if dataset.kind == "text" and start.backbone is None and start.tokenizer:
        made, config = of_scratch.read_by(start.tokenizer, start.module.config), start.module.config
        what = f"architecture '{models.described(config)['architecture']}'"
        return texts_for(made, what, dataset, options.get("tokens", 0), joined=False)
    if dataset.kind == "text":
        return prepare_for(start.base, options, dataset)
    if start.preprocessor is None:
        return as_they_are(start.module, dataset)
    prepare = through(described_processor(start.preprocessor, start.module.config, "the model's own processor"))
    prepare(dataset.inputs[np.arange(1)])
    return prepare


def _unread(layer, rows):
    raise AssertionError("nothing is read before the first step")
