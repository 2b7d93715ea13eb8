"""Words to the numbers of their characters, as ELMo reads them: there is no word that it does not know.

A word is the begin of a word, the bytes of its UTF-8, the end of a word, and filling, as in AllenNLP. The words of a
text are those that a vocabulary of words (`tokenizer.json`, model `WordLevel`) splits it into, as they stand in the
text; without such a file, runs of letters and digits, and runs of punctuation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import models, pre_tokenizers

from jtransfer.data import preprocess, text, tokenizer_bounds
from jtransfer.data.tokenizer_files import content, one_line, optional
from jtransfer.errors import InputError, Once
from jtransfer.files import read_json
from jtransfer.models import check_ids
from jtransfer.models.elmo import FILLER, LETTERS, WORD_BEGIN, WORD_END

WORD_IDS = "word_ids"
"""The input of a model of characters that says which word of a vocabulary each is."""

WordRows = tuple[np.ndarray, int, bool]
"""The words of a text, `[words, LETTERS + 1]` int32, each its characters and its number; 0; and whether some were cut.

A row of a text is read by its length alone, wherever texts are joined or padded, as are the ids of other tokenizers.
"""


@dataclass(frozen=True, eq=False)
class Characters:
    """Makes the inputs of a model that reads words by their characters; called as `text.Tokenizer` is.

    Attributes:
        splitter: Splits texts, and numbers the words.
        names: Of the arrays that a call returns.
        limit: The most words that are kept of a text.
        where: The file of the vocabulary, for messages.
        identity: Digest of the file, with the limit.
        tables: Rows of the model's table of words under `word_ids`, if it has one.
        special: Ids of the special tokens in the vocabulary.
        pad: Id of the padding in the vocabulary; 0 where it has none.
        files: That it was made of, by name.
        side: Where padding goes.
    """

    splitter: tokenizers.Tokenizer
    names: tuple[str, ...]
    limit: int
    where: str
    identity: str
    tables: Mapping[str, int] = field(default_factory=dict)
    special: tuple[int, ...] = ()
    pad: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    side: str = "right"
    _warn: Once = field(default_factory=Once, repr=False)

    whole = False
    mask = None

    def words(self) -> Mapping[str, int]:
        """The number of each word of the vocabulary."""
        return self.splitter.get_vocab()

    @property
    def size(self) -> int:
        """One more than the largest number of a word."""
        return max(self.words().values()) + 1

    def __call__(self, texts: Sequence[str], pairs: None = None, *, length: int | None = None, **others: Any):
        """The model's input for some texts: arrays `[n, length]` int32, `input_ids` of them `[n, length, LETTERS]`.

        Args:
            texts: Of any lengths. Those that are too long are cut; how many is logged the first time.
            pairs: None: the model reads one text.
            length: As of `text.Tokenizer`, in words.
            **others: None either: there are no prompts, and padding stands on the right.

        Raises:
            InputError: something that is no list of texts, pairs, another option, or a length that the model does not
                take.
        """
        if given := next((name for name, value in others.items() if value not in (None, "", "right")), ""):
            raise InputError(f"{given}: words by their characters have none; leave it out")
        arrays, cut = self.read(texts, pairs, length)
        if cut.any():
            self._warn("%s: %d of %d texts were cut off", self.where, cut.sum(), len(cut))
        return arrays

    def read(self, texts, pairs=None, length=None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays that a call returns, and which texts were cut, `[n]` bool; raises as a call, and logs nothing."""
        if length is not None and not 1 <= length <= self.limit:
            raise InputError(f"length={length}: expected 1..{self.limit}, as the model takes")
        limit = length or self.limit
        rows = self.rows(texts, pairs, limit)
        if length is None:
            longest = max(len(words) for words, _, _ in rows)
            limit = min(limit, next((fixed for fixed in text.LENGTHS if fixed >= longest), limit))
        return self.padded(rows, limit), np.array([was_cut for _, _, was_cut in rows])

    def rows(self, texts, pairs=None, limit=None, prompt=None, first=0) -> list[WordRows]:
        """The words of each text, at most `limit`, without padding.

        Raises:
            InputError: as a call.
        """
        limit, found = limit or self.limit, []
        for own, split in zip(texts, self._split(texts, pairs), strict=True):
            words = np.zeros((min(len(split.ids), limit), LETTERS + 1), np.int32)
            for row, ((start, end), number) in enumerate(zip(split.offsets[:limit], split.ids, strict=False)):
                words[row, :-1], words[row, -1] = numbers(own[start:end]), number
            found.append((words, 0, len(split.ids) > limit))
        return found

    def padded(self, rows: Sequence[WordRows], length: int, side: str = "right") -> dict[str, np.ndarray]:
        """The arrays of what `rows` gives, none of it longer than `length`."""
        whole, mask = np.zeros((len(rows), length, LETTERS + 1), np.int32), np.zeros((len(rows), length), np.int32)
        for row, (words, _, _) in enumerate(rows):
            if len(words):
                whole[row, : len(words)] = words
                mask[row, : len(words)] = 1
        arrays = {"input_ids": whole[..., :-1], "attention_mask": mask, WORD_IDS: whole[..., -1]}
        if WORD_IDS in self.names and WORD_IDS in self.tables:
            check_ids(self.where, WORD_IDS, arrays[WORD_IDS], self.tables[WORD_IDS])
        return {name: np.ascontiguousarray(arrays[name]) for name in self.names}

    def places(self, texts: Sequence[str], pairs: None = None, *, length: int) -> np.ndarray:
        """The characters of each word that a call gives, as `text.Tokenizer.places`."""
        found = np.full((len(texts), length, 2), -2, np.int32)
        for row, split in enumerate(self._split(texts, pairs)):
            own = split.offsets[:length]
            found[row, : len(own)] = np.array(own, np.int32).reshape(-1, 2)
        return found

    def decode(self, ids: Any) -> list[str]:
        """The texts of `input_ids [n, words, LETTERS]`, with a space between words; half a letter at an end is lost."""

        def word(characters):
            return bytes(c - 1 for c in characters if 1 <= c <= 256).decode(errors="ignore")

        return [" ".join(filter(None, map(word, row))) for row in np.asarray(ids).tolist()]

    def _split(self, texts, pairs):
        if pairs is not None:
            raise InputError(f"{self.where}: the model reads one text by its words, and there are pairs of texts")
        texts = text.check_texts(texts, "texts")
        with one_line(lambda: f"{self.where}: the texts cannot be tokenized"):
            return self.splitter.encode_batch(texts, add_special_tokens=False)


