"""Texts to `input_ids`, as a checkpoint's own tokenizer gives them, padded to one of a few lengths.

`tokenizer.json` is read by the `tokenizers` library; so are the older `vocab.txt` (WordPiece) and `vocab.json` with
`merges.txt` (BPE). Whatever else there is, transformers reads, where it is installed.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jtransfer.errors import InputError, nearest
from jtransfer.files import read_json

log = logging.getLogger("jtransfer")

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""What texts are padded to, up to the model's own longest: few shapes, so that jit compiles a model a few times.

CLIP's texts as well: no token sees what follows it, and the end of the text is read, so that padding changes nothing.
"""

PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
"""Tokens that texts are padded with where no file names one: the first that there is, which for GPT-2 is its end."""

SIDES = ("left", "right")

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "sentence_bert_config.json",
)
"""What a tokenizer is read from."""

Encoded = tuple[list[int], list[int], bool]
"""Ids and types of the tokens of a text (or pair), and whether some were cut off."""

Encode = Callable[[Sequence[str], Sequence[str] | None, int], list[Encoded]]
"""From texts, perhaps their pairs, and the number of tokens that is kept of each."""

Decode = Callable[[list[list[int]]], list[str]]
"""From ids to texts, without special tokens."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """What is done to texts.

    Attributes:
        encode: Without padding.
        back: From ids to texts.
        names: Of the arrays that are given back, `input_ids` among them.
        limit: The most tokens that are kept.
        whole: Whether all are padded to that, instead of to one of `LENGTHS`.
        pad: Id of the padding.
        side: Where it goes, one of `SIDES`.
        where: The file, for messages.
    """

    encode: Encode
    back: Decode
    names: tuple[str, ...]
    limit: int
    whole: bool
    pad: int
    side: str
    where: str
    _told: list[str] = field(default_factory=list, repr=False)

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        length: int | None = None,
        side: str | None = None,
    ) -> dict[str, np.ndarray]:
        """The model's input for some texts.

        Args:
            texts: Of any lengths. Those that are too long are cut; how many is logged the first time.
            pairs: The second text of each, as the hypothesis of a premise.
            length: Pad and cut to this number of tokens, instead of padding to the shortest of `LENGTHS` and `limit`
                that holds all of them.
            side: Of the padding, instead of the checkpoint's own: "left" for prompts that `generate` continues.

        Returns:
            Arrays `[n, length]` int32: `input_ids`, and `attention_mask` and `token_type_ids` where the model takes
            them and its tokenizer gives them.

        Raises:
            InputError: something that is no list of texts, or a length that the model has no positions for.
        """
        texts = check_texts(texts, "texts")
        if pairs is not None and len(check_texts(pairs, "pairs")) != len(texts):
            raise InputError(f"there are {len(texts)} texts, but {len(pairs)} pairs")
        if length is not None and not (self.limit if self.whole else 1) <= length <= self.limit:
            raise InputError(f"length={length}: expected {'' if self.whole else '1..'}{self.limit}, as the model takes")
        if side not in (None, *SIDES):
            raise InputError(f"side: unknown '{side}'; {nearest(str(side), SIDES)}")
        limit = length or self.limit
        try:
            encoded = self.encode(texts, pairs, limit)
        except Exception as error:  # of the tokenizers library, which has no type of its own for them
            raise InputError(f"{self.where}: the texts cannot be tokenized ({_reason(error)})") from error
        longest = max(len(ids) for ids, _, _ in encoded)
        if longest > limit:
            raise InputError(f"{limit} tokens are too few for the special ones alone")
        if length is None and not self.whole:
            limit = min(limit, next((fixed for fixed in LENGTHS if fixed >= longest), limit))
        self._tell(sum(cut for _, _, cut in encoded), len(texts))
        shape = len(texts), limit
        arrays = {"input_ids": np.full(shape, self.pad, np.int32), "attention_mask": np.zeros(shape, np.int32)}
        arrays["token_type_ids"] = np.zeros(shape, np.int32)
        for row, (ids, types, _) in enumerate(encoded):
            at = row, slice(limit - len(ids), None) if (side or self.side) == "left" else slice(len(ids))
            arrays["input_ids"][at] = ids
            arrays["attention_mask"][at] = 1
            arrays["token_type_ids"][at] = types
        return {name: arrays[name] for name in self.names}

    def decode(self, ids: Any) -> list[str]:
        """The texts that tokens stand for, as `batch_decode(ids, skip_special_tokens=True)` of transformers.

        Args:
            ids: `[n, tokens]`, as `generate` returns them, or a list of rows of several lengths.

        Raises:
            InputError: something else.
        """
        try:
            rows = [np.asarray(row) for row in ids]
        except (TypeError, ValueError):
            rows = [np.empty(())]
        if not all(row.ndim == 1 and (np.issubdtype(row.dtype, np.integer) or not row.size) for row in rows):
            raise InputError("ids: expected rows of whole numbers, [n, tokens]; one row alone is decode([ids])")
        if any((row < 0).any() for row in rows):
            raise InputError("ids: expected numbers of tokens, there are negative ones")
        return self.back([row.astype(int).tolist() for row in rows])

    def _tell(self, cut, texts):
        if cut and not self._told:
            self._told.append("")
            log.warning("%s: %d of %d texts were cut off; this is said once", self.where, cut, texts)


def check_texts(texts: Any, name: str) -> Sequence[str]:
    """The same, as a list of strings.

    Raises:
        InputError: it is something else.
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
    directory: epath.Path, values: Mapping[str, Any], names: Sequence[str], longest: int, whole: bool
) -> Tokenizer:
    """The tokenizer in a directory.

    The most tokens that it keeps is the smallest of `longest`, `model_max_length` of `tokenizer_config.json` and
    `max_seq_length` of `sentence_bert_config.json` (as sentence-transformers does; transformers does not read it).

    Args:
        directory: With the files.
        values: Of `config.json`.
        names: Of the model's inputs.
        longest: The most tokens that the model has positions for.
        whole: Pad to the full length always, and give no mask: SigLIP reads the last token, padding or not.

    Raises:
        InputError: there is no tokenizer, or its files are damaged.
    """
    settings = _optional(directory / "special_tokens_map.json") | _optional(directory / "tokenizer_config.json")
    file, ours = _read(directory, values, settings)
    if ours is None:
        encode, back, vocabulary, typed = _by_transformers(directory, settings)
    else:
        encode, back = _by_tokenizers(ours, settings.get("truncation_side", "right")), ours.decode_batch
        vocabulary, typed = ours.token_to_id, isinstance(ours.model, models.WordPiece)
    given = settings.get("model_input_names") or ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    sentences = _optional(directory / "sentence_bert_config.json")
    limits = longest, settings.get("model_max_length"), sentences.get("max_seq_length")
    limit = int(min(x for x in limits if isinstance(x, int | float) and x >= 1))
    return Tokenizer(
        encode,
        back,
        tuple(name for name in names if name in given and not (whole and name != "input_ids")),
        limit,
        whole,
        _pad(vocabulary, settings, file),
        "left" if settings.get("padding_side") == "left" else "right",
        str(file),
    )


