"""word2vec with negative sampling (Mikolov et al. 2013, arXiv:1301.3781, arXiv:1310.4546): skip-gram and CBOW.

A batch is rows of a corpus, `block` words each with the words around them. A step takes one small step of gradient
descent after the other, one for each row, as word2vec takes one for each word: the sum over a whole batch would be far
too long for frequent words, and that over a row is short enough to need no mean and no limit. The negative words are
drawn once for a row and weighed as if each pair had its own (Ji et al. 2016, arXiv:1604.04661), so that all scores are
products of matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, whole
from jtransfer.models.lstm import unroll
from jtransfer.objectives.objective import WEIGHT, Batch, Metrics, Objective, Outputs
from jtransfer.tree import Tree

TABLES = ("in/embedding", "out/embedding")
AROUND, BLOCK, COUNT = whole(1, 100), whole(1, 4096), whole(1, 2**16)


@dataclass(frozen=True)
class NearWords:
    """How a corpus becomes rows of words and what is asked of them.

    Attributes:
        window: The most words on each side of a word that count as near; each word draws 1 to so many for itself.
        negatives: What the negative words of a pair weigh together.
        subsample: The share of a corpus above which a word is left out more and more often; 0 leaves none out.
        block: Words of a row.
        shared: Negative words of a row, drawn by the counts of words to the power 0.75.
        least: How often a word must be there to be in the vocabulary.
        lower: Whether texts are read in small letters.
    """

    window: int
    negatives: int
    subsample: float
    block: int
    shared: int
    least: int
    lower: bool

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The model's inputs of one row: words, centre words and negatives, and where the window of each ends."""
        sides = {
            "input_ids": (self.block + 2 * self.window,),
            "output_ids": (self.block + self.shared,),
            "windows": (self.block, 2),
        }
        return {name: jax.ShapeDtypeStruct((1, *side), jnp.int32) for name, side in sides.items()}


def skip_gram(
    window: Annotated[int, AROUND] = 5,
    negatives: Annotated[int, COUNT] = 5,
    subsample: Annotated[float, NOT_NEGATIVE] = 1e-3,
    block: Annotated[int, BLOCK] = 16,
    shared: Annotated[int, COUNT] = 64,
    least: Annotated[int, COUNT] = 5,
    lower: bool = True,
    mesh: Mesh | None = None,
) -> Objective:
    """`-log s(u v) - negatives E[log s(-u' v)]` for each word and each word near it, as gensim's `sg=1`.

    u is the row of the word in `out`, v that of the word near it in `in`, u' that of a negative word. A negative word
    that is the word itself does not count. The loss is the mean over pairs.
    """
    found = NearWords(window, negatives, subsample, block, shared, least, lower)
    return _objective("skip_gram", _skip_gram, found, mesh)


def cbow(
    window: Annotated[int, AROUND] = 5,
    negatives: Annotated[int, COUNT] = 5,
    subsample: Annotated[float, NOT_NEGATIVE] = 1e-3,
    mean: bool = True,
    block: Annotated[int, BLOCK] = 64,
    shared: Annotated[int, COUNT] = 16,
    least: Annotated[int, COUNT] = 5,
    lower: bool = True,
    mesh: Mesh | None = None,
) -> Objective:
    """`-log s(u h) - negatives E[log s(-u' h)]` for each word, h being the mean of the words near it: gensim's `sg=0`.

    With `mean=False` h is their sum. As in gensim (`cbow_mean`), what each of them learns is the gradient with respect
    to h whole for the mean, and divided by their number for the sum. The loss is the mean over words.
    """
    found = NearWords(window, negatives, subsample, block, shared, least, lower)
    return _objective("cbow", partial(_cbow, mean), found, mesh)


def _objective(name, of_row, windows, mesh):
    of_row = partial(of_row, windows)

    def score(params: Tree, outputs: Outputs, batch: Batch) -> tuple[jax.Array, Metrics]:
        others = [path for path in params if path.startswith(("in/", "out/")) and path not in TABLES]
        if others or not set(TABLES) <= params.keys():
            found = f"'{others[0]}' is there too" if others else "the model has no table out"
            raise InputError(f"objective '{name}' learns {' and '.join(TABLES)} alone, and {found}; choose 'scratch'")
        rows = batch["inputs"], batch["rate"]
        if mesh is not None and mesh.size > 1:  # all rows to all devices at once, and not one by one
            rows = jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec()))
        total, weight = _descend(of_row, {path: params[path] for path in TABLES}, *rows)
        return total / jnp.maximum(weight, 1), {}

    def measure(outputs: Outputs, batch: Batch) -> Metrics:
        rows = outputs["input_states"], outputs["output_states"], batch["inputs"]
        total, weight = jax.vmap(of_row)(*rows)
        return {"loss": total / jnp.maximum(weight, 1), WEIGHT: weight}

    return Objective(score, measure=measure, reads="texts", words=windows)


