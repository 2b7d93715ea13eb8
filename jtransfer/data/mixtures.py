"""Several datasets as one, of which each position of a batch has a row of one, by weights.

    config.data = "0.7*tfds:photographs + 0.3*folder:DIR"

Weights count by their ratios. In every `BLOCK` positions of the training each dataset has its share, to a row, in an
order shuffled by the seed; its own rows come in epochs of their own. So the row at a position follows from the seed and
the position alone, whatever was read before.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

from jtransfer.data.dataset import FOUND, Dataset, Images, Lazy, fingerprint
from jtransfer.data.subsets import Epochs, epochs
from jtransfer.errors import InputError

BLOCK = 1 << 16
"""Positions in which every dataset has its share."""

LEAST = 1e-3
"""The least share of a dataset: less than a row in a thousand is a mistake in the weights."""

WEIGHT = r"\s*(\d+\.?\d*|\.\d+)\s*\*\s*"


def parse(name: str) -> tuple[tuple[float, str], ...]:
    """The weights and names of the datasets in the name of a mixture; empty for any other name.

    >>> parse("3*digits + 1*npz:a.npz")
    ((3.0, 'digits'), (1.0, 'npz:a.npz'))

    Raises:
        InputError: a single dataset, one that stands there twice, or one with less than `LEAST` of the weights.
    """
    if not re.match(WEIGHT, name):
        return ()
    parts = re.split(rf"\s\+(?={WEIGHT})", name)  # split also returns what the weight's group matched
    found = tuple((float(weight), own.strip()) for weight, own in map(_weighted, parts[::2]))
    names, whole = [own for _, own in found], sum(weight for weight, _ in found)
    if len(found) < 2:
        raise InputError(f"config.data: {name} mixes one dataset; expected two, as '0.7*digits + 0.3*npz:FILE'")
    if twice := [own for own in names if names.count(own) > 1]:
        raise InputError(f"config.data: {name} has {twice[0]} twice; expected each dataset once")
    if small := [own for weight, own in found if not weight >= LEAST * whole or not whole]:
        raise InputError(f"config.data: {name}: expected at least {LEAST:g} of all weights for {small[0]}")
    return found


def _weighted(part):
    weight = re.match(WEIGHT, part)
    return weight[1], part[weight.end() :]


def joined(name: str, weights: Sequence[float], datasets: Sequence[Dataset]) -> Dataset:
    """The rows of all datasets, one after the other; the test rows are those of the first.

    Args:
        name: Of the mixture.
        weights: One for each dataset.
        datasets: Of one kind and with the same classes.

    Raises:
        InputError: datasets that differ in their kind, what they are labelled with, or their classes; or images of
            several shapes that are kept as arrays.
    """
    first = datasets[0]
    for own in datasets[1:]:
        for what, one, other in (
            ("holds", f"{first.kind}s", f"{own.kind}s"),
            ("has", FOUND[first.targets], FOUND[own.targets]),
            ("has labels of the shape", [*first.labels.shape[1:]], [*own.labels.shape[1:]]),
            ("has", *_classes(first.classes, own.classes)),
        ):
            if one != other:
                raise InputError(
                    f"config.data: {own.name} {what} {other}, {first.name} {one}; a mixture is of one kind"
                )
    ends = [*accumulate(len(own.labels) for own in datasets)]
    starts = [0, *ends[:-1]]
    identity = "\n".join(map(fingerprint, datasets))
    described = [own.captions for own in datasets]
    return replace(
        first,
        name=name,
        inputs=_inputs([own.inputs for own in datasets], identity),
        labels=np.concatenate([own.labels for own in datasets]),
        pool=np.concatenate([own.pool + start for own, start in zip(datasets, starts, strict=True)]),
        note=" ".join(own.note for own in datasets if own.note),
        captions=None if None in described else _lazy(described, "\n".join(own.identity for own in described)),
        damaged={
            row + start: said for own, start in zip(datasets, starts, strict=True) for row, said in own.damaged.items()
        },
        parts=tuple(zip(map(float, weights), ends, strict=True)),
    )


def _classes(one, other):
    """The classes of two datasets in a few words, which differ where the classes do."""
    if one == other:
        return "", ""
    if len(one) != len(other):
        return f"{len(one)} classes", f"{len(other)} classes"
    place = next(i for i, both in enumerate(zip(one, other, strict=True)) if len({*both}) > 1)
    return f"'{one[place]}' as class {place}", f"'{other[place]}' as class {place}"


def _inputs(parts: Sequence[Any], identity: str) -> Lazy | Images:
    if any(isinstance(own, Lazy) for own in parts):
        return _lazy([own if isinstance(own, Lazy) else _bytes(own) for own in parts], identity)
    arrays = [own if isinstance(own, Images) else Images((own,)) for own in parts]
    if len(shapes := {own.shape[1:] for own in arrays}) > 1:
        one, other = (" x ".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise InputError(f"config.data: a mixture has arrays of {one} and of {other}; expected images of one shape")
    return Images(tuple(part for own in arrays for part in own.parts))


def _bytes(images: Any) -> Lazy:
    """An array of floats from 0 to 1, as images of bytes that are made when they are asked for."""
    return Lazy(len(images), lambda rows: list((np.asarray(images[rows]) * 255).round().astype(np.uint8)), "")


def _lazy(parts: Sequence[Lazy], identity: str) -> Lazy:
    ends = np.cumsum([len(own) for own in parts])

    def split(rows: np.ndarray) -> list[tuple[np.ndarray, int, int]]:
        """For each part with rows among these: their places, the part's number, and its first row."""
        of = np.searchsorted(ends, rows, side="right")
        return [(np.flatnonzero(of == i), i, int(ends[i]) - len(parts[i])) for i in np.unique(of).tolist()]

    def by_row(call: Callable[[Lazy], Callable]) -> Callable:
        def read(rows: np.ndarray) -> list:
            found: list = [None] * len(rows)
            for places, i, start in split(rows):
                for place, value in zip(places.tolist(), call(parts[i])(rows[places] - start), strict=True):
                    found[place] = value
            return found

        return read

    def damaged(rows: np.ndarray) -> dict[int, str]:
        rows, found = np.asarray(rows), {}
        for places, i, start in split(rows):
            found |= {row + start: said for row, said in parts[i].damaged(rows[places] - start).items()}
        return found

    files = by_row(lambda own: own.files) if all(own.files for own in parts) else None
    return Lazy(int(ends[-1]), by_row(lambda own: own.read), identity, damaged=damaged, files=files)


