"""What a value must be, said in one form: for the keys of configs, and for the options of methods and protocols.

A `Kind` may stand in a signature, `def lora(rank: Annotated[int, whole(1)] = 8)`; a plain annotation stands for all
values of its type.
"""

import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jtransfer.errors import InputError, cut, nearest

LONGEST_TEXT = 100_000
"""Characters that a name may have, at most."""


@dataclass(frozen=True)
class Kind:
    """What values are accepted.

    Attributes:
        expected: What they are, for errors, as "a whole number of at least 1".
        takes: Whether a value is one of them.
        choices: The texts among them, where these can be listed.
    """

    expected: str
    takes: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def check(value: Any, kind: Kind, what: str, place: str = "") -> None:
    """Refuse a value that is not of a kind.

    Args:
        value: Any.
        kind: What it must be.
        what: Its name, as "config.batch".
        place: Where it stands, as "in mine.py".

    Raises:
        InputError: `config.batch: expected a whole number of at least 1, found '16' (in mine.py)`.
    """
    if not kind.takes(value):
        hint = f"; {nearest(value, kind.choices)}" if kind.choices and isinstance(value, str) else ""
        raise InputError(
            f"{what}: expected {kind.expected}, found {shown(value)}{f' ({place})' if place else ''}{hint}"
        )


def checked(function: Callable) -> Callable:
    """Check the arguments of every call against the kinds in the function's signature.

    Raises:
        InputError: in a call, for the first argument that is not of its kind.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_argument(value, signature.parameters[name], f"{function.__name__}: {name}")
        return function(*args, **kwargs)

    return call


def check_argument(value: Any, parameter: inspect.Parameter, what: str) -> None:
    """Refuse an argument that is not of the kind which its parameter's annotation stands for.

    Raises:
        InputError: as `check`.
    """
    several = parameter.kind is inspect.Parameter.VAR_POSITIONAL
    for one in value if several else (value,):
        check(one, of(parameter.annotation), what)


def shown(value: Any) -> str:
    """A value as one line of an error shows it, however long or odd it is."""
    try:
        return cut(" ".join(repr(value).split()))
    except (Exception, SystemExit):  # a whole number of more than 4300 digits, or whatever a class of the user's does
        return f"what cannot be shown, of type {type(value).__name__}"


def whole(least: int | None = None, most: int | None = None) -> Kind:
    """Whole numbers from `least` to `most`; True and False are none."""
    return _ranged("a whole number", numbers.Integral, least=least, most=most)


def number(
    least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> Kind:
    """Finite numbers, whole ones among them, from `least` (or `above` it) to `most` (or `below` it)."""
    return _ranged("a number", numbers.Real, least, above, most, below)


def choice(*names: str) -> Kind:
    """One of some texts."""
    listed = ", ".join(repr(name) for name in names)
    return Kind(f"one of {listed}", lambda x: isinstance(x, str) and x in names, names)


def several(kind: Kind, least: int = 0, most: int | None = None) -> Kind:
    """A list or tuple, of at least and at most so many items of one kind."""
    count = {(0, None): "", (1, None): " of at least one item"}.get((least, most))
    if count is None:
        number = f"at least {least}" if most is None else least if least == most else f"{least} to {most}"
        count = f" of {number} items"
    each = "" if kind is ANY else f", each {kind.expected}"
    return Kind(
        f"a list{count}{each}",
        lambda x: (
            isinstance(x, list | tuple)
            and len(x) >= least
            and (most is None or len(x) <= most)
            and all(map(kind.takes, x))
        ),
    )


def each(*kinds: Kind) -> Kind:
    """A list or tuple of one item of each kind, in this order."""
    return Kind(
        f"a list of {len(kinds)} items: {', '.join(kind.expected for kind in kinds)}",
        lambda x: (
            isinstance(x, list | tuple)
            and len(x) == len(kinds)
            and all(kind.takes(item) for kind, item in zip(kinds, x, strict=True))
        ),
    )


def either(*kinds: Kind) -> Kind:
    """A value of any of some kinds."""
    return Kind(
        " or ".join(kind.expected for kind in kinds),
        lambda x: any(kind.takes(x) for kind in kinds),
        tuple(name for kind in kinds for name in kind.choices),
    )


def by_name(kind: Kind) -> Kind:
    """A mapping from texts to values of one kind."""
    return Kind(
        f"a mapping from names to values, each {kind.expected}",
        lambda x: hasattr(x, "items") and all(TEXT.takes(key) and kind.takes(value) for key, value in x.items()),
    )


def of(annotation: Any) -> Kind:
    """The kind that an annotation stands for: the `Kind` in an `Annotated`, or all values of a plain type.

    Unions, literals, tuples and mappings are made of the kinds of their parts. Any other annotation accepts any value.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return next((x for x in inner[1:] if isinstance(x, Kind)), of(inner[0]))
    if origin in (types.UnionType, typing.Union):
        return either(*map(of, inner))
    if origin is typing.Literal:
        return Kind(" or ".join(map(repr, inner)), lambda x: x in inner, tuple(x for x in inner if isinstance(x, str)))
    if origin is tuple and inner:
        return several(of(inner[0])) if inner[-1] is Ellipsis else each(*map(of, inner))
    if isinstance(origin, type) and inner and issubclass(origin, Mapping):
        return by_name(of(inner[1]))
    return PLAIN.get(annotation, ANY) if isinstance(annotation, type) else ANY


def _is_text(x):
    """A text that can be written to a file and shown in one line."""
    return isinstance(x, str) and not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", x)


def _is_pattern(x):
    try:
        return _is_text(x) and bool(re.compile(x))
    except (re.error, RecursionError, OverflowError):
        return False


def _finite(x):
    try:
        return math.isfinite(x)
    except OverflowError:  # a whole number that no float can be
        return False


def _ranged(name, kind, least=None, above=None, most=None, below=None):
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    said = " and ".join(f"{how} {bound:,}" for how, bound in bounds.items() if bound is not None)
    if least is not None and most is not None:
        said = f"from {least:,} to {most:,}"
    return Kind(
        f"{least:,}" if least is not None and least == most else f"{name} {said}".strip(),
        lambda x: (
            isinstance(x, kind)
            and not isinstance(x, bool)
            and (kind is numbers.Integral or _finite(x))
            and (least is None or x >= least)
            and (above is None or x > above)
            and (most is None or x <= most)
            and (below is None or x < below)
        ),
    )


ANY = Kind("anything", lambda x: True)
NONE = Kind("None", lambda x: x is None)
FLAG = Kind("True or False", lambda x: isinstance(x, bool))
TEXT = Kind("a text without control characters", _is_text)
NAME = Kind("a text that is not empty", lambda x: _is_text(x) and bool(x.strip()) and len(x) <= LONGEST_TEXT)
PATTERN = Kind("a regular expression", _is_pattern)
SHARE = number(least=0, below=1)
POSITIVE, NOT_NEGATIVE, SEED = number(above=0), number(least=0), whole(0, 2**32 - 1)
POSITIVES = several(POSITIVE, 1)
AXES = by_name(either(whole(-1, -1), whole(1)))
"""Axes of a mesh and their sizes, -1 for what is left."""
LIST = several(ANY)
FLOATS = choice("float32", "bfloat16", "float16", "float64")
"""Dtypes that models compute in, or that parameters are kept in."""
PLAIN = {int: whole(), float: number(), bool: FLAG, str: TEXT, tuple: LIST, list: LIST, type(None): NONE}
