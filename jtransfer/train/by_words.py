"""How well a language model classifies while it trains: by the likeliest word after a row's prompt."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer.data.streams import Stream
from jtransfer.evaluate.likelihood import Likelihoods, questions
from jtransfer.methods import Adapted
from jtransfer.models import Architecture
from jtransfer.objectives.metrics import Metric
from jtransfer.starts.answered import AskedRows
from jtransfer.starts.inputs import BLOCK
from jtransfer.train.measured import Evaluate, joined


def beside(
    evaluate: Callable[[Adapted], Evaluate],
    stream: Stream,
    named: Mapping[str, Metric],
    architecture: Architecture,
    mesh: Mesh,
    adapted: Adapted,
) -> Evaluate:
    """Measure what `evaluate` does, and metrics of classes whose logits are log-probabilities of their words.

    Args:
        evaluate: Makes what measures a model otherwise.
        stream: Whose held-out inputs are `AskedRows`.
        named: Metrics of the whole set, by name.
        architecture: Of the backbone.
        mesh: The devices.
        adapted: The model under a method.
    """
    name, asked, labels = stream.held_out
    likelihoods, questions_once = Likelihoods(adapted.model, architecture, mesh), cache(partial(questions_of, asked))
    weights = np.ones(len(labels), np.float32)
    tree_of = jax.jit(lambda state, frozen: adapted.ended(state.average, frozen) | state.state)

    def of_words(state, frozen):
        scores, _ = likelihoods(tree_of(state, frozen), questions_once(architecture))
        scores = scores.astype(np.float32)
        return {f"{name}_{key}": float(metric(scores, labels, weights)) for key, metric in named.items()}

    of_classes = Evaluate(of_words, lambda: {f"{name}_{key}": metric.higher for key, metric in named.items()})
    return joined((evaluate(adapted), of_classes))


def questions_of(asked: AskedRows, architecture: Architecture) -> list:
    """The prompts of all rows, and the word of every class after each."""
    asking, found = asked.asking, []
    words = [asking.template.answer(word) for word in asking.words]
    ask = partial(
        questions, asking.tokenizer, answers=words, start=architecture.eos_tokens[:1], where="prompted: words"
    )
    for start in range(0, len(asked), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(asked)))
        found += ask(asking.prompts(asked.inputs[rows])[0])
    return found