def _optional(file):
    return read_json(file) if file.exists() else {}


def _content(token):
    """Files have a token as its text, or as an object with it."""
    return token.get("content") if isinstance(token, dict) else token


def _pad(to_id, settings, file):
    named = _content(settings.get("pad_token"))
    ids = [to_id(token) for token in ([named] if named else PADS)]
    found = next((i for i in ids if i is not None), None)
    if found is None:
        raise InputError(f"{file}: the vocabulary has no token to pad with, as {named or ', '.join(PADS)}")
    return found


def _read(directory, values, settings) -> tuple[epath.Path, tokenizers.Tokenizer | None]:
    """The file that was read, and its tokenizer; None for one that only transformers reads."""
    kind = settings.get("tokenizer_class") or OF_MODELS.get(values.get("model_type"), "CLIPTokenizer")
    kind = kind.removesuffix("Fast")
    file, words = directory / "tokenizer.json", directory / "vocab.txt"
    pieces, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        if file.exists():
            spec = _as_configured(read_json(file), kind, settings)
            return file, _specials(tokenizers.Tokenizer.from_str(json.dumps(spec)), settings)
        if kind in WORDPIECE and words.exists():
            file = words
            return file, _added(_wordpiece(_lines(file), settings), directory, settings)
        if kind in BPE and pieces.exists() and merges.exists():
            file = pieces
            pairs = [tuple(line.split(" ")) for line in _lines(merges) if line and not line.startswith("#version")]
            return file, _added(BPE[kind](read_json(file), pairs, settings), directory, settings)
    except InputError:
        raise
    except Exception as error:  # of the tokenizers library, which has no type of its own for them
        raise InputError(f"{file}: this is no tokenizer that can be read ({_reason(error)})") from error
    if "tokenizer_class" in settings or list(directory.glob("*.model")):
        return directory / "tokenizer_config.json", None
    raise InputError(
        f"{file} is not there, nor vocab.txt, nor vocab.json with merges.txt: the checkpoint came without a tokenizer; "
        f"copy its files from the hub"
    )


