"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805, section 3.1): hidden words are predicted.

With `next_sentence` also whether the second segment of a text follows the first.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtransfer.errors import InputError
from jtransfer.kinds import check, number
from jtransfer.objectives.language import LEFT_OUT, language_head, of_tokens
from jtransfer.objectives.objective import Batch, Objective

PART = number(least=0, most=1)


class Words(Protocol):
    """What is asked of a tokenizer.

    Attributes:
        size: Number of tokens that it knows; their ids are below.
        mask: Id of the token that stands for a hidden word; None where it has none.
        special: Ids of the tokens that are no words: padding, ends, the mask.
        joins: `[size]` bool each: which tokens go on with a word, and behind which (see `data.pieces`).
        where: Its file, for errors.
    """

    size: int
    mask: int | None
    special: Collection[int]
    joins: tuple[np.ndarray, np.ndarray]
    where: str


def masked_lm(
    share: float = 0.15,
    random: float = 0.1,
    keep: float = 0.1,
    whole_word: bool = False,
    next_sentence: bool = False,
    tokenizer: Words | None = None,
) -> Objective:
    """The mean cross-entropy of the words that were chosen, as of transformers' BertForMaskedLM.

    The batch is `{"inputs": {"input_ids", "attention_mask", ...}}`, `[n, tokens]` each. `targets` gives each word that
    is neither special nor padding the chance `share` to be chosen, for itself. Of those that are, the model sees the
    mask, or a random token, or the word itself. `labels` are the words that were chosen, and `LEFT_OUT` elsewhere. The
    perplexity is e to the mean over all words of a set that were chosen.

    With `next_sentence` the loss is that of BertForPreTraining: the cross-entropy of whether the second segment of each
    text follows the first is added. `labels [n]` are 0 where it does and 1 where it does not, as `config.packing`
    'segments' gives them. `next_loss` and `next_accuracy` are measured too, in which a text counts as many times as it
    has chosen words.

    Args:
        share: Of the words, to be chosen.
        random: The share of those that are replaced by a token drawn from the whole vocabulary.
        keep: The share of those that stay as they are.
        whole_word: Whether all tokens of a word are chosen together. Each is then hidden, replaced or kept for itself,
            as in BERT's own whole-word masking.
        next_sentence: Whether the model also tells if the second segment follows the first.
        tokenizer: Of the model.

    Raises:
        InputError: shares outside 0..1, a `share` of 0, `random` and `keep` above 1 together, or a tokenizer without a
            mask; in a call of `targets`, no tokenizer; in a call of `head`, a model without such a head.
    """
    for name, value in {"share": share, "random": random, "keep": keep}.items():
        check(value, PART, f"masked_lm: {name}")
    if not share:
        raise InputError("masked_lm: share is 0, and nothing would be learned; expected a number above 0")
    if random + keep > 1:
        raise InputError(f"masked_lm: random={random:g} and keep={keep:g} are more than 1; expected at most 1 together")
    if tokenizer is not None and tokenizer.mask is None:
        raise InputError(f"{tokenizer.where}: masked_lm needs a token that masks, as [MASK] or <mask>; there is none")

    def targets(key, batch: Batch) -> Batch:
        if tokenizer is None:
            raise InputError("masked_lm: expected the tokenizer of the model, which knows its mask")
        ids = batch["inputs"]["input_ids"]
        words = batch["inputs"].get("attention_mask", jnp.ones_like(ids)) > 0
        words &= ~jnp.isin(ids, jnp.array(sorted(tokenizer.special), ids.dtype))
        choose, draw, replace = jax.random.split(key, 3)
        chances = jax.random.uniform(choose, ids.shape)
        if whole_word:
            goes_on, behind = map(jnp.asarray, tokenizer.joins)
            within = jnp.pad(goes_on[ids[:, 1:]] & behind[ids[:, :-1]], ((0, 0), (1, 0)))
            # Each token has the chance of the first one of its word.
            chances = jnp.take_along_axis(chances, jnp.cumsum(~within, axis=1) - 1, axis=1)
        chosen = words & (chances < share)
        drawn = jax.random.uniform(draw, ids.shape)
        others = jax.random.randint(replace, ids.shape, 0, tokenizer.size, ids.dtype)
        hidden = jnp.where(drawn < random, others, jnp.where(drawn < random + keep, ids, tokenizer.mask))
        inputs = batch["inputs"] | {"input_ids": jnp.where(chosen, hidden, ids)}
        asked = {"inputs": inputs, "labels": jnp.where(chosen, ids, LEFT_OUT)}
        return batch | asked | ({NEXT: batch["labels"]} if next_sentence else {})

    score, measure = of_tokens(lambda outputs, batch: (outputs["logits"], batch["labels"]))
    head = language_head("masked_lm", "masked_lm")
    made = Objective(score, head, targets, measure=measure, metrics=("perplexity",), reads="texts")
    return _with_next(made) if next_sentence else made


NEXT = "next"
"""The part of a batch that says of each text whether its second segment follows the first, 0, or not, 1."""


def _with_next(masked: Objective) -> Objective:
    """An objective of masked words that also learns whether a segment follows another."""

    def losses(outputs, batch):
        return optax.softmax_cross_entropy_with_integer_labels(outputs["next_logits"], batch[NEXT])

    def score(params, outputs, batch):
        value, metrics = masked.score(params, outputs, batch)
        own = losses(outputs, batch).mean()
        return value + own, metrics | {"next_loss": own}

    def measure(outputs, batch):
        right = outputs["next_logits"].argmax(-1) == batch[NEXT]
        return masked.measure(outputs, batch) | {"next_loss": losses(outputs, batch), "next_accuracy": right}

    def head(architecture, outputs):
        if not architecture.pooler:
            raise InputError("masked_lm: next_sentence reads the pooler, and the model has none; set it to False")
        return replace(masked.head(architecture, outputs), follows=True)

    return replace(masked, score=score, measure=measure, head=head)
