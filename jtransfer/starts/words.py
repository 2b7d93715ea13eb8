"""Word vectors and a corpus: the vocabulary, the model that has a vector for each word of it, and rows of words."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data import words
from jtransfer.data.cooccurrence import count
from jtransfer.data.dataset import unlabelled
from jtransfer.data.streams import Rows, Stream, rearranged
from jtransfer.data.subsets import epochs
from jtransfer.data.windows import Walk
from jtransfer.data.words import Vocabulary
from jtransfer.errors import InputError
from jtransfer.models import WordVectorsConfig, of_config
from jtransfer.objectives.word_vectors import NearWords
from jtransfer.optimiser import Optimiser
from jtransfer.starts.inputs import Arrays

log = logging.getLogger("jtransfer")

HELD_OUT = 1 << 16
"""The most cells that are held out from the training of GloVe."""
MEASURED = 1 << 20
"""The most words of held-out texts that word2vec is measured on."""


@dataclass(frozen=True, eq=False)
class Whole:
    """Inputs of a model by rows, all in memory.

    Attributes:
        arrays: `[rows, ...]` by name.
    """

    arrays: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: np.ndarray) -> Arrays:
        """The inputs of some rows."""
        return {name: x[rows] for name, x in self.arrays.items()}


@dataclass(frozen=True)
class ReadyRows:
    """Gives rows of words, which are a model's inputs already; of what is none, arrays of the form that rows have.

    Attributes:
        shapes: Of one row.
        vocabulary: Of the corpus; None where that is not here.
    """

    shapes: Any
    vocabulary: Vocabulary | None

    tokenizer = None

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the tokenizer, by name."""
        return self.vocabulary.files if self.vocabulary else {}

    def __call__(self, arrays: Any) -> Arrays:
        """The inputs of some rows."""
        if isinstance(arrays, dict):
            return arrays
        return {name: np.zeros((len(arrays), *x.shape[1:]), x.dtype) for name, x in self.shapes.items()}


def start(config: Any, stream: Stream, objective: Any, backbone: Backbone | None, share: np.ndarray):
    """The model and the data of an objective on the words of a corpus.

    The vocabulary is that of the backbone, or the words that the texts to be trained on have often enough.

    Args:
        config: The config of the run.
        stream: Of texts.
        objective: With `words`.
        backbone: Word vectors to start from; None for a start at random.
        share: Positions in a batch that this process reads.

    Returns:
        The backbone, without leaves where they start at random; the stream of rows; and what takes its inputs. Of a
        stream that has no rows, as it is only read back, the rows are not made.

    Raises:
        InputError: data that are no texts, a model without word vectors, a vocabulary without words, a corpus that is
            smaller than one window, held-out texts without known words, or keys of the config that have no meaning
            here.
    """
    what = f"config.objective '{config.objective}'"
    _check(config, stream, objective, what)
    options = {**config.model}
    if backbone is None and options.pop("architecture") != "word_vectors":
        raise InputError(f"{what} learns word vectors; set config.model.architecture to 'word_vectors'")
    if backbone is not None and not isinstance(backbone.config, WordVectorsConfig):
        raise InputError(f"{what} learns word vectors, which '{backbone.name}' has not; leave config.backbone out")
    architecture = WordVectorsConfig(**options) if backbone is None else replace(backbone.config, output=True)
    pairs = isinstance(objective.words, NearWords)
    if architecture.symmetric == pairs:
        raise InputError(f"{what} {'has no' if pairs else 'needs'} biases; set config.model.symmetric to {not pairs}")
    rows = stream.rows
    if stream.vocabulary is not None:
        vocabulary = stream.vocabulary
    elif backbone is not None:
        vocabulary = words.read(tokenizer_files(backbone))
    elif rows is None:  # of a topology: as many words as there may be
        vocabulary = None
    else:
        vocabulary = words.of_texts(
            stream.inputs, rows, objective.words.least, architecture.vocabulary, objective.words.lower, stream.name
        )
    architecture = replace(architecture, vocabulary=len(vocabulary)) if vocabulary else architecture
    model = of_config(architecture)
    found = Backbone("", model, {}) if backbone is None else replace(backbone, model=model)
    ready = ReadyRows(objective.words.shapes, vocabulary)
    if rows is None:
        return found, stream, ready
    own = words.corpus(vocabulary, stream.inputs, rows)
    least = objective.words.window + 1
    if len(own) < least:
        raise InputError(
            f"{stream.name}: the {len(rows)} texts to train on have {len(own)} words of the vocabulary; expected at "
            f"least {least}, one window"
        )
    arrange = _windows if pairs else _cells
    return found, replace(arrange(config, stream, objective, vocabulary, own, share), vocabulary=vocabulary), ready


