"""Calls as configs write them: `probe`, `lora(rank=4)`, `knn(k=20)`."""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from jtransfer.errors import InputError, nearest


def parse(text: str, what: str) -> ast.expr:
    """The expression in a text; whatever else stands there is refused.

    Raises:
        InputError: no expression.
    """
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise InputError(f"{what} '{text}' is not of the form name or name(option=value)") from None


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
        raise InputError(f"{what} '{text}' is not of the form name or name(option=value)")
    name = node.func.id
    if name not in known:
        raise InputError(f"unknown {what} '{name}'; {nearest(name, [*known, *others])}")
    signature = inspect.signature(known[name])
    options = list(signature.parameters)[given:]
    for keyword in node.keywords:
        if keyword.arg not in options:
            raise InputError(f"{what} '{name}' has no option '{keyword.arg}'; {nearest(str(keyword.arg), options)}")
    try:
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except ValueError:
        example = options[0] if options else "option"
        raise InputError(f"{what} '{text}': options must be plain values, as in {name}({example}=...)") from None
    try:
        bound = signature.bind(*[None] * given, *args, **kwargs).arguments
    except TypeError:
        shown = signature.replace(parameters=list(signature.parameters.values())[given:])
        raise InputError(f"{what} '{text}' does not fit {name}{shown}") from None
    for option in options:
        kind, several = signature.parameters[option].annotation, signature.parameters[option].kind
        values = bound.get(option, ()) if several is inspect.Parameter.VAR_POSITIONAL else (bound.get(option),)
        if option in bound and not all(_is(value, kind) for value in values):
            raise InputError(f"{what} '{name}': {option}={bound[option]!r}; expected {KINDS[kind]}")
    return partial(_ordered, known[name], args, kwargs)


KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", tuple: "a list"}


def _is(value, kind):
    if kind in (int, float) and isinstance(value, bool):
        return False
    accepted = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
    return kind not in KINDS or isinstance(value, accepted)


def _ordered(function, args, kwargs, *first):
    return function(*first, *args, **kwargs)
