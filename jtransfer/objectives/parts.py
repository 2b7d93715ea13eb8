"""Metrics of answers and entities: of texts and their parts, which are computed on the host after the model has run.

objective 'spans'    exact_match, f1             SQuAD's; where some question has no answer, none is given for
                                                 those whose null score is above that of their best answer
                     best_exact_match, best_f1   with the threshold that is best on the data, as of SQuAD 2.0
objective 'tokens'   entity_f1, entity_precision, entity_recall
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jtransfer.data.marks import LEFT_OUT
from jtransfer.objectives import answers, entities


@dataclass(frozen=True)
class PartMetric:
    """A metric of parts of texts, whose value `of_answers` or `of_tags` gives by its name.

    Attributes:
        words: What it is, for a line about a protocol.
        higher: Whether more is better.
        share: Whether it is shown times 100.
    """

    words: str
    higher: bool = True
    share: bool = True


OF_PARTS: Mapping[str, Mapping[str, PartMetric]] = {
    "spans": {
        "exact_match": PartMetric("share of answers that equal a true one (SQuAD)"),
        "f1": PartMetric("mean F1 of the words of answers (SQuAD)"),
        "best_exact_match": PartMetric("exact match at the best threshold for no answer (SQuAD 2.0)"),
        "best_f1": PartMetric("F1 at the best threshold for no answer (SQuAD 2.0)"),
    },
    "tags": {
        "entity_f1": PartMetric("F1 of whole entities (CoNLL)"),
        "entity_precision": PartMetric("precision of whole entities (CoNLL)"),
        "entity_recall": PartMetric("recall of whole entities (CoNLL)"),
    },
}
"""By what an objective reads, the metrics that such data have."""


def check(names: Iterable[str], reads: str, classes: Sequence[str]) -> None:
    """Refuse metrics of entities for tags that do not say where one begins.

    Raises:
        InputError: it names the metric and the first of these tags.
    """
    if reads == "tags" and (name := next((name for name in names if name in OF_PARTS["tags"]), "")):
        entities.check(classes, f"config.metrics: '{name}'")


def of_answers(given: Sequence[str], nulls: np.ndarray, true: Sequence[Sequence[str]]) -> dict[str, float]:
    """All metrics of `spans`, and `best_threshold`, the threshold of `best_f1`.

    Args:
        given: The best answer to each question, whatever the score of none.
        nulls: `[n]`, the score of no answer minus that of the best one.
        true: The true answers to each; empty where there is none.
    """
    answerable = np.array([any(map(answers.normalised, own)) for own in true])
    said, free = np.array([bool(answer) for answer in given]), answers.scored(given, true)
    kept = [answer if null <= 0 else "" for answer, null in zip(given, nulls, strict=True)]
    plain = free if answerable.all() else answers.scored(kept, true)
    (exact, _), (f1, threshold) = (answers.best_threshold(x, nulls, answerable, said) for x in free)
    return {
        "exact_match": float(plain.exact.mean()),
        "f1": float(plain.f1.mean()),
        "best_exact_match": exact,
        "best_f1": f1,
        "best_threshold": threshold,
    }


def of_tags(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """All metrics of `tags`.

    Args:
        predicted: `[n, tokens]`, the class of every token.
        labels: `[n, tokens]`, the true one, or `LEFT_OUT` for a token that does not count.
        classes: Names of the classes.
    """
    names = np.array(classes, object)
    counts = labels != LEFT_OUT
    rows = [(names[predicted[i][own]].tolist(), names[labels[i][own]].tolist()) for i, own in enumerate(counts)]
    return entities.scores(*zip(*rows, strict=True))
