"""Configs: every key has a default here; a file and the command line change some, and unknown keys are refused.

A config is a Python file with `get_config()` that returns an `ml_collections.ConfigDict` of the keys it changes.
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from jtransfer.errors import InputError, nearest

OPEN = "hyper"
"""The section of a curve whose entries are methods, as they are written in `methods`."""


LOAD = {
    "image": 0,  # side of the images that the backbone takes instead of its own: positions are resized; 0 for its own
    "channels": 0,  # 1 for grey images
    "positions": "",  # how positions are resized: "bicubic" as timm, "bilinear" as vision_transformer; empty: its own
    "dtype": "float32",  # of the computation
    "tokens": 0,  # that texts are padded or cut to; 0 for the longest of the data
}
"""How a backbone is loaded: options of `jtransfer.load`."""


def _transfer() -> dict[str, Any]:
    """What a pretrained backbone is brought to."""
    return {
        "data": "digits",  # an embedded dataset, npz:FILE, folder:DIR or tfds:NAME
        "data_dir": "",  # where prepared datasets of tfds:NAME lie; empty for TFDS's own directory
        "backbone": "glyphs-vit",  # an embedded backbone, a directory or file, or a name on the Hugging Face hub
        "load": dict(LOAD),
    }


def curve_defaults() -> dict[str, Any]:
    """Every key of `jtransfer curve` (and of `inspect` on its configs)."""
    from jtransfer.train.optimiser import Optimiser

    return _transfer() | {
        "methods": ("zero_shot", "pixels", "scratch", "probe", "finetune", "lora"),
        "templates": "",  # of a dual encoder's zero_shot: a file of texts with {} for the name
        "shots": (1, 2, 5, 10, 25),  # training labels per class
        "seeds": 5,  # draws of the few-shot sets: seeds 0 .. seeds - 1
        "test_rows": 0,  # report on this many rows of the test split, each class in its proportion; 0 for all
        "parallel": 0,  # trials that run side by side, where memory is short; 0 for all of a cell
        "batch": 32,
        "steps": 100,
        "smoothing": 0.0,
        "mixup": 0.0,
        "optimiser": _options(Optimiser()),
        # What is searched per method; the best on the validation rows is reported. `rate` and `decay` are lists,
        # `steps` overrides the number above. A method without an entry takes that of its family, or `default`.
        "hyper": {"default": {"rate": (1e-3, 3e-3, 1e-2)}},
    }


def train_defaults() -> dict[str, Any]:
    """Every key of `jtransfer train` (and of `inspect` on its configs)."""
    from jtransfer.train.optimiser import Optimiser

    return {
        "data": "glyphs",  # an embedded source or dataset, npz:FILE, folder:DIR or tfds:NAME
        "data_dir": "",  # where prepared datasets of tfds:NAME lie; empty for TFDS's own directory
        "backbone": "",  # where the weights start: empty for at random
        "load": dict(LOAD),
        "model": {"architecture": "vit"},  # and its options, when there is no backbone
        "objective": "classification",  # or "clip", "siglip": contrastive, on data with captions
        # Of a contrastive objective alone:
        "towers": {"vision": "", "text": ""},  # backbones that one or both start from, when there is no `backbone`
        "cache": False,  # keep the features of a tower of images that does not learn, instead of computing them anew
        "tokenizer": "",  # empty for the backbone's, or "bytes"; a file of CLIP's merges, or a checkpoint that has one
        "preprocessor": {},  # how images are made, in the keys of preprocessor_config.json; empty for the backbone's
        "templates": (),  # texts with {} for the caption, one drawn each time; empty for the source's own
        "crop": (),  # the least and the largest share of an image's area that is cut out for training, as (0.9, 1.0)
        "temperature_limit": 100.0,  # of "clip": the most that cosines are multiplied by; 0 for none, as "siglip" has
        "method": "scratch",
        "seed": 0,
        "batch": 256,
        "steps": 1000,
        "accumulate": 1,
        "ema": 0.0,
        "smoothing": 0.0,
        "mixup": 0.0,
        "optimiser": _options(Optimiser()),
        "mesh": {"data": -1},  # axes and their sizes; one may be -1 for all devices that are left
        "sharding": "replicated",  # or "fsdp": how leaves lie on the mesh; the batch is split over its first axis
        "log_every": 50,
        "eval_every": 500,
        "checkpoint_every": 500,
    }


def evaluate_defaults() -> dict[str, Any]:
    """Every key of `jtransfer evaluate`."""
    return _transfer() | {
        "protocols": ("probe", "prototypes", "knn"),  # names of evaluate/protocols with options, as knn(k=(5, 10))
        "layers": (),  # where features are read: see evaluate/features.py; empty for sentence_embedding, or features
        "validation": 0.1,  # share of each class of the training rows that chooses hyper-parameters
        "batch": 256,  # rows at a time, over all devices
        "mesh": {"data": -1},  # axes and their sizes; the batch is split over the first
        "store": "",  # directory of the features; empty for the user's cache
    }


def advise_defaults() -> dict[str, Any]:
    """Every key of `jtransfer advise`: those of a curve, of which it runs one number of shots, and a few more."""
    return curve_defaults() | {
        "source": "",  # dataset or stream that the backbone was pretrained on; empty where it is not known
        "methods": ("probe", "finetune"),  # that use the backbone, each compared with scratch
        "shots": 0,  # training labels per class of the trial; 0 for as many as there are, up to 10
        "seeds": 20,
        "validation": 0.5,  # share of each class of the training rows on which the trial is compared
        "test_rows": 1000,  # of these rows at most so many; 0 for all
        "store": "",  # directory of the features; empty for the user's cache
    }


DEFAULTS = {
    "curve": curve_defaults,
    "train": train_defaults,
    "evaluate": evaluate_defaults,
    "advise": advise_defaults,
}
ANY = ("mesh", "preprocessor")
"""Sections that take whatever keys they are given."""
LISTS = ("methods", "protocols", "layers")
"""Keys whose items are texts that hold commas of their own: on the command line a list arrives as one string."""


def arguments(text: str) -> dict[str, Any]:
    """The keys in what stands behind the path of a config file: `FILE:backbone=gpt2,protocols=knn(k=(5, 10))+probe`.

    Items of a list are joined by `+`, and keys of a section by a dot, as in `load.image=384`.

    >>> arguments("data=digits,protocols=probe+knn,load.image=32")
    {'data': 'digits', 'protocols': ('probe', 'knn'), 'load': {'image': 32}}

    Raises:
        InputError: a part without `=`.
    """
    values: dict[str, Any] = {}
    for part in _outside(",", text):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"'{part}': expected key=value, joined by commas, behind the path of the config file")
        *sections, key = name.strip().split(".")
        section = values
        for outer in sections:
            section = section.setdefault(outer, {})
        section[key] = tuple(_outside("+", value)) if key in LISTS else _plain(value)
    return values


def slug(name: str) -> str:
    """A name as part of a path: the last piece of a directory's, and nothing that a path cannot have."""
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-") or "unnamed"


