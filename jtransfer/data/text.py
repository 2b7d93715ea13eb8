"""Texts to `input_ids`, as a checkpoint's own tokenizer gives them, padded to one of a few lengths.

`tokenizer.json` is read by the `tokenizers` library; so are the older `vocab.txt` (WordPiece) and `vocab.json` with
`merges.txt` (BPE). Whatever else there is, transformers reads, where it is installed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath
from tokenizers import models

from jtransfer.data import keys, pieces, preprocess
from jtransfer.data import tokenizer_bounds as bounds
from jtransfer.data import tokenizer_calls as calls
from jtransfer.data.cleaning import cleaner
from jtransfer.data.tokenizer_calls import Decode, Encode, Encoded, Locate
from jtransfer.data.tokenizer_files import content, one_line, read, sentence_settings
from jtransfer.errors import InputError, Once, first_line, nearest
from jtransfer.files import read as read_bytes
from jtransfer.models import check_ids

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""What texts are padded to, up to the model's own longest: few shapes, so that jit compiles a model a few times.

CLIP's texts as well: no token sees what follows it, and the end of the text is read, so that padding changes nothing.
"""

PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
"""Tokens for padding if no file names one: the first that the vocabulary has, as GPT-2's end of text."""

MASKS = ("[MASK]", "<mask>")
"""Mask tokens if no file names one: the first that is among the special tokens."""

SIDES = ("left", "right")

ALL = 1 << 30
"""A limit in tokens that no text reaches."""