@lru_cache(maxsize=1 << 17)
def numbers(word: str) -> np.ndarray:
    """The characters of a word, `[LETTERS]` int32: 0 is that of padding, and a byte b is b + 1.

    Of a word that is too long the first bytes are kept.
    """
    found, own = np.full(LETTERS, FILLER, np.int32), word.encode("utf-8", "ignore")[: LETTERS - 2]
    found[0], found[len(own) + 1] = WORD_BEGIN, WORD_END
    found[1 : len(own) + 1] = np.frombuffer(own, np.uint8).astype(np.int32) + 1
    found.flags.writeable = False
    return found


def tokenizer(directory: epath.Path, names: Sequence[str], longest: int, tables: Mapping[str, int]) -> Characters:
    """What makes the inputs of a model that reads words by their characters, from the files in a directory.

    Args:
        directory: With a `tokenizer.json` of whole words, or without.
        names: Of the model's inputs; `word_ids` are left out without such a file.
        longest: The most words that the model takes.
        tables: Rows of the model's tables, by the names of its inputs.

    Raises:
        InputError: a file that is damaged, or of a tokenizer that does not split texts into whole words.
    """
    file, found = directory / "tokenizer.json", text.files_in(directory)
    settings = optional(directory / "tokenizer_config.json")
    if known := file.name in found:
        with one_line(lambda: f"{file}: this is no tokenizer that can be read"):
            spec = read_json(file, tokenizer_bounds.LARGEST)
            tokenizer_bounds.check(file, spec)
            splitter = tokenizers.Tokenizer.from_str(file.read_text())
        if not isinstance(splitter.model, models.WordLevel):
            kind = type(splitter.model).__name__
            raise InputError(f"{file}: the model reads whole words, this is a tokenizer '{kind}'; expected WordLevel")
        splitter.no_padding()
        splitter.no_truncation()
    else:
        splitter = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        splitter.pre_tokenizer = pre_tokenizers.Whitespace()
    limit = settings.get("model_max_length")
    limit = int(min(limit, longest)) if isinstance(limit, int | float) and limit >= 1 else longest
    return Characters(
        splitter,
        tuple(name for name in names if known or name != WORD_IDS),
        limit,
        str(file if known else directory),
        f"{preprocess.fingerprint(found)} characters {limit}",
        {name: rows for name, rows in tables.items() if name == WORD_IDS},
        tuple(sorted(i for i, token in splitter.get_added_tokens_decoder().items() if token.special)),
        splitter.token_to_id(content(settings.get("pad_token")) or "[PAD]") or 0,
        found,
    )
