"""Texts of others, as names of classes and directories, escaped for a terminal, a table or a Python file."""

import re
import unicodedata
from typing import Any


def plain(text: Any) -> str:
    r"""A text with its unprintable characters as escapes, so that it starts no line and moves no cursor.

    >>> plain("cat\x1b[2J\n")
    'cat\\x1b[2J\\n'
    """
    return "".join(c if _seen(c) else _escaped(c) for c in str(text))


def cell(text: Any) -> str:
    """A text for a cell of a Markdown table: `plain`, with each `|` escaped."""
    return plain(text).replace("|", r"\|")


def code(text: Any) -> str:
    """A text as code in Markdown, also in a cell of a table: fenced by one backtick more than the longest run in it."""
    shown = cell(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{shown}{space}{fence}"


def documented(text: Any) -> str:
    """A text for the docstring of a Python file: quotes, backslashes and unprintable characters are escaped."""
    return "".join(_escaped(c) if c in '\\"' or not _seen(c) else c for c in str(text))


def _seen(character):
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character):
    return character.encode("unicode_escape").decode() if character != '"' else r"\""