def files_in(directory: epath.Path) -> dict[str, bytes]:
    """The files of the tokenizer in a directory, by name.

    Raises:
        InputError: one of them is no plain file, or larger than any such file is.
    """
    found = {}
    for path in (path for pattern in keys.FILES for path in directory.glob(pattern)):
        try:
            found[path.name] = read_bytes(path, bounds.LARGEST)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error})") from None
    return found


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer: texts become arrays of ids, which are cut and padded.

    Attributes:
        encode: Texts to tokens, cut and not padded.
        place: Texts to the characters that each token is of; raises an InputError where the tokenizer does not tell.
        back: Ids to texts.
        words: Gives the id of each token in the vocabulary.
        names: Of the arrays that a call returns, `input_ids` among them.
        limit: The most tokens that are kept of a text.
        whole: Whether all texts are padded to `limit`, instead of to one of `LENGTHS`.
        pad: Id of the padding token.
        side: Where padding goes, one of `SIDES`.
        where: The file, for messages.
        tables: Rows of the model's table for each array that a call returns, by its name (`Architecture.tables`); an
            array without an entry is not checked.
        prompts: Texts that may be put before each text, by name.
        prompt: The text that is put before each text if no prompt is named.
        identity: Digest of the files, with what else changes the tokens of a text: `clean` and `limit`.
        special: Ids of the special tokens, as those of padding and of the ends of a text.
        mask: Id of the mask token; None if there is none.
        files: The files that it was made of, by name.
    """

    encode: Encode
    place: Locate
    back: Decode
    words: Callable[[], Mapping[str, int]]
    names: tuple[str, ...]
    limit: int
    whole: bool
    pad: int
    side: str
    where: str
    tables: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    identity: str = ""
    special: tuple[int, ...] = ()
    mask: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    _warn: Once = field(default_factory=Once, repr=False)

    @property
    def size(self) -> int:
        """One more than the largest id in the vocabulary."""
        return max(self.words().values()) + 1

    @property
    def joins(self) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens go on with a word, and behind which: see `pieces.joins`."""
        return pieces.joins(self.words(), self.special)

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        length: int | None = None,
        side: str | None = None,
        prompt: str | None = None,
    ) -> dict[str, np.ndarray]:
        """The model's input for some texts.

        Args:
            texts: Of any lengths. Those that are too long are cut; how many is logged the first time.
            pairs: The second text of each, as the hypothesis of a premise.
            length: Pad and cut to this number of tokens, instead of padding to the shortest of `LENGTHS` and `limit`
                that holds all of them.
            side: Of the padding, instead of the checkpoint's own: "left" for prompts that `generate` continues.
            prompt: The name of one of the checkpoint's own prompts (`prompts` of `config_sentence_transformers.json`),
                as "query", which every text is begun with; "" for none. None is the checkpoint's default prompt.

        Returns:
            Arrays `[n, length]` int32: `input_ids`, and `attention_mask` and `token_type_ids` where the model takes
            them and its tokenizer gives them.

        Raises:
            InputError: something that is no list of texts, another number of pairs than of texts, a length that the
                model does not take, an unknown side or prompt, texts that cannot be tokenized, or a token that the
                model's table has no row for.
        """
        arrays, cut = self.read(texts, pairs, length, side, prompt)
        self.warn(cut)
        return arrays

    def warn(self, cut: np.ndarray) -> None:
        """Log how many texts were cut, the first time that there are any; `cut` is `[n]` bool."""
        if cut.any():
            self._warn("%s: %d of %d texts were cut off", self.where, cut.sum(), len(cut))

    def read(self, texts, pairs=None, length=None, side=None, prompt=None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays that a call returns, and which texts were cut, `[n]` bool; raises as a call, and logs nothing."""
        if length is not None and not (self.limit if self.whole else 1) <= length <= self.limit:
            raise InputError(f"length={length}: expected {'' if self.whole else '1..'}{self.limit}, as the model takes")
        if side not in (None, *SIDES):
            raise InputError(f"side: unknown '{side}'; {nearest(str(side), SIDES)}")
        limit = length or self.limit
        rows = self.rows(texts, pairs, limit, prompt)
        longest = max(len(ids) for ids, _, _ in rows)
        if length is None and not self.whole:
            limit = min(limit, next((fixed for fixed in LENGTHS if fixed >= longest), limit))
        return self.padded(rows, limit, side), np.array([was_cut for _, _, was_cut in rows])

    def padded(self, rows: Sequence[Encoded], length: int, side: str | None = None) -> dict[str, np.ndarray]:
        """The arrays `[n, length]` of what `rows` gives, none of it longer; raises as a call for the padding token."""
        shape = len(rows), length
        arrays = {"input_ids": np.full(shape, self.pad, np.int32), "attention_mask": np.zeros(shape, np.int32)}
        arrays["token_type_ids"] = np.zeros(shape, np.int32)
        for row, (ids, types, _) in enumerate(rows):
            at = row, slice(length - len(ids), None) if (side or self.side) == "left" else slice(len(ids))
            arrays["input_ids"][at] = ids
            arrays["attention_mask"][at] = 1
            arrays["token_type_ids"][at] = types
        if any(len(ids) < length for ids, _, _ in rows):
            self._check("padding", "input_ids", [self.pad])
        return {name: arrays[name] for name in self.names}

    def places(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, length: int) -> np.ndarray:
        """The characters of each token that a call gives, `[n, length, 2]` int32: the first, and one after the last.

        They are counted in the last text of a row, a pair's second. A token of another text, or a special one, has
        (-1, -1); padding has (-2, -2).

        Raises:
            InputError: as a call, or a tokenizer that does not tell.
        """
        start = "" if pairs else self._start(None)
        with one_line(lambda: f"{self.where}: the texts cannot be tokenized"):
            rows = self.place([start + text for text in texts] if start else texts, pairs, length)
        found = np.full((len(rows), length, 2), -2, np.int32)
        for row, places in enumerate(rows):
            own = [(-1, -1) if place is None or place[1] <= len(start) else place for place in places]
            at = slice(length - len(own), None) if self.side == "left" else slice(len(own))
            found[row, at] = np.array(own, np.int32).reshape(-1, 2)
        return np.where(found < 0, found, np.maximum(found - len(start), 0))

    def located(self, texts, pairs=None) -> list[tuple[Encoded, np.ndarray]]:
        """The tokens of each text or pair, none of them cut, and their places `[tokens, 2]`: see `places`, `rows`."""
        rows = self.rows(texts, pairs, ALL)
        found = self.places([*texts], None if pairs is None else [*pairs], length=max(len(ids) for ids, _, _ in rows))
        return [(row, own[own[:, 0] > -2]) for row, own in zip(rows, found, strict=True)]

    def rows(self, texts, pairs=None, limit=None, prompt=None, first=0) -> list[Encoded]:
        """The tokens of each text (or pair), at most `limit`, without padding; errors number the texts from `first` on.

        Raises:
            InputError: as a call, or a limit that the special tokens alone exceed.
        """
        texts = check_texts(texts, "texts")
        if pairs is not None and len(check_texts(pairs, "pairs")) != len(texts):
            raise InputError(f"there are {len(texts)} texts, but {len(pairs)} pairs")
        limit, start = limit or self.limit, self._start(prompt)
        with one_line(lambda: f"{self.where}: the texts cannot be tokenized"):
            found = self.encode([start + text for text in texts] if start else texts, pairs, limit)
        if max(len(ids) for ids, _, _ in found) > limit:
            raise InputError(f"{limit} tokens are too few for the special ones alone")
        for place, name in enumerate(("input_ids", "token_type_ids")):
            if name in self.tables and any(max(row[place], default=0) >= self.tables[name] for row in found):
                for number, row in enumerate(found, first):
                    self._check(f"text {number}", name, row[place])
        return found

    def _check(self, what, name, ids):
        if name in self.tables:
            named = self._named if name == "input_ids" else None
            check_ids(f"{self.where}: {what}", name, ids, self.tables[name], named)

    def _start(self, prompt):
        """What texts are begun with."""
        if prompt is None or prompt == "":
            return self.prompt if prompt is None else ""
        if prompt not in self.prompts:
            raise InputError(f"{self.where}: unknown prompt {prompt!r}; {nearest(str(prompt), self.prompts)}")
        return self.prompts[prompt]

    def _named(self, number):
        """A token that the model's table has no row for, in words."""
        token = next((token for token, i in self.words().items() if i == number), "")
        return f" ('{token}', which was added to the tokenizer alone: resize the model's embeddings too)"

    def decode(self, ids: Any) -> list[str]:
        """The texts of some ids, as `batch_decode(ids, skip_special_tokens=True)` of transformers gives them.

        Args:
            ids: `[n, tokens]`, as `generate` returns them, or a list of rows of several lengths.

        Raises:
            InputError: something else than rows of whole numbers from 0, or ids that cannot be decoded.
        """
        try:
            rows = [np.asarray(row) for row in ids]
        except (TypeError, ValueError):
            rows = [np.empty(())]
        if not all(row.ndim == 1 and (np.issubdtype(row.dtype, np.integer) or not row.size) for row in rows):
            raise InputError("ids: expected rows of whole numbers, [n, tokens]; one row alone is decode([ids])")
        if any((row < 0).any() for row in rows):
            raise InputError("ids: expected numbers of tokens, there are negative ones")
        with one_line(lambda: f"{self.where}: the ids cannot be made texts"):
            return self.back([row.astype(int).tolist() for row in rows])


def check_texts(texts: Any, name: str) -> Sequence[str]:
    """Return texts as they are, if they are a list or tuple of strings; an array becomes a list.

    Raises:
        InputError: they are something else, or there are none.
    """
    texts = texts.tolist() if isinstance(texts, np.ndarray) else texts
    if not isinstance(texts, list | tuple):
        raise InputError(f"{name} are given as {type(texts).__name__}; expected a list of strings")
    if not texts:
        raise InputError(f"there are no {name}; expected a list of strings")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name}: number {row} is of type {type(text).__name__}; expected a string")
    return texts


