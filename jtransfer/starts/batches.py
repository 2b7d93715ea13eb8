"""Batches for one pass over a dataset: texts of about one length together, each padded to the longest of its batch."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.models.layers import platform
from jtransfer.starts.inputs import BLOCK, Prepare, Texts, columns_of, gathered, within

LENGTHS = tuple(sorted(step << i for step in (2, 3) for i in range(3, 13)))
"""What batches of texts are padded to, in tokens: 16, 24, 32, 48, ..., and the length of all texts where it is shorter.
A model is compiled for each that is used."""

TOKENS = 32
"""Tokens of a batch for each row that was asked for: there are more rows of shorter texts, and fewer of longer ones."""

TOKENS_OF_A_CORE, BYTES_OF_A_CORE = 1024, 1 << 21
"""The most tokens, or bytes of images, of a batch on the CPU, for each core: of more, the states leave its caches."""

BATCHES = 4
"""The fewest batches of a length among the rows of a window; fewer are padded to the next, and not compiled for."""

MASKED = frozenset(("sentence_embedding", "features", "pooler_output", "text_embeds", "hidden_states"))
"""Outputs that a backbone makes itself."""

WINDOW = 1 << 13
"""Rows among which texts of one length are looked for, and whose tokens are in memory at once."""


def batches(
    prepare: Prepare, inputs: Any, rows: np.ndarray, batch: int, parts: int = 1, by_length: bool = False
) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """All of some rows, in batches of few shapes, which do not depend on `rows`.

    Args:
        prepare: Makes the inputs of a backbone.
        inputs: The dataset's inputs, indexed by rows.
        rows: `[r]` numbers of the rows, ascending.
        batch: The rows of a batch, as many as are worth it on the CPU at most; of texts by length, see `TOKENS`.
        parts: The rows of every batch are a multiple of this.
        by_length: Whether the longest texts of every `WINDOW` rows come first, padded to one of `LENGTHS`, for a
            backbone and a `prepare` that are `separable`; or else rows come in their order.

    Yields:
        Numbers of rows `[some]`, and their arrays `[some or more, ...]` by name, the last row repeated.
    """
    if by_length:
        yield from _by_length(prepare, inputs, rows, batch, parts)
        return
    batch = _multiple(rows_at_once(prepare(inputs[np.arange(1)]), min(batch, len(inputs))), parts)
    for start in range(0, len(rows), batch):
        own = rows[start : start + batch]
        yield own, gathered(prepare, inputs, _filled(own, batch), coded=True)


def separable(backbone: Backbone, prepare: Prepare, outputs: Iterable[str]) -> bool:
    """Whether outputs of a backbone, by name, are the same for a text however far it is padded.

    Its config says so (`masks_padding`), the mask is among its inputs, padding stands on the right, where it moves
    no position, and texts have no fixed length. What a method or a head does with padding is not known.
    """
    if not MASKED.issuperset(outputs):
        return False
    if not isinstance(prepare, Texts) or backbone.methods or not backbone.config.text_tower.masks_padding:
        return False
    tokenizer = prepare.tokenizer
    return not tokenizer.whole and tokenizer.side == "right" and "attention_mask" in tokenizer.names


def rows_at_once(arrays: Mapping[str, Any], most: int) -> int:
    """How many rows a backbone reads at once: `most`, and on the CPU no more than are worth it.

    Args:
        arrays: Prepared inputs `[n, ...]` of some rows, or their shapes.
        most: The largest answer.
    """
    if platform() != "cpu":
        return most
    if "input_ids" not in arrays:
        return within(arrays, most, BYTES_OF_A_CORE * os.cpu_count())
    return min(max(TOKENS_OF_A_CORE * os.cpu_count() // arrays["input_ids"].shape[1], 1), most)


def groups(tokens: np.ndarray, longest: int, fewest: Callable[[int], int]) -> dict[int, np.ndarray]:
    """Texts by the length that they are padded to.

    Args:
        tokens: Of each text, `[n]`, at most `longest`.
        longest: The length of all texts.
        fewest: How many texts of a length make a group of their own; fewer join those of the next length.

    Returns:
        Places of texts, ascending, by length: the longest first.
    """
    lengths = np.array([*(length for length in LENGTHS if length < longest), longest])
    padded = lengths[np.searchsorted(lengths, tokens)]
    found = np.unique(padded).tolist()
    for length, longer in pairwise(found):
        if (padded == length).sum() < fewest(length):
            padded[padded == length] = longer
    return {length: np.flatnonzero(padded == length) for length in np.unique(padded)[::-1].tolist()}


def _by_length(prepare, inputs, rows, batch, parts):
    tokens = batch * TOKENS
    if platform() == "cpu":
        tokens = min(tokens, TOKENS_OF_A_CORE * os.cpu_count())

    def size(length):
        return _multiple(min(max(tokens // length, 1), len(inputs)), parts)

    for start in range(0, len(inputs), WINDOW):
        window = np.arange(start, min(start + WINDOW, len(inputs)))
        if not np.isin(window, rows).any():
            continue
        blocks = (inputs[window[at : at + BLOCK]] for at in range(0, len(window), BLOCK))
        texts = [text for block in blocks for text in prepare.tokenizer.rows(*columns_of(block), prepare.tokens)]
        counts = np.array([len(ids) for ids, _, _ in texts])
        for length, places in groups(counts, prepare.tokens, lambda length: BATCHES * size(length)).items():
            own = np.intersect1d(window[places], rows)
            for at in range(0, len(own), size(length)):
                some = own[at : at + size(length)]
                filled = _filled(some, size(length)) - start
                yield some, prepare.tokenizer.padded([texts[row] for row in filled], length)


def _multiple(rows, parts):
    return -(-rows // parts) * parts


def _filled(rows, size):
    return np.pad(rows, (0, size - len(rows)), mode="edge")
