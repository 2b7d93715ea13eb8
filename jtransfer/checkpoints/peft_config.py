"""What `adapter_config.json` of PEFT says: its values, checked, and the rules by which they name modules."""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from etils import epath

from jtransfer.checkpoints.peft_formats import FORMATS
from jtransfer.checkpoints.tensors import some
from jtransfer.errors import InputError, cut
from jtransfer.files import read_json
from jtransfer.patterns import check

COMMON = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
}
IRRELEVANT = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "runtime_config",
    "fan_in_fan_out",  # how the kernels of the base lie; A and B lie the same way in any case
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "init_weights",
    "init_ia3_weights",
    "rank_dropout",
    "rank_dropout_scale",
    "module_dropout",
    "boft_dropout",
    "eps",
}
"""Keys without effect on the outputs, or only together with another, which is refused where it is set."""

LARGEST = 1 << 20
"""Bytes of a config of an adapter; one with a rank for each of 1000 layers has a tenth of that."""


def read(path: epath.Path) -> dict[str, Any]:
    """The values of a file, with PEFT's defaults where it says nothing.

    Raises:
        InputError: a method that is not supported, or something that changes the outputs and is not: all of it by
            name; or a value that cannot be.
    """
    values = read_json(path, LARGEST)
    if (kind := values.get("peft_type")) not in list(FORMATS):
        raise InputError(f"{path}: peft_type {_said(kind)} is not supported; expected one of {', '.join(FORMATS)}")
    format = FORMATS[kind]
    known = COMMON | IRRELEVANT | {*format.numbers, *format.patterns, *format.flags}
    unknown = [f"{_said(key)[1:-1]}={_said(x)}" for key, x in sorted(values.items()) if x and key not in known]
    for key, allowed in format.flags.items():
        if allowed and (value := values.get(key, allowed[0])) not in allowed:
            unknown.append(f"{key}={_said(value)}{WHY.get(key, '')}")
    if unknown:
        raise InputError(f"{path}: not supported: {some(unknown)}")
    defaults = {key: default for key, (default, _) in format.numbers.items()} | {key: {} for key in format.patterns}
    config = values | {key: x for key, x in defaults.items() if values.get(key) is None}
    _check_values(path, config, format)
    return config


WHY = {
    "init_lora_weights": " (it changes the base; PEFT makes a plain adapter of it by "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...))",
    "save_projection": " (the random matrices are not in the file; save it with save_projection=True)",
}
"""Why values are not supported, and the way out."""


def _said(value):
    """A value as the file has it, cut where it is long."""
    return cut(json.dumps(value))


def _check_values(path, config, format):
    def refuse(key, value, expected):
        raise InputError(f"{path}: {key} is {_said(value)}; expected {expected}")

    kinds = {key: kind for key, (_, kind) in format.numbers.items()}
    for key, kind in kinds.items() | {(key, kinds[default]) for key, default in format.patterns.items()}:
        value, several, (types, least, most, expected) = config[key], key in format.patterns, KINDS[kind]
        if several and not isinstance(value, dict):
            refuse(key, value, "an object")
        for x in value.values() if several else [value]:
            if type(x) not in types or not least <= x <= most or (kind == "factor" and x == 0):
                refuse(key, x, expected)
    for key in (*NAMED, "modules_to_save", "layers_pattern"):
        if not all(isinstance(x, str) for x in listed(config.get(key))):
            refuse(key, config[key], "a list of names")
    for key, kind, expected in (("auto_mapping", dict, "an object"), ("task_type", str, "a name")):
        if not isinstance(config.get(key), kind | None):
            refuse(key, config[key], expected)
    for name in listed(config.get("modules_to_save")):
        if not re.fullmatch(r"[\w.-]{1,400}", name):
            refuse("modules_to_save", name, "names of modules")
    written = {
        ENDS: [pattern for key in format.patterns for pattern in config[key]],
        ("", ""): [x for key in NAMED if isinstance(x := config.get(key), str)],
        BLOCKS: listed(config.get("layers_pattern")),
    }
    for around, found in written.items():
        try:
            check(found, around)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


ENDS, BLOCKS = (r"(.*\.)?(", ")$"), (r"(?:^|.*?\.)", r"\.(\d+)\.")
"""What PEFT puts around patterns of ranks and alphas, and around those of the lists of blocks."""

LARGEST_RANK = 1 << 20
WHOLE, NUMBER = (int,), (int, float)
KINDS = {
    "whole": (WHOLE, 1, LARGEST_RANK, f"a whole number above 0, up to {LARGEST_RANK:,}"),
    "count": (WHOLE, 0, 2**32 - 1, "a whole number, not negative"),
    "terms": (WHOLE, 3, 100, "a whole number from 3 to 100"),
    "factor": (WHOLE, -1, 2**16, "-1 or a whole number above 0, up to 65,536"),
    "number": (NUMBER, -sys.float_info.max, sys.float_info.max, "a number"),
    "share": (NUMBER, 0, 1 - 1e-9, "a number from 0 to below 1"),
}
"""What the numbers of a config may be: types, least, most, and this in words."""
NAMED = ("target_modules", "exclude_modules", "feedforward_modules")


@lru_cache(maxsize=8192)
def _compiled(pattern):
    return re.compile(pattern)


def saved(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """PEFT's rule for whether a module, told by its name, or one that it is in, is saved whole."""
    names = tuple(listed(config.get("modules_to_save")))

    def is_saved(module):
        parts = module.split(".")
        return any(".".join(parts[:i]).endswith(names) for i in range(1, len(parts) + 1))

    return is_saved


def by_pattern(patterns: Mapping[str, float], modules: Iterable[str], default: float) -> float:
    """PEFT's rule for the rank and alpha of a module: the first pattern that matches its name, or its end after a dot.

    Args:
        patterns: Of the config.
        modules: Every name of the module.
        default: Where none matches.
    """
    for pattern, value in patterns.items():
        if any(map(_compiled(pattern.join(ENDS)).match, modules)):
            return value
    return default


def is_adapted(config: Mapping[str, Any], module: str) -> bool:
    """PEFT's rule for whether a module is adapted."""
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    if is_named(excluded, module) or any(
        _compiled(rf"(^|.*\.){saved}($|\..*)").match(module) for saved in listed(config.get("modules_to_save"))
    ):
        return False
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or bool(re.fullmatch(targets, module))
    chosen = listed(config.get("layers_to_transform"))
    if not is_named(targets, module) or not chosen or module in targets:
        return is_named(targets, module)
    blocks = [pattern.join(BLOCKS) for pattern in listed(config.get("layers_pattern"))] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for block in blocks if (match := _compiled(block).match(module))), None)
    return found is not None and int(found[1]) in chosen


def is_named(names: str | Collection[str], module: str) -> bool:
    """PEFT's rule for whether a pattern, or a list of names or their ends, names a module."""
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def listed(value: Any) -> list[Any]:
    """A list or tuple as a list, None and an empty text as an empty one, anything else as a list of it."""
    return list(value) if isinstance(value, list | tuple) else [] if value in (None, "") else [value]
