"""Which rows a trial sees: few-shot draws, class-balanced where rows have classes, and the order of its batches."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jtransfer.data.dataset import targets
from jtransfer.data.splits import by_class
from jtransfer.errors import InputError


def validation_shots(shots: int) -> int:
    """Validation labels a class that go with `shots` training labels: as many, but four at most (VTAB's fifth)."""
    return min(shots, 4)


def most_shots(count: int) -> int:
    """The most shots that can be drawn of a class of `count` rows beside `validation_shots`; 0 of a single row."""
    return count - 4 if count >= 8 else count // 2


def validation_rows(shots: int) -> int:
    """Validation rows that go with `shots` training rows of data without one class a row: a quarter, one at least."""
    return max(1, shots // 4)


def few_shot(labels: np.ndarray, pool: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows with the same number of each class, drawn from the pool alone.

    Each class is shuffled once by `(seed, class)`; training takes its head and validation its tail. So for one seed
    the draws are nested (few shots are a subset of many), and what is validated on is never trained on. Where rows
    have several classes, numbers or no label, the whole pool is shuffled once by the seed instead.

    Args:
        labels: [n] integers 0..classes-1, all rows of the dataset; or other labels, as a `Dataset` has them.
        pool: [p] row numbers that may be drawn.
        shots: training rows a class; without one class a row, training rows altogether.
        seed: which draw.

    Returns:
        Train rows [classes * shots] and validation rows [classes * min(shots, 4)], class after class; without one
        class a row [shots] and [max(1, shots // 4)].

    Raises:
        InputError: `shots` is not positive, `seed` is negative, or the pool has too few rows, of a class or altogether.
    """
    if shots < 1:
        raise InputError(f"shots is {shots}; expected at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected 0 or more")
    if targets(labels) != "classes":
        return _of_all(pool, shots, seed)
    kept = validation_shots(shots)
    groups = dict(by_class(labels, pool))
    missing = next((label for label in range(int(labels.max()) + 1) if label not in groups), None)
    label = min(groups, key=lambda own: len(groups[own])) if missing is None else missing
    least = len(groups.get(label, ()))
    if least < shots + kept:
        raise InputError(
            f"shots is {shots}, but class {label} has {least} rows in the pool and "
            f"{shots} + {kept} are needed (training + validation); the most shots possible are {most_shots(least)}"
        )
    train, validation = [], []
    for label, own in groups.items():
        rows = np.random.default_rng([seed, label]).permutation(own)
        train.append(rows[:shots])
        validation.append(rows[-kept:])
    return np.concatenate(train), np.concatenate(validation)


def _of_all(pool, shots, seed):
    kept, count = validation_rows(shots), len(pool)
    if count < shots + kept:
        most = 4 * (count // 5) + min(count % 5, 3) if count > 4 else max(count - 1, 0)
        raise InputError(
            f"shots is {shots}, but there are {count} rows in the pool and {shots} + {kept} are needed (training + "
            f"validation); the most shots possible are {most}"
        )
    rows = np.random.default_rng([seed]).permutation(pool)
    return rows[:shots], rows[-kept:]


Order = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True, eq=False)
class Epochs:
    """Row numbers of the batch of any step; `epochs` makes it.

    Attributes:
        rows: [n] row numbers.
        batch: rows a step.
        seed: of the shuffles.
        order: as `epochs` takes it.
    """

    rows: np.ndarray
    batch: int
    seed: tuple[int, ...]
    order: Order
    _last: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __call__(self, step: int) -> np.ndarray:
        """Row numbers [batch] of a step."""
        return self.stretch(step * self.batch, (step + 1) * self.batch)

    def stretch(self, first: int, last: int) -> np.ndarray:
        """Row numbers [last - first] from one place to before another, counted in rows from the first epoch on."""
        size = len(self.rows)
        numbers = range(first // size, (last - 1) // size + 1)
        return np.concatenate([self._epoch(e)[max(first - e * size, 0) : last - e * size] for e in numbers])

    def _epoch(self, epoch: int) -> np.ndarray:
        """The rows as they are shuffled for an epoch. The last two are kept: a batch may have rows of both."""
        if epoch not in self._last:
            for old in [*self._last][:-1]:
                del self._last[old]
            draws = np.random.default_rng([*self.seed, epoch])
            self._last[epoch] = self.order(draws.permutation(self.rows), draws)
        return self._last[epoch]


def as_shuffled(rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """The rows of an epoch as they are."""
    return rows


def epochs(rows: np.ndarray, batch: int, seed: int | tuple[int, ...], order: Order = as_shuffled) -> Epochs:
    """Row numbers [batch] of any step, through shuffled epochs without end.

    Every row comes exactly once an epoch. Epochs run on across the borders of batches, so a batch may hold parts of
    two epochs, and may be larger than an epoch. Only the epochs in hand are ever shuffled.

    Args:
        rows: [n] row numbers.
        batch: rows a step.
        seed: an integer or several; epoch e is shuffled by `numpy.random.default_rng([*seed, e])`.
        order: from the shuffled rows of an epoch, and the generator that shuffled them, to these rows in their order.

    Raises:
        InputError: there are no rows, or `batch` is not positive.
    """
    if not len(rows):
        raise InputError("rows are empty; expected at least one row to make batches of")
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1")
    return Epochs(rows, batch, seed if isinstance(seed, tuple) else (seed,), order)


def batches(rows: np.ndarray, batch: int, steps: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """The row numbers of the first steps of `epochs`, [steps, batch] int64; `steps` may be 0.

    Raises:
        InputError: as `epochs`, or `steps` is negative.
    """
    if steps < 0:
        raise InputError(f"steps is {steps}; expected 0 or more")
    order = epochs(rows, batch, seed)
    return np.array([order(step) for step in range(steps)], dtype=np.int64).reshape(steps, batch)
