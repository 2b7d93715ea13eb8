"""The linear probe by the protocols that are published: which penalties are tried, what chooses, what is fitted last.

Penalties are λ on the *summed* loss, as CLIP and scikit-learn's `C = 1/λ` have it; on the mean loss it is λ/n. Two
classes share one column in scikit-learn, of which ours are the two halves: on these the same λ is twice as much. Every
path is solved whole, at the optimum of each λ (see logistic.py); a search decides which of them may be chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.evaluate import metrics
from jtransfer.solvers import checks
from jtransfer.solvers.logistic import logistic_path

PER = ("sum", "mean")


@dataclass(frozen=True)
class Search:
    """A published way to choose λ.

    Attributes:
        l2: Penalties on the summed loss, ascending.
        walk: Whether only those count that CLIP's search visits: 7 points two decades apart, then the gaps beside the
            best are halved until there are 8 steps a decade.
        double: Whether it is solved in float64.
        scaled: Whether features are divided by one number first, the standard deviation of all training features.
        how: One sentence for a report.
    """

    l2: tuple[float, ...]
    walk: bool = False
    double: bool = False
    scaled: bool = False
    how: str = ""


SEARCHES = {
    "clip": Search(
        tuple(10 ** (-6 + np.arange(97) / 8)),
        walk=True,
        how="7 points from 1e-6 to 1e6, then halved around the best to 8 steps a decade (CLIP, arXiv:2103.00020, A.3)",
    ),
    "dinov2": Search(
        tuple(10 ** np.linspace(-5, 6, 45)),
        double=True,
        how="C = 1/λ of 45 values from 1e-6 to 1e5, in float64 (DINOv2, arXiv:2304.07193)",
    ),
    "lpft": Search(
        tuple(np.logspace(-2, 7, 50)),
        scaled=True,
        how="C = 1/λ of 50 values from 1e-7 to 100 on features divided by one number (LP-FT, arXiv:2202.10054)",
    ),
}


class Probe(NamedTuple):
    """The probe that validation chose.

    Attributes:
        kernel: `[d, c]`, on the features as given.
        bias: `[c]`.
        l2: Its penalty on the summed loss.
        tried: The penalties that could be chosen, ascending.
        scores: The accuracy with each penalty on the validation rows, or the mean AUROC of several labels.
        at_edge: Whether `l2` is the first or last of `tried`, so that a wider range might be better.
        fitted: Which columns are fitted `[c]`: of several labels a row, those that some of the rows have and some have
            not. The others are 0.
    """

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    tried: np.ndarray
    scores: np.ndarray
    at_edge: bool
    fitted: np.ndarray


def probe(
    features: Any,
    labels: Any,
    train: np.ndarray,
    validation: np.ndarray,
    search: str | Sequence[float] = "clip",
    *,
    per: str = "sum",
    refit: bool = True,
    classes: int | None = None,
) -> Probe:
    """L2-regularised logistic regression whose penalty is chosen on validation rows.

    Args:
        features: `[n, d]`.
        labels: `[n]` integers, or `[n, c]` of 0 and 1 for several labels a row.
        train: Rows to fit on.
        validation: Rows to choose on; no other row is looked at.
        search: One of `SEARCHES`, or a list of penalties.
        per: What listed penalties stand against: the "sum" of the losses, or their "mean".
        refit: Whether the chosen penalty (on the sum) is fitted again on both, as CLIP and DINOv2 do; LP-FT does not.
        classes: How many there are; None for as many as the largest label of these rows says.

    Raises:
        InputError: an unknown search, no validation rows, or features, labels or penalties that cannot be used.
    """
    how = checked_search(search, per, len(train))
    labels, l2 = np.asarray(labels), np.asarray(how.l2)
    if not len(validation):
        raise InputError("validation has no rows; expected some to choose the penalty on")
    both = np.sort(np.concatenate([train, validation]))
    if labels.ndim == 1 and classes is None:
        classes = int(checks.labels(labels[both], len(both)).max()) + 1
    columns = labels.shape[1] if labels.ndim == 2 else classes
    checks.fits(
        len(l2) * (features.shape[1] + 1) * columns, f"{len(l2)} heads of {columns} classes", "give fewer in search"
    )
    halves = 2 if labels.ndim == 1 and classes == 2 else 1
    scale = float(np.std(features[train], dtype=np.float64)) if how.scaled else 1.0  # a shift is the intercept's

    def solve(rows, l2):
        x = np.asarray(features[rows], np.float64 if how.double else None) / scale
        fitted = np.ones(columns, bool) if labels.ndim == 1 else np.ptp(labels[rows], axis=0) > 0
        if not fitted.any():
            raise InputError(f"no label is 0 in some of the {len(rows)} rows and 1 in others; there is nothing to fit")
        y, count = (labels[rows], columns) if labels.ndim == 1 else (labels[rows][:, fitted], int(fitted.sum()))
        with jax.enable_x64(how.double or jax.config.jax_enable_x64):
            found = logistic_path(x, y, halves * l2 / len(rows), classes=count)
        if count == columns:
            return found[0] / scale, found[1], fitted
        kernels, biases = np.zeros((len(l2), x.shape[1], columns), x.dtype), np.zeros((len(l2), columns), x.dtype)
        kernels[..., fitted], biases[..., fitted] = found[0] / scale, found[1]
        return kernels, biases, fitted

    kernels, biases, fitted = solve(train, l2)
    held_out = np.asarray(features[validation])
    scores = np.array(
        [_score(held_out @ k + b, labels[validation], fitted) for k, b in zip(kernels, biases, strict=True)]
    )
    visited = clip_walk(scores) if how.walk else np.arange(len(l2))
    l2, scores = l2[visited], scores[visited]
    best = int(np.flatnonzero(scores == scores.max())[-1])  # the strongest penalty among equals
    kernel, bias = kernels[visited[best]], biases[visited[best]]
    if refit:
        (kernel,), (bias,), fitted = solve(both, l2[[best]])
    return Probe(kernel, bias, float(l2[best]), l2, scores, best in (0, len(l2) - 1), fitted)


def clip_walk(scores: np.ndarray) -> np.ndarray:
    """Which of CLIP's 97 penalties its search visits, ascending, given the score of each.

    Seven points 16 apart; then, four times, the points half as far to either side of the best so far.
    """
    step, visited = 16, set(range(0, 97, 16))
    while step > 1:
        step //= 2
        best = max(sorted(visited, reverse=True), key=lambda i: scores[i])
        visited |= {i for i in (best - step, best + step) if 0 <= i < 97}
    return np.array(sorted(visited))


def checked_search(search: str | Sequence[float], per: str, rows: int) -> Search:
    """The search of a name, or of a list of penalties for `rows` rows.

    Raises:
        InputError: an unknown name, or penalties that are none.
    """
    if per not in PER:
        raise InputError(f"per is '{per}'; {nearest(str(per), PER)}")
    if isinstance(search, str):
        if search not in SEARCHES:
            raise InputError(f"search '{search}' is unknown; {nearest(search, SEARCHES)}, or a list of penalties")
        return SEARCHES[search]
    l2 = np.sort(checks.penalties(search, "search is")) * (rows if per == "mean" else 1)
    return Search(tuple(l2), how=f"{len(l2)} values of λ on the {per} of the losses")


def _score(logits, labels, fitted) -> float:
    if labels.ndim == 1:
        return metrics.accuracy(logits, labels)
    areas = np.where(fitted, metrics.auroc(logits, labels), np.nan)
    if np.isnan(areas).all():
        raise InputError("validation: no label is 0 in some rows and 1 in others, so there is no AUROC to choose by")
    return float(np.nanmean(areas))
