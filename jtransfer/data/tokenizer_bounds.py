"""Limits on the files of a tokenizer: its steps run in native code, which nothing here can stop."""

import base64
import binascii
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from jtransfer import patterns
from jtransfer.errors import InputError, cut

LARGEST = 1 << 26
"""Bytes of a file; the largest `tokenizer.json` on the hub has half of that."""

MOST_WORDS = 1 << 20
"""Words of a vocabulary, at most, and a bound above their ids; those in use have up to 900,000."""

LONGEST_WORD = 10_000
"""Characters of a word, a token, a prompt or a pattern."""

MOST_STEPS, MOST_GROWTH, MOST_TRIES = 100, 100, 10**7
"""Limits for each part of a tokenizer: its steps, how many times longer they may make a text, and how often one of its
patterns may be tried at one place. Those on the hub have about ten steps, and keep the length of a text."""

PARTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""The parts of a `tokenizer.json` that have steps, and the key under which a sequence lists them."""


def check(file: epath.Path, spec: Mapping[str, Any]) -> None:
    """Refuse a `tokenizer.json` whose steps might fill the memory or never end, or whose vocabulary is out of bounds.

    Args:
        file: For errors.
        spec: The object in it.

    Raises:
        InputError: the error names the part and what it has too much of, or as `check_words`.
        Exception: any error that values of a wrong type cause.
    """
    for part, listed in PARTS.items():
        steps = list(_steps(spec.get(part), listed))
        if len(steps) > MOST_STEPS:
            raise InputError(f"{file}: its {part} has {len(steps):,} steps; expected {MOST_STEPS} at most")
        if math.prod(map(_growth, steps)) > MOST_GROWTH:
            raise InputError(f"{file}: its {part} makes a text more than {MOST_GROWTH} times as long")
        for pattern in filter(None, map(_pattern, steps)):
            parts = patterns.alternatives(pattern) if len(pattern) <= LONGEST_WORD else ()
            if not parts or any(patterns.steps(one) > MOST_TRIES for one in parts):
                own = f"{file}: its {part} has the pattern '{cut(pattern)}'"
                raise InputError(f"{own}, which could take for ever to match")
    model = spec.get("model") or {}
    words = model.get("vocab") or {}
    if isinstance(words, list):  # Unigram's, with their scores
        words = {str(word[0]): number for number, word in enumerate(words)}
    check_words(file, words, model.get("merges") or ())
    for token in spec.get("added_tokens") or ():
        check_words(file, {str(token.get("content")): token.get("id", 0)})


def check_words(file: epath.Path, words: Mapping[str, int], merges: Collection[Any] = ()) -> None:
    """Refuse a vocabulary of more than `MOST_WORDS` words or merges, with ids out of range, or with too long words.

    Args:
        file: For errors.
        words: The id of each word.
        merges: Of BPE.

    Raises:
        InputError: the error names the word or the count.
    """
    check_count(file, max(len(words), len(merges)))
    longest = max(words, key=len, default="")
    if len(longest) > LONGEST_WORD:
        raise InputError(
            f"{file}: '{longest[:40]}...' has {len(longest):,} characters; expected words of at most {LONGEST_WORD:,}"
        )
    for word, number in words.items():
        if type(number) is not int or not 0 <= number < MOST_WORDS:
            raise InputError(
                f"{file}: '{word[:40]}' has the number {str(number)[:40]}; expected 0 to {MOST_WORDS - 1:,}"
            )


def check_count(file: epath.Path, count: int) -> None:
    """Refuse more than `MOST_WORDS` words or merges.

    Raises:
        InputError: the error names the count.
    """
    if count > MOST_WORDS:
        raise InputError(f"{file}: its vocabulary has {count:,} words or merges; expected {MOST_WORDS:,} at most")


def _steps(node: Any, listed: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, in their order, whatever sequences they are in."""
    if not node:
        return
    if isinstance(steps := node.get(listed), list):
        for step in steps:
            yield from _steps(step, listed)
    else:
        yield node


def _growth(step: Mapping[str, Any]) -> float:
    """How many times longer a step makes a text at most, whatever another step made of it before."""
    match step.get("type"):
        case "Replace":
            least, content = _shortest(step.get("pattern")), _spread(step.get("content"))
            return content / least if least and content > least else content + (not least)
        case "Prepend":
            return 1 + _spread(step.get("prepend"))
        case "Precompiled":
            return _longest_replacement(step.get("precompiled_charsmap"))
        case "ByteLevel" | "Metaspace":  # a byte becomes a letter of two; a word gets a mark
            return 2
        case "TemplateProcessing":
            ids = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
            pieces = [list(map(_piece, step[form])) for form in ("single", "pair")]
            return max(sum(ids.get(piece, 1) for piece in form) for form in pieces)
    return 1


def _piece(piece):
    return (piece.get("SpecialToken") or piece.get("Sequence"))["id"]


def _spread(text: Any) -> int:
    """How long a text can become, as ligatures become their letters."""
    return len(unicodedata.normalize("NFKD", text or ""))


def _shortest(pattern: Any) -> int:
    """How short what a pattern matches can be."""
    if "String" in pattern:
        return len(pattern["String"])
    try:
        return int(not re.match(pattern["Regex"], ""))
    except re.error:  # Oniguruma knows more than Python does
        return 0


def _longest_replacement(charsmap: Any) -> int:
    """The longest text that SentencePiece's compiled table of replacements has: a trie, then texts that end in NUL."""
    try:
        table = base64.b64decode(charsmap or "")
    except (binascii.Error, ValueError):  # as the library says it
        return 1
    texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
    return max(1, *(_spread(text.decode(errors="replace")) for text in texts))


def _pattern(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    return pattern.get("Regex", "") if isinstance(pattern, dict) else ""
