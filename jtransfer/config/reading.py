"""A config from a Python file and flags: the file's values over the defaults, the flags over both, then one check.

The file has `get_config()`, which returns an `ml_collections.ConfigDict` of the keys that it changes. The text behind
the path and a colon is its argument.
"""

import ast
import os
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jtransfer import files, imports, kinds
from jtransfer.config.checks import check, table
from jtransfer.config.defaults import DEFAULTS, architecture, curve_defaults, task_defaults, train_defaults
from jtransfer.errors import InputError, nearest

LISTS = ("methods", "metrics", "protocols", "layers", "trust", "augment", "watch")
"""Keys whose items are texts that hold commas of their own: on the command line a list arrives as one string."""
LARGEST = 1 << 20
"""The most bytes of a config file."""


def load(command: str | None, file: str, overrides: list[str]) -> tuple[str, ConfigDict]:
    """Read a config file, complete it with the defaults, and apply `--config.key=value` flags.

    Args:
        command: A key of `DEFAULTS`; None for "train" if the file has a key that "curve" lacks, else "curve".
        file: Path of the config file, with `:argument` behind it where `get_config` takes one.
        overrides: The flags as they stand on the command line.

    Returns:
        The command that the config is for, and the resolved config.

    Raises:
        InputError: a missing or broken file, a flag that is no `--config.key=value`, or a config that `check` refuses.
    """
    path, values = _read(file)
    flags = [(flag, *_split(flag)) for flag in overrides]
    command = command or ("train" if values.keys() & (train_defaults().keys() - curve_defaults().keys()) else "curve")
    for flag, keys, text in flags:
        _put(values, keys, text, flag)  # so that the table knows a new entry of `hyper`
        _put(values, keys, _value(text, keys[-1], _kind(command, values, keys), flag), flag)
    config = ConfigDict(completed(command, values))
    places = {".".join(keys): flag for flag, keys, _ in flags}
    check(command, config, lambda key: places.get(key, f"in {path}"))
    return command, config


