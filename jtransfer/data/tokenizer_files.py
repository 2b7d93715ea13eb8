"""Tokenizers of the `tokenizers` library from a checkpoint's files: `tokenizer.json`, or what there was before it."""

import json
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jtransfer.errors import InputError
from jtransfer.files import read_json


def read(
    directory: epath.Path, values: dict[str, Any], settings: dict[str, Any]
) -> tuple[epath.Path, tokenizers.Tokenizer | None]:
    """The file that was read, and its tokenizer; None for one that only transformers reads.

    Args:
        directory: With the files.
        values: Of `config.json`.
        settings: Of `special_tokens_map.json` and `tokenizer_config.json`.

    Raises:
        InputError: there is none, or it is damaged.
    """
    kind = settings.get("tokenizer_class") or OF_MODELS.get(values.get("model_type"), "CLIPTokenizer")
    kind = kind.removesuffix("Fast")
    file, words = directory / "tokenizer.json", directory / "vocab.txt"
    pieces, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        if file.exists():
            spec = _as_configured(read_json(file), kind, settings)
            found = tokenizers.Tokenizer.from_str(json.dumps(spec))
            if (spec.get("decoder") or {}).get("type") == "ByteLevel" and spec["model"].get("end_of_word_suffix"):
                found.decoder = _without_ends()
            return file, _specials(found, settings)
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
        raise InputError(f"{file}: this is no tokenizer that can be read ({reason(error)})") from error
    if "tokenizer_class" in settings or list(directory.glob("*.model")):
        return directory / "tokenizer_config.json", None
    raise InputError(
        f"{file} is not there, nor vocab.txt, nor vocab.json with merges.txt: the checkpoint came without a tokenizer; "
        f"copy its files from the hub"
    )


def _lines(file):
    """Words may hold what else ends a line in Unicode."""
    return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def optional(file: epath.Path) -> dict[str, Any]:
    """What a file of settings says, nothing where it is not there."""
    return read_json(file) if file.exists() else {}


def content(token: str | dict[str, Any] | None) -> str | None:
    """Files have a token as its text, or as an object with it."""
    return token.get("content") if isinstance(token, dict) else token


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
    named = [content(token) for key, token in settings.items() if key.endswith("_token")]
    new = {token for token in named if isinstance(token, str) and token not in there}
    tokenizer.add_special_tokens(sorted(token for token in new if tokenizer.token_to_id(token) is not None))
    return tokenizer


def _added(tokenizer, directory, settings):
    """The same, with the tokens of `added_tokens.json`, which has the ids that follow the vocabulary."""
    extra = optional(directory / "added_tokens.json")
    for token, number in sorted(extra.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=True)])
        if tokenizer.token_to_id(token) != number:
            raise InputError(f"{directory / 'added_tokens.json'}: '{token}' cannot be added as number {number}")
    return _specials(tokenizer, settings)


def _wordpiece(words, settings):
    settings = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")} | settings
    unknown, first, last = (content(settings[f"{name}_token"]) for name in ("unk", "cls", "sep"))
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
        *((token, vocabulary[token]) for token in (content(settings[key]) for key in ("sep_token", "cls_token"))),
        add_prefix_space=settings.get("add_prefix_space", False),
    )
    return tokenizer


def _without_ends():
    """CLIP's decoder: bytes, and a space for the mark at the end of each word."""
    ends = decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)
    return decoders.Sequence([decoders.ByteLevel(), *ends])


def _clip(vocabulary, merges, settings):
    settings = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"} | settings
    first, last = content(settings["bos_token"]), content(settings["eos_token"])
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=last))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of CLIP's simple_tokenizer.py
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = _without_ends()
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