def tokenizer(
    directory: epath.Path,
    values: Mapping[str, Any],
    names: Sequence[str],
    longest: int,
    whole: bool,
    tables: Mapping[str, int] | None = None,
    clean: str = "",
) -> Tokenizer:
    """The tokenizer in a directory.

    It keeps at most `max_seq_length` tokens, if `sentence_bert_config.json` gives it, or else `model_max_length` of
    `tokenizer_config.json`, and never more than `longest`. `do_lower_case` and the default prompt of
    sentence-transformers are applied.

    Args:
        directory: With the files.
        values: Of `config.json`.
        names: Of the model's inputs.
        longest: The most tokens that the model has positions for.
        whole: Pad always to the most tokens, and return `input_ids` alone: SigLIP reads the last token, padding or not.
        tables: Rows of the model's tables, by the names of its inputs.
        clean: What is done to texts first, a key of `cleaning.CLEANERS`; "" for the value of `clean` in
            `tokenizer_config.json`, a key of our own, which checkpoints of transformers do not have.

    Raises:
        InputError: there is no tokenizer, its files are damaged, or they ask for what is not supported.
    """
    if "word_ids" in names:  # words by their characters
        from jtransfer.data import characters

        return characters.tokenizer(directory, names, longest, tables or {})
    file, ours, settings = read(directory, values)
    sentences, prompts, prompt = sentence_settings(directory)
    clean = clean or settings.get("clean") or ""
    if ours is None:
        encode, place, back, words, pad, typed, special = _by_transformers(directory, settings, sentences)
    else:
        if clean == "lower":
            ours.normalizer = None  # all of it is done by the cleaner
        if sentences.get("do_lower_case"):
            ours.normalizer = calls.lowered(ours.normalizer)
        encode, place = calls.by_tokenizers(ours, settings.get("truncation_side", "right"))
        back = calls.decoded(ours, bool(settings.get("clean_up_tokenization_spaces")))
        words, pad, typed = ours.get_vocab, ours.token_to_id, isinstance(ours.model, models.WordPiece)
        special = {token.content: i for i, token in ours.get_added_tokens_decoder().items() if token.special}
    if clean:
        encode, place = calls.cleaned(encode, cleaner(clean), str(file))
    given = settings.get("model_input_names") or ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    limit = sentences.get("max_seq_length") or settings.get("model_max_length")
    limit = int(min(longest, limit)) if isinstance(limit, int | float) and limit >= 1 else longest
    files = files_in(directory)
    return Tokenizer(
        encode,
        place,
        back,
        words,
        tuple(name for name in names if name in given and not (whole and name != "input_ids")),
        limit,
        whole,
        _pad(pad, settings, file),
        "left" if settings.get("padding_side") == "left" else "right",
        str(file),
        tables or {},
        prompts,
        prompt,
        f"{preprocess.fingerprint(files)} {clean} {limit}",
        tuple(sorted(special.values())),
        next((special[token] for token in _named(settings, "mask_token", MASKS) if token in special), None),
        files,
    )


