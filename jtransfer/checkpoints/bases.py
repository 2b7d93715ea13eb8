"""The base that a method's leaves stand beside: how its directory names it, and how it is found and known again."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from etils import epath

from jtransfer.checkpoints import hub, leaves
from jtransfer.checkpoints.backbone import Backbone, load
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import NAME, check, shown
from jtransfer.models import MODELS, SOURCE_HEAD, described

OPTIONS = ("revision", "subfolder", "head", "classes", "image", "channels", "positions", "bits", "remat", "tower")
"""Options of `load` that made a base what it is, and the tower of a dual encoder that it is."""

DEEPEST = 8
"""Bases that may stand one on the other, at most."""


def is_told(backbone: Backbone) -> bool:
    """Whether it is told where a backbone is read from again; if not, it is kept as a whole."""
    return backbone.origin is not None and backbone.origin.options is not None


def say(directory: epath.PathLike, backbone: Backbone, head: bool) -> dict[str, Any]:
    """A base as plain values, from which `find` has it again.

    Args:
        directory: From which it is named.
        backbone: The base.
        head: Whether its own head belongs to it.
    """
    about = {"name": _from(directory, backbone.name), "fingerprint": fingerprint(backbone, head)}
    return about | dict(backbone.origin.options)


def find(file: epath.Path, about: Any, head: bool, trust: Iterable[str]) -> Backbone:
    """The base that the values of `say` name, with its leaves on the host; nothing is downloaded.

    Args:
        file: That has the values.
        about: The values.
        head: As of `say`.
        trust: As of `load`.

    Raises:
        InputError: values that are none, a base that does not load, or another one than it was.
    """
    options = _checked(file, about)
    said, tower = f"{file}: the base {shown(about['name'])}", options.pop("tower", None)
    with _one_deeper(file.parent, said), hub.from_cache_alone():
        try:
            base = load(_to(file.parent, about["name"]), **options, sharding="host", trust=trust)
            base = base.tower(tower) if tower else base
        except InputError as error:
            raise InputError(f"{said} does not load: {error}") from None
    if (now := fingerprint(base, head)) != about["fingerprint"]:
        raise InputError(
            f"{said} with the fingerprint {about['fingerprint']} is expected, the one of '{base.name}' is {now}; put "
            "that in its place which the method was trained on"
        )
    return base


def refuse_other(file: epath.Path, about: Any, base: Backbone, head: bool) -> None:
    """Refuse a base that is not the one which the values of `say` name.

    Args:
        file: That has the values.
        about: The values; None where there are none, as all leaves are kept.
        base: The base.
        head: As of `say`.

    Raises:
        InputError: values that are none, or of another base.
    """
    if about is None:
        raise InputError(f"{file.parent} holds a whole model, no adapter; use jtransfer.load")
    _checked(file, about)
    if (now := fingerprint(base, head)) != about["fingerprint"]:
        raise InputError(
            f"{file.parent} is an adapter of another base: of {shown(about['name'])} with the fingerprint "
            f"{about['fingerprint']}, that of '{base.name}' is {now}"
        )


def fingerprint(backbone: Backbone, head: bool) -> str:
    """16 hexadecimal digits over the leaves of a base and what computes with them.

    Options of an architecture that have their defaults do not count, nor do dtypes: later versions have more of them,
    and know what earlier ones wrote. Of a method that it runs under the text counts, and not the source.

    Args:
        backbone: The base.
        head: Whether its own head counts.
    """
    own = {
        path: x for path, x in (backbone.params | backbone.state).items() if head or not path.startswith(SOURCE_HEAD)
    }
    config = backbone.config
    if backbone.origin and (backbone.origin.options or {}).get("remat"):
        config = dataclasses.replace(config, remat=False)  # by which it was loaded and not what it is
    about = [_told(described(config)), [method.text for method in backbone.methods]]
    if head and backbone.head:
        fields = dataclasses.fields(backbone.head)
        values = {field.name: getattr(backbone.head, field.name) for field in fields}
        about.append({field.name: values[field.name] for field in fields if values[field.name] != field.default})
    return leaves.fingerprint(json.dumps(about, sort_keys=True, default=str), own)


def _told(values):
    """The options in a description that differ from the architecture's defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(MODELS[values["architecture"]][1])}
    return {
        key: _told(value) if isinstance(value, dict) and "architecture" in value else value
        for key, value in values.items()
        if key not in ("dtype", "param_dtype") and (key not in defaults or value != defaults[key])
    }


def _from(directory, name):
    """The name of a base as its adapter has it: a path from the working directory becomes one from there."""
    here = os.path.realpath(name)
    if "://" in name or name in hub.embedded() or os.path.isabs(os.path.expanduser(name)) or not os.path.exists(here):
        return name
    if "://" in os.fspath(directory):
        return here
    path = os.path.relpath(here, os.path.realpath(directory))
    return path if path.startswith(os.pardir) else os.path.join(os.curdir, path)


def _to(directory, name):
    """The name by which `load` finds a base: the inverse of `_from`."""
    if "://" in name and name.split("/")[:3] != os.fspath(directory).split("/")[:3]:
        raise InputError("it lies in another store; put it beside what was made of it")
    if name.startswith(os.curdir):
        return os.path.normpath(os.path.join(os.path.realpath(directory), name))
    return name


def _checked(file: epath.Path, about: Any) -> dict[str, Any]:
    """The options in the values of a base, which are all of the kinds that they must be."""
    if not isinstance(about, Mapping):
        raise InputError(f"{file}: base is {shown(about)}; expected an object")
    for key in ("name", "fingerprint"):
        check(about.get(key), NAME, f"{file}: base.{key}")
    options = {key: tuple(x) if isinstance(x, list) else x for key, x in about.items() if key in OPTIONS}
    known = ("name", "fingerprint", *OPTIONS)
    if unknown := sorted(about.keys() - set(known)):
        raise InputError(f"{file}: base has no key {shown(unknown[0])}; {nearest(unknown[0], known)}")
    return options


_open: ContextVar[tuple[str, ...]] = ContextVar("open", default=())


@contextmanager
def _one_deeper(directory: epath.Path, said: str) -> Iterator[None]:
    """Refuse a base that stands on itself, or on more than any does."""
    here = os.path.realpath(directory)
    if here in _open.get() or len(_open.get()) >= DEEPEST:
        raise InputError(f"{said} stands on itself, or on more than {DEEPEST - 1} others; expected a model")
    token = _open.set((*_open.get(), here))
    try:
        yield
    finally:
        _open.reset(token)
