"""What a directory is that was named as a model or an adapter and is none: told by what is in it, with the way out."""

from collections.abc import Callable
from typing import Any

from etils import epath

from jtransfer.errors import InputError
from jtransfer.files import read_json
from jtransfer.kinds import shown

ADAPTER, MODEL = "adapter_config.json", "config.json"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".npz", ".hdf5")
"""Ends of the names of files of weights, and of indices of them."""

OTHER_WEIGHTS = (".h5", ".msgpack", ".gguf", ".onnx", ".pb", ".tflite", ".mlmodel", ".keras")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MOST = 1000
"""Entries of a directory that are looked at."""


def is_adapter(names: set[str]) -> bool:
    """Whether a directory with files of these names holds an adapter of PEFT and no model."""
    others = [name for name in names if name.endswith(WEIGHTS) and not name.startswith("adapter_model.")]
    return ADAPTER in names and not (others and MODEL in names)


def has_weights(names: set[str]) -> bool:
    """Whether a directory with files of these names holds weights that are read here."""
    return any(name.endswith(WEIGHTS) for name in names)


def entries(where: epath.Path) -> set[str]:
    """The names of what is in a directory, of `MOST` entries at most; empty for a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return {path.name for path, _ in zip(where.iterdir(), range(MOST), strict=False)} if where.is_dir() else set()
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from None


def what(where: epath.Path) -> str:
    """What a directory without a model of ours is, and what to do, as the end of an error; empty where nothing tells.

    >>> what(epath.Path("runs/mine"))
    "it is the workdir of a training; its model is runs/mine/model"

    Raises:
        InputError: it cannot be read.
    """
    names = entries(where)
    return next((said for tell in TELLS if (said := tell(where, names))), "")


def _adapter(where, names):
    if not is_adapter(names):
        return ""
    base = _base(where)
    return (
        f"it is an adapter of PEFT, for the base {shown(base)}: jtransfer.load(BASE), then "
        f"jtransfer.load_adapter(backbone, {shown(str(where))}); adapter.merged() is one model of both"
    )


def _base(where):
    """The checkpoint that an adapter says it was trained on; "BASE" where it says none."""
    try:
        base: Any = read_json(where / ADAPTER, 1 << 20).get("base_model_name_or_path")
    except InputError:
        base = None
    return base if isinstance(base, str) and base.isprintable() and 0 < len(base) < 400 else "BASE"


def _workdir(where, names):
    if "cells" in names or "results.jsonl" in names:
        return "it is the workdir of `jtransfer curve`, which keeps results and no model; `jtransfer train` keeps one"
    if not names & {"metrics.jsonl", "checkpoints"}:
        return ""
    if {MODEL, "model.safetensors"} <= entries(where / "model"):
        return f"it is the workdir of a training; its model is {where / 'model'}"
    return "it is the workdir of a training that has not ended; run its command again, and then name its model/"


def _orbax(where, names):
    if "variables" in names:
        return (
            "it is an export of Orbax, which orbax.checkpoint.StandardCheckpointer reads; for jtransfer.load, export "
            "it again by --format=hf"
        )
    steps = [name for name in names if name.isdigit()]
    marks = {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"}
    if names & marks or any(entries(where / step) & marks for step in steps[:1]):
        return "it is a checkpoint of Orbax; `jtransfer train` writes the model that loads into model/ of its workdir"
    return ""


def _dataset(where, names):
    if names & {"dataset_info.json", "features.json", "dataset_dict.json"}:
        return "it is a prepared dataset, which config.data takes"
    folders = [where / name for name in sorted(names)[:20]]
    if any(name.lower().endswith(IMAGES) for folder in [where, *folders] for name in entries(folder)):
        return f"it is a folder of images, which config.data takes as 'folder:{where}'"
    return ""


def _pipeline(where, names):
    if "model_index.json" in names:
        return "it is a pipeline of diffusers, whose models do not load here"
    return ""


def _within(where, names):
    models = [name for name in sorted(names)[:50] if _is_model(entries(where / name))]
    if models:
        more = f" (and {len(models) - 1} more)" if len(models) > 1 else ""
        return f"the model is in {where / models[0]}{more}; name that"
    return ""


def _is_model(names):
    return (bool({MODEL, "open_clip_config.json"} & names) and has_weights(names)) or ADAPTER in names


def _weights(where, names):
    found = sorted(name for name in names if name.endswith(OTHER_WEIGHTS))
    if found:
        return (
            f"its weights are in {found[0]}, which is not read; expected .safetensors, .npz of a ViT, or .hdf5 of ELMo"
        )
    return ""


def _tokenizer(where, names):
    if names & {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"}:
        return "it holds a tokenizer and no weights"
    return ""


def _model(where, names):
    if MODEL in names and has_weights(names):
        return "it is a model, which jtransfer.load takes"
    return ""


def _empty(where, names):
    return "" if names or not where.is_dir() else "it is empty"


TELLS: tuple[Callable[[epath.Path, set[str]], str], ...] = (
    _adapter,
    _workdir,
    _orbax,
    _pipeline,
    _model,
    _within,
    _dataset,
    _weights,
    _tokenizer,
    _empty,
)
"""In this order, because the first that tells decides."""
