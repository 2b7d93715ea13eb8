"""Words of a corpus: which there are and how often, and the tokenizer that finds them in texts.

A word is a run of letters, digits and underscores, or a run of other marks without spaces between them: the rule of
`tokenizers.pre_tokenizers.Whitespace`, `\\w+|[^\\w\\s]+`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jtransfer.errors import InputError

PAD, UNKNOWN = "[PAD]", "[UNK]"
"""The words of the first two ids."""
BLOCK = 1024
"""Texts that are read at a time."""


@dataclass(frozen=True)
class Vocabulary:
    """Words by their numbers.

    Attributes:
        words: In the order of their ids, which begin behind those of padding and of unknown words.
        lower: Whether texts are read in small letters.
    """

    words: tuple[str, ...]
    lower: bool

    def __len__(self) -> int:
        """Number of ids, those of padding and of unknown words among them."""
        return len(self.words) + 2

    @cached_property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` that gives the words of a text; a word that is not there is unknown."""
        import tokenizers

        ids = {word: i for i, word in enumerate((PAD, UNKNOWN, *self.words))}
        return _tokenizer(tokenizers.models.WordLevel(ids, unk_token=UNKNOWN), self.lower)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files of the tokenizer, by the names that Hugging Face gives them."""
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "unk_token": UNKNOWN}
        return {
            "tokenizer.json": self.tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
        }


def of_texts(inputs: Any, rows: np.ndarray, least: int, most: int, lower: bool, where: str) -> Vocabulary:
    """The words of some texts, the most frequent first, and those of one frequency in the order of their letters.

    Args:
        inputs: Texts, indexed by rows.
        rows: Of the texts that are read.
        least: How often a word must be there.
        most: The most words that are kept.
        lower: Whether texts are read in small letters.
        where: The data, for errors.

    Raises:
        InputError: no word is there so often.
    """
    import tokenizers

    found = _tokenizer(tokenizers.models.WordLevel(unk_token=UNKNOWN), lower)
    options = {"vocab_size": min(most, 2**31), "min_frequency": least, "special_tokens": [PAD, UNKNOWN]}
    trainer = tokenizers.trainers.WordLevelTrainer(show_progress=False, **options)
    found.train_from_iterator(_texts(inputs, rows), trainer)
    words = sorted(found.get_vocab().items(), key=lambda item: item[1])[2:]
    if not words:
        raise InputError(f"{where}: no word is there {least} times in {len(rows)} texts; set least to a smaller number")
    return Vocabulary(tuple(word for word, _ in words), lower)


def read(files: Mapping[str, bytes]) -> Vocabulary:
    """The vocabulary in the files of a tokenizer.

    Raises:
        InputError: the tokenizer is of another kind, whose tokens are not words.
    """
    spec = json.loads(files.get("tokenizer.json", b"{}"))
    model, normalizer = spec.get("model") or {}, spec.get("normalizer") or {}
    ids = model.get("vocab")
    words = sorted(ids, key=ids.get) if model.get("type") == "WordLevel" else []
    if tuple(words[:2]) != (PAD, UNKNOWN) or (spec.get("pre_tokenizer") or {}).get("type") != "Whitespace":
        raise InputError(f"the tokenizer of the backbone is no vocabulary of words behind {PAD} and {UNKNOWN}")
    return Vocabulary(tuple(words[2:]), normalizer.get("type") == "Lowercase")


@dataclass(frozen=True, eq=False)
class Corpus:
    """The known words of texts, one behind the other.

    Attributes:
        ids: `[words]` int32.
        texts: `[words]` int32, the number of the text that each is of, ascending.
    """

    ids: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def corpus(vocabulary: Vocabulary, inputs: Any, rows: np.ndarray) -> Corpus:
    """The words of some texts; a word that is not known is left out, so that its neighbours stand together."""
    ids, counts = [np.zeros(0, np.int32)], []
    for texts in _blocks(inputs, rows):
        for found in vocabulary.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            own = np.array(found.ids, np.int32)
            ids.append(own[own > 1])
            counts.append(len(ids[-1]))
    return Corpus(np.concatenate(ids), np.repeat(np.arange(len(counts), dtype=np.int32), counts))


def _tokenizer(model, lower):
    from tokenizers import Tokenizer, normalizers, pre_tokenizers

    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.add_special_tokens([PAD, UNKNOWN])
    return made


def _blocks(inputs, rows) -> Iterator[list[str]]:
    for start in range(0, len(rows), BLOCK):
        found = inputs[rows[start : start + BLOCK]]
        yield [text for one in found for text in ((one,) if isinstance(one, str) else one)]


def _texts(inputs, rows) -> Iterator[str]:
    for texts in _blocks(inputs, rows):
        yield from texts
