"""What a protocol works on: a dataset split three ways, a backbone, and its features, which come from the store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jtransfer import checkpoints
from jtransfer.checkpoints import Backbone
from jtransfer.data.dataset import fingerprint_of_inputs
from jtransfer.data.sources import Dataset
from jtransfer.errors import InputError
from jtransfer.evaluate import checks
from jtransfer.evaluate.features import Prepare, extract, of_preprocessing, outputs_of, widths_of
from jtransfer.evaluate.store import Origin, Store

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads features of any dataset by one backbone: from the store, or in one pass over the data for what it lacks.

    Attributes:
        backbone: Whose features.
        prepare: Makes its inputs of rows of a dataset.
        store: Where they are kept.
        batch: Rows at a time.
        axes: Of the mesh.
        progress: Called as `progress(what, done, rows)`.
    """

    backbone: Backbone
    prepare: Prepare
    store: Store
    batch: int = 256
    axes: Mapping[str, int] | None = None
    progress: Progress = lambda what, done, rows: None

    def __call__(self, dataset: Dataset, *layers: str) -> dict[str, np.ndarray]:
        """Features `[rows, width]` of a dataset by layer.

        What an interrupted pass kept is not extracted again; the batches are those that an uninterrupted one has.

        Raises:
            InputError: an unknown layer.
        """
        origins = {layer: self.origin(dataset, layer) for layer in layers}
        found = {layer: self.store.read(origin) for layer, origin in origins.items()}
        if missing := [layer for layer, values in found.items() if values is None]:
            what = f"{self.backbone.name} on {dataset.name}"

            def keep(start, part):
                for layer, values in part.items():
                    self.store.write_part(origins[layer], start, values)

            parts = {layer: self.store.read_parts(origins[layer]) for layer in missing}
            made = extract(
                *(self.backbone, dataset.inputs, self.prepare, missing),
                batch=self.batch,
                axes=self.axes,
                progress=lambda done, rows: self.progress(what, done, rows),
                known=None if any(part is None for part in parts.values()) else parts,
                keep=keep,
            )
            for layer, values in made.items():
                self.store.write(origins[layer], values, backbone=self.backbone.name, dataset=dataset.name)
            found |= made
        for layer, values in found.items():
            checks.features(values, f"{layer} of {self.backbone.name} on {dataset.name}")
        return found

    def default_layer(self, dataset: Dataset) -> str:
        """The layer that stands for a backbone: `sentence_embedding` of a sentence encoder, `features` of any other."""
        embedding = "sentence_embedding"
        outputs = outputs_of(self.backbone, self.prepare(dataset.inputs[np.arange(1)]))
        return embedding if embedding in outputs else "features"

    def check(self, dataset: Dataset, *layers: str) -> None:
        """Refuse layers that the backbone does not have.

        Raises:
            InputError: with the nearest that it has.
        """
        widths_of(self.backbone, layers, self.prepare(dataset.inputs[np.arange(1)]))

    def origin(self, dataset: Dataset, layer: str) -> Origin:
        """What the features of a layer are of."""
        return Origin(
            weights=self.backbone.fingerprint,
            preprocessing=of_preprocessing(dataset.inputs, self.prepare),
            layer=layer,
            data=fingerprint_of_inputs(dataset),
            rows=len(dataset.inputs),
        )


@dataclass(frozen=True, eq=False)
class Task:
    """What a protocol may look at.

    Attributes:
        dataset: With its inputs, labels and names of classes.
        train: Rows to fit on.
        validation: Rows to choose on, none of them in `train`.
        held_out: How those were set aside, in words.
        reader: Of features by the backbone.
        layers: Names of the layers that are evaluated.
        options: How the backbone was loaded, for a protocol that loads another.
        data_dir: Where prepared datasets lie, for a protocol that reads another.
    """

    dataset: Dataset
    train: np.ndarray
    validation: np.ndarray
    held_out: str
    reader: Reader
    layers: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str = ""

    @property
    def backbone(self) -> Backbone:
        """Whose features are evaluated."""
        return self.reader.backbone

    @property
    def test(self) -> np.ndarray:
        """Rows for the final report only."""
        return self.dataset.test

    @cached_property
    def all_layers(self) -> dict[str, np.ndarray]:
        """Features of every layer that is evaluated, from one pass."""
        return self.reader(self.dataset, *self.layers)

    def features(self, *layers: str) -> list[np.ndarray]:
        """Features `[rows, width]` of the layers of these names, for all rows of the dataset."""
        others = [layer for layer in layers if layer not in self.layers]
        found = self.reader(self.dataset, *others) if others else {}
        return [found[layer] if layer in found else self.all_layers[layer] for layer in layers]

    def seen_by(self, name: str) -> "Task":
        """The same data by another backbone, loaded with the same options."""
        backbone, prepare = checkpoints.load_for(name, self.options, self.dataset, tower=False)
        return replace(self, reader=replace(self.reader, backbone=backbone, prepare=prepare))


def split(dataset: Dataset, share: float) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows to fit on and rows to choose on, class by class, and how they came about.

    Args:
        dataset: Whose pool is split.
        share: Of each class (rounded, one at least) that is set aside.

    Raises:
        InputError: a share that leaves nothing on a side, a class with fewer than two rows, or no test rows; of several
            labels a row, one that all rows to fit on have, or none.
    """
    if not 0 < share < 1:
        raise InputError(f"config.validation is {share}; expected a share between 0 and 1")
    if not len(dataset.test):
        raise InputError(f"dataset {dataset.name}: the test split is empty; expected at least one row")
    kept = []
    labels = dataset.labels[dataset.pool]
    if labels.ndim > 1:  # several labels a row
        rows = np.random.default_rng(0).permutation(dataset.pool)
        count = max(1, round(share * len(rows)))
        parts = np.sort(rows[count:]), np.sort(rows[:count])
        what = f"dataset {dataset.name}: labels of the rows to"
        checks.targets(dataset.labels[parts[0]], len(parts[0]), f"{what} fit on")
        if not np.ptp(dataset.labels[parts[1]], axis=0).any():  # AUROC of no class is there to choose by
            raise InputError(f"{what} choose on are all the same; expected a class that some have and some have not")
        return *parts, f"{share:.0%} of the training rows, drawn with seed 0"
    checks.shots(labels, 2, f"dataset {dataset.name}: training and validation", len(dataset.classes))
    for label in range(len(dataset.classes)):
        rows = np.random.default_rng([0, label]).permutation(dataset.pool[labels == label])
        kept.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    validation = np.sort(np.concatenate(kept))
    how = f"{share:.0%} of each class of the training rows, drawn with seed 0"
    return np.setdiff1d(dataset.pool, validation), validation, how
