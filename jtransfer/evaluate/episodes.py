"""N-way K-shot episodes on stored features: hundreds of small problems, drawn and classified in one program."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.solvers import checks, prototypes
from jtransfer.solvers.draws import labelled

NEIGHBOURS = 3
BLOCK = 2**24
"""Numbers that the features of the episodes side by side may hold: 64 MiB in float32."""


class Episodes(NamedTuple):
    """What episodes came to.

    Attributes:
        accuracies: The accuracy on each episode, `[episodes]`, 0..1.
        mean: The mean of `accuracies`.
        half: Half the width of the 95% interval of the mean, `1.96 s / √episodes`, as few-shot papers print it. It says
            how far the mean over all episodes of these features can be, and nothing of other classes or backbones.
    """

    accuracies: np.ndarray
    mean: float
    half: float


def episodes(
    key: jax.Array,
    features: Any,
    labels: Any,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    episodes: int = 600,
    classifier: str = "cosine",
    **options: float,
) -> Episodes:
    """Accuracy on episodes, each of its own classes, examples to learn from and queries, all drawn without replacement.

    Args:
        key: Decides every draw: the same key gives the same episodes to every classifier and backbone, so that they
            can be compared in pairs.
        features: `[n, d]`.
        labels: `[n]`.
        ways: Classes of an episode.
        shots: Examples of each class to learn from.
        queries: Examples of each class to classify.
        episodes: How many.
        classifier: One of `prototypes.KINDS`, or `laplacian_shot`.
        options: Options of the classifier. Choose them on episodes of other classes.

    Raises:
        InputError: fewer classes than ways, a class with fewer than `shots + queries` examples, or other arguments that
            cannot be used.
    """
    sizes = ways, shots, queries, episodes
    options = check_classifier(classifier, ways, shots, queries, options)
    neighbours = options.pop("neighbours", NEIGHBOURS)
    features, labels, _ = labelled(features, labels, None)
    check(labels, *sizes)
    prototypes.check_spread(classifier, options, ways * shots, shots, features.shape[1] + ways)
    counts = np.bincount(labels)
    members = np.argsort(labels, kind="stable")
    table = features, members, np.cumsum(counts) - counts, counts
    accuracies = np.asarray(_episodes(key, *table, options, *sizes, classifier, neighbours))
    half = 1.96 * accuracies.std(ddof=1) / np.sqrt(episodes)
    return Episodes(accuracies, float(accuracies.mean()), float(half))


def check_classifier(classifier: str, ways: int, shots: int, queries: int, options: Mapping[str, Any]) -> dict:
    """The options of a classifier, if it can classify episodes of these sizes with them.

    Raises:
        InputError: as `episodes` raises.
    """
    options = prototypes.checked_options(classifier, CLASSIFIERS, options)
    neighbours = options.get("neighbours", NEIGHBOURS)
    if classifier == "laplacian_shot" and not 1 <= neighbours <= ways * queries:
        raise InputError(f"{classifier}: neighbours={neighbours}; expected 1 to the {ways * queries} queries there are")
    prototypes.check_spread(classifier, {}, ways * shots, shots, 0)
    return options


def check(labels: np.ndarray, ways: int, shots: int, queries: int, episodes: int, what: str = "labels") -> None:
    """Refuse sizes of which no episodes can be drawn.

    Raises:
        InputError: as `episodes` raises; the error calls the labels `[n]` `what`.
    """
    numbers = {"ways": (ways, 2), "shots": (shots, 1), "queries": (queries, 1), "episodes": (episodes, 2)}
    for name, (value, least) in numbers.items():
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    checks.fits(episodes * ways * (shots + queries), f"rows of {episodes} episodes", "draw fewer")
    classes = int(labels.max()) + 1
    if classes < ways:
        raise InputError(f"{what} have {classes} classes; expected at least ways={ways}")
    checks.shots(labels, shots + queries, f"{what}, for shots={shots} and queries={queries}", classes)


@partial(jax.jit, static_argnames="neighbours")
@jax.default_matmul_precision("highest")
def laplacian_shot(
    logits: jax.Array,
    queries: jax.Array,
    *,
    strength: float = 1.0,
    neighbours: int = NEIGHBOURS,
) -> jax.Array:
    """Assignments of queries to classes, smoothed over their nearest neighbours (Ziko et al. 2020, arXiv:2006.15486).

    All queries are classified together (transductively): 20 times, y is set to `softmax(logits + strength W y)`, which
    lowers a bound of the Laplacian-regularised energy. W is 1 from a query to each of its nearest others, as in the
    authors' code. Their accuracy is taken after predicted classes are matched with true ones, which reads the labels
    that are to be predicted; ours never is, so expect less where classes are confused.

    Args:
        logits: Negative squared distances to the class means `[n, classes]`, up to a term a row.
        queries: Features of the queries `[n, d]`, of length 1 as those of the class means.
        strength: λ of the Laplacian term; the authors choose it among 0.1 to 1.5 on validation classes.
        neighbours: Nearest queries, among which a query counts itself.

    Returns:
        `[n, classes]`, rows that sum to 1.
    """
    squares = jnp.sum(queries**2, axis=1)
    closeness = 2 * queries @ queries.T - squares  # less the squared distance, up to a term a row
    closeness = jnp.fill_diagonal(closeness, -jnp.inf, inplace=False)
    _, near = jax.lax.top_k(closeness, neighbours - 1)

    def update(_, y):
        return jax.nn.softmax(logits + strength * y[near].sum(1))

    return jax.lax.fori_loop(0, 20, update, jax.nn.softmax(logits))


CLASSIFIERS = {**prototypes.KINDS, "laplacian_shot": laplacian_shot}


def sample(key: jax.Array, counts: jax.Array, ways: int, number: int, episodes: int) -> tuple[jax.Array, jax.Array]:
    """Draw classes and examples without replacement, in an order that is random too.

    Args:
        key: The key of all draws.
        counts: Examples of each class `[classes]`.
        ways: Classes of an episode.
        number: Examples of each.
        episodes: How many.

    Returns:
        Classes `[episodes, ways]` and which of its examples, `[episodes, ways, number]`, each below its class's count.
    """
    shape = episodes, ways, 1 + number
    bits = jax.random.bits(key, (math.prod(shape),)).reshape(shape)  # over several axes it takes seconds to compile
    classes = chosen(bits[..., 0], len(counts))
    return classes, chosen(bits[..., 1:], counts[classes])


@partial(jnp.vectorize, signature="(n),()->(n)")
def chosen(bits: jax.Array, count: int | jax.Array) -> jax.Array:
    """An ordered choice of n different numbers below `count` from random bits `[n]`, by Fisher and Yates.

    Place i of 0, 1, 2, ... is swapped with one of those from i on, for i = 0, 1, ... in turn. Only places that were
    touched are kept, so that classes of any size cost the same. All choices are equally likely up to a relative
    `count / 2³²`, which taking remainders costs.
    """
    steps = jnp.arange(len(bits))
    picks = steps + (bits % (count - steps).astype(bits.dtype)).astype(steps.dtype)

    def swap(i, state):
        values, places, moved = state

        def at(place):
            latest = jnp.max(jnp.where(places == place, steps, -1))
            return jnp.where(latest < 0, place, moved[latest])

        return values.at[i].set(at(picks[i])), places.at[i].set(picks[i]), moved.at[i].set(at(i))

    nothing = jnp.full_like(steps, -1)
    return jax.lax.fori_loop(0, len(bits), swap, (nothing, nothing, nothing))[0]


@partial(jax.jit, static_argnames=("ways", "shots", "queries", "episodes", "classifier", "neighbours"))
@jax.default_matmul_precision("highest")
def _episodes(key, features, members, starts, counts, options, ways, shots, queries, episodes, classifier, neighbours):
    classes, places = sample(key, counts, ways, shots + queries, episodes)
    rows = members[starts[classes][..., None] + places]
    known_labels, asked_labels = (jnp.repeat(jnp.arange(ways), number) for number in (shots, queries))
    weights = jnp.ones(ways * shots, features.dtype)

    def episode(rows):
        x = features[rows]
        known, asked = (part.reshape(-1, x.shape[-1]) for part in (x[:, :shots], x[:, shots:]))
        if classifier == "laplacian_shot":
            known, asked = prototypes.unit(known), prototypes.unit(asked)
            kernel, bias = prototypes.euclidean(known, known_labels, weights, ways)
            scores = laplacian_shot(asked @ kernel + bias, asked, neighbours=neighbours, **options)
        else:
            kernel, bias = prototypes.KINDS[classifier](known, known_labels, weights, ways, **options)
            scores = asked @ kernel + bias
        return jnp.mean(scores.argmax(-1) == asked_labels)

    blocks = -(-episodes * ways * (shots + queries) * features.shape[1] // BLOCK)
    return jax.lax.map(episode, rows, batch_size=-(-episodes // blocks))
