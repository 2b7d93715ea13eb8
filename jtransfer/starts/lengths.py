"""Texts of a stream, arranged so that a step reads less padding: joined into full rows, or grouped by length.

What a batch is follows from the seed and the step alone, as for any stream: of every process all texts are tokenized
before the first step, so that each knows where every row begins, or how long it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data.marks import KINDS
from jtransfer.data.streams import Rows, Stream, rearranged
from jtransfer.data.subsets import epochs
from jtransfer.data.text import ALL
from jtransfer.errors import InputError
from jtransfer.models import Architecture
from jtransfer.starts.batches import LENGTHS
from jtransfer.starts.inputs import BLOCK, Arrays, Texts, columns_of

PACKINGS = ("joined", "documents", "segments")
"""How rows are filled with texts: each token sees what stands before it in its row, or its own text alone; or a row has
two segments, of which the second follows the first or does not (see `segments`)."""

WINDOW = 50
"""Batches among whose rows texts of one length are looked for."""


@dataclass(frozen=True)
class Ready:
    """Gives arrays that are a model's inputs already.

    Attributes:
        tokenizer: The tokenizer that made them.
        tokens: The most tokens of a row.
        labelled: Whether labels count tokens already, as those of `windows`.
    """

    tokenizer: Any
    tokens: int
    labelled: bool = False

    def __call__(self, arrays: Arrays) -> Arrays:
        """The arrays as they are."""
        return arrays


@dataclass(frozen=True, eq=False)
class Packed:
    """Texts behind each other, cut into rows of equal length; the last row is filled up with padding.

    Attributes:
        ids: `[all tokens]` int32.
        starts: `[texts]`, the place of the first token of each text.
        texts: Makes the inputs of the model.
        documents: Whether a row tells which tokens are of one text, in `document_ids` (0 for padding).
        places: Whether it tells where in its text, or in what the row has of it, a token stands, in `position_ids`.
    """

    ids: np.ndarray
    starts: np.ndarray
    texts: Texts
    documents: bool
    places: bool

    def __len__(self) -> int:
        return -(-len(self.ids) // self.texts.tokens)

    def __getitem__(self, rows: np.ndarray) -> Arrays:
        """The inputs `[n, tokens]` of some rows, by the names of the model."""
        size, tokenizer = self.texts.tokens, self.texts.tokenizer
        own = [self.ids[row * size : (row + 1) * size].tolist() for row in rows]
        arrays = tokenizer.padded([(ids, 0, False) for ids in own], size, "right")
        if self.documents:
            places = rows[:, None] * size + np.arange(size)
            of = np.searchsorted(self.starts, places, side="right")
            arrays["document_ids"] = np.where(places < len(self.ids), of - of[:, :1] + 1, 0).astype(np.int32)
            first = np.maximum(self.starts[of - 1], rows[:, None] * size)
            arrays |= {"position_ids": (places - first).astype(np.int32)} if self.places else {}
        return arrays


@dataclass(frozen=True, eq=False)
class Padded:
    """Texts by rows, as inputs of a model that are padded to one length.

    Attributes:
        inputs: The texts, indexed by rows.
        texts: Makes the inputs of the model.
        length: That texts are padded to, in tokens.
    """

    inputs: Any
    texts: Texts
    length: int

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: np.ndarray) -> Arrays:
        """The inputs `[n, length]` of some rows, by the names of the model."""
        return self.texts.tokenizer.padded(_tokens(self.inputs[rows], self.texts, self.texts.tokens), self.length)


def packed(
    stream: Stream, texts: Texts, how: str, model: Architecture, batch: int, seed: int, share: np.ndarray
) -> tuple[Stream, Ready]:
    """A stream whose rows are full of texts, one behind the other in the order of the data.

    No text is cut: where a row ends, the next one goes on with it, as `run_clm.py` and `run_mlm.py` of transformers
    group texts. Each text has the special tokens that its tokenizer gives it; one for a model that continues texts
    ends with its end of text. Rows come in shuffled epochs. The held-out texts are packed too.

    With "documents", a token sees its own text alone, positions of a model that takes `position_ids` count from the
    first token that the row has of it, and no text is asked for the first token of the next one.

    Args:
        stream: Of texts, with rows.
        texts: Makes the inputs of the model.
        how: One of `PACKINGS`.
        model: The config of the model.
        batch: Rows of a batch, over all devices.
        seed: Of the shuffling.
        share: Positions in a batch that this process reads.

    Returns:
        The stream, and what takes its inputs.

    Raises:
        InputError: the stream draws its inputs anew, or its texts do not fill one row.
    """
    rows = rows_of(stream, f"config.packing '{how}'")
    about = texts, how == "documents", "position_ids" in model.inputs
    name, inputs, _ = stream.held_out
    pool, held_out = (Packed(*joined(own, texts, model), *about) for own in (Rows(stream.inputs, rows), inputs))
    if len(pool.ids) < texts.tokens:
        raise InputError(
            f"config.packing '{how}': all training texts of {stream.name} have {len(pool.ids)} tokens together, fewer "
            f"than one row of {texts.tokens}; set config.load.tokens to {len(pool.ids)} at most"
        )

    at = partial(_of_packed, pool, epochs(np.arange(len(pool)), batch, seed), share)
    held_out = (name, held_out, np.zeros((len(held_out), 0), np.int8))
    arranged = rearranged(stream, at, held_out)
    return arranged, Ready(texts.tokenizer, texts.tokens)


def joined(inputs: Any, texts: Texts, model: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of some texts behind each other, int32, and the places where those of each text begin.

    Args:
        inputs: The texts, indexed by rows.
        texts: Makes tokens of them.
        model: One that continues texts has the end of a text behind each.
    """
    end, found = model.eos_tokens[:1] if model.generates else (), []
    for ids in tokens_of(inputs, texts):
        one = np.array([*ids, *(end if tuple(ids[-1:]) != end else ())], np.int32)
        found.append(one.reshape(-1, *np.shape(ids)[1:]))  # of words by their characters too
    starts = np.cumsum([0, *map(len, found)])
    return np.concatenate(found), starts[:-1][np.diff(starts) > 0]


