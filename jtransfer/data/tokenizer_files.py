"""Tokenizers of the `tokenizers` library from a checkpoint's files: `tokenizer.json`, or the older vocabularies."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jtransfer.data import keys
from jtransfer.data import tokenizer_bounds as bounds
from jtransfer.errors import InputError, first_line, nearest
from jtransfer.files import read as read_bytes
from jtransfer.files import read_json

SENTENCES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""The names that sentence-transformers has given the file of settings of its tokenizer."""


def sentence_settings(directory: epath.Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """What sentence-transformers does to texts.

    Returns:
        The values of `sentence_bert_config.json`; the prompts by name, "query" and "document" among them; and the
        text of the default prompt. What no file gives is empty.

    Raises:
        InputError: a damaged file, or a key that asks for what is not supported.
    """
    file = next((directory / name for name in SENTENCES if (directory / name).exists()), directory / SENTENCES[0])
    values = optional(file)
    keys.check(file, values, keys.SENTENCE_BERT)
    length, lower = values.get("max_seq_length"), values.get("do_lower_case")
    if not (length is None or (type(length) is int and length >= 1)):
        raise InputError(f"{file}: max_seq_length is {length!r}; expected a whole number above 0")
    if not isinstance(lower, bool | None):
        raise InputError(f"{file}: do_lower_case is {lower!r}; expected true or false")
    file = directory / "config_sentence_transformers.json"
    said = optional(file)
    keys.check(file, said, keys.SENTENCE_TRANSFORMERS)
    given, name = said.get("prompts") or {}, said.get("default_prompt_name")
    prompts = {"query": "", "document": ""} | {key: prompt or "" for key, prompt in given.items()}
    if name is not None and name not in prompts:
        raise InputError(f"{file}: default_prompt_name is {name!r}; {nearest(str(name), prompts)}")
    return values, prompts, prompts[name] if name is not None else ""


def read(
    directory: epath.Path, values: dict[str, Any]
) -> tuple[epath.Path, tokenizers.Tokenizer | None, dict[str, Any]]:
    """The tokenizer in a directory.

    Args:
        directory: With the files.
        values: Of `config.json`.

    Returns:
        The file that was read, its tokenizer, and the settings of all files. The tokenizer is None if transformers has
        to read it.

    Raises:
        InputError: there is no tokenizer, a file is damaged or out of bounds, its class is not supported, or a key asks
            for what is not supported.
    """
    settings = _settings(directory)
    model_type = values.get("model_type")
    named = settings.get("tokenizer_class") or OF_MODELS.get(model_type, "")
    named = CORRECTED.get((model_type, str(named).removesuffix("Fast")), named)
    kind = str(named or "CLIPTokenizer").removesuffix("Fast")
    if "AutoTokenizer" in (settings.get("auto_map") or ()) and kind not in (*GENERIC, *SPECIAL):
        where = directory / "tokenizer_config.json"
        raise InputError(f"{where}: {kind} is code of the checkpoint's own (auto_map), which is never run here")
    file, words = directory / "tokenizer.json", directory / "vocab.txt"
    pieces, merges = directory / "vocab.json", directory / "merges.txt"
    found, written = None, ""
    with one_line(lambda: f"{file}: this is no tokenizer that can be read"):
        if file.exists():
            spec = _as_configured(read_json(file, bounds.LARGEST), kind, settings)
            bounds.check(file, spec)
            found = tokenizers.Tokenizer.from_str(json.dumps(spec))
            settings, written = _own_sides(spec) | settings, json.dumps(spec.get("post_processor"))
            kind = kind if named else ""
        elif kind in WORDPIECE and words.exists():
            file = words
            found = _wordpiece(file, settings)
        elif kind in BPE and pieces.exists() and merges.exists():
            file = pieces
            vocabulary, lines = read_json(file, bounds.LARGEST), _lines(merges)
            bounds.check_words(file, vocabulary, lines)
            pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
            found = BPE[kind](vocabulary, pairs, settings)
        if found is not None:
            _add_tokens(found, directory, settings, SPECIAL.get(kind, {}))
            _set_ends(found, kind, settings, written)
            found.encode_special_tokens = bool(settings.get("split_special_tokens", False))
            return file, found, settings
    own = [kind for kind in (settings.get("tokenizer_class"), values.get("tokenizer_class")) if kind]
    if own or list(directory.glob("*.model")):
        for kind in own:
            if str(kind).removesuffix("Fast") not in BY_TRANSFORMERS:
                known = (*WORDPIECE, *BPE, *BY_TRANSFORMERS)
                raise InputError(f"{directory}: the tokenizer {kind} is not read here; {nearest(str(kind), known)}")
        return directory / "tokenizer_config.json", None, settings
    raise InputError(
        f"{file} is not there, nor vocab.txt, nor vocab.json with merges.txt: the checkpoint came without a tokenizer; "
        f"copy its files from the hub"
    )


def _settings(directory):
    """What `tokenizer_config.json` says, and `special_tokens_map.json`, which a newer config makes needless."""
    file = directory / "tokenizer_config.json"
    values = optional(file)
    keys.check(file, values, keys.TOKENIZER)
    if "added_tokens_decoder" not in values:
        file = directory / "special_tokens_map.json"
        named = optional(file)
        keys.check(file, named, keys.TOKENIZER)
        values |= named
    return values


@contextmanager
def one_line(what: Callable[[], str]) -> Iterator[None]:
    """Turn what the tokenizers library raises into one line: its errors have no type, and a panic is no `Exception`.

    Args:
        what: Gives the beginning of the line.

    Raises:
        InputError: for any error in the block but `KeyboardInterrupt` and `SystemExit`.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"{what()} ({first_line(error)})") from error


def _lines(file):
    """Words may hold what else ends a line in Unicode."""
    lines = read_bytes(file, bounds.LARGEST)
    bounds.check_count(file, lines.count(b"\n"))
    return lines.decode("utf-8").removesuffix("\n").split("\n")


def optional(file: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        InputError: the file is damaged, or a link to nothing.
    """
    dangling = os.path.islink(file)  # which is there to be read, and cannot be
    return read_json(file) if file.exists() or dangling else {}


def content(token: str | dict[str, Any] | None) -> str | None:
    """The text of a token, which files give as it is or as an object with the key "content"."""
    return token.get("content") if isinstance(token, dict) else token


GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes of transformers (but for "Fast") that leave a `tokenizer.json` as it is."""

BERT = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
"""What the classes of `WORDPIECE` do where `tokenizer_config.json` does not say."""

SPACED = ("GPT2Tokenizer", "RobertaTokenizer")
"""Classes that put a space before a text only where `tokenizer_config.json` says so, whatever `tokenizer.json` says."""

BERT_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Keys of `tokenizer_config.json`, and of the normalizer in `tokenizer.json`, over which they have the say."""


def _as_configured(spec, kind, settings):
    """`tokenizer.json` with what `tokenizer_config.json` changes of it."""
    if "dropout" in spec.get("model", {}):
        spec["model"]["dropout"] = None  # it makes the words of training vary, and would those of features
    if kind in GENERIC:
        return spec
    normalizer, splitter = spec.get("normalizer"), spec.get("pre_tokenizer")
    if normalizer and normalizer["type"] == "BertNormalizer":
        said = (BERT if kind in WORDPIECE else {}) | settings
        normalizer |= {ours: said[theirs] for theirs, ours in BERT_NORMALIZER.items() if theirs in said}
    if splitter and splitter["type"] == "ByteLevel" and ("add_prefix_space" in settings or kind in SPACED):
        splitter["add_prefix_space"] = bool(settings.get("add_prefix_space"))
    if kind in WORDPIECE and (unknown := content(settings.get("unk_token"))):
        spec["model"]["unk_token"] = unknown
    if kind == "Siglip2Tokenizer":  # the tokenizer of Gemma, which the model was trained with on lowercase texts
        rest = [normalizer] if normalizer else []
        spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *rest]}
    return spec


