"""What CLIP's tokenizers do to a text before they look for words in it (Radford et al. 2021, arXiv:2103.00020).

A text is repaired (mojibake, curly quotes, ligatures, full width) by ftfy, HTML's entities are replaced, twice, and
runs of white space become one space. OpenAI's and open_clip's tokenizers do so; those of transformers for the same
models do not.
"""

import html
import string
from collections.abc import Callable

from jtransfer.errors import InputError, nearest

PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def _whitespace(text):
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _lower(text):
    return _whitespace(text).lower()


def _canonicalize(text):
    return " ".join(_whitespace(text).translate(PUNCTUATION).lower().split())


CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": _lower,
    "whitespace": _whitespace,
    "canonicalize": _canonicalize,
}
"""By their names in open_clip; "lower" also lowercases, "canonicalize" also lowercases and removes punctuation."""


def cleaner(name: str) -> Callable[[str], str]:
    """The function in `CLEANERS` with this name.

    Raises:
        InputError: no cleaner has it.
    """
    if name not in CLEANERS:
        raise InputError(f"clean: unknown {name!r}; {nearest(str(name), CLEANERS)}")
    return CLEANERS[name]