def _lines(file):
    """Words may hold what else ends a line in Unicode."""
    return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _reason(error):
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _by_tokenizers(tokenizer, side) -> Encode:
    @lru_cache(maxsize=4)
    def cutting(limit):
        own = tokenizers.Tokenizer.from_str(tokenizer.to_str())  # limits are state, and calls may run side by side
        own.no_padding()
        own.enable_truncation(limit, direction=side)
        return own

    def encode(texts, pairs, limit):
        inputs = texts if pairs is None else list(zip(texts, pairs, strict=True))
        return [(e.ids, e.type_ids, bool(e.overflowing)) for e in cutting(limit).encode_batch(inputs)]

    return encode


def _by_transformers(directory, settings):
    try:
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # any of its many optional dependencies
        kind = settings.get("tokenizer_class", "the tokenizer")
        raise InputError(
            f"{directory}: there is no tokenizer.json, and {kind} needs transformers and what that asks for "
            f"({_reason(error)})"
        ) from None

    def encode(texts, pairs, limit):
        found = theirs(texts, pairs, truncation=True, max_length=limit, return_token_type_ids=True)
        whole = theirs(texts, pairs, verbose=False)["input_ids"]
        rows = zip(found["input_ids"], found["token_type_ids"], whole, strict=True)
        return [(ids, types, len(ids) < len(all_ids)) for ids, types, all_ids in rows]

    def back(rows):
        return theirs.batch_decode(rows, skip_special_tokens=True)

    return encode, back, lambda _: theirs.pad_token_id, "token_type_ids" in theirs.model_input_names


GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes of transformers (but for "Fast") that leave a `tokenizer.json` as it is."""

BERT_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Keys of `tokenizer_config.json`, and of the normalizer in `tokenizer.json`, over which they have the say."""


def _as_configured(spec, kind, settings):
    """`tokenizer.json` with what `tokenizer_config.json` changes of it."""
    if kind in GENERIC:
        return spec
    normalizer, splitter = spec.get("normalizer"), spec.get("pre_tokenizer")
    if normalizer and normalizer["type"] == "BertNormalizer":
        normalizer |= {ours: settings[theirs] for theirs, ours in BERT_NORMALIZER.items() if theirs in settings}
    if splitter and splitter["type"] == "ByteLevel" and "add_prefix_space" in settings:
        splitter["add_prefix_space"] = settings["add_prefix_space"]
    if kind == "Siglip2Tokenizer":  # the tokenizer of Gemma, which the model was trained with on lowercase texts
        rest = [normalizer] if normalizer else []
        spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *rest]}
    return spec


def _specials(tokenizer, settings):
    """The same, with the tokens that the settings name recognised in texts, as far as the vocabulary has them."""
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = [_content(token) for key, token in settings.items() if key.endswith("_token")]
    new = {token for token in named if isinstance(token, str) and token not in there}
    tokenizer.add_special_tokens(sorted(token for token in new if tokenizer.token_to_id(token) is not None))
    return tokenizer


def _added(tokenizer, directory, settings):
    """The same, with the tokens of `added_tokens.json`, which has the ids that follow the vocabulary."""
    extra = _optional(directory / "added_tokens.json")
    for token, number in sorted(extra.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=True)])
        if tokenizer.token_to_id(token) != number:
            raise InputError(f"{directory / 'added_tokens.json'}: '{token}' cannot be added as number {number}")
    return _specials(tokenizer, settings)


def _wordpiece(words, settings):
    settings = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")} | settings
    unknown, first, last = (_content(settings[f"{name}_token"]) for name in ("unk", "cls", "sep"))
    tokenizer = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return _specials(tokenizer, settings)


def _gpt2(vocabulary, merges, settings):
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return _specials(tokenizer, {"eos_token": "<|endoftext|>"} | settings)


def _roberta(vocabulary, merges, settings):
    settings = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"} | settings
    tokenizer = _gpt2(vocabulary, merges, settings)
    tokenizer.post_processor = processors.RobertaProcessing(
        *((token, vocabulary[token]) for token in (_content(settings[key]) for key in ("sep_token", "cls_token"))),
        add_prefix_space=settings.get("add_prefix_space", False),
    )
    return tokenizer


def _clip(vocabulary, merges, settings):
    settings = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"} | settings
    first, last = _content(settings["bos_token"]), _content(settings["eos_token"])
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=last))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of CLIP's simple_tokenizer.py
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (last, vocabulary[last]), (first, vocabulary[first]), trim_offsets=False, add_prefix_space=False
    )
    return _specials(tokenizer, settings)


WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
"""Classes of transformers whose `vocab.txt` is read as BERT's."""

BPE = {"CLIPTokenizer": _clip, "RobertaTokenizer": _roberta, "GPT2Tokenizer": _gpt2}
"""What builds a tokenizer from `vocab.json` and `merges.txt`, by its class in transformers."""

OF_MODELS = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
}
"""The class where no file names one; CLIP's for all others."""