def order(dataset: Dataset, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """From the number of a step to the row numbers `[batch]` of its batch; see `epochs`, and above of a mixture.

    Raises:
        InputError: there are no rows, of one dataset or of all.
    """
    if not dataset.parts:
        return epochs(dataset.pool, batch, seed)
    weights, ends = map(np.array, zip(*dataset.parts, strict=True))
    of = np.searchsorted(ends, dataset.pool, side="right")
    pools = [dataset.pool[of == number] for number in range(len(ends))]
    each = tuple(epochs(own, 1, (seed, number)) for number, own in enumerate(pools))
    return Mixed(each, tuple((weights.cumsum() / weights.sum()).tolist()), batch, seed)


@dataclass(frozen=True, eq=False)
class Mixed:
    """Row numbers of the batch of any step of a mixture; `order` makes it.

    Attributes:
        each: The epochs of each dataset.
        shares: Sums of the shares of the datasets up to each.
        batch: Rows a step.
        seed: Of the order within a block.
    """

    each: tuple[Epochs, ...]
    shares: tuple[float, ...]
    batch: int
    seed: int
    _last: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __call__(self, step: int) -> np.ndarray:
        """Row numbers [batch] of a step."""
        first, last = step * self.batch, (step + 1) * self.batch
        numbers = range(first // BLOCK, (last - 1) // BLOCK + 1)
        return np.concatenate([self._block(b)[max(first - b * BLOCK, 0) : last - b * BLOCK] for b in numbers])

    def _block(self, block: int) -> np.ndarray:
        """The rows of a block. The last two are kept: a batch may have rows of both."""
        if block not in self._last:
            for old in [*self._last][:-1]:
                del self._last[old]
            before, after = self._drawn(block), self._drawn(block + 1)
            drawn = zip(self.each, before, after, strict=True)
            rows = np.concatenate([own.stretch(int(one), int(other)) for own, one, other in drawn])
            shuffled = np.random.default_rng([self.seed, len(self.each), block, BLOCK]).permutation(len(rows))
            of = np.repeat(np.arange(len(self.each)), after - before)[shuffled]
            # Each dataset's rows stay in the order of its epochs.
            self._last[block] = rows[np.argsort(np.argsort(of, kind="stable"))]
        return self._last[block]

    def _drawn(self, block: int) -> np.ndarray:
        """How many rows of each dataset come before a block."""
        ends = np.floor(np.array(self.shares) * (block * BLOCK)).astype(np.int64)
        ends[-1] = block * BLOCK
        return np.diff(ends, prepend=0)
