"""What a protocol works on: a dataset split three ways, a backbone, and its features, which come from the store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jtransfer import starts
from jtransfer.checkpoints import Backbone
from jtransfer.data.damage import check_whole
from jtransfer.data.dataset import fingerprint_of_inputs
from jtransfer.data.sources import Dataset
from jtransfer.data.splits import by_class
from jtransfer.errors import InputError
from jtransfer.evaluate.features import extract, of_preprocessing, outputs_of, widths_of
from jtransfer.evaluate.store import FeatureOrigin, FeatureStore
from jtransfer.solvers import checks
from jtransfer.starts.inputs import Prepare

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads features of any dataset by one backbone: from the store, or in one pass over the data for what it lacks.

    Attributes:
        backbone: The backbone whose features are read.
        prepare: Makes the backbone's inputs of rows of a dataset.
        store: Where features are kept.
        batch: Rows at a time.
        axes: Names and sizes of the mesh's axes; None for all devices on one axis.
        progress: Called as `progress(what, done, rows)`.
    """

    backbone: Backbone
    prepare: Prepare
    store: FeatureStore
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

            def keep(rows, part):
                for layer, values in part.items():
                    self.store.write_part(origins[layer], rows, values)

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
        """Refuse layers that the backbone does not have, and damaged rows if any layer is still to be extracted.

        Raises:
            InputError: with the nearest layer that it has, or the names of damaged rows.
        """
        widths_of(self.backbone, layers, self.prepare(dataset.inputs[np.arange(1)]))
        if any(self.store.read(self.origin(dataset, layer)) is None for layer in layers):
            check_whole(dataset, np.arange(len(dataset.inputs)))

    def origin(self, dataset: Dataset, layer: str) -> FeatureOrigin:
        """What the features of a layer are of."""
        return FeatureOrigin(
            weights=self.backbone.fingerprint,
            preprocessing=of_preprocessing(dataset.inputs, self.prepare),
            layer=layer,
            data=fingerprint_of_inputs(dataset),
            rows=len(dataset.inputs),
        )


@dataclass(frozen=True, eq=False)
class TargetTask:
    """What a protocol may look at.

    Attributes:
        dataset: The inputs, labels and names of classes; None where all protocols are `OF_TABLES`.
        train: Rows to fit on.
        validation: Rows to choose on, none of them in `train`.
        held_out: How the validation rows were set aside, in words.
        reader: Reads features by the backbone.
        layers: Names of the layers that are evaluated.
        options: How the backbone was loaded, for a protocol that loads another.
        data_dir: Where prepared datasets lie, for a protocol that reads another.
        also: What protocols have read beside the task, by its contents: each adds to it when it is put on.
    """

    dataset: Dataset | None
    train: np.ndarray
    validation: np.ndarray
    held_out: str
    reader: Reader
    layers: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str = ""
    also: list[str] = field(default_factory=list)

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

    def features_of(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Features `[some, width]` of some rows `[some]`, for a protocol that needs no others."""
        return self.features(layer)[0][rows]

    def seen_by(self, name: str) -> "TargetTask":
        """This task with the features of another backbone, at its main revision; other options are of both."""
        options = {key: value for key, value in self.options.items() if key not in starts.OF_ONE}
        backbone, prepare = starts.load_for(name, options, self.dataset, tower=False)
        return replace(self, reader=replace(self.reader, backbone=backbone, prepare=prepare))


def split(dataset: Dataset, share: float) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows to fit on and rows to choose on, class by class, and how they came about.

    What is rare is fitted on: a class with a single row, and of several labels a row those that few rows have, or few
    lack.

    Args:
        dataset: Whose pool is split.
        share: The share of each class that is set aside, rounded to one row at least.

    Raises:
        InputError: a share that leaves nothing on a side, a class without rows, or no test rows; of several labels a
            row, none that differs both among the rows to fit on and among those to choose on.
    """
    if not 0 < share < 1:
        raise InputError(f"config.validation is {share}; expected a share between 0 and 1")
    if not len(dataset.test):
        raise InputError(f"dataset {dataset.name}: the test split is empty; expected at least one row")
    what = f"dataset {dataset.name}: training and validation"
    if dataset.labels.ndim > 1:
        return _split_several(dataset, share)
    checks.shots(dataset.labels[dataset.pool], 1, what, len(dataset.classes))
    kept, single = [], 0
    for label, own in by_class(dataset.labels, dataset.pool):
        rows = np.random.default_rng([0, label]).permutation(own)
        kept.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
        single += len(rows) == 1
    validation = np.sort(np.concatenate(kept))
    if not len(validation):
        raise InputError(f"{what}: every class has a single row; expected a class with two, one of them to choose on")
    how = f"{share:.0%} of each class of the training rows, drawn with seed 0"
    if single:
        how += f" (nothing of the {single} with a single row)"
    return np.setdiff1d(dataset.pool, validation), validation, how


def _split_several(dataset, share):
    rows = np.random.default_rng(0).permutation(dataset.pool)
    count = max(1, round(share * len(rows)))
    chosen_on = np.arange(len(rows)) < count
    labels = dataset.labels[rows]
    moved = 0
    for column in labels.T:
        for value in (0, 1):
            own = column == value
            if own.any() and not own[~chosen_on].any():
                chosen_on[np.flatnonzero(own)[-1]] = False
                moved += 1
    train, validation = np.sort(rows[~chosen_on]), np.sort(rows[chosen_on])
    if not np.all([np.ptp(dataset.labels[part], axis=0) for part in (train, validation)], axis=0).any():
        raise InputError(  # there is no AUROC to choose by
            f"dataset {dataset.name}: no label is 0 in some rows and 1 in others, both of the {len(train)} to fit on "
            f"and of the {len(validation)} to choose on; config.validation={share} may be too small"
        )
    how = f"{share:.0%} of the training rows, drawn with seed 0"
    if moved:
        how += f" ({moved} of them fitted on instead, as no other row has their label)"
    return train, validation, how
