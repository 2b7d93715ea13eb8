"""In-context learning (Brown et al. 2020, arXiv:2005.14165): a model reads some labelled rows and then one to label.

The label whose tokens are likeliest after the prompt is the prediction.
"""

import numpy as np

from jtransfer.solvers import draws

SCORES = ("sum", "mean", "pmi")
"""What of a label's tokens is compared: the sum of their log-probabilities, the mean, or the sum less that without the
row and without examples (domain-conditional PMI, Holtzman et al. 2021, arXiv:2104.08315)."""

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing, of Zhao et al. 2021, section 5."""


def examples(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """The rows of a prompt: the classes take turns, in an order that is drawn anew for every turn.

    The first `classes * n` rows are those of `draws.draws` at n shots with this seed, so that few-shot heads learn from
    the rows which stand in the prompt; the prompts of one seed are nested.

    Args:
        labels: `[n]`.
        classes: How many there are.
        shots: Rows of the prompt, over all classes.
        seed: Of the draw.

    Returns:
        `[shots]` row numbers.

    Raises:
        InputError: a class with too few rows.
    """
    if not shots:
        return np.zeros(0, int)
    turns = -(-shots // classes)
    drawn, _ = draws.draws(labels, (turns,), (seed,), classes=classes)
    generator = np.random.default_rng([seed, classes])
    of_turns = drawn[0, 0].reshape(classes, turns).T
    return np.concatenate([generator.permutation(rows) for rows in of_turns])[:shots]


def calibrated(scores: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Contextual calibration: `diag(p_cf)^-1 p`, of which the largest is the prediction (Zhao et al. 2021,
    arXiv:2102.09690, section 5).

    Args:
        scores: `[n, classes]` logarithms; those of a row are scaled to probabilities p.
        content_free: `[m, classes]`, of content-free texts behind the same examples, whose probabilities are averaged.

    Returns:
        `[n, classes]`, not scaled.
    """
    return probabilities(scores) / probabilities(content_free).mean(axis=0)


def probabilities(scores: np.ndarray) -> np.ndarray:
    """The softmax of scores `[n, classes]`."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def compared(sums: np.ndarray, counts: np.ndarray, score: str, base: np.ndarray | None = None) -> np.ndarray:
    """What is compared of answers, one of `SCORES`.

    Args:
        sums: `[n, classes]` of log-probabilities.
        counts: `[n, classes]`, how many tokens these are of.
        score: Which.
        base: `[classes]`, the sums without the row, for "pmi".
    """
    return sums / counts if score == "mean" else sums - base if score == "pmi" else sums
