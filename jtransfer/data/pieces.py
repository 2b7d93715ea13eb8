"""Which tokens of a vocabulary go on with the word of the token before them."""

from collections.abc import Collection, Mapping

import numpy as np
from tokenizers import pre_tokenizers

SPACE, PIECE, MARK = "Ġ", "##", "▁"
"""The space as a letter of byte-level vocabularies; what begins pieces within a word; what begins words of others."""


def joins(words: Mapping[str, int], special: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens may go on with a word, and behind which it may go on: a token is within a word if both hold.

        "play", "##ing"     of pieces of words "##ing" goes on, whatever stands before it
        "Ġplay", "ing"      of bytes "ing" goes on behind a letter or digit; "Ġplay" and "-" never go on

    A vocabulary of whole words has none that go on.

    Args:
        words: The id of each token.
        special: Ids that are no part of a word.

    Returns:
        `[ids]` bool each, by the id of a token.
    """
    size = max(words.values()) + 1
    goes_on, behind = np.zeros(size, bool), np.zeros(size, bool)
    if any(word.startswith(PIECE) and len(word) > len(PIECE) for word in words):
        goes_on[[number for word, number in words.items() if word.startswith(PIECE)]] = True
        behind[:] = True
    elif SPACE in words or any(word.startswith(MARK) for word in words):
        inside = _letters_of_bytes() if SPACE in words else str.isalnum
        for word, number in words.items():
            goes_on[number], behind[number] = word and inside(word[0]), word and inside(word[-1])
    goes_on[[*special]] = behind[[*special]] = False
    return goes_on, behind


def _letters_of_bytes():
    """Whether a character of a byte-level vocabulary stands for a letter or digit, or for a byte of a further letter.

    Bytes that print stand for themselves, all others for characters from 256 on, the spaces of ASCII among them.
    """
    letters = {c for c in pre_tokenizers.ByteLevel.alphabet() if c.isascii() and c.isalnum()}
    letters |= {c for c in pre_tokenizers.ByteLevel.alphabet() if not c.isascii()} - _FIRST_33
    return letters.__contains__


_FIRST_33 = {chr(256 + byte) for byte in range(33)}
"""For bytes 0 to 32, the controls and the space."""