def _skip_gram(windows: NearWords, near: jax.Array, out: jax.Array, row: Mapping[str, jax.Array]):
    """The summed loss of a row and its pairs.

    Args:
        windows: What is asked.
        near: `[block + 2 window, width]`, rows of `in`.
        out: `[block + shared, width]`, rows of `out`.
        row: The inputs of the row.
    """
    pairs, own = _pairs(windows, row), _own(windows, row)
    centre, negative = out[: windows.block], out[windows.block :]
    found = pairs * _softplus(-(centre @ near.T))
    counts = pairs.sum(0)[:, None] - pairs.T @ own
    noise = counts * _softplus(near @ negative.T)
    return found.sum() + windows.negatives / windows.shared * noise.sum(), pairs.sum()


def _cbow(mean: bool, windows: NearWords, near: jax.Array, out: jax.Array, row: Mapping[str, jax.Array]):
    """The summed loss of a row and its words that have others near; arguments as of `_skip_gram`."""
    pairs, own = _pairs(windows, row), _own(windows, row)
    centre, negative = out[: windows.block], out[windows.block :]
    count = pairs.sum(1, keepdims=True)
    there, total = count > 0, pairs @ near
    average = total / jnp.maximum(count, 1)
    value, moved = (average, total) if mean else (total, average)
    h = jax.lax.stop_gradient(value - moved) + moved
    found = there[:, 0] * _softplus(-(centre * h).sum(-1))
    noise = there * (1 - own) * _softplus(h @ negative.T)
    return found.sum() + windows.negatives / windows.shared * noise.sum(), there.sum(dtype=h.dtype)


@jax.custom_jvp
def _softplus(x):
    """`log(1 + e^x)`; its gradient takes the same exponential, which is much of what a row costs on a CPU."""
    return _softplus_jvp((x,), (x,))[0]


@_softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (change,) = primals, tangents
    small = jnp.exp(-jnp.abs(x))
    value = jnp.maximum(x, 0) + jnp.log(1 + small)
    return value, change * jnp.where(x >= 0, 1, small) / (1 + small)


def _pairs(windows, row):
    """`[block, block + 2 window]`, 1 where a word is near the centre word and 0 elsewhere."""
    place = jnp.arange(windows.block + 2 * windows.window)
    first, last = row["windows"][:, :1], row["windows"][:, 1:]
    centre = jnp.arange(windows.block)[:, None] + windows.window
    return ((first <= place) & (place <= last) & (place != centre)).astype(jnp.float32)


def _own(windows, row):
    """`[block, shared]`, 1 where a negative word is the centre word itself."""
    ids = row["output_ids"]
    return (ids[: windows.block, None] == ids[None, windows.block :]).astype(jnp.float32)


def _walk(of_row, learns, tables, rows, rates):
    """The tables after a small step for each row, and the losses and weights before each of them."""

    def change(tables, item):
        row, rate = item
        ids = row["input_ids"], row["output_ids"]
        found = [tables[path].at[own].get(mode="promise_in_bounds") for path, own in zip(TABLES, ids, strict=True)]
        (total, weight), grads = jax.value_and_grad(of_row, (0, 1), has_aux=True)(*found, row)
        moves = {path: (own, -rate * grad) for path, own, grad in zip(TABLES, ids, grads, strict=True)}
        return {path: move for path, move in moves.items() if path in learns}, (total, weight)

    def moved(tables, moves):
        return tables | {
            path: tables[path].at[own].add(move.astype(tables[path].dtype), mode="promise_in_bounds")
            for path, (own, move) in moves.items()
        }

    def small(tables, item):
        moves, found = change(tables, item)
        return moved(tables, moves), found

    if unroll() is True:  # it is only counted, and the body of a loop would count once
        moves, (totals, weights) = jax.vmap(partial(change, tables))((rows, rates))
        return moved(tables, moves), totals.sum(), weights.sum()
    tables, (totals, weights) = jax.lax.scan(small, tables, (rows, rates))
    return tables, totals.sum(), weights.sum()


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _descend(of_row, tables, rows, rates):
    """The summed loss of rows and what they weigh, as small steps go from one to the next.

    The gradient of the quotient is by definition what leads to the end of these steps: a step of plain gradient descent
    at the first rate takes the tables there.

    Args:
        of_row: The loss and the weight of a row.
        tables: The leaves `TABLES`.
        rows: The inputs of n rows, in their order.
        rates: `[n]`, of each small step.
    """
    _, total, weight = _walk(of_row, TABLES, tables, rows, rates)
    return total, weight


def _descend_forward(of_row, tables, rows, rates):
    before = {path: x.value for path, x in tables.items()}
    rows, rates = jax.tree.map(lambda x: x.value, (rows, rates), is_leaf=lambda x: hasattr(x, "perturbed"))
    learns = [path for path, x in tables.items() if x.perturbed]
    after, total, weight = _walk(of_row, learns, before, rows, rates)
    way = {path: (before[path] - after[path]) / rates[0].astype(after[path].dtype) for path in before}
    return (total, weight), (way, jnp.maximum(weight, 1))


def _descend_backward(of_row, kept, cotangents):
    way, weight = kept
    scale = cotangents[0] * weight  # which the quotient was divided by
    return {path: (scale * x).astype(x.dtype) for path, x in way.items()}, None, None


_descend.defvjp(_descend_forward, _descend_backward, symbolic_zeros=True)
