"""What a sentence-transformers directory says beside its model: how tokens become the embedding of a sentence."""

import json
import re
from typing import Any

from etils import epath

from jtransfer.errors import InputError, nearest
from jtransfer.files import read_json

MODULES = ("Transformer", "Pooling", "Normalize")
POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "cls": "cls", "mean": "mean"}
"""Its names of poolings, older and newer, and ours."""


def read(where: epath.Path) -> dict[str, Any]:
    """The pooling that `modules.json` describes, as one more value beside those of `config.json`.

    Returns:
        `{"sentence_transformers": {"pool": "cls" or "mean", "normalize": bool}}`; empty where the directory is none of
        sentence-transformers, or its modules pool nothing.

    Raises:
        InputError: a damaged file, or a module or pooling that is not supported, by its name.
    """
    file = where / "modules.json"
    if not file.exists():
        return {}
    try:
        paths = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in json.loads(file.read_text())}
        if "Pooling" not in paths:
            return {}
        if not re.fullmatch(r"[\w-][\w.-]*", paths["Pooling"]):
            raise ValueError(f"'{paths['Pooling']}' points outside the directory")
        pooling = read_json(where / paths["Pooling"] / "config.json")
        flags = [key.removeprefix("pooling_mode_") for key in pooling if key.startswith("pooling_mode_")]
        modes = [mode for mode in flags if pooling[f"pooling_mode_{mode}"]] or [str(pooling["pooling_mode"])]
    except (ValueError, OSError, RecursionError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: expected a list of modules with type, path and config.json ({error})") from None
    for module in paths:
        if module not in MODULES:
            raise InputError(f"{file}: the module '{module}' is not supported; {nearest(module, MODULES)}")
    if len(modes) > 1 or modes[0] not in POOLINGS:
        said = "+".join(modes)
        raise InputError(f"{file}: the pooling '{said}' is not supported; {nearest(said, POOLINGS)}")
    return {"sentence_transformers": {"pool": POOLINGS[modes[0]], "normalize": "Normalize" in paths}}
