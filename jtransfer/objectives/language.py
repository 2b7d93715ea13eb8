"""Cross-entropy of the tokens of a text: the token that follows, a class for each, where an answer starts and ends.

Each is the mean over the tokens that count, over the whole batch, as in transformers: not the mean over the texts of
their means. A token whose label is `LEFT_OUT` does not count.
"""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jtransfer import models
from jtransfer.data.answers import LINES, TEMPLATE, WORDS, Answers
from jtransfer.data.marks import LEFT_OUT
from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, check
from jtransfer.models import Architecture, Head
from jtransfer.objectives.objective import CARRIED, WEIGHT, Batch, Metrics, Objective, Outputs, forward
from jtransfer.tree import Tree, flat, nested, prefixed, select

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


def lm(
    ar: Annotated[float, NOT_NEGATIVE] = 0.0,
    tar: Annotated[float, NOT_NEGATIVE] = 0.0,
    carried: bool = False,
    answers: bool = False,
) -> Objective:
    """The mean cross-entropy of each token given those before it, as of transformers' GPT2LMHeadModel.

    The batch is `{"inputs": {"input_ids", "attention_mask"}}`, `[n, tokens]` each; the model's outputs have `logits [n,
    tokens, words]`. Padding does not count; with `document_ids` among the inputs, the first token of a document does
    not either. The perplexity is e to the mean over all tokens of a set.

    `ar` and `tar` are of recurrent models (Merity et al. 2017, arXiv:1708.02182, section 4.4). As in their code each
    weighs a mean of squares over all tokens: of the last layer's outputs behind dropout, and of the differences from
    token to token of these outputs before dropout. The sum of both is the metric `penalty`; the loss is without it.

    Args:
        ar: Weight of activation regularisation.
        tar: Weight of temporal activation regularisation.
        carried: Whether each row goes on where that row of the batch before ended, so that a recurrent model starts
            from its state there. The last token of a row is then asked for and not read: it is the first of the next.
        answers: Whether rows are two texts, a prompt and an answer, and the tokens of the answer and of its end are all
            that counts.

    Raises:
        InputError: a weight below 0; in a call of `head`, a model that does not predict the token that follows, or
            weights or a state for one that is not recurrent.
    """
    for name, weight in (("ar", ar), ("tar", tar)):
        check(weight, NOT_NEGATIVE, f"lm: {name}")
    if answers and (ar or tar or carried):
        raise InputError(
            "lm: answers stand each for itself, ar, tar and a state that is carried are of streams of texts"
        )
    if answers:
        score, measure = of_tokens(_answers)
        own = {"measure": measure, "metrics": ("perplexity",), "reads": "texts", "answers": Answers()}
        return Objective(score, language_head("lm", "causal_lm"), **own)

    def asked(outputs, batch):
        ids = batch["inputs"]["input_ids"]
        kept = batch["inputs"].get("attention_mask", jnp.ones_like(ids))[:, 1:] > 0
        if (of := batch["inputs"].get("document_ids")) is not None:
            kept &= of[:, 1:] == of[:, :-1]
        logits = outputs["logits"] if carried else outputs["logits"][:, :-1]
        return logits, jnp.where(kept, ids[:, 1:], LEFT_OUT)

    plain, measure = of_tokens(asked)

    def penalised(params, outputs, batch):
        value, metrics = plain(params, outputs, batch)
        tokens = outputs["raw_hidden_state"].shape[1]
        mask = batch["inputs"].get("attention_mask", jnp.ones_like(batch["inputs"]["input_ids"]))[:, -tokens:]
        penalty = regularisation(outputs["last_hidden_state"], outputs["raw_hidden_state"], mask, ar, tar)
        return value + penalty, metrics | {"loss": value, "penalty": penalty}

    own_head = language_head("lm", "causal_lm")

    def head(architecture, outputs):
        found = own_head(architecture, outputs)
        if (ar or tar or carried) and not architecture.recurrent:
            what = "config.packing goes on with" if carried else f"objective 'lm(ar={ar:g}, tar={tar:g})' reads"
            raise InputError(f"{what} a state that is carried from token to token; the model has none, as awd_lstm has")
        return found

    rest = {"forward": carrying, "begins": zero_state} if carried else {}
    score = penalised if ar or tar else plain
    return Objective(score, head, measure=measure, metrics=("perplexity",), reads="texts", **rest)


def regularisation(dropped: jax.Array, raw: jax.Array, mask: jax.Array, ar: float, tar: float) -> jax.Array:
    """`ar mean(dropped²) + tar mean((raw_t+1 - raw_t)²)` over tokens, and pairs of them, that are no padding.

    Args:
        dropped: Outputs of the last layer behind dropout, `[n, tokens, width]`; `raw` are those before it.
        raw: Of the shape of `dropped`.
        mask: `[n, tokens]`, 0 for padding.
        ar: Weight of the first mean.
        tar: Weight of the second.
    """

    def squares(x, mask):
        each = jnp.square(x.astype(jnp.float32)).mean(-1)
        return mean(jnp.where(mask > 0, each, 0), mask > 0)

    return ar * squares(dropped, mask) + tar * squares(raw[:, 1:] - raw[:, :-1], mask[:, 1:] * mask[:, :-1])


def zero_state(model: nn.Module, rows: int) -> Tree:
    """What a recurrent model has kept before the first token of `rows` rows, flat, under `CARRIED`."""
    while (inner := getattr(model, "backbone", None) or getattr(model, "model", None)) is not None:
        model = inner  # inside its head and what a method puts around it
    return prefixed(flat(model.config.cache(rows, 0)), CARRIED)


def carrying(model, params, state, inputs, key):
    """A `Forward` that starts from the state that the batch before ended with, through which no gradient goes.

    Where no state is there, as in a step that is only counted, it is zero.
    """
    before = {path: leaf for path, leaf in state.items() if path.startswith(CARRIED)}
    # A token is read where the one behind it is in the row: the last that is there is the first of the next row.
    read = {"input_ids": inputs["input_ids"][:, :-1], "attention_mask": inputs["attention_mask"][:, 1:]}
    read |= {"past_key_values": nested(select(before, CARRIED))} if before else {}
    rest = {path: leaf for path, leaf in state.items() if path not in before}
    if key is None:
        outputs = models.apply(model, params | rest, read, train=False)
    else:
        outputs, rest = forward(model, params, rest, read, key)
    after = prefixed(flat(outputs.pop("past_key_values")), CARRIED) if before else {}
    return outputs, rest | after


def prompted(template: Annotated[str, LINES] = TEMPLATE, words: Annotated[tuple, WORDS] = ()) -> Objective:
    """Classification by a language model: the mean cross-entropy of the word of a row's class, and of its end.

    A run measures which word is the likeliest after a row's prompt, beside the loss.

    Args:
        template: Of a prompt, with `{text}`, and `{pair}` where rows have two texts, and `{label}` after them.
        words: One for each class; none for the names of the classes.

    Raises:
        InputError: in a call of `head`, for a model that does not predict the token that follows.
    """
    score, of_each = of_tokens(_answers)

    def measure(outputs, batch) -> Metrics:
        found = of_each(outputs, batch)
        return {"loss": found["loss"], WEIGHT: found[WEIGHT]}  # the accuracy of a run is that of words

    head = language_head("prompted", "causal_lm")
    own = Answers(template, tuple(words))
    return Objective(score, head, measure=measure, metrics=("accuracy",), answers=own)


def _answers(outputs, batch):
    return outputs["logits"][:, :-1], batch["labels"][:, 1:]


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
