"""Texts of a stream, arranged so that a step reads less padding: joined into full rows, beside each other in rows as
far as they fit whole, or grouped by length.

What a batch is follows from the seed and the step alone, as for any stream: of every process all texts are tokenized
before the first step, so that each knows where every row begins, or how long it is.
"""

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jtransfer.data.dataset import unlabelled
from jtransfer.data.marks import KINDS, LEFT_OUT
from jtransfer.data.streams import Rows, Stream, rearranged
from jtransfer.data.subsets import epochs
from jtransfer.data.text import ALL
from jtransfer.errors import InputError
from jtransfer.models import Architecture
from jtransfer.starts.batches import LENGTHS
from jtransfer.starts.inputs import BLOCK, Arrays, Texts, columns_of

log = logging.getLogger("jtransfer")

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
    """Texts behind each other in rows of one length; what a row has no token for is padding.

    Attributes:
        ids: `[all tokens]` int32.
        starts: `[texts]`, the place of the first token of each text.
        begins: `[rows + 1]`, the place of the first token of each row, and the number of all tokens.
        size: The length of rows.
        tokenizer: Of the model.
        documents: Whether a row tells which tokens are of one text, in `document_ids` (0 for padding).
        places: Whether it tells where in its text, or in what the row has of it, a token stands, in `position_ids`.
        learned: `[all tokens]` bool, which tokens are labels; None where rows have no labels of their own.
    """

    ids: np.ndarray
    starts: np.ndarray
    begins: np.ndarray
    size: int
    tokenizer: Any
    documents: bool
    places: bool
    learned: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.begins) - 1

    def __getitem__(self, rows: np.ndarray) -> Arrays:
        """The inputs `[n, size]` of some rows, by the names of the model."""
        own = [self.ids[self.begins[row] : self.begins[row + 1]].tolist() for row in rows]
        arrays = self.tokenizer.padded([(ids, 0, False) for ids in own], self.size, "right")
        if self.documents:
            places, inside = self._places(rows)
            of = np.searchsorted(self.starts, places, side="right")
            arrays["document_ids"] = np.where(inside, of - of[:, :1] + 1, 0).astype(np.int32)
            first = np.maximum(self.starts[of - 1], places[:, :1])
            arrays |= {"position_ids": (places - first).astype(np.int32)} if self.places else {}
        return arrays

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """The tokens that are learned in some rows, and `LEFT_OUT` in all other places, `[n, size]` int32."""
        places, inside = self._places(rows)
        places = np.where(inside, places, 0)
        return np.where(inside & self.learned[places], self.ids[places], LEFT_OUT).astype(np.int32)

    def _places(self, rows):
        places = self.begins[rows][:, None] + np.arange(self.size)
        return places, places < self.begins[rows + 1][:, None]


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
        InputError: the stream draws its inputs anew, or its texts do not fill one row; or the model does not
            tell the texts of a row apart.
    """
    if how == "documents":
        _check_documents(model)
    rows = rows_of(stream, f"config.packing '{how}'")
    about = texts.tokens, texts.tokenizer, how == "documents", "position_ids" in model.inputs
    name, inputs, _ = stream.held_out

    def cut(inputs):
        ids, starts = joined(inputs, texts, model)
        return Packed(ids, starts, np.append(np.arange(0, len(ids), texts.tokens), len(ids)), *about)

    pool, held_out = cut(Rows(stream.inputs, rows)), cut(inputs)
    if len(pool.ids) < texts.tokens:
        raise InputError(
            f"config.packing '{how}': all training texts of {stream.name} have {len(pool.ids)} tokens together, fewer "
            f"than one row of {texts.tokens}; set config.load.tokens to {len(pool.ids)} at most"
        )

    at = partial(_of_packed, pool, epochs(np.arange(len(pool)), batch, seed), share)
    held_out = (name, held_out, unlabelled(len(held_out)))
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


def _check_documents(model):
    if not model.masks_documents:
        raise InputError(
            "config.packing 'documents': states of the model go through a row from end to end; expected another or none"
        )


def _of_packed(pool, order, share, step):
    """The share of the batch of a step."""
    return {"inputs": Rows(pool, order(step)[share]), "labels": unlabelled(len(share))}


def beside(
    stream: Stream, texts: Texts, tokens: int, model: Architecture, batch: int, seed: int, share: np.ndarray
) -> tuple[Stream, Packed]:
    """A stream whose rows hold several prompts with their answers, each whole; held-out ones stay each in its own row.

    A token sees its own prompt and answer alone and positions begin anew with each, so that the loss of a row is that
    of what it holds. The longest come first, each in that row of those with room which has the least (best-fit
    decreasing; Ding et al. 2024, arXiv:2404.10830). Rows come in shuffled epochs.

    Args:
        stream: Of pairs of a prompt and an answer, with a pool.
        texts: Makes the model's inputs of them, each in its own row.
        tokens: The length of rows; 0 for all that the model takes.
        model: The config of the model.
        batch: Rows of a batch, over all devices.
        seed: Of the shuffling.
        share: Positions in a batch that this process reads.

    Returns:
        The stream, whose batches have the inputs of the model, and its rows.

    Raises:
        InputError: the stream makes its batches itself, or the model does not tell the texts of a row apart.
    """
    _check_documents(model)
    if stream.pool is None:
        raise InputError(f"config.packing: {stream.name} makes its batches itself; expected data by rows; leave it out")
    (inputs, labels), size = stream.pool, tokens or texts.tokenizer.limit
    found = [np.array([ids, types], np.int32) for ids, types, _ in _encoded(inputs, texts, texts.tokens)]
    rows = best_fit([x.shape[1] for x in found], size)
    ordered = [found[text] for row in rows for text in row]
    starts = np.cumsum([0, *(x.shape[1] for x in ordered)])
    ids, types = np.concatenate(ordered, axis=1)
    begins, starts = starts[np.cumsum([0, *map(len, rows)])], starts[:-1][np.diff(starts) > 0]
    learned = types == 1
    learned[starts] = False  # which no token before them asks for
    log.info(
        "%s: %d prompts with answers fill %d rows of %d tokens to %d%%",
        *(stream.name, len(found), len(rows), size, round(100 * len(ids) / (len(rows) * size))),
    )
    pool = Packed(ids, starts, begins, size, texts.tokenizer, True, "position_ids" in model.inputs, learned)
    first = labels[[row[0] for row in rows]]  # as a stream has labels as those held out
    at = partial(_of_beside, pool, first, epochs(np.arange(len(pool)), batch, seed), share)
    return rearranged(stream, at, stream.held_out, stream.pool), pool


def _of_beside(pool, labels, order, share, step):
    rows = order(step)[share]
    return {"inputs": Rows(pool, rows), "labels": labels[rows]}


def labels_beside(inputs: Rows, labels: np.ndarray) -> np.ndarray:
    """The labels of a batch of `beside`, `[n, size]` int32."""
    return inputs.inputs.labels(inputs.rows)


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Texts by the row of `size` tokens that each stands in: the longest first, each where the fewest tokens are left.

    Args:
        lengths: The tokens of each text, `size` at most.
        size: Tokens of a row.
    """
    rows, with_left, lefts = [], {}, []
    for text in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        at = bisect_left(lefts, lengths[text])
        left = lefts[at] if at < len(lefts) else size
        if at < len(lefts):
            row = with_left[left].pop()
            if not with_left[left]:
                del lefts[at]
        else:
            rows.append(row := [])
        row.append(text)
        left -= lengths[text]
        if not with_left.setdefault(left, []):
            insort(lefts, left)
        with_left[left].append(row)
    return rows


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
    yield from (ids for ids, _, _ in _encoded(inputs, texts, ALL))


def _encoded(inputs, texts, limit):
    for start in range(0, len(inputs), BLOCK):
        yield from _tokens(inputs[np.arange(start, min(start + BLOCK, len(inputs)))], texts, limit)


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
