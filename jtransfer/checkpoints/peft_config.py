"""What `adapter_config.json` of PEFT's LoRA says: its values, checked, and the rules by which they name modules."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from etils import epath

from jtransfer.errors import InputError
from jtransfer.files import read_json

READ = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "init_lora_weights",
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
}
"""Keys without effect on the outputs, or only together with another, which is refused where it is set."""

PLAIN = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the weights of the base as they were."""


def read(path: epath.Path) -> dict[str, Any]:
    """The values of a file, with PEFT's defaults where it says nothing.

    Raises:
        InputError: another method than LoRA, or something that changes the outputs and is not supported: all of it by
            name; or a value that cannot be.
    """
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise InputError(f'{path}: peft_type {json.dumps(values.get("peft_type"))} is not supported; expected "LORA"')
    unknown = [f"{key}={json.dumps(x)}" for key, x in sorted(values.items()) if x and key not in READ | IRRELEVANT]
    if (start := values.get("init_lora_weights")) not in PLAIN:
        unknown.append(
            f"init_lora_weights={json.dumps(start)} (it changes the base; PEFT makes a plain adapter of it by "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    if unknown:
        raise InputError(f"{path}: not supported: {', '.join(unknown)}")
    defaults = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {}}
    config = values | {key: x for key, x in defaults.items() if values.get(key) is None}
    _check_values(path, config)
    return config


def _check_values(path, config):
    def refuse(key, value, expected):
        raise InputError(f"{path}: {key} is {json.dumps(value)}; expected {expected}")

    whole, number = (int,), (int, float)
    for key, types in {"r": whole, "rank_pattern": whole, "lora_alpha": number, "alpha_pattern": number}.items():
        value = config[key]
        patterns = key.endswith("pattern")
        if patterns and not isinstance(value, dict):
            refuse(key, value, "an object")
        for x in value.values() if patterns else [value]:
            if type(x) not in types or not (types is whole) <= x < math.inf:
                refuse(key, x, "a whole number above 0" if types is whole else "a number")
    if type(config["lora_dropout"]) not in number or not 0 <= config["lora_dropout"] < 1:
        refuse("lora_dropout", config["lora_dropout"], "a number from 0 to below 1")
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        if not all(isinstance(x, str) for x in listed(config.get(key))):
            refuse(key, config[key], "a list of names")
    for key, kind, expected in (("auto_mapping", dict, "an object"), ("task_type", str, "a name")):
        if not isinstance(config.get(key), kind | None):
            refuse(key, config[key], expected)
    patterns = [*config["rank_pattern"], *config["alpha_pattern"]]
    patterns += [x for key in ("target_modules", "exclude_modules") if isinstance(x := config.get(key), str)]
    patterns += [x for key in ("layers_pattern", "modules_to_save") for x in listed(config.get(key))]
    for pattern in patterns:
        try:
            re.compile(f"({pattern})")
        except re.error as error:
            raise InputError(f"{path}: '{pattern}' is not a regular expression: {error}") from None


def by_pattern(patterns: Mapping[str, float], modules: Iterable[str], default: float) -> float:
    """PEFT's rule for the rank and alpha of a module: the first pattern that matches its name, or its end after a dot.

    Args:
        patterns: Of the config.
        modules: Every name of the module.
        default: Where none matches.
    """
    for pattern, value in patterns.items():
        if any(re.match(rf"(.*\.)?({pattern})$", module) for module in modules):
            return value
    return default


def is_adapted(config: Mapping[str, Any], module: str) -> bool:
    """PEFT's rule for whether a module is adapted."""
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    if _named(excluded, module) or any(
        re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in listed(config.get("modules_to_save"))
    ):
        return False
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or bool(re.fullmatch(targets, module))
    chosen = listed(config.get("layers_to_transform"))
    if not _named(targets, module) or not chosen or module in targets:
        return _named(targets, module)
    patterns = [rf"(?:^|.*?\.){pattern}" for pattern in listed(config.get("layers_pattern"))] or [r".*?\.[^.]*"]
    found = next((match for pattern in patterns if (match := re.match(rf"{pattern}\.(\d+)\.", module))), None)
    return found is not None and int(found[1]) in chosen


def _named(names: str | Collection[str], module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def listed(value: Any) -> list[Any]:
    """A list as it is, None as none, anything else as a list of it."""
    return list(value) if isinstance(value, list | tuple) else [] if value in (None, "") else [value]