def completed(command: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config, completed with the defaults of all keys that it lacks.

    Raises:
        InputError: an unknown architecture.
    """
    return _over(_defaults(command, values), values)


def defaults(command: str, config: ConfigDict) -> dict[str, Any]:
    """The default of every key of a config, as plain values; for `model`, the defaults of its architecture.

    Raises:
        InputError: an unknown architecture.
    """
    return _as_json(_defaults(command, config.to_dict()))


def _defaults(command, values):
    found = DEFAULTS[command]()
    if isinstance(tasks := values.get("tasks"), dict) and "tasks" in found:
        found["tasks"] = {name: task_defaults() for name in tasks}
    if "model" in found:
        model = values.get("model", {})
        found["model"] = architecture(model) if isinstance(model, dict) else model
    return found


def resolved(config: ConfigDict) -> dict[str, Any]:
    """A config as plain values that JSON keeps: tuples as lists, NumPy's numbers as Python's."""
    return _as_json(config.to_dict())


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [_as_json(item) for item in value] if isinstance(value, (tuple, list)) else value


def once(config: ConfigDict, *keys: str) -> ConfigDict:
    """A copy of a config in which the lists of some keys have each item once."""
    return ConfigDict(config.to_dict() | {key: tuple(dict.fromkeys(config[key])) for key in keys})


def arguments(text: str) -> dict[str, Any]:
    """The keys in the text behind the path of a config file: `FILE:backbone=gpt2,protocols=knn(k=(5, 10))+probe`.

    Items of a list are joined by `+`, and keys of a section by a dot, as in `load.image=384`.

    >>> arguments("data=digits,protocols=probe+knn,load.image=32")
    {'data': 'digits', 'protocols': ('probe', 'knn'), 'load': {'image': 32}}

    Raises:
        InputError: a part without `=`, or a key that is given twice.
    """
    values: dict[str, Any] = {}
    for part in _outside(",", text):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"'{part}': expected key=value, joined by commas, behind the path of the config file")
        *sections, key = keys = name.strip().split(".")
        section = values
        for outer in sections:
            section = section.setdefault(outer, {}) if isinstance(section, dict) else section
        if not isinstance(section, dict) or key in section:
            raise InputError(f"'{part}': the key '{'.'.join(keys)}' is given twice behind the path of the config file")
        section[key] = tuple(_outside("+", value)) if key in LISTS else _literal(value)
    return values


def one_of(text: str, configs: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """One of several configs of a file, which `on` names behind its path, changed by the other keys there.

    Args:
        text: As of `arguments`; without `on` it is the first config.
        configs: By name, which is their `data` where they have none.

    Raises:
        InputError: as `arguments`, or another name, with the nearest.
    """
    own = arguments(text)
    on = own.pop("on", next(iter(configs)))
    if on not in configs:
        raise InputError(f"on={on}: {nearest(str(on), configs)}")
    config = ConfigDict({"data": on} | configs[on])
    config.update(own)
    return config


def slug(name: str) -> str:
    """A name as part of a path: the last part of a directory's path, with a hyphen for what a path cannot have."""
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-") or "unnamed"


def _outside(mark: str, text: str) -> list[str]:
    """The parts of a text between marks that stand in no brackets."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if depth and letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        if not quote:
            depth = max(0, depth + (letter in "([{") - (letter in ")]}"))
        if letter == mark and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _literal(text: str) -> Any:
    """The Python value that a text stands for, or the text itself where it stands for none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _read(file: str) -> tuple[str, dict[str, Any]]:
    """The path in `FILE[:ARGUMENT]`, and the values that the file's `get_config` gives."""
    name, argument = _parts(file)
    path = files.path(name, "--config")
    try:
        source = files.read(path, LARGEST)
    except FileNotFoundError:
        beside = [str(p) for p in sorted({*Path("configs").glob("**/*.py"), *Path(str(path)).parent.glob("*.py")})]
        what = "is a link to nothing" if Path(str(path)).is_symlink() else "does not exist"
        raise InputError(f"config file '{path}' {what}; {nearest(str(path), beside)}") from None
    except (OSError, ImportError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"config file '{path}' cannot be read: {why}; expected a Python file") from None
    loaded = _run(source, str(path), argument)
    if not isinstance(loaded, ConfigDict):
        raise InputError(f"config file '{path}': get_config() must return an ml_collections.ConfigDict")
    try:
        return str(path), _plain(loaded.to_dict())
    except Exception as error:  # as a placeholder that is required and was not given
        raise InputError(f"config file '{path}': {imports.type_and_text(error)}") from None


def folder(file: str) -> str:
    """The folder of a config file, given the file as the command line names it; "" if it does not lie on a disk."""
    name, _ = _parts(file)
    return "" if "://" in name else os.path.dirname(os.path.expanduser(name)) or os.curdir


def _parts(file: str) -> tuple[str, str | None]:
    """A path and what stands behind it and a colon; the path may have colons of its own, where there is such a file."""
    ends = [found.start() for found in re.finditer(":|$", file)]
    name = next((file[:end] for end in ends if os.path.isfile(file[:end])), "")
    if not name:
        found = re.match(r"(.*?\.py)(?::|$)", file)
        name = found[1] if found else file if "://" in file else file.partition(":")[0]
    return name, file[len(name) + 1 :] if len(file) > len(name) else None


def _run(source: bytes, path: str, argument: str | None) -> Any:
    """What `get_config` of a user's file returns; whatever the file raises is an error of input."""
    module = types.ModuleType("jtransfer_config")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where the file's dataclasses look for it
    try:
        with imports.running("config file", [path]):
            exec(compile(source, path, "exec", dont_inherit=True), vars(module))
            make = getattr(module, "get_config", None)
            if not callable(make):
                raise InputError(f"config file '{path}' has no function get_config()")
            return make() if argument is None else make(argument)
    finally:
        sys.modules.pop(module.__name__, None)


def _plain(value: Any) -> Any:
    """Lists as tuples, and what NumPy makes as plain values."""
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"the key {kinds.shown(odd[0])} is no text")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values over defaults, section by section; `mesh` and `preprocessor`, which have no keys of ours, as wholes."""
    found = dict(defaults)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict) and key not in ("mesh", "preprocessor")
        found[key] = _over(defaults[key], value) if both else value
    return found


def _split(flag: str) -> tuple[list[str], str]:
    name, equals, text = flag.removeprefix("--config.").partition("=")
    if not equals or not name:
        raise InputError(f"'{flag}': expected --config.key=value")
    return name.split("."), text


def _put(values: dict[str, Any], keys: list[str], value: Any, flag: str) -> None:
    *sections, key = keys
    for outer in sections:
        values = values.setdefault(outer, {})
        if not isinstance(values, dict):
            raise InputError(f"'{flag}': config.{outer} is no section of keys")
    values[key] = value


def _kind(command: str, values: dict[str, Any], keys: list[str]) -> Any:
    """What a key may be; None where there is no such key, which the check refuses."""
    found: Any = table(command, values)
    for key in keys:
        if isinstance(found, kinds.Kind):  # of a mapping that takes whatever keys it is given
            return kinds.ANY
        if (found := found.get(key)) is None:
            return None
    return found


def _value(text: str, key: str, kind: Any, flag: str) -> Any:
    """The value that a flag's text stands for: of those that it may stand for, the one that the key takes."""
    if isinstance(kind, dict):
        raise InputError(f"'{flag}': expected --config.key=value, with a key of the section: {', '.join(kind)}")
    literal = _plain(_literal(text))
    if key in LISTS and not isinstance(literal, tuple):
        literal = tuple(_outside(",", text))
    candidates = (literal, text, (literal,), text.capitalize() == "True")[
        : 4 if text.lower() in ("true", "false") else 3
    ]
    return next((value for value in candidates if kind and kind.takes(value)), literal)
