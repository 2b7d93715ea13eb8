"""Batches for one pass over a dataset: texts of about one length together, each padded to the longest of its batch."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.models.layers import platform
from jtransfer.starts.inputs import BLOCK, Prepare, Texts, columns_of, gathered, within

LENGTHS = tuple(sorted(step << i for step in (2, 3) for i in range(3, 13)))
"""What batches of texts are padded to, in tokens: 16, 24, 32, 48, ..., and the length of all texts where it is shorter.
A model is compiled for each that occurs, and from 16 tokens on no text is padded by more than half."""

TOKENS = 32
"""Tokens of a batch for each row that was asked for: there are more rows of shorter texts, and fewer of longer ones."""

TOKENS_OF_A_CORE, BYTES_OF_A_CORE = 1024, 1 << 21
"""The most tokens, or bytes of images, of a batch on the CPU, for each core: of more, the states leave its caches."""

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
    batch = _multiple(min(batch, _worth(prepare, inputs), len(inputs)), parts)
    for start in range(0, len(rows), batch):
        own = rows[start : start + batch]
        yield own, gathered(prepare, inputs, _filled(own, batch), coded=True)


def separable(backbone: Backbone, prepare: Prepare) -> bool:
    """Whether a backbone reads a text alike however far it is padded.

    Its config says so (`masks_padding`), the mask is among its inputs, padding stands on the right, where it moves
    no position, and texts have no fixed length. What a method does with padding is not known.
    """
    if not isinstance(prepare, Texts) or backbone.methods or not backbone.config.text_tower.masks_padding:
        return False
    tokenizer = prepare.tokenizer
    return not tokenizer.whole and tokenizer.side == "right" and "attention_mask" in tokenizer.names


def _by_length(prepare, inputs, rows, batch, parts):
    tokens = batch * TOKENS
    if platform() == "cpu":
        tokens = min(tokens, TOKENS_OF_A_CORE * os.cpu_count())
    lengths = np.array([*(length for length in LENGTHS if length < prepare.tokens), prepare.tokens])
    for start in range(0, len(inputs), WINDOW):
        own = rows[slice(*np.searchsorted(rows, (start, start + WINDOW)))]
        blocks = (inputs[own[at : at + BLOCK]] for at in range(0, len(own), BLOCK))
        texts = [text for block in blocks for text in prepare.tokenizer.rows(*columns_of(block), prepare.tokens)]
        order = np.argsort([-len(ids) for ids, _, _ in texts], kind="stable")
        while len(order):
            length = int(lengths[np.searchsorted(lengths, len(texts[order[0]][0]))])
            size = _multiple(min(max(tokens // length, 1), len(inputs)), parts)
            now, order = order[:size], order[size:]
            yield own[now], prepare.tokenizer.padded([texts[row] for row in _filled(now, size)], length)


def _worth(prepare, inputs):
    """The most rows of a batch that are worth it."""
    if platform() != "cpu":
        return len(inputs)
    if isinstance(prepare, Texts):
        return max(TOKENS_OF_A_CORE * os.cpu_count() // prepare.tokens, 1)
    return within(prepare(inputs[np.arange(1)]), len(inputs), BYTES_OF_A_CORE * os.cpu_count())


def _multiple(rows, parts):
    return -(-rows // parts) * parts


def _filled(rows, size):
    return np.pad(rows, (0, size - len(rows)), mode="edge")
