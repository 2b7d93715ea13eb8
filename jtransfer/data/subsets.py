"""Which rows a trial sees: class-balanced few-shot draws, and the order of its batches."""

import numpy as np

from jtransfer.errors import InputError


def validation_shots(shots: int) -> int:
    """Validation labels a class that go with `shots` training labels: as many, but four at most (VTAB's fifth)."""
    return min(shots, 4)


def few_shot(labels: np.ndarray, pool: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows with the same number of each class, drawn from the pool alone.

    Each class is shuffled once by `(seed, class)`; training takes its head and validation its tail. So for one seed
    the draws are nested (few shots are a subset of many), and what is validated on is never trained on.

    Args:
        labels: [n] integers 0..classes-1, all rows of the dataset.
        pool: [p] row numbers that may be drawn.
        shots: training rows a class.
        seed: which draw.

    Returns:
        Train rows [classes * shots] and validation rows [classes * min(shots, 4)], class after class.

    Raises:
        InputError: when `shots` is not positive, or a class has too few rows in the pool.
    """
    if shots < 1:
        raise InputError(f"shots is {shots}; expected at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected 0 or more")
    kept = validation_shots(shots)
    counts = np.bincount(labels[pool], minlength=labels.max() + 1)
    if counts.min() < shots + kept:
        raise InputError(
            f"shots is {shots}, but class {counts.argmin()} has {counts.min()} rows in the pool and "
            f"{shots} + {kept} are needed (training + validation); the most shots possible are {_most(counts.min())}"
        )
    train, validation = [], []
    for label in range(len(counts)):
        rows = np.random.default_rng([seed, label]).permutation(pool[labels[pool] == label])
        train.append(rows[:shots])
        validation.append(rows[-kept:])
    return np.concatenate(train), np.concatenate(validation)


def batches(rows: np.ndarray, batch: int, steps: int, seed) -> np.ndarray:
    """Row numbers [steps, batch] that go through `rows` in shuffled epochs, one after another.

    Every row comes exactly once an epoch. Epochs run on across the borders of batches, so a batch may hold parts of
    two epochs, and may be larger than an epoch. More steps continue the same order.

    Args:
        rows: [n] row numbers.
        batch: rows a step.
        steps: number of batches; may be 0.
        seed: what `numpy.random.default_rng` takes: an integer, or several.

    Raises:
        InputError: when there are no rows, or a number is out of range.
    """
    if not len(rows):
        raise InputError("rows are empty; expected at least one row to make batches of")
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1")
    if steps < 0:
        raise InputError(f"steps is {steps}; expected 0 or more")
    epochs = -(-steps * batch // len(rows))
    order = np.random.default_rng(seed).permuted(np.tile(rows, (epochs, 1)), axis=1)
    return order.reshape(-1)[: steps * batch].reshape(steps, batch)


def _most(count: int) -> int:
    """The largest shots with shots + min(shots, 4) <= count."""
    return count - 4 if count >= 8 else count // 2
