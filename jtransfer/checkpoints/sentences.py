"""What a sentence-transformers directory says beside its model: how tokens become the embedding of a sentence."""

import json
import re
from typing import Any

from etils import epath

from jtransfer.data import keys
from jtransfer.errors import InputError, nearest
from jtransfer.files import LARGEST_JSON, read_json
from jtransfer.files import read as read_bytes

MODULES = ("Transformer", "Pooling", "Normalize", "Dropout")
"""The modules that are done: the first two, in this order, and after them the others, of which dropout does nothing."""

POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "cls": "cls", "mean": "mean"}
"""Its names of poolings, older and newer, and ours."""

OWN = "sentence_transformers."
"""What the type of a module begins with that is not code of the checkpoint's own."""


def read(where: epath.Path) -> dict[str, Any]:
    """The pooling that `modules.json` describes, as one more value beside those of `config.json`.

    Returns:
        `{"sentence_transformers": {"pool": "cls" or "mean", "normalize": bool}}`; empty where the directory is none of
        sentence-transformers, or its modules pool nothing.

    Raises:
        InputError: a damaged file, or a module, their order, a pooling or a key that is not supported, by its name.
    """
    file = where / "modules.json"
    if not file.exists():
        return {}
    try:
        listed = json.loads(read_bytes(file, LARGEST_JSON).decode("utf-8"))
        modules = [(str(module["type"]), str(module["path"])) for module in listed]
        if not any(kind.endswith(".Pooling") or kind == "Pooling" for kind, _ in modules):
            return {}
        for kind, path in modules:
            if path and not re.fullmatch(r"[\w-][\w.-]*", path):
                raise ValueError(f"the path '{path}' of {kind} points outside the directory")
        names = [kind.rpartition(".")[2] for kind, _ in modules]
        pooling_file = where / modules[names.index("Pooling")][1] / "config.json"
        pooling = read_json(pooling_file)
        modes = _modes(pooling)
    except InputError:
        raise
    except (ValueError, OSError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{file}: expected a list of modules with type, path and config.json ({error})") from None
    for (kind, path), name in zip(modules, names, strict=True):
        if "." in kind and not kind.startswith(OWN):
            raise InputError(f"{file}: the module '{kind}' is code of the checkpoint's own, which is never run here")
        if name not in MODULES:
            raise InputError(f"{file}: the module '{name}' is not supported; {nearest(name, MODULES)}")
        if name == "Transformer" and path:
            raise InputError(
                f"{file}: the Transformer is in '{path}', and what lies beside is read; load {where / path}"
            )
        if name == "Normalize" and (where / path / "config.json").exists():
            keys.check(where / path / "config.json", read_json(where / path / "config.json"), keys.NORMALIZE)
    if names[:2] != ["Transformer", "Pooling"] or set(names[2:]) - {"Normalize", "Dropout"}:
        raise InputError(f"{file}: the order {', '.join(names)} is not supported; expected {', '.join(MODULES)}")
    keys.check(pooling_file, pooling, keys.POOLING)
    if len(modes) > 1 or modes[0] not in POOLINGS:
        said = "+".join(modes)
        raise InputError(f"{file}: the pooling '{said}' is not supported; {nearest(said, POOLINGS)}")
    _check_prompts(where, pooling_file, pooling)
    return {"sentence_transformers": {"pool": POOLINGS[modes[0]], "normalize": "Normalize" in names}}


def _modes(pooling):
    """The names of the poolings, of which a newer key goes before the older flags."""
    if mode := pooling.get("pooling_mode"):
        return list(map(str, mode)) if isinstance(mode, list) else [str(mode)]
    modes = [key.removeprefix("pooling_mode_") for key in pooling if key.startswith("pooling_mode_") and pooling[key]]
    if not modes:
        raise KeyError("pooling_mode")
    return modes


def _check_prompts(where, file, pooling):
    """Refuse what else changes the embedding: it is cut, or its prompt is not pooled."""
    from jtransfer.data.tokenizer_files import sentence_settings

    _, prompts, _ = sentence_settings(where)
    if not pooling.get("include_prompt", True) and any(prompts.values()):
        raise InputError(
            f"{file}: include_prompt is false, which is not done here; take it out to pool prompts as well"
        )
