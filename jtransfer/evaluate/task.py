"""What a protocol works on: a dataset split three ways, a backbone, and its features, which come from the store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jtransfer import checkpoints
from jtransfer.checkpoints import Backbone
from jtransfer.data import sources
from jtransfer.data.dataset import check_whole
from jtransfer.data.sources import Dataset
from jtransfer.errors import InputError
from jtransfer.evaluate import checks
from jtransfer.evaluate.features import Prepare, extract, of_preprocessing, widths_of
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

        Raises:
            InputError: an unknown layer, or an entry of the store that is of something else.
        """
        origins = {layer: self.origin(dataset, layer) for layer in layers}
        found = {layer: self.store.read(origin) for layer, origin in origins.items()}
        if missing := [layer for layer, values in found.items() if values is None]:
            what = f"{self.backbone.name} on {dataset.name}"
            made = extract(
                *(self.backbone, dataset.inputs, self.prepare, missing),
                batch=self.batch,
                axes=self.axes,
                progress=lambda done, rows: self.progress(what, done, rows),
            )
            for layer, values in made.items():
                self.store.write(origins[layer], values, backbone=self.backbone.name, dataset=dataset.name)
            found |= made
        for layer, values in found.items():
            checks.features(values, f"{layer} of {self.backbone.name} on {dataset.name}")
        return found

    def check(self, dataset: Dataset, *layers: str) -> None:
        """Refuse layers that the backbone does not have, and damaged rows if any layer is still to be extracted.

        Raises:
            InputError: with the nearest layer that it has, or the names of damaged rows.
        """
        widths_of(self.backbone, layers, self.prepare(dataset.inputs[np.arange(1)]))
        if any(self.store.read(self.origin(dataset, layer)) is None for layer in layers):
            check_whole(dataset, np.arange(len(dataset.inputs)))

    def origin(self, dataset: Dataset, layer: str) -> Origin:
        """What the features of a layer are of."""
        return Origin(
            weights=self.backbone.fingerprint,
            preprocessing=of_preprocessing(dataset.inputs, self.prepare),
            layer=layer,
            data=sources.fingerprint(dataset),
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
            labels a row, none that differs both among the rows to fit on and among those to choose on.
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
        if not np.all([np.ptp(dataset.labels[part], axis=0) for part in parts], axis=0).any():  # no AUROC to choose by
            raise InputError(
                f"dataset {dataset.name}: no label is 0 in some rows and 1 in others, both of the {len(parts[0])} to "
                f"fit on and of the {count} to choose on; config.validation={share} may be too small"
            )
        return *parts, f"{share:.0%} of the training rows, drawn with seed 0"
    checks.shots(labels, 2, f"dataset {dataset.name}: training and validation", len(dataset.classes))
    for label, members in enumerate(checks.members(labels, len(dataset.classes))):
        rows = np.random.default_rng([0, label]).permutation(dataset.pool[members])
        kept.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    validation = np.sort(np.concatenate(kept))
    how = f"{share:.0%} of each class of the training rows, drawn with seed 0"
    return np.setdiff1d(dataset.pool, validation), validation, how
