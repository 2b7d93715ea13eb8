"""Which values every key may have: one check for files, flags and the Python API."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jtransfer import kinds
from jtransfer.config.defaults import DEFAULTS, architecture, kind_defaults
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import FLAG, NAME, PATTERN, SHARE, TEXT, Kind, by_name, choice, either, number, several, whole

LARGEST = 2**31 - 1
"""The largest whole number that JAX holds by default."""

BATCH, STEPS = whole(1, 2**20), whole(1, LARGEST)
STREAMS = ("streams", "random_streams")
"""Those of `starts.recurrent`, which imports JAX."""
TACTICS = ("replicated", "fsdp", "tensor", "fsdp_tensor")
"""Names of `devices.tactics`, which imports JAX."""
RULE = Kind(
    "a pair of a regular expression and the name of a tactic, as 'fsdp', or a list of the mesh's axes and None",
    lambda rule: (
        isinstance(rule, list | tuple)
        and len(rule) == 2
        and PATTERN.takes(rule[0])
        and either(NAME, several(either(NAME, kinds.NONE))).takes(rule[1])
    ),
)

TRANSFER = {
    "data": NAME,
    "data_dir": TEXT,
    "backbone": NAME,
    "load": {
        "revision": TEXT,
        "subfolder": TEXT,
        "include": PATTERN,
        "image": whole(0, 2**14),
        "channels": whole(0, 2**14),
        "positions": choice("", "bicubic", "bicubic_torch", "bilinear"),
        "dtype": kinds.FLOATS,
        "bits": Kind("0, 4 or 8", lambda x: type(x) is int and x in (0, 4, 8)),
        "remat": FLAG,
        "tokens": whole(0, LARGEST),
        "trust": several(NAME),
    },
}
CURVE = TRANSFER | {
    "methods": several(NAME, 1),
    "templates": TEXT,
    "shots": several(whole(1, LARGEST), 1),
    "seeds": whole(1, 10_000),
    "test_rows": whole(0, LARGEST),
    "costs": FLAG,
    "parallel": whole(0, LARGEST),
    "cache": whole(0, LARGEST),
    "objective": NAME,
    "metrics": several(NAME),
    "teacher": TEXT,
    "source": TEXT,
    "source_dir": TEXT,
    "batch": BATCH,
    "steps": whole(1, 10**6),  # the rows of all steps are drawn beforehand
    "smoothing": SHARE,
    "mixup": kinds.NOT_NEGATIVE,
    "cutmix": kinds.NOT_NEGATIVE,
}
PHASES = {"phase_steps": several(STEPS), "phase_rates": several(kinds.POSITIVE)}
SEARCHED = {"rate": kinds.POSITIVES, "decay": several(kinds.NOT_NEGATIVE, 1), "steps": CURVE["steps"]} | PHASES
TABLES: dict[str, dict[str, Any]] = {
    "curve": CURVE,
    "train": TRANSFER
    | {
        "backbone": TEXT,
        "objective": NAME,
        "metrics": several(NAME),
        "watch": several(NAME),
        "teacher": TEXT,
        "source": TEXT,
        "source_dir": TEXT,
        "towers": {"vision": TEXT, "text": TEXT},
        "cache": whole(0, LARGEST),
        "tokenizer": TEXT,
        "preprocessor": by_name(kinds.ANY),
        "templates": several(NAME),
        "crop": either(several(number(above=0, most=1), 2, 2), Kind("empty", lambda x: x in ((), []))),
        "temperature_limit": either(number(least=0, most=0), number(least=1)),
        "augment": several(NAME),
        "packing": choice("", "joined", "documents", "segments", "streams", "random_streams"),
        "group_by_length": FLAG,
        "stride": whole(0, 10**6),
        "samples": {
            "prompts": several(TEXT),
            "tokens": whole(1, 2**16),
            "temperature": kinds.NOT_NEGATIVE,
            "top_p": number(above=0, most=1),
        },
        "damaged": SHARE,
        "method": NAME,
        "seed": kinds.SEED,
        "batch": BATCH,
        "steps": STEPS,
        **PHASES,
        "accumulate": BATCH,
        "ema": SHARE,
        "smoothing": SHARE,
        "mixup": kinds.NOT_NEGATIVE,
        "cutmix": kinds.NOT_NEGATIVE,
        "mesh": kinds.AXES,
        "sharding": either(choice(*TACTICS), several(RULE, 1)),
        "log_every": STEPS,
        "eval_every": STEPS,
        "checkpoint_every": STEPS,
        "workers": whole(0, 1024),
        "keep": {
            "newest": whole(1, LARGEST),
            "best": TEXT,
            "every_hours": kinds.NOT_NEGATIVE,
            "every_steps": whole(0, LARGEST),
        },
        "on_bad_step": NAME,
    },
    "evaluate": TRANSFER
    | {
        "protocols": several(NAME, 1),
        "layers": several(NAME),
        "validation": number(above=0, below=1),
        "batch": BATCH,
        "mesh": kinds.AXES,
        "store": TEXT,
    },
    "advise": CURVE
    | {
        "rows": whole(0, LARGEST),
        "shots": several(whole(1, LARGEST)),
        "minutes": kinds.POSITIVE,
        "steps": whole(0, 10**6),
        "seeds": either(whole(0, 0), whole(3, 10_000)),
        "validation": number(above=0, below=1),
        "store": TEXT,
    },
}
"""For each command and key, which values it may have; `table` adds `optimiser`, `hyper`, `model` and `tasks`."""

WIDTH = whole(1, 2**20)
MODEL = {
    "channels": whole(1, 2**14),
    "patch": WIDTH,
    "width": WIDTH,
    "heads": WIDTH,
    "depth": whole(0, 10_000),
    "hidden": whole(0, 2**20),
    "projection": whole(0, 2**20),
    "vocabulary": whole(1, 2**28),
    "positions": whole(1, 2**24),
    "registers": whole(0, 2**14),
    "image": several(whole(1, 2**14), 2, 2),
    "epsilon": number(above=0),
    "layer_scale": kinds.NOT_NEGATIVE,
    **dict.fromkeys(("dropout", "attention_dropout", "embedding_dropout", "drop_path"), SHARE),
    **dict.fromkeys(("dtype", "param_dtype"), kinds.FLOATS),
}
"""Ranges of options that several architectures have; any other option may have all values of its type."""

TASK = {"data": NAME, "objective": NAME, "metrics": several(NAME), "weight": kinds.NOT_NEGATIVE}
"""Which values the keys of one of several tasks may have."""
OF_ROWS = ("augment", "packing", "group_by_length", "stride")
"""Keys of objectives on rows alone."""
OF_ONE_TASK = (
    "data",
    "objective",
    "metrics",
    "teacher",
    "source",
    "preprocessor",
    "smoothing",
    "mixup",
    "cutmix",
    *OF_ROWS,
)
"""Keys that a config with several tasks leaves out."""
OF_PAIRS = ("towers", "templates", "crop", "temperature_limit")
"""Keys of contrastive objectives alone."""


def table(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """For each key of a command, which values it may have: a `Kind`, or a dict for a section of keys.

    Args:
        command: A key of `TABLES`.
        values: The values of a config. Those of `hyper`, `tasks` and `model` say which keys these sections have.

    Raises:
        InputError: an unknown architecture, or an option without a default that `model` lacks.
    """
    from jtransfer.optimiser import KINDS

    found = {**TABLES[command]}
    if "optimiser" in DEFAULTS[command]():
        found["optimiser"] = KINDS
    if command in ("curve", "advise"):
        found["hyper"] = dict.fromkeys(_section(values, "hyper") | {"default": {}}, SEARCHED)
    if command == "train":
        found["model"] = _of_model(_section(values, "model"))
        found["tasks"] = dict.fromkeys(_section(values, "tasks"), TASK)
    return found


def check(command: str, config: Any, place=lambda key: "") -> None:
    """Refuse a config that `jtransfer COMMAND` cannot run, whatever the data and the backbone are.

    Args:
        command: "curve", "train", "evaluate" or "advise".
        config: A `ConfigDict` with every key of the command; options of the model may be missing.
        place: From a key, as "load.image", to where its value stands, as "in mine.py".

    Raises:
        InputError: an unknown or missing key, a value of another kind, or a key that is set and does nothing, for the
            objective, the optimiser, the methods or the tasks that the config names.
    """
    if not hasattr(config, "to_dict"):
        raise InputError(f"config: expected an ml_collections.ConfigDict, found {kinds.shown(config)}")
    try:
        values = config.to_dict()
    except Exception as error:  # keys that are no texts, a placeholder that was not given
        raise InputError(f"config: {type(error).__name__}: {error}") from None
    expected = table(command, values)
    missing = [key for key in DEFAULTS[command]() if key not in values]
    for name in {"load", "towers", "keep", "samples"} & TABLES[command].keys() & values.keys():
        missing += [f"{name}.{key}" for key in TABLES[command][name] if key not in _section(values, name)]
    _walk(expected, values, "", place)
    if missing:
        raise InputError(f"config.{missing[0]} is missing; jtransfer.config.{command}_defaults() has every key")
    _refuse_unused(command, values)


def _walk(expected: Mapping[str, Any], values: Mapping[str, Any], prefix: str, place) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        kind = expected.get(key)
        if kind is None:
            there = f"{where}: " if (where := place(path).removeprefix("in ")) else ""
            choices = [name for name in expected if name != "default"] if prefix == "hyper." else expected
            raise InputError(f"{there}unknown key 'config.{path}'; {nearest(str(key), choices)}")
        if isinstance(kind, Kind):
            section = isinstance(value, Mapping) and not kind.takes({})
            what = f"config.{path}{' must be a value, not a section of keys' if section else ''}"
            kinds.check(value, kind, what, place(path))
        elif isinstance(value, Mapping):
            _walk(kind, value, f"{path}.", place)
        else:
            kinds.check(
                value, Kind(f"a section of keys ({', '.join(kind)})", lambda x: False), f"config.{path}", place(path)
            )


def _section(values, key):
    """A section of a config; empty where there is none, or what is there is no section, which `check` refuses."""
    return dict(found) if isinstance(found := values.get(key), Mapping) else {}


def _of_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of an architecture may be, and of each tower in it."""
    from jtransfer.models import MODELS

    def options(own, kind):
        defaults, found = kind_defaults(kind), {"architecture": choice(*MODELS)}
        for field in dataclasses.fields(kind):
            tower, there = type(defaults.get(field.name)), own.get(field.name)
            if dataclasses.is_dataclass(tower):
                named = there.get("architecture") if isinstance(there, Mapping) else None
                found[field.name] = options(_section(own, field.name), MODELS[named][1] if named else tower)
            else:
                found[field.name] = MODEL.get(field.name) or kinds.of(field.type)
            if field.name not in defaults and field.name not in own:
                raise InputError(f"config.model.{field.name} is missing; expected {found[field.name].expected}")
        return found

    return options(model, MODELS[architecture(model)["architecture"]][1])