def _own_sides(spec):
    """What `tokenizer.json` says of padding and cutting, over which `tokenizer_config.json` has the say."""
    padding, cutting = spec.get("padding") or {}, spec.get("truncation") or {}
    said = {"padding_side": padding.get("direction"), "truncation_side": cutting.get("direction")}
    said = {key: str(value).lower() for key, value in said.items() if value} | {"pad_token": padding.get("pad_token")}
    return {key: value for key, value in said.items() if value}


NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Keys of special tokens, in the order in which transformers numbers those that are new."""


def _add_tokens(tokenizer, directory, settings, defaults):
    """Let a tokenizer recognise the tokens that the files add, with the numbers that they give them, and name."""
    where, given = "tokenizer_config.json", settings.get("added_tokens_decoder")
    added = {int(number): _token(token) for number, token in (given or {}).items()}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    others = [key for key in settings if key.endswith("_token") and key not in NAMED]
    words = [*(settings.get(key) for key in (*NAMED, *others)), *(extra.values() if isinstance(extra, dict) else extra)]
    named = [_token(token, special=True) for token in words if isinstance(token, str | dict)]
    if given is None:
        where, special = "added_tokens.json", {token.content for token in named}
        for word, number in optional(directory / where).items():
            added[number] = AddedToken(word, normalized=word not in special, special=word in special)
    tokens = dict(sorted(added.items()))
    tokenizer.add_tokens(list(tokens.values()))
    for number, token in tokens.items():
        if tokenizer.token_to_id(token.content) != number:
            raise InputError(f"{directory / where}: '{token.content}' cannot be added as number {number}")
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    rest = [word for key, word in defaults.items() if not content(settings.get(key))]
    known = [_token(word, special=True) for word in rest if tokenizer.token_to_id(word) is not None]
    for token in (*named, *known):
        if token.content not in there:
            tokenizer.add_special_tokens([token])
            there.add(token.content)


def _token(value, special=False):
    """A token of a file, which has it as its text or as an object with its flags."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    flags = {key: bool(value[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in value}
    return AddedToken(value["content"], special=bool(value.get("special", special)), **flags)


