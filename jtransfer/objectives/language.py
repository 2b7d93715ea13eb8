"""Cross-entropy of the tokens of a text: the token that follows, a class for each, where an answer starts and ends.

Each is the mean over the tokens that count, over the whole batch, as in transformers: not the mean over the texts of
their means. A token whose label is `LEFT_OUT` does not count.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jtransfer.data.marks import LEFT_OUT
from jtransfer.errors import InputError
from jtransfer.models import Architecture, Head
from jtransfer.objectives.objective import WEIGHT, Batch, Metrics, Objective, Outputs

Asked = Callable[[Outputs, Batch], tuple[jax.Array, jax.Array]]
"""From outputs and their batch to logits `[n, tokens, outputs]` and labels `[n, tokens]`."""


def losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats of logits `[..., outputs]`, 0 where a label does not count, and which do; both `[...]`."""
    counts = labels != LEFT_OUT
    found = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, labels, 0))
    return jnp.where(counts, found, 0), counts


def mean(values: jax.Array, counts: jax.Array, axis: int | None = None) -> jax.Array:
    """The mean of the values that count; those that do not are 0. 0 where none counts (PyTorch: NaN)."""
    return values.sum(axis) / jnp.maximum(counts.sum(axis), 1)


def of_tokens(asked: Asked) -> tuple[Callable, Callable]:
    """The `score` and the `measure` of an objective that predicts one of several outputs for every token.

    `measure` gives the mean loss of the tokens of each example `[n]`, the share of them that is right (`accuracy`), and
    their number as its `weight`: means over examples then are means over tokens.
    """

    def score(params, outputs, batch):
        values, counts = losses(*asked(outputs, batch))
        return mean(values, counts), {WEIGHT: counts.sum(dtype=jnp.float32)}

    def measure(outputs, batch) -> Metrics:
        logits, labels = asked(outputs, batch)
        values, counts = losses(logits, labels)
        right = counts & (logits.argmax(-1) == labels)
        return {"loss": mean(values, counts, 1), "accuracy": mean(right, counts, 1), WEIGHT: counts.sum(1)}

    return score, measure


def language_head(name: str, kind: str) -> Callable[[Architecture, int], Head]:
    """The `head` of the objective `name`: the head of a `kind` over the vocabulary of an architecture.

    Raises:
        InputError: in a call, for an architecture that has no such head.
    """

    def head(architecture: Architecture, outputs: int) -> Head:
        found = architecture.language_head
        if found is None or found.kind != kind:
            has = f"has a head '{found.kind}'" if found else f"takes {', '.join(architecture.inputs)} and has none"
            raise InputError(f"objective '{name}' trains a head '{kind}' over a vocabulary; the model {has}")
        return found

    return head


def lm() -> Objective:
    """The mean cross-entropy of each token given those before it, as of transformers' GPT2LMHeadModel.

    The batch is `{"inputs": {"input_ids", "attention_mask"}}`, `[n, tokens]` each; the model's outputs have `logits [n,
    tokens, words]`. Padding does not count; with `document_ids` among the inputs, the first token of a document does
    not either. The perplexity is e to the mean over all tokens of a set.

    Raises:
        InputError: in a call of `head`, for a model that does not predict the token that follows.
    """

    def asked(outputs, batch):
        ids = batch["inputs"]["input_ids"]
        kept = batch["inputs"].get("attention_mask", jnp.ones_like(ids))[:, 1:] > 0
        if (of := batch["inputs"].get("document_ids")) is not None:
            kept &= of[:, 1:] == of[:, :-1]
        return outputs["logits"][:, :-1], jnp.where(kept, ids[:, 1:], LEFT_OUT)

    score, measure = of_tokens(asked)
    head = language_head("lm", "causal_lm")
    return Objective(score, head, measure=measure, metrics=("perplexity",), reads="texts")


def tokens() -> Objective:
    """The mean cross-entropy of a class for every token, `labels [n, tokens]`, of which `LEFT_OUT` do not count.

    Raises:
        InputError: in a call of `head`, for a model that is not of texts alone.
    """
    score, measure = of_tokens(lambda outputs, batch: (outputs["logits"], batch["labels"]))

    def head(architecture: Architecture, outputs: int) -> Head:
        _check_texts("tokens", architecture)
        return Head(outputs, reads="last_hidden_state")

    return Objective(score, head, measure=measure, metrics=("accuracy",), reads="tags")


def spans() -> Objective:
    """The mean cross-entropy of the first and of the last token of an answer, half of each.

    The labels are `[n, 2]`, or `[n, answers, 2]` of which the first is learned. A place outside the text, as of an
    answer that was cut off, does not count (Devlin et al. 2019, section 4.2, and transformers'
    BertForQuestionAnswering). `accuracy` is the share of examples in which both places are those of an answer.

    Raises:
        InputError: in a call of `head`, for a model that is not of texts alone.
    """

    def places(outputs, batch):
        logits = jnp.stack([outputs["start_logits"], outputs["end_logits"]], 1)
        labels = batch["labels"].reshape(len(logits), -1, 2)
        labels = jnp.where((labels >= 0) & (labels < logits.shape[-1]), labels, LEFT_OUT)
        return logits, labels, *losses(logits, labels[:, 0])

    def score(params, outputs, batch):
        _, _, values, counts = places(outputs, batch)
        return mean(values, counts, 0).mean(), {WEIGHT: counts.mean(1).sum()}

    def measure(outputs, batch) -> Metrics:
        logits, labels, values, counts = places(outputs, batch)
        right = (logits.argmax(-1)[:, None] == labels).all(-1).any(1)
        return {"loss": mean(values, counts, 1), "accuracy": right, WEIGHT: counts.mean(1)}

    def head(architecture: Architecture, outputs: int) -> Head:
        _check_texts("spans", architecture)
        return Head(2, reads="last_hidden_state", span=True)

    return Objective(score, head, measure=measure, metrics=("accuracy",), reads="spans")


def _check_texts(name, architecture):
    if "input_ids" not in architecture.inputs or architecture.towers:
        inputs = ", ".join(architecture.inputs)
        raise InputError(f"objective '{name}' predicts for every token of a text; the model takes {inputs}")
