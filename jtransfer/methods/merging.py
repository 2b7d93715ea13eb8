"""Merging: one model made of several that were trained from one start, by arithmetic on their trees.

A task vector is what training added: `tree - base` (Ilharco et al. 2023, arXiv:2212.04089). Everything here is a pure
function of flat trees whose paths and shapes are equal; it computes in float32 and gives leaves of the first tree's
types. Batch statistics are averaged, by the weights, in every way of merging: a sum of changes of variances is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, SEED, checked, choice, number, several
from jtransfer.models import STATISTICS
from jtransfer.tree import Tree, mismatches

NUMBERS = several(number())
SHARE = number(least=0, most=1)
DENSITY = number(above=0, most=1)


@dataclass(frozen=True)
class Merge:
    """A way of merging.

    Attributes:
        name: As a command names it.
        call: `call(trees, base, score)` gives the merged tree, and the numbers of the trees that are in it; `score` is
            how good a tree is on held-out rows, higher being better.
        needs: What it needs beside the trees: "base", "data" (for the score), or nothing, "".
        least: The fewest trees that it merges.
    """

    name: str
    call: Callable[[Sequence[Tree], Tree | None, Callable[[Tree], float] | None], tuple[Tree, list[int]]]
    needs: str = ""
    least: int = 2


def check(trees: Mapping[str, Tree]) -> None:
    """Refuse trees that differ in their paths or shapes.

    Args:
        trees: By name.

    Raises:
        InputError: with the first leaf that differs, and how many more do.
    """
    (first, expected), *others = trees.items()
    for name, tree in others:
        if wrong := mismatches(expected, tree):
            more = f" (and {len(wrong) - 1} more leaves differ)" if len(wrong) > 1 else ""
            raise InputError(
                f"'{name}' is no tree as that of '{first}': {wrong[0]}{more}; expected models of one start"
            )


def interpolate(start: Tree, end: Tree, alpha: float) -> Tree:
    """`(1 - alpha) start + alpha end`, leaf by leaf: WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903, equation 1).

    >>> interpolate({"head/bias": 0.0}, {"head/bias": 4.0}, 0.25)
    {'head/bias': 1.0}
    """
    return {path: (1 - alpha) * start[path] + alpha * leaf for path, leaf in end.items()}


def average(trees: Sequence[Tree], weights: Sequence[float] = ()) -> Tree:
    """The mean of trees: a uniform soup (Wortsman et al. 2022, arXiv:2203.05482), or one with other weights.

    Args:
        trees: At least one.
        weights: One for each tree, which count by their ratios; empty for equal ones.

    Raises:
        InputError: trees that differ, or weights that are not one for each tree or add up to 0.
    """
    shares = _weights("soup", trees, weights)
    if not (total := sum(shares)):
        raise InputError("soup: the weights add up to 0; expected a sum to divide by")
    return _combined(trees, lambda path, leaves: sum(w / total * x for w, x in zip(shares, leaves, strict=True)))


def greedy_average(trees: Sequence[Tree], score: Callable[[Tree], float]) -> tuple[Tree, list[int]]:
    """A greedy soup: the best tree first, then each that makes the mean strictly better (arXiv:2203.05482, recipe 1).

    Args:
        trees: At least one.
        score: On rows that no tree was trained on, and that are not reported on.

    Returns:
        The mean, and the numbers of the trees in it, in the order in which they were added.

    Raises:
        InputError: trees that differ.
    """
    check({f"tree {i}": tree for i, tree in enumerate(trees)})
    alone = [score(tree) for tree in trees]
    first, *order = sorted(range(len(trees)), key=lambda i: -alone[i])
    chosen, soup, best = [first], trees[first], alone[first]
    for i in order:
        mean = average([trees[j] for j in (*chosen, i)])
        if (found := score(mean)) > best:
            chosen, soup, best = [*chosen, i], mean, found
    return soup, chosen


def added(base: Tree, vectors: Sequence[Tree], weights: Sequence[float] = (), scale: float = 1.0) -> Tree:
    """`scale * Σ weight * vector`, to add to a base: task arithmetic."""
    own = _weights("task_arithmetic", vectors, weights)
    return {path: scale * sum(w * v[path] for w, v in zip(own, vectors, strict=True)) for path in base}


def trimmed(vector: Tree, density: float) -> Tree:
    """A task vector whose largest values stay, a share `density` of all in the tree; the others become 0.

    At least one value stays, and all that are as large as the last that does.
    """
    sizes = np.concatenate([np.abs(leaf).ravel() for leaf in vector.values()])
    keep = max(1, int(density * sizes.size))
    least = np.partition(sizes, sizes.size - keep)[sizes.size - keep]
    return {path: np.where(np.abs(leaf) >= least, leaf, 0) for path, leaf in vector.items()}


def dropped(vector: Tree, density: float, rng: np.random.Generator) -> Tree:
    """A task vector of whose values a random share `density` stays, divided by `density`: DARE."""
    return {path: np.where(rng.random(leaf.shape) < density, leaf / density, 0) for path, leaf in vector.items()}


def elected(vectors: Sequence[Tree], weights: Sequence[float] = ()) -> Tree:
    """Of every value the mean over the vectors that have the sign of their sum: election and disjoint mean of TIES."""
    own, found = _weights("ties", vectors, weights), {}
    for path in vectors[0]:
        stacked = np.stack([vector[path] for vector in vectors])
        agree = np.sign(stacked) == np.where(stacked.sum(0) >= 0, 1, -1)
        weighted = np.einsum("t,t...->t...", np.asarray(own, np.float32), stacked) * agree
        found[path] = weighted.sum(0) / np.maximum(agree.sum(0), 1)
    return found


@checked
def soup(weights: Annotated[tuple, NUMBERS] = ()) -> Merge:
    """The mean of all models; `weights` count by their ratios."""
    return Merge("soup", lambda trees, base, score: (average(trees, weights), [*range(len(trees))]))


@checked
def greedy() -> Merge:
    """The mean of those models that make it better on held-out rows, one after the other, the best first."""
    return Merge("greedy", lambda trees, base, score: greedy_average(trees, score), needs="data")


@checked
def wise_ft(alpha: Annotated[float, SHARE] = 0.5) -> Merge:
    """Between the base (0) and a model (1); of several models, their mean."""

    def call(trees, base, score):
        end = average(trees)
        return _combined([trees[0], base, end], lambda _, x: (1 - alpha) * x[1] + alpha * x[2]), [*range(len(trees))]

    return Merge("wise_ft", call, needs="base", least=1)


@checked
def task_arithmetic(weights: Annotated[tuple, NUMBERS] = (), scale: float = 1.0) -> Merge:
    """The base plus `scale` times the sum of the task vectors, each times its weight.

    A negative weight unlearns a task (Ilharco et al. 2023, arXiv:2212.04089).
    """
    return _of_vectors("task_arithmetic", weights, scale, lambda base, vectors: added(base, vectors, weights), least=1)


@checked
def ties(
    density: Annotated[float, DENSITY] = 0.2,
    scale: Annotated[float, NOT_NEGATIVE] = 1.0,
    weights: Annotated[tuple, NUMBERS] = (),
) -> Merge:
    """TIES: trim each task vector, elect the sign of each value, take the mean of those that agree.

    Yadav et al. 2023 (arXiv:2306.01708): a share `density` of each vector's values, over the whole tree, is kept; PEFT
    trims each tensor for itself.
    """

    def call(base, vectors):
        return elected([trimmed(vector, density) for vector in vectors], weights)

    return _of_vectors("ties", weights, scale, call)


@checked
def dare(
    density: Annotated[float, DENSITY] = 0.1,
    then: Annotated[str, choice("sum", "ties")] = "sum",
    scale: Annotated[float, NOT_NEGATIVE] = 1.0,
    weights: Annotated[tuple, NUMBERS] = (),
    seed: Annotated[int, SEED] = 0,
) -> Merge:
    """DARE: drop values of each task vector at random and divide the rest by the share that stays, then merge.

    Yu et al. 2024 (arXiv:2311.03099). `then` is "sum", as task arithmetic, or "ties", by the elected signs.
    """

    def call(base, vectors):
        rng = np.random.default_rng(seed)
        vectors = [dropped(vector, density, rng) for vector in vectors]
        return elected(vectors, weights) if then == "ties" else added(base, vectors, weights)

    return _of_vectors("dare", weights, scale, call, least=1)


MERGES: dict[str, Callable[..., Merge]] = {
    "soup": soup,
    "greedy": greedy,
    "wise_ft": wise_ft,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
}


def _of_vectors(name, weights, scale, call, least=2):
    """What adds to the base what `call(base, vectors)` makes of task vectors; batch statistics are averaged."""

    def merged(trees, base, score):
        _weights(name, trees, weights)
        check({"the base": base} | {f"tree {i}": tree for i, tree in enumerate(trees)})
        own = {path: _float(leaf) for path, leaf in base.items() if not path.startswith(STATISTICS)}
        vectors = [{path: _float(tree[path]) - leaf for path, leaf in own.items()} for tree in trees]
        changed = call(own, vectors)
        shares = np.abs(weights) if len(weights) and any(weights) else ()
        mean = average([{path: x for path, x in tree.items() if path not in own} for tree in trees], shares)
        found = mean | {path: leaf + scale * changed[path] for path, leaf in own.items()}
        return {path: found[path].astype(leaf.dtype) for path, leaf in trees[0].items()}, [*range(len(trees))]

    return Merge(name, merged, needs="base", least=least)


def _combined(trees, call):
    """`call(path, leaves)` of every leaf in float32, as the first tree's type."""
    check({f"tree {i}": tree for i, tree in enumerate(trees)})
    return {
        path: call(path, [_float(tree[path]) for tree in trees]).astype(leaf.dtype) for path, leaf in trees[0].items()
    }


def _float(leaf):
    return np.asarray(leaf).astype(np.float32)


def _weights(what, trees, weights):
    if len(weights) not in (0, len(trees)):
        raise InputError(f"{what}: {len(weights)} weights for {len(trees)} models; expected one for each")
    return tuple(weights) or (1.0,) * len(trees)