def _set_ends(tokenizer, kind, settings, written):
    """Let a tokenizer put the tokens around a text that its class puts there.

    Args:
        tokenizer: With these tokens in its vocabulary.
        kind: Its class.
        settings: Which name the tokens.
        written: What `tokenizer.json` says of them, which stays unless the settings name other tokens; "" without one.
    """
    keys_of_ends, processor = ENDS.get(kind, ((), None))
    tokens = [content(settings.get(key)) or SPECIAL[kind][key] for key in keys_of_ends]
    ends = [(token, tokenizer.token_to_id(token)) for token in tokens]
    if written and (all(json.dumps(token) in written for token in tokens) or any(i is None for _, i in ends)):
        return
    if made := processor and processor(*ends, settings, bool(written)):
        tokenizer.post_processor = made


def _bert_ends(first, last, settings, whole):
    return processors.TemplateProcessing(
        single=f"{first[0]} $A {last[0]}",
        pair=f"{first[0]} $A {last[0]} $B:1 {last[0]}:1",
        special_tokens=[first, last],
    )


def _roberta_ends(first, last, settings, whole):
    return processors.RobertaProcessing(last, first, add_prefix_space=settings.get("add_prefix_space", False))


def _clip_ends(first, last, settings, whole):
    return processors.RobertaProcessing(last, first, trim_offsets=False, add_prefix_space=False)


def _gpt2_ends(first, last, settings, whole):
    """None but those that the settings ask for; with a `tokenizer.json`, which says it, these are not read."""
    before, after = bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token"))
    if whole or not (before or after):
        return None
    one = f"{first[0]} " * before + "$A" + f" {last[0]}" * after
    return processors.TemplateProcessing(
        single=one, pair=f"{one} {one.replace('$A', '$B')}", special_tokens=[first] * before + [last] * after
    )


def _wordpiece(file, settings):
    said, words = BERT | settings, {word: number for number, word in enumerate(_lines(file))}
    bounds.check_words(file, words)
    unknown = content(said.get("unk_token")) or SPECIAL["BertTokenizer"]["unk_token"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(words, unk_token=unknown))
    options = {ours: said[theirs] for theirs, ours in BERT_NORMALIZER.items()}
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _gpt2(vocabulary, merges, settings):
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip(vocabulary, merges, settings):
    last = content(settings.get("unk_token")) or SPECIAL["CLIPTokenizer"]["unk_token"]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=last))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of CLIP's simple_tokenizer.py
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
"""Classes of transformers whose `vocab.txt` is read as BERT's."""

BPE = {"CLIPTokenizer": _clip, "RobertaTokenizer": _gpt2, "GPT2Tokenizer": _gpt2}
"""What builds a tokenizer from `vocab.json` and `merges.txt`, by its class in transformers."""

BY_TRANSFORMERS = (
    *("AlbertTokenizer", "BarthezTokenizer", "BartphoTokenizer", "BertweetTokenizer", "BigBirdTokenizer"),
    *("ByT5Tokenizer", "CamembertTokenizer", "DebertaV2Tokenizer", "FNetTokenizer", "GemmaTokenizer", "LlamaTokenizer"),
    *("MBart50Tokenizer", "MBartTokenizer", "MPNetTokenizer", "NllbTokenizer", "PegasusTokenizer", "PhobertTokenizer"),
    *("ReformerTokenizer", "RemBertTokenizer", "SiglipTokenizer", "T5Tokenizer", "XGLMTokenizer"),
    *("XLMRobertaTokenizer", "XLNetTokenizer"),
)
"""Classes that transformers reads where there is no `tokenizer.json`: of bytes, and of SentencePiece or words in files.

Others start programs (as phonemizers), load dictionaries that a file names, or read further checkpoints.
"""

OF_BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
OF_ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
OF_CLIP = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SPECIAL = dict.fromkeys(WORDPIECE, OF_BERT) | {
    "RobertaTokenizer": OF_ROBERTA | {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
    "CLIPTokenizer": OF_CLIP | {"pad_token": "<|endoftext|>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}
"""The special tokens of each class, if no file names others."""

ENDS = dict.fromkeys(WORDPIECE, (("cls_token", "sep_token"), _bert_ends)) | {
    "RobertaTokenizer": (("cls_token", "sep_token"), _roberta_ends),
    "CLIPTokenizer": (("bos_token", "eos_token"), _clip_ends),
    "GPT2Tokenizer": (("bos_token", "eos_token"), _gpt2_ends),
}
"""The keys of the tokens around a text, and what puts them there, by class."""

OF_MODELS = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "siglip2": "Siglip2Tokenizer",
}
"""The class by `model_type`, if no file names one; CLIP's for all others."""

CORRECTED = {("siglip2", "GemmaTokenizer"): "Siglip2Tokenizer"}
"""The class that transformers takes for a `model_type` whose files on the hub name another."""
