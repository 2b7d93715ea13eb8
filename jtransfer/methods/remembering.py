"""Methods that keep what the source task needs: elastic weights, and the predictions of the source head."""

from typing import Annotated

import jax.numpy as jnp

from jtransfer.kinds import NOT_NEGATIVE, POSITIVE, SEED, checked, choice, whole
from jtransfer.methods.fisher import FISHER, Fisher
from jtransfer.methods.method import Given, Method, learn
from jtransfer.methods.penalties import ANCHOR, anchored
from jtransfer.methods.teachers import apart
from jtransfer.models.heads import source_logits
from jtransfer.objectives import Score
from jtransfer.tree import select

SOURCE = "source"
"""What a method needs that asks something of the source task: `config.source` names its data."""


RECORDED = "recorded"
"""The part of a batch that has the logits `[batch, classes]` of the backbone's own head, as it was at the start."""


@checked
def ewc(
    strength: Annotated[float, NOT_NEGATIVE] = 100.0,
    fisher: Annotated[str, choice("empirical", "true")] = "empirical",
    rows: Annotated[int, whole(1)] = 1024,
    seed: Annotated[int, SEED] = 0,
) -> Method:
    """Hold each weight where it was by how much the source task needs it, as in `finetune + ewc(strength=100)`.

    `strength / 2 Σ F (θ - θ*)²` is added to the loss, over the leaves that learn and that the backbone gives
    (Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3); nothing learns by this alone. `F` is the diagonal of the
    Fisher information of the source task: of the data of `config.source` and the backbone's own head, or for a dual
    encoder the names of the classes, over `rows` training rows, one gradient an example. The metric `elastic` is the
    term.

    Args:
        strength: λ.
        fisher: "empirical", by the labels of the data, or "true", by labels drawn from the model's predictions.
        rows: The most examples that the Fisher information is a mean over.
        seed: Of the labels that are drawn.

    Raises:
        InputError: an option out of its range; and, of a model, no leaf of the backbone that learns.
    """

    def scores(score: Score) -> Score:
        def penalised(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            term = jnp.float32(0)
            for path, weight in select(params, FISHER).items():
                term += jnp.sum(weight * jnp.square((params[path] - params[ANCHOR + path]).astype(jnp.float32)))
            return value + strength / 2 * term, metrics | {"elastic": strength / 2 * term}

        return penalised

    ask = Fisher(fisher == "true", rows, seed)
    return Method("ewc", learn(), scores=scores, holds=anchored, needs=(SOURCE,), asks=(ask,))


@checked
def lwf(weight: Annotated[float, NOT_NEGATIVE] = 1.0, temperature: Annotated[float, POSITIVE] = 2.0) -> Method:
    """Learn without forgetting: the source head goes on to say of the new inputs what it said at the start.

    `weight * KL(recorded || source head)` is added to the loss, both softmaxes at the temperature, in the mean over the
    batch, as in `finetune + lwf` (Li and Hoiem 2018, arXiv:1606.09282, equations 2 and 3: their cross-entropy has the
    gradient of this, and no factor T²); nothing learns by this alone. What the source head says is recorded before the
    first step; its own leaves stay as they are, where the paper trains them too. The metric `forgetting` is the KL.

    Args:
        weight: λ_o.
        temperature: T.

    Raises:
        InputError: an option out of its range; and, of a backbone, no head of classes of its own.
    """

    def made(given: Given) -> Method:
        def scores(score: Score) -> Score:
            def kept(params, outputs, batch):
                value, metrics = score(params, outputs, batch)
                own = source_logits(given.head, given.architecture.prefix_tokens, params, outputs)
                lost = apart(batch[RECORDED], own, temperature)
                return value + weight * lost, metrics | {"forgetting": lost}

            return kept

        return Method("lwf", learn(), scores=scores, needs=(RECORDED,))

    return Method("lwf", learn(), needs=(RECORDED,), binds=made)