def _of_packed(pool, order, share, step):
    """The share of the batch of a step."""
    return {"inputs": Rows(pool, order(step)[share]), "labels": np.zeros((len(share), 0), np.int8)}


def grouped(stream: Stream, texts: Texts, batch: int, seed: int, share: np.ndarray) -> tuple[Stream, Ready]:
    """A stream whose batches are of texts of about one length, each padded to one of `batches.LENGTHS`.

    Epochs are shuffled. Among the rows of every `WINDOW` batches those of one length then go together, and the batches
    of a window come in a random order, as `group_by_length` of transformers does but for that order. A batch is padded
    as far as its longest text needs, on all processes; a step is compiled for each length. Held-out texts are padded to
    one length.

    Args:
        stream: Of texts, with rows and without labels of their parts.
        texts: Makes the inputs of the model.
        batch: Rows of a batch, over all devices.
        seed: Of the shuffling.
        share: Positions in a batch that this process reads.

    Returns:
        The stream, and what takes its inputs.

    Raises:
        InputError: the stream draws its inputs anew, has labels of words or answers, or its texts have a fixed length.
    """
    rows, where = rows_of(stream, "config.group_by_length"), f"config.group_by_length: {stream.name}"
    if stream.targets in KINDS:
        raise InputError(f"{where} has labels of parts of texts, which have one length; leave it out")
    if texts.tokenizer.whole:
        raise InputError(f"{where}: the model reads texts of {texts.tokens} tokens alone; leave it out")
    counts = np.zeros(len(stream.inputs), np.int64)
    for start in range(0, len(rows), BLOCK):
        own = rows[start : start + BLOCK]
        counts[own] = [len(ids) for ids, _, _ in _tokens(stream.inputs[own], texts, texts.tokens)]
    labels, (name, inputs, held_out) = stream.pool[1], stream.held_out
    order = epochs(rows, batch, seed, partial(by_length, counts, batch))

    held_out = (name, Padded(inputs, texts, texts.tokens), held_out)
    pool = Padded(Rows(stream.inputs, rows), texts, texts.tokens), labels
    of_rows = np.zeros((len(stream.inputs), *labels.shape[1:]), labels.dtype)
    of_rows[rows] = labels
    at = partial(_of_grouped, stream.inputs, texts, of_rows, counts, order, share)
    arranged = rearranged(stream, at, held_out, pool)
    return arranged, Ready(texts.tokenizer, texts.tokens)


def _of_grouped(inputs, texts, labels, counts, order, share, step):
    """The share of the batch of a step, padded as far as its longest text needs on any process."""
    rows = order(step)
    length = next((length for length in LENGTHS if counts[rows].max() <= length < texts.tokens), texts.tokens)
    return {"inputs": Rows(Padded(inputs, texts, length), rows[share]), "labels": labels[rows[share]]}


def by_length(counts: np.ndarray, batch: int, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Rows in an order in which those of one length stand together, by batches, which come in a random order.

    Args:
        counts: The tokens of every row, by its number.
        batch: Rows of a batch; rows beyond the last whole batch come last.
        rows: `[n]` rows, shuffled.
        draws: Draws the order of the batches of each window.
    """
    found = []
    for start in range(0, len(rows), WINDOW * batch):
        own = np.argsort(counts[rows[start : start + WINDOW * batch]], kind="stable") + start
        whole = len(own) - len(own) % batch
        found += [*draws.permutation(own[:whole].reshape(-1, batch)), own[whole:]]
    return rows[np.concatenate(found)]


def tokens_of(inputs: Any, texts: Texts) -> Iterator[list[int]]:
    """The tokens of each text, indexed by rows, with its special tokens; none is cut."""
    for start in range(0, len(inputs), BLOCK):
        own = inputs[np.arange(start, min(start + BLOCK, len(inputs)))]
        yield from (ids for ids, _, _ in _tokens(own, texts, ALL))


def _tokens(inputs, texts, limit):
    return texts.tokenizer.rows(*columns_of(inputs), limit)


def rows_of(stream: Stream, what: str) -> np.ndarray:
    """The rows that a stream trains on.

    Raises:
        InputError: it has none.
    """
    if stream.kind != "text":
        raise InputError(f"{what} is of texts, {stream.name} holds {stream.kind}s; leave it out")
    if stream.rows is None:
        raise InputError(f"{what}: {stream.name} makes its batches itself; expected data by rows, or leave it out")
    return stream.rows