def _pad(to_id, settings, file):
    names = _named(settings, "pad_token", PADS)
    found = next((i for i in map(to_id, names) if i is not None), None)
    if found is None:
        raise InputError(
            f"{file}: the vocabulary has no token to pad with, as {', '.join(names)}; name one of it as pad_token in "
            "tokenizer_config.json"
        )
    return found


def _named(settings, key, otherwise):
    """The token that the files name, or those that it may be where they name none."""
    named = content(settings.get(key))
    return (named,) if named else otherwise


def _by_transformers(directory, settings, sentences):
    files_in(directory)  # a pipe would keep transformers waiting
    try:
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
        if sentences.get("do_lower_case"):
            theirs.backend_tokenizer.normalizer = calls.lowered(theirs.backend_tokenizer.normalizer)
    except Exception as error:  # any of its many optional dependencies
        kind = settings.get("tokenizer_class", "the tokenizer")
        raise InputError(
            f"{directory}: there is no tokenizer.json, and {kind} needs transformers and what that asks for "
            f"({first_line(error)})"
        ) from None

    def back(rows):
        return theirs.batch_decode(rows, skip_special_tokens=True)

    special = dict(zip(theirs.all_special_tokens, theirs.all_special_ids, strict=True))
    typed = "token_type_ids" in theirs.model_input_names
    own = calls.by_transformers(theirs, str(directory))
    return *own, back, theirs.get_vocab, lambda _: theirs.pad_token_id, typed, special
