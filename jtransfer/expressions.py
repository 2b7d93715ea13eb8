"""Calls as configs write them: `probe`, `lora(rank=4)`, `my_methods.houlsby(width=16)`.

A name without a dot is of a table of ours, which stands in plain sight and never changes. A dotted name is of a module
of the user's (see `imports`), and what its function returns must be of the type that the table's functions return.
"""

import ast
import contextlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from jtransfer import imports, kinds
from jtransfer.errors import InputError, nearest

LONGEST = 10_000
"""Characters of an expression, at most."""


def parse(text: str, what: str) -> ast.expr:
    """The one expression that a text consists of.

    Raises:
        InputError: no text, no expression, one that is too long or too deep, or letters that Python takes for others.
    """
    kinds.check(text, kinds.NAME, what)
    if len(text) > LONGEST:
        raise InputError(f"{what} {kinds.shown(text)} has {len(text):,} characters; expected {LONGEST:,} at most")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InputError(f"{what} {kinds.shown(text)} {FORM}") from None
    for part in ast.walk(node):  # Python takes 'ｌora' for 'lora'; files of results would not
        name = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else ""
        if name not in text:
            raise InputError(f"{what} {kinds.shown(text)}: expected the letters of '{name}', found others that look so")
    return node


FORM = "is not of the form name, name(option=value) or module.name(option=value)"


def modules(text: str, what: str) -> dict[str, str]:
    """The user's modules that an expression names, each with the digest of its source: `{"my_methods": "3f0c..."}`.

    Raises:
        InputError: as `parse` and `imports.digest`.
    """
    nodes = [node for node in ast.walk(parse(text, what)) if isinstance(node, ast.Attribute)]
    inner = {id(node.value) for node in nodes}
    names = {ast.unparse(node.value) for node in nodes if id(node) not in inner}
    return {name: imports.digest(name, f"{what} {kinds.shown(text)}") for name in sorted(names)}


def call(
    node: ast.expr,
    text: str,
    what: str,
    known: Mapping[str, Callable],
    given: int = 0,
    others: Iterable[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    kind: Any = None,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> Callable[..., Any]:
    """What a name or a call stands for: one of `known`, with its options bound.

    Args:
        node: From `parse`, or a part of that.
        text: All of it, for errors.
        what: The kind of thing, for errors.
        known: Functions by name, all of which return values of one type.
        given: How many leading arguments the caller adds, which the text cannot have.
        others: More names that an error may suggest.
        defaults: Values by name for options that the text leaves open; names that are no options are ignored.
        kind: The type, or union of types, that a user's function must return; None for that of `known`.
        elsewhere: Options of `known` that no text may have, and where their values come from.

    Returns:
        A function of the `given` leading arguments.

    Raises:
        InputError: an unknown name, module or option (with the nearest that exists), values that are not plain, or
            arguments that do not fit or are not of their kind. What is returned raises it where a user's function
            fails, or returns a value of another type.
    """
    node = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    name = _name(node.func)
    if not name:
        raise InputError(f"{what} {kinds.shown(text)} {FORM}")
    if "." not in name and name not in known:
        raise InputError(f"unknown {what} '{name}'; {nearest(name, [*known, *others])}")
    function = _function(name, what, known)
    signature = _signature(function, f"{what} '{name}'")
    options = list(signature.parameters)[given:]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for keyword in node.keywords:
        if keyword.arg not in options and not takes_any:
            raise InputError(f"{what} '{name}' has no option '{keyword.arg}'; {nearest(keyword.arg, options)}")
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
    if taken := [option for option in elsewhere if option in bound and name in known]:
        raise InputError(f"{what} '{name}': {taken[0]} comes from {elsewhere[taken[0]]}; leave it out")
    for option in options:
        if option in bound and signature.parameters[option].kind is not inspect.Parameter.VAR_KEYWORD:
            kinds.check_argument(bound[option], signature.parameters[option], f"{what} '{name}': {option}")
    kwargs |= {name: value for name, value in defaults.items() if name in options and name not in bound}
    made = partial(_ordered, function, args, kwargs)
    return made if name in known else partial(_of_type, made, kind or _returned(known), f"{what} '{name}'")


def options(node: ast.expr, what: str, known: Mapping[str, Callable]) -> list[str]:
    """Names of all arguments of the function that a name or a call stands for, which `call` has accepted."""
    name = _name(node.func if isinstance(node, ast.Call) else node)
    return list(_signature(_function(name, what, known), f"{what} '{name}'").parameters)


def _function(name, what, known):
    return imports.function(name, what) if "." in name else known[name]


def _name(node: ast.expr) -> str:
    """A name, dotted or not; empty for whatever else."""
    if isinstance(node, ast.Attribute):
        around = _name(node.value)
        return around and f"{around}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _signature(function: Callable, label: str) -> inspect.Signature:
    for evaluated in (True, False):  # annotations may be texts, and these may name what is not there
        with contextlib.suppress(Exception):
            return inspect.signature(function, eval_str=evaluated)
    raise InputError(f"{label} does not say which arguments it takes; expected a function written in Python")


def _ordered(function, args, kwargs, *first):
    return function(*first, *args, **kwargs)


def _returned(known: Mapping[str, Callable]) -> type:
    """The type of what the functions of a table return."""
    annotation = inspect.signature(next(iter(known.values()))).return_annotation
    return typing.get_origin(annotation) or annotation


def _of_type(made: Callable, kind: Any, label: str, *first: Any) -> Any:
    found = made(*first)
    if not isinstance(found, kind):
        names = [own.__name__ for own in typing.get_args(kind) or (kind,)]
        named = [f"an {name}" if name[0] in "AEIOU" else f"a {name}" for name in names]
        expected = "a function" if kind is Callable else " or ".join(named)
        raise InputError(f"{label} returned {kinds.shown(found)}; expected {expected}")
    return found
