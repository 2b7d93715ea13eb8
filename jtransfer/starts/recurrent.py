"""A corpus as a few long texts that are read side by side, a window of each in every step (truncated backpropagation).

All texts stand behind each other and are cut into as many columns as a batch has rows, as `batchify` of awd-lstm-lm and
fastai's `LMDataLoader` cut them. Step after step a row reads the next window of its column, and at its end goes on with
the column behind it, where the text goes on: nothing is left over, and no state has to begin anew.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from jtransfer.data.dataset import unlabelled
from jtransfer.data.streams import Rows, Stream, rearranged
from jtransfer.errors import InputError
from jtransfer.models import Architecture
from jtransfer.starts.inputs import Arrays, Texts
from jtransfer.starts.lengths import Ready, joined, rows_of

STREAMS = ("streams", "random_streams")
"""How windows are long: `tokens` each, or as drawn anew for every step."""

SPREAD, SHORT, LEAST = 5, 0.05, 5
"""Of random windows: standard deviation in tokens, share of those of half the length, and the fewest tokens (Merity et
al. 2017, section 5, and `main.py` of awd-lstm-lm)."""
MORE = 2 * SPREAD
"""Tokens by which a random window may be longer than `tokens`."""

DRAWN = 1 << 12
"""Random lengths that are drawn; step after step they come again."""


@dataclass(frozen=True, eq=False)
class ColumnWindows:
    """Places in a corpus, each with the tokens from there on: a window, and the token behind it.

    Attributes:
        ids: `[all tokens]` int32, after whose end they begin again.
        first: `[n]`, the place of the first token of each.
        lengths: `[n]`, the tokens that are read of each; one more is asked for.
        texts: Makes the inputs of the model.
        size: Tokens of the longest window.
        columns: Rows of a block: the text of a row goes on in that row of the next block.
    """

    ids: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    texts: Texts
    size: int
    columns: int

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: np.ndarray) -> Arrays:
        """The inputs `[n, size + 1]` of some rows, by the names of the model."""
        own = zip(self.first[rows], self.lengths[rows], strict=True)
        places = [np.arange(first, first + length + 1) % len(self.ids) for first, length in own]
        tokens = [(self.ids[own].tolist() if len(own) > 1 else [], 0, False) for own in places]
        return self.texts.tokenizer.padded(tokens, self.size + 1, "right")


def in_columns(
    stream: Stream, texts: Texts, how: str, model: Architecture, batch: int, seed: int, share: np.ndarray
) -> tuple[Stream, Ready]:
    """A stream whose batches are windows of columns, in their order.

    Held-out texts are read in at most as many columns, of which each begins with the state zero: every token but the
    very first is asked for once.

    Args:
        stream: Of texts, with rows.
        texts: Makes the inputs of the model; `tokens` is the length of a window.
        how: One of `STREAMS`.
        model: The config of the model.
        batch: Rows of a batch, over all devices.
        seed: Of the lengths that are drawn.
        share: Positions in a batch that this process reads.

    Returns:
        The stream, and what takes its inputs.

    Raises:
        InputError: a model that keeps no state, a stream that draws its inputs anew, or fewer tokens than a window in
            every column.
    """
    what = f"config.packing '{how}'"
    if not model.recurrent:
        raise InputError(
            f"{what} goes on in each row where the batch before ended; the model keeps no state; see 'joined'"
        )
    if "attention_mask" not in texts.tokenizer.names:
        raise InputError(f"{what}: the tokenizer gives no attention_mask, which tells where a window ends")
    rows, size = rows_of(stream, what), texts.tokens
    name, inputs, _ = stream.held_out
    ids, of_held_out = (joined(own, texts, model)[0] for own in (Rows(stream.inputs, rows), inputs))
    for where, count, least in ((stream.name, len(ids), batch * size), (f"its '{name}'", len(of_held_out), 1)):
        if count <= least:
            wanted = f"a window of {size} in each of the {batch} rows of a batch" if least > 1 else "two"
            raise InputError(f"{what}: {where} has {count} tokens; expected more than {least}, for {wanted}")

    lengths = _drawn(size, seed) if how == "random_streams" else np.full(1, size)
    at = partial(_window, ids, texts, lengths, size + (MORE if len(lengths) > 1 else 0), batch, share)
    held_out = (name, windows := _held_out(of_held_out, texts, size, batch), unlabelled(len(windows)))
    arranged = rearranged(stream, at, held_out)
    return arranged, Ready(texts.tokenizer, size + 1)


def _drawn(size: int, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed)
    around = np.where(draws.random(DRAWN) < SHORT, size // 2, size)
    return np.clip(draws.normal(around, SPREAD).astype(int), LEAST, size + MORE)


def _window(ids, texts, lengths, size, batch, share, step):
    """The share of the batch of a step."""
    rounds, place = divmod(step, len(lengths))
    before = rounds * int(lengths.sum()) + int(lengths[:place].sum())
    first = (np.arange(batch) * (len(ids) // batch))[share] + before
    windows = ColumnWindows(ids, first % len(ids), np.full(len(share), lengths[place]), texts, size, batch)
    return {"inputs": windows, "labels": unlabelled(len(share))}


def _held_out(ids, texts, size, columns):
    """Windows of all tokens; those of one block stand together. Of columns that have ended they are empty."""
    asked = len(ids) - 1
    columns = min(columns, asked)
    each = -(-asked // columns)
    starts, ends = np.arange(columns) * each, np.minimum(np.arange(1, columns + 1) * each, asked)
    first = starts + np.arange(0, each, size)[:, None]
    lengths = np.clip(ends - first, 0, size)
    return ColumnWindows(ids, first.reshape(-1), lengths.reshape(-1), texts, size, columns)