def _outside(mark: str, text: str) -> list[str]:
    """The parts of a text between marks that stand in no parentheses."""
    return [part.strip() for part in re.split(rf"{re.escape(mark)}(?![^(]*\))", text) if part.strip()]


def _plain(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def load(command: str | None, file: str, overrides: list[str]) -> tuple[str, ConfigDict]:
    """Read a config file, complete it with the defaults, and apply `--config.key=value` flags.

    Args:
        command: A key of `DEFAULTS`; None for "curve" or "train", to tell by the file's keys.
        file: Path of the config file, with `:argument` behind it where `get_config` takes one.
        overrides: The flags as they stand on the command line.

    Returns:
        The command that the config is for, and the resolved config.

    Raises:
        InputError: a missing or broken file, or an unknown key with the nearest valid one.
    """
    values = _read(file)
    command = command or ("train" if "model" in values or "method" in values else "curve")
    defaults = DEFAULTS[command]()
    if "model" in defaults and "architecture" in values.get("model", {"architecture": "vit"}):
        defaults["model"] = _architecture(values.get("model", defaults["model"]))
    _update(defaults, values, file.partition(":")[0], "")
    config = ConfigDict(_fillable(defaults))
    return command, _override(config, overrides)


def resolved(config: ConfigDict) -> dict[str, Any]:
    """A config as plain values that JSON keeps: tuples as lists."""

    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return plain(config.to_dict())


def _options(dataclass) -> dict[str, Any]:
    values = {field.name: getattr(dataclass, field.name) for field in dataclasses.fields(dataclass)}
    return {key: _options(value) if dataclasses.is_dataclass(value) else value for key, value in values.items()}


def _fillable(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers that are not given stand open for the command line, which refuses to put anything over None."""
    return {
        key: placeholder(float) if value is None else _fillable(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def _architecture(model: dict[str, Any]) -> dict[str, Any]:
    """The options of a model, and of its towers, of other architectures than the default where it names them."""
    from jtransfer.models import MODELS

    def options(name):
        if name not in MODELS:
            raise InputError(f"config.model: unknown architecture '{name}'; {nearest(name, MODELS)}")
        return {"architecture": name, **_options(MODELS[name][1]())}

    found = options(model["architecture"])
    named = {key: own["architecture"] for key, own in model.items() if isinstance(own, dict) and "architecture" in own}
    return found | {key: options(name) for key, name in named.items() if key in found}


def _read(file: str) -> dict[str, Any]:
    path = Path(file.partition(":")[0])
    if not path.is_file():
        beside = [str(p) for p in sorted({*Path("configs").glob("**/*.py"), *path.parent.glob("*.py")})]
        raise InputError(f"config file '{path}' does not exist; {nearest(str(path), beside)}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["jtransfer"])
    try:
        values(["jtransfer", f"--config={file}"])
        loaded = values.config
    except Exception as error:  # whatever a user's file may raise; config_flags wraps its traceback into the text
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        kind = "" if isinstance(error, flags.Error) or len(lines) > 1 else f"{type(error).__name__}: "
        raise InputError(f"config file '{path}': {kind}{lines[-1]}") from error
    finally:
        # config_flags loads every file as the same module, and what one leaves there the next would inherit.
        for name, module in list(sys.modules.items()):
            if getattr(module, "__file__", None) == str(path):
                del sys.modules[name]
    if not isinstance(loaded, ConfigDict):
        raise InputError(f"config file '{path}': get_config() must return an ml_collections.ConfigDict")
    return loaded.to_dict()


def _update(defaults: dict, values: dict, file: str, prefix: str) -> None:
    """Put `values` over `defaults`, refusing what `defaults` lacks."""
    for key, value in values.items():
        if key not in defaults and prefix.split(".")[0] != OPEN:
            raise InputError(f"{file}: unknown key 'config.{prefix}{key}'; {nearest(key, defaults)}")
        if isinstance(value, dict) and isinstance(defaults.get(key), dict) and key not in ANY:
            _update(defaults[key], value, file, f"{prefix}{key}.")
        elif isinstance(defaults.get(key), dict) != isinstance(value, dict) and key in defaults:
            kind = "section of keys" if isinstance(defaults[key], dict) else "value"
            raise InputError(f"{file}: 'config.{prefix}{key}' must be a {kind}, not {value!r}")
        else:
            defaults[key] = tuple(value) if isinstance(value, list) else value


def _override(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    for flag in overrides:
        name, equals, _ = flag.removeprefix("--config.").partition("=")
        section = config
        for key in name.split("."):
            if not isinstance(section, ConfigDict) or key not in section:
                choices = list(section) if isinstance(section, ConfigDict) else []
                raise InputError(f"unknown key 'config.{name}'; {nearest(key, choices)}")
            section = section[key]
        if not equals or isinstance(section, ConfigDict):
            raise InputError(f"'{flag}': expected --config.key=value")
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["jtransfer", *overrides])
    try:
        values(["jtransfer", *overrides])
        config = values.config
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from None
    for key in set(LISTS) & set(config):
        config[key] = tuple(part for text in config[key] for part in _outside(",", text))
    return config