def _refuse_unused(command: str, values: Mapping[str, Any]) -> None:
    """Refuse a key that is set and does nothing, as it is not of the objective, the optimiser or any method."""
    defaults = DEFAULTS[command]()

    def set_among(keys, section="", but=()):
        own, other = (values[section], defaults[section]) if section else (values, defaults)
        return [key for key in keys if _plain(own.get(key, other[key])) not in (_plain(other[key]), *but)]

    if command == "train":
        from jtransfer import objectives
        from jtransfer.starts import OF_ONE

        for task in values["tasks"]:
            if not (task.isidentifier() and task.isascii()):
                raise InputError(f"config.tasks: '{task}' is no name of a task; expected letters, digits and _")
        if values["tasks"] and (unused := set_among((*OF_ONE_TASK, *OF_PAIRS, "tokenizer"))):
            raise InputError(f"config.{unused[0]} is of a single task, config.tasks has several; leave it out")
        if not (values["backbone"] or any(values["towers"].values())) and (unused := set_among(OF_ONE, "load")):
            raise InputError(f"config.load.{unused[0]} is of config.backbone, which names none; leave it out")
        text = values["objective"]
        objective = objectives.parse(text, {key: values[key] for key in objectives.SETTINGS})
        read = ("templates",) if values["templates"] and _fills_templates(values["method"]) else ()
        if objective.reads != "pairs" and (unused := set_among(key for key in OF_PAIRS if key not in read)):
            raise InputError(
                f"config.{unused[0]} is of contrastive objectives, config.objective is '{text}'; leave it out"
            )
        if values["samples"]["prompts"] and (values["tasks"] or objective.reads != "texts"):
            raise InputError(f"config.samples is of objective 'lm' alone, config.objective is '{text}'; leave it out")
        if objective.reads == "pairs" and (unused := set_among(OF_ROWS)):
            instead = "they have config.crop" if unused[0] == "augment" else "leave it out"
            raise InputError(f"config.{unused[0]} is of rows, config.objective '{text}' of pairs; {instead}")
        if objective.answers and values["packing"] not in ("", "documents"):
            raise InputError(
                f"config.packing is '{values['packing']}', config.objective '{text}' learns of prompts with answers, "
                "which see themselves alone; expected 'documents' or none"
            )
        if objective.answers and (unused := set_among(("group_by_length", "teacher", "source"))):
            raise InputError(
                f"config.{unused[0]} is of texts as they are, config.objective '{text}' of prompts with answers; leave "
                "it out"
            )
        if values["packing"] and (other := next(iter(set_among(("group_by_length", "teacher", "source"))), "")):
            raise InputError(f"config.packing leaves no text by itself, as config.{other} needs; leave one of them out")
        if values["packing"] and objective.reads != "texts" and not objective.answers:
            raise InputError(f"config.packing is of objectives on texts alone, as lm; config.objective is '{text}'")
        others = ("packing", "group_by_length", "teacher", "source")
        if values["stride"] and (objective.reads != "spans" or (others := set_among(others))):
            said = f"config.{others[0]}" if objective.reads == "spans" else f"config.objective '{text}'"
            raise InputError(f"config.stride is of objective 'spans' alone, and {said} is set; leave one of them out")
        if values["packing"] in STREAMS and "carried" not in objectives.options(text):
            raise InputError(
                f"config.packing '{values['packing']}' is of objectives that carry a state, as lm; config.objective is "
                f"'{text}'"
            )
        if values["packing"] in STREAMS and values["accumulate"] > 1:
            raise InputError(
                f"config.packing '{values['packing']}' goes on in each row of a batch, which config.accumulate takes "
                "apart; set it to 1"
            )
        if values["group_by_length"] and (other := next(iter(set_among(("teacher", "source"))), "")):
            raise InputError(f"config.{other} reads texts of one length; leave out config.group_by_length, or it")
        if text == "siglip" and set_among(("temperature_limit",), but=(0,)):
            raise InputError("config.temperature_limit is of objective 'clip'; 'siglip' has none; leave it out")
    if "methods" in values and values["templates"] and not any(map(_fills_templates, values["methods"])):
        raise InputError("config.templates is of the method zero_shot, which config.methods has not; leave it out")
    if values.get("source_dir") and not values["source"]:
        raise InputError("config.source_dir is of config.source, which names no source; leave it out")
    if "optimiser" in values:
        from jtransfer.optimiser import USES

        name = values["optimiser"].get("name", "adamw")
        if unused := set_among(sorted({key for keys in USES.values() for key in keys} - {*USES[name]}), "optimiser"):
            other = next(other for other, keys in USES.items() if unused[0] in keys)
            raise InputError(
                f"config.optimiser.{unused[0]} is of '{other}', config.optimiser.name is '{name}'; leave it out"
            )


def _fills_templates(method: str) -> bool:
    """Whether a method, or a head that is solved for alone, is made of the names of classes in templates."""
    from jtransfer import methods

    with suppress(InputError):  # which are of other checks, as of arms that are neither
        return methods.parse(f"{method} >> finetune").names == "head"
    return False


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