def parts(objective: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one example of what a batch has beside inputs and labels."""
    return {"rate": jax.ShapeDtypeStruct((1,), np.float32)} if isinstance(objective.words, NearWords) else {}


def _check(config, stream, objective, what):
    if stream.kind != "text":
        raise InputError(f"{what} is of texts, {stream.name} holds {stream.kind}s; choose another config.data")
    none = {"tokenizer": "", "packing": "", "group_by_length": False, "accumulate": 1, "teacher": "", "source": ""}
    for key, empty in none.items():
        if config[key] != empty:
            raise InputError(f"config.{key} is of texts that a model reads whole, {what} of their words; leave it out")
    if isinstance(objective.words, NearWords):
        o = config.optimiser
        if o.name != "sgd" or o.momentum or o.clip or o.decay:
            raise InputError(
                f"{what} takes small steps of plain gradient descent, row by row; expected config.optimiser.name 'sgd' "
                f"with momentum, clip and decay 0, found '{o.name}' with {o.momentum:g}, {o.clip:g} and {o.decay:g}"
            )


def _windows(config, stream, objective, vocabulary, own, share):
    """The stream of word2vec: rows of words, and the rate of the small step of each."""
    counts = own.counts(len(vocabulary))
    walk = Walk(own, objective.words, counts, config.batch, config.seed)
    epoch = walk.rows_of(0)
    log.info(
        "%s: %d words in %d texts, %d different ones; an epoch leaves %d rows of %d words, %.1f steps",
        *(stream.name, len(own), len(stream.rows), len(vocabulary.words), epoch, objective.words.block),
        epoch / config.batch,
    )
    optimiser = Optimiser(**config.optimiser)
    rates = optimiser.rate * np.asarray(optimiser.rate_at(config.steps)(np.arange(config.steps + 1)), np.float64)
    # A cosine over many steps ends at 0 in float32, by which the way of a step cannot be divided.
    rates = np.maximum(rates, np.finfo(np.float32).tiny)
    at = partial(_of_walk, walk, rates, share)

    name, inputs, _ = stream.held_out
    others = words.corpus(vocabulary, inputs, np.arange(len(inputs)))
    if len(others) < 2:
        raise InputError(
            f"{stream.name}: the {len(inputs)} texts of '{name}' have {len(others)} words of the vocabulary; expected "
            "at least 2, to measure on"
        )
    test = Walk(others, objective.words, counts, 1, 0)
    rows = Whole(replace(test, batch=min(test.rows_of(0), -(-MEASURED // test.windows.block)))(0))
    if not (np.diff(rows.arrays["windows"]) > 0).any():
        raise InputError(
            f"{stream.name}: no two words of the vocabulary are left near each other in the {len(inputs)} texts of its "
            f"'{name}', {len(others)} words; expected a larger corpus, or a smaller least or subsample"
        )
    held_out = (name, rows, unlabelled(len(rows)))
    return rearranged(stream, at, held_out)


def _of_walk(walk, rates, share, step):
    inputs = walk(step, share)
    between = np.arange(walk.batch) / walk.batch
    step = min(step, len(rates) - 2)
    rate = (rates[step] + between * (rates[step + 1] - rates[step])).astype(np.float32)[share]
    return {"inputs": Whole(inputs), "labels": unlabelled(len(rate)), "rate": rate}


def _cells(config, stream, objective, vocabulary, own, share):
    """The stream of GloVe: cells in shuffled epochs, a hundredth of which is held out."""
    found = count(own, objective.words.window, len(vocabulary))
    log.info("%s: %d words, %d pairs that stand together", stream.name, len(own), len(found.x))
    order = np.random.default_rng(0).permutation(len(found.x))
    held = order[: min(max(1, len(order) // 100), HELD_OUT)]
    rows = np.sort(order[len(held) :])
    if not len(rows):
        raise InputError(f"{stream.name}: {len(found.x)} words stand together; expected two pairs at least")
    cells = Whole({"input_ids": found.words[:, :1], "output_ids": found.words[:, 1:]})
    at = partial(_of_cells, cells, found.x, epochs(rows, config.batch, config.seed), share)
    held_out = (stream.held_out[0], Rows(cells, held), found.x[held])
    return rearranged(stream, at, held_out)


def _of_cells(cells, x, order, share, step):
    own = order(step)[share]
    return {"inputs": Rows(cells, own), "labels": x[own]}
