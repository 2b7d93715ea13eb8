"""A language model of each direction (Peters et al. 2018, arXiv:1802.05365, section 3.1)."""

from typing import Annotated

import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import checked, whole
from jtransfer.models.heads import NEIGHBOURS
from jtransfer.objectives.language import LEFT_OUT, language_head, losses, mean, of_tokens
from jtransfer.objectives.objective import WEIGHT, Objective

DRAWN = "drawn"
"""The part of a batch with the numbers that draw words."""


@checked
def bilm(samples: Annotated[int, whole(0, 2**20)] = 0) -> Objective:
    """The mean cross-entropy of each word given those before it, and given those behind it, half of each.

    The batch is `{"inputs": {"word_ids", "attention_mask", ...}}`, `[n, words]` each; the model's outputs have `logits
    [n, words, 2, vocabulary]`, forward and backward, by one layer on `neighbours`. Padding does not count. The first
    word is asked for given the begin of the text alone, and the last given its end; the ends themselves are not asked
    for. The perplexity is e to the mean over all words of a set and both directions, over the whole vocabulary.

    Args:
        samples: Words that each training step is content with beside the one that is asked for, as in the paper (8192
            of 793,471); 0 for the whole vocabulary. All words of a step share them. Word i is drawn with the chance
            `q_i = log(1 + 1 / (i + 1)) / log(V + 1)`, with replacement, as words are numbered by their frequency. The
            sum over the vocabulary then is that of the word itself and of `exp(logit_i) / (samples q_i)` over the
            others that were drawn, which it is on average (importance sampling, Jean et al. 2015, arXiv:1412.2007).
            TensorFlow's `sampled_softmax_loss` draws without replacement, for which it has other weights.

    Raises:
        InputError: `samples` below 0; in a call of `head`, a model without language models of both directions, or with
            no more words than samples; in a call of the objective, samples of a head to which a method adds.
    """

    def labels(batch):
        ids, mask = batch["inputs"]["word_ids"], batch["inputs"]["attention_mask"]
        return jnp.repeat(jnp.where(mask > 0, ids, LEFT_OUT), 2, axis=1)

    def asked(outputs, batch):
        logits = outputs["logits"]
        return logits.reshape(len(logits), -1, logits.shape[-1]), labels(batch)

    plain, measure = of_tokens(asked)
    full = language_head("bilm", "bilm")

    def head(architecture, outputs):
        found = full(architecture, outputs)
        if samples >= found.classes:
            raise InputError(f"bilm: samples={samples} of {found.classes:,} words; expected fewer, or 0 for all")
        return found

    def drawn(key, batch):
        return batch | {DRAWN: jax.random.uniform(key, (samples,))}

    def sampled(params, outputs, batch):
        if beside := {path for path in params if path.startswith("head/")} - {"head/kernel", "head/bias"}:
            raise InputError(
                f"bilm: samples are columns of the head's kernel, beside which the method has '{min(beside)}'; leave "
                "the head out of its target, or set samples=0"
            )
        states, kernel, bias = outputs[NEIGHBOURS], params["head/kernel"], params["head/bias"]
        own = labels(batch)
        ids = jnp.where(own == LEFT_OUT, 0, own)
        logits = sampled_logits(states.reshape(*own.shape, -1), kernel, bias, ids, batch[DRAWN])
        values, counts = losses(logits, jnp.where(own == LEFT_OUT, own, 0))
        return mean(values, counts), {WEIGHT: counts.sum(dtype=jnp.float32)}

    score, targets = (sampled, drawn) if samples else (plain, None)
    return Objective(score, head, targets, measure=measure, metrics=("perplexity",), reads="texts")


def sampled_logits(
    states: jax.Array, kernel: jax.Array, bias: jax.Array, ids: jax.Array, drawn: jax.Array
) -> jax.Array:
    """Logits `[..., 1 + samples]` of the words that are asked for, at place 0, and of words that are drawn.

    Args:
        states: `[..., width]`.
        kernel: `[width, vocabulary]` of the output layer, and its `bias [vocabulary]`.
        bias: See `kernel`.
        ids: `[...]`, the words that are asked for.
        drawn: `[samples]` numbers from 0 to 1, each of which draws a word.
    """
    states, size = states.astype(jnp.float32), kernel.shape[1]
    others = jnp.clip(jnp.exp(drawn * jnp.log(size + 1.0)).astype(jnp.int32) - 1, 0, size - 1)

    chances = jnp.log1p(1 / (others.astype(jnp.float32) + 1)) / jnp.log(size + 1.0)
    own = jnp.sum(states * jnp.moveaxis(kernel[:, ids], 0, -1), -1) + bias[ids]
    rest = states @ kernel[:, others] + bias[others] - jnp.log(len(drawn) * chances)
    rest = jnp.where(others == ids[..., None], -jnp.inf, rest)
    return jnp.concatenate([own[..., None], rest], -1)
