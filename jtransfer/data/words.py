"""Words of a corpus: which there are and how often, and the tokenizer that finds them in texts.

A word is a run of letters, digits and underscores, or a run of other marks without spaces between them: the rule of
`tokenizers.pre_tokenizers.Whitespace`, `\\w+|[^\\w\\s]+`.
"""

import json
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from jtransfer.errors import InputError

PAD, UNKNOWN = "[PAD]", "[UNK]"
"""The words of the first two ids."""
BLOCK = 1024
"""Texts that are read at a time."""
PART = 1 << 22
"""Words of a corpus that are in memory at a time."""


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
    """The known words of texts, one behind the other, in a temporary file; `written` makes it.

    Attributes:
        file: The ids as int32; of the first word of each text it holds `~id`.
    """

    file: Path

    @cached_property
    def count(self) -> int:
        """Number of words."""
        return self.file.stat().st_size // 4

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> tuple[np.ndarray, np.ndarray]:
        """The ids of some words, read from the file, and the number of the text of each: both int32."""
        start, end, _ = places.indices(len(self))
        marked = np.fromfile(self.file, np.int32, max(0, end - start), offset=4 * start)
        return np.maximum(marked, ~marked), np.cumsum(marked < 0, dtype=np.int32)

    def counts(self, vocabulary: int) -> np.ndarray:
        """How often each word of a vocabulary is there, `[vocabulary]` int64."""
        found = np.zeros(vocabulary, np.int64)
        for start in range(0, len(self), PART):
            found += np.bincount(self[start : start + PART][0], minlength=vocabulary)
        return found


def corpus(vocabulary: Vocabulary, inputs: Any, rows: np.ndarray) -> Corpus:
    """The words of some texts; a word that is not known is left out, so that its neighbours stand together."""
    encode = partial(vocabulary.tokenizer.encode_batch_fast, add_special_tokens=False)
    found = (np.array(own.ids, np.int32) for texts in _blocks(inputs, rows) for own in encode(texts))
    return written(ids[ids > 1] for ids in found)


def written(texts: Iterable[np.ndarray]) -> Corpus:
    """A corpus of the ids of each text, int32, in a file that is removed with the corpus or at the end of the process.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    number, name = tempfile.mkstemp(".words", "jtransfer-")
    found = Corpus(Path(name))
    weakref.finalize(found, found.file.unlink, missing_ok=True)
    try:
        with os.fdopen(number, "wb") as file:
            for ids in texts:
                file.write(np.concatenate([~ids[:1], ids[1:]]).tobytes())
    except OSError as error:
        error.filename = error.filename or name
        raise
    return found


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
