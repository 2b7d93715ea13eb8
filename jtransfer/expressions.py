"""Calls as configs write them: `probe`, `lora(rank=4)`, `knn(k=20)`."""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from jtransfer import kinds
from jtransfer.errors import InputError, nearest

LONGEST = 10_000
"""Characters of an expression."""


def parse(text: str, what: str) -> ast.expr:
    """The expression in a text; whatever else stands there is refused.

    Raises:
        InputError: no expression, or one that is too long or too deep.
    """
    kinds.check(text, kinds.NAME, what)
    if len(text) > LONGEST:
        raise InputError(f"{what} {kinds.shown(text)} has {len(text):,} characters; expected {LONGEST:,} at most")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InputError(f"{what} {kinds.shown(text)} {FORM}") from None
    for part in ast.walk(node):  # Python takes 'ｌora' for 'lora'; files of results would not
        if isinstance(part, ast.Name) and part.id not in text:
            raise InputError(
                f"{what} {kinds.shown(text)}: expected the letters of '{part.id}', found others that look so"
            )
    return node


FORM = "is not of the form name or name(option=value)"


def call(
    node: ast.expr, text: str, what: str, known: Mapping[str, Callable], given: int = 0, others: Iterable[str] = ()
) -> Callable[..., Any]:
    """What a name or a call stands for: one of `known`, with its options bound.

    Args:
        node: From `parse`, or a part of that.
        text: All of it, for errors.
        what: The kind of thing, for errors.
        known: Functions by name.
        given: How many leading arguments the caller adds, which the text cannot have.
        others: More names that an error may suggest.

    Raises:
        InputError: an unknown name or option (with the nearest that exists), values that are not plain, or arguments
            that do not fit.
    """
    node = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(node.func, ast.Name):
        raise InputError(f"{what} {kinds.shown(text)} {FORM}")
    name = node.func.id
    if name not in known:
        raise InputError(f"unknown {what} '{name}'; {nearest(name, [*known, *others])}")
    signature = inspect.signature(known[name])
    options = list(signature.parameters)[given:]
    for keyword in node.keywords:
        if keyword.arg not in options:
            raise InputError(f"{what} '{name}' has no option '{keyword.arg}'; {nearest(str(keyword.arg), options)}")
    given_names = [keyword.arg for keyword in node.keywords]
    if twice := [option for option in options if given_names.count(option) > 1]:
        raise InputError(f"{what} '{name}': the option {twice[0]} is given twice; expected it once")
    try:
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        example = options[0] if options else "option"
        raise InputError(
            f"{what} {kinds.shown(text)}: options must be plain values, as in {name}({example}=...)"
        ) from None
    try:
        bound = signature.bind(*[None] * given, *args, **kwargs).arguments
    except TypeError:
        shown = signature.replace(parameters=list(signature.parameters.values())[given:])
        raise InputError(f"{what} {kinds.shown(text)} does not fit {name}{shown}") from None
    for option in options:
        if option in bound:
            kinds.check_argument(bound[option], signature.parameters[option], f"{what} '{name}': {option}")
    return partial(_ordered, known[name], args, kwargs)


def _ordered(function, args, kwargs, *first):
    return function(*first, *args, **kwargs)
