"""Protocols that look at the table of word vectors alone: analogies, how alike words are, nearest neighbours.

The data of the evaluation are not read, and the layers are not either: the rows say `in` or, of symmetric vectors, the
sum of both tables.
"""

from typing import Annotated

import numpy as np

from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data import questions as asked_of
from jtransfer.data import words
from jtransfer.errors import InputError
from jtransfer.evaluate import analogies as measure
from jtransfer.evaluate.protocols.rows import ProtocolRun, row
from jtransfer.evaluate.task import TargetTask
from jtransfer.kinds import NAME, choice, several, whole
from jtransfer.models import WordVectorsConfig
from jtransfer.models.word_vectors import table
from jtransfer.objectives.metrics import METRICS


def analogies(
    task: TargetTask,
    questions: str = "tfds:google_analogies",
    method: Annotated[str, choice("3CosAdd", "3CosMul")] = "3CosAdd",
    restrict: Annotated[int, whole(0)] = 300_000,
) -> ProtocolRun:
    """The share of analogies `a : b = c : d` that are answered rightly, of those whose words are all known.

    Args:
        task: With word vectors.
        questions: A file like word2vec's `questions-words.txt`, or `tfds:google_analogies`.
        method: "3CosAdd" or "3CosMul": see `evaluate.analogies`.
        restrict: Only the first so many words ask and answer; 0 for all.
    """
    asked = asked_of.analogies(questions, task.data_dir)
    task.also.append(asked.fingerprint)
    vocabulary, vectors, layer = _of(task, "analogies")

    def run():
        found = measure.analogies(vocabulary, vectors, asked.words, method, restrict)
        per = {name: found.asked & (asked.categories == i) for i, name in enumerate(asked.names)}
        per_category = {name: float(found.right[own].mean()) if own.any() else None for name, own in per.items()}
        count = int(found.asked.sum())
        known = f"{len(vocabulary)} known ones"
        known = f"first {restrict} of the {known}" if 0 < restrict < len(vocabulary) else known
        how = (
            f"{method} on {count} of {len(asked.words)} questions of {questions}; the other "
            f"{len(asked.words) - count} have a word that is not among the {known}, and do not count; a, b and c are "
            "no answers"
        )
        share = found.right[found.asked].mean() if count else np.nan
        metrics = {"accuracy": share, "asked": count, "unknown": len(asked.words) - count}
        return [row(layer, metrics, how, per_category=per_category)]

    return run


def word_similarity(task: TargetTask, pairs: str = "") -> ProtocolRun:
    """Spearman's correlation of the cosines of pairs of words with how alike people find them.

    Args:
        task: With word vectors.
        pairs: A file of two words and a number on every line, between tabs or commas.
    """
    if not pairs:
        raise InputError("word_similarity: pairs is missing; name a file, as word_similarity(pairs='simlex.tsv')")
    asked = asked_of.alike(pairs)
    task.also.append(asked.fingerprint)
    vocabulary, vectors, layer = _of(task, "word_similarity")
    found = measure.cosines(vocabulary, vectors, asked.pairs)
    known = np.isfinite(found)
    if known.sum() < 2:
        raise InputError(f"word_similarity: {known.sum()} of the pairs of {pairs} have known words; expected two")

    def run():
        both = found[known].astype(np.float32), asked.scores[known].astype(np.float32)
        share = METRICS["spearman"](*both, np.ones(known.sum(), np.float32))
        how = f"the cosines of {known.sum()} of {len(known)} pairs of {pairs}; the others have a word that is not known"
        return [row(layer, {"Spearman": share, "asked": known.sum(), "unknown": (~known).sum()}, how)]

    return run


def neighbours(
    task: TargetTask,
    plus: Annotated[tuple, several(NAME, 1)] = ("king", "woman"),
    minus: Annotated[tuple, several(NAME)] = ("man",),
    k: Annotated[int, whole(1, 1000)] = 10,
) -> ProtocolRun:
    """The words nearest to the sum of some words less others.

    Args:
        task: With word vectors.
        plus: Words that are added.
        minus: Words that are taken away.
        k: Number of neighbours.
    """
    vocabulary, vectors, layer = _of(task, "neighbours")
    found = measure.neighbours(vocabulary, vectors, plus, minus, k)
    said = " + ".join(plus) + "".join(f" - {word}" for word in minus)
    metrics = dict(found)
    return lambda: [row(layer, metrics, f"cosines of the {len(found)} words nearest to {said}, none of these")]


def _of(task, protocol):
    """The words of the backbone, their vectors, and the name of the table."""
    backbone = task.backbone
    if not isinstance(backbone.config, WordVectorsConfig):
        raise InputError(f"{protocol}: backbone '{backbone.name}' has no word vectors; name one that has")
    known = words.read(tokenizer_files(backbone)).words
    return known, table(backbone.config, backbone.params), "in + out" if backbone.config.symmetric else "in"
