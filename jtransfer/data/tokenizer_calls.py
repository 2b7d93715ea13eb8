"""What a tokenizer is asked for, whichever library reads its files: tokens of texts, their places, and texts of tokens.

Each is a function of texts, made of a tokenizer of `tokenizers` or, where only that reads the files, of transformers.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import tokenizers
from tokenizers import decoders, models, normalizers

from jtransfer.errors import InputError, first_line

Encoded = tuple[list[int], list[int], bool]
"""Ids and types of the tokens of a text (or pair), and whether some were cut off."""

Encode = Callable[[Sequence[str], Sequence[str] | None, int], list[Encoded]]
"""From texts, their pairs or None, and the most tokens that are kept of each."""

TokenPlaces = list[tuple[int, int] | None]
"""For each token of a row the first of its characters and the one after the last, in the last text of the row; None for
a token of the first text of a pair, or of none."""

Locate = Callable[[Sequence[str], Sequence[str] | None, int], list[TokenPlaces]]
"""As `Encode`, to the places of the tokens."""

Decode = Callable[[list[list[int]]], list[str]]
"""From ids to texts, without special tokens."""


class _Cutting:
    """Copies of a tokenizer, one for each of the last limits: these are state, and calls may run side by side.

    What is sent to another process makes its own copies there.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, side: str, special: bool):
        self.tokenizer, self.side, self.special = tokenizer, side, special
        self.at = lru_cache(maxsize=4)(self._at)

    def __reduce__(self):
        return _Cutting, (self.tokenizer, self.side, self.special)

    def _at(self, limit: int) -> tokenizers.Tokenizer:
        own = tokenizers.Tokenizer.from_str(self.tokenizer.to_str())
        own.encode_special_tokens = self.special  # which is not written
        own.no_padding()
        own.enable_truncation(limit, direction=self.side)
        return own


def by_tokenizers(tokenizer: tokenizers.Tokenizer, side: str) -> tuple[Encode, Locate]:
    """What a tokenizer of `tokenizers` makes of texts, cut on one side."""

    cutting = _Cutting(tokenizer, side, tokenizer.encode_special_tokens)

    def rows(texts, pairs, limit):
        return cutting.at(limit).encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))

    def encode(texts, pairs, limit):
        return [(e.ids, e.type_ids, bool(e.overflowing)) for e in rows(texts, pairs, limit)]

    def place(texts, pairs, limit):
        return [_of_the_last(e.offsets, e.sequence_ids, pairs) for e in rows(texts, pairs, limit)]

    return encode, place


def by_transformers(theirs, where: str) -> tuple[Encode, Locate]:
    """What a tokenizer of transformers makes of texts; `where` is its file, for errors."""

    def encode(texts, pairs, limit):
        found = theirs(texts, pairs, truncation=True, max_length=limit, return_token_type_ids=True)
        whole = theirs(texts, pairs, verbose=False)["input_ids"]
        rows = zip(found["input_ids"], found["token_type_ids"], whole, strict=True)
        return [(ids, types, len(ids) < len(all_ids)) for ids, types, all_ids in rows]

    def place(texts, pairs, limit):
        try:
            found = theirs(texts, pairs, truncation=True, max_length=limit, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise InputError(f"{where}: {_UNPLACED} ({first_line(error)})") from None
        rows = enumerate(found["offset_mapping"])
        return [_of_the_last(offsets, found.sequence_ids(row), pairs) for row, offsets in rows]

    return encode, place


_UNPLACED = "the tokenizer does not tell of which characters its tokens are, which labels of words and answers need"


def _of_the_last(offsets, texts, pairs) -> TokenPlaces:
    last = 0 if pairs is None else 1
    return [tuple(place) if text == last else None for place, text in zip(offsets, texts, strict=True)]


def cleaned(encode: Encode, clean: Callable[[str], str], where: str) -> tuple[Encode, Locate]:
    """The same for texts that are cleaned first, after which places are those of another text."""

    def of_clean(texts, pairs, limit):
        return encode([clean(x) for x in texts], pairs and [clean(x) for x in pairs], limit)

    def place(texts, pairs, limit):
        raise InputError(f"{where}: {_UNPLACED} (texts are cleaned first)")

    return of_clean, place


def lowered(normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer:
    """A normalizer after all letters became small."""
    return normalizers.Sequence([normalizers.Lowercase(), *([normalizer] if normalizer else [])])


JOINED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s"}
JOINED |= {" 've": "'ve", " 're": "'re"}
"""What `clean_up_tokenization_spaces` replaces in a decoded text, in this order."""


def decoded(tokenizer: tokenizers.Tokenizer, tidy: bool) -> Decode:
    """What makes texts of ids; `tidy` is `clean_up_tokenization_spaces`."""
    end = getattr(tokenizer.model, "end_of_word_suffix", None)
    # BPE keeps spaces as they were, and transformers leaves them.
    tidy = tidy and not isinstance(tokenizer.model, models.BPE)

    def back(rows):
        texts = tokenizer.decode_batch(rows)
        if end and isinstance(tokenizer.decoder, decoders.ByteLevel):  # CLIP's, whose words end with a mark
            texts = [text.replace(end, " ").strip() for text in texts]
        for apart, together in JOINED.items() if tidy else ():
            texts = [text.replace(apart, together) for text in texts]
        return texts

    return back
