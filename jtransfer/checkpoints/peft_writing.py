"""Adapters in PEFT's files: how they are written."""

import dataclasses
import re
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints import peft_prompts, tensors
from jtransfer.checkpoints.adapter import HEAD, Adapter
from jtransfer.checkpoints.huggingface import architecture_of, family_of, kind_of, values_of
from jtransfer.checkpoints.names import SAME
from jtransfer.checkpoints.peft import BASE, CONFIG, SHARED, TASKS, WEIGHTS, renamed
from jtransfer.checkpoints.peft_formats import BESIDE, FORMATS
from jtransfer.checkpoints.peft_names import is_adaptable, table
from jtransfer.errors import InputError
from jtransfer.methods.ia3 import IA3
from jtransfer.methods.lora import FROM_BASE, LoRA
from jtransfer.methods.updates import site_of
from jtransfer.models import SOURCE_HEAD, of_config, shapes_of
from jtransfer.storage import directories
from jtransfer.tree import Tree


def write_adapter(directory: epath.PathLike, adapter: Adapter) -> None:
    """Write an adapter as PEFT's `PeftModel.from_pretrained(base, directory)` loads it on the same base.

    The directory appears whole or not at all; an earlier export there is replaced.

    Raises:
        InputError: something that PEFT cannot say, by name; another directory that is in the way, or an object
            store.
        MachineError: it cannot be written.
    """
    with directories.replacing(directory, {"format": "peft"}) as draft:
        fill(draft, adapter)


def fill(directory: epath.PathLike, adapter: Adapter) -> None:
    """Write the two files of an adapter.

    Raises:
        InputError: something that PEFT cannot say.
    """
    config, tree = to_peft(adapter)
    tensors.write_safetensors(epath.Path(directory) / WEIGHTS, tree)
    (epath.Path(directory) / CONFIG).write_text(files.as_json(config))


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], Tree]:
    """The values of `adapter_config.json`, and the tensors by PEFT's names.

    Raises:
        InputError: something that PEFT cannot say.
    """
    backbone, head = adapter.backbone, adapter.head or adapter.backbone.head
    if peft_prompts.is_of(adapter):
        return peft_prompts.to_peft(adapter, _base(backbone))
    model_type, family = family_of(backbone)
    kind = kind_of(backbone, head)
    name, part = _part(adapter)
    format, plain = FORMATS[name], family.names(backbone.config, kind)
    names = table(plain, format)
    params = _without_known_head({renamed(path, HEAD, SOURCE_HEAD): x for path, x in adapter.params.items()}, backbone)
    if head and head.tied and any(path.startswith(SOURCE_HEAD) and not _layer(format, path) for path in params):
        raise InputError("peft: a head that is tied to the word embeddings cannot be saved with an adapter")
    shared = {theirs: layout.save(np.asarray(params.pop(ours))) for theirs, (ours, layout) in format.shared.items()}
    layers = list(dict.fromkeys(layer for path in params if (layer := _layer(format, path))))
    if not layers and not format.whole:
        raise InputError(f"peft: method '{adapter.method.name}' has added no leaves")
    shapes = _floats(backbone) | params
    weights = {layer: _weight(layer, shapes) for layer in layers}
    if impossible := [layer for layer, path in weights.items() if not is_adaptable(names, format, path)]:
        raise InputError(f"peft: {name} has no tensors for {', '.join(impossible)}, as these layers lie in PyTorch")
    sites = {
        layer: site_of(
            renamed(layer, SOURCE_HEAD, HEAD) if adapter.head else layer,
            {path.rpartition("/")[2]: shapes[path]},
        )
        for layer, path in weights.items()
    }
    modules = {layer: names.called(path)[0].removesuffix(".weight") for layer, path in weights.items()}
    prefix = names.prefix if kind else ""
    tree = names.write(_as_theirs(part, params), prefix)
    for path in filter(_in_head, params):
        tree |= {name: tree[names.called(path)[0]] for name in plain.every(path)}  # PEFT misses a name of the two
    bias, saved, copied = _changed(params, layers, names, backbone.params, format)
    places = {layer: module if _in_head(layer) else prefix + module for layer, module in modules.items()}
    moves = dict.fromkeys(places.values(), "base_layer") | {prefix + module: "ln_tuning_layers" for module in copied}
    for module, folder in moves.items():
        for end in (".weight", ".bias"):
            if module + end in tree:
                tree[f"{module}.{folder}{end}"] = tree.pop(module + end)
    own = format.write(part, list(sites.values()))
    inside = {site.path: modules[layer] for layer, site in sites.items()}
    for key, default in format.patterns.items():
        own[key] = {inside[layer]: x for layer, x in sorted(own[key].items()) if x != own[default]}
    if isinstance(part, IA3):
        turned = own["feedforward_modules"]
        own["feedforward_modules"] = sorted(inside[layer] for layer in turned)
        for layer, site in sites.items():
            if site.path in turned and len(site.shape) == 2:
                tree[f"{places[layer]}.ia3_l"] = tree[f"{places[layer]}.ia3_l"].T
    config = {
        "peft_type": name,
        "task_type": TASKS.get(kind),
        "auto_mapping": None if kind in TASKS else _auto_mapping(model_type, family, kind),
        "base_model_name_or_path": _base(backbone),
        "revision": backbone.origin and (backbone.origin.options or {}).get("revision"),
        "inference_mode": True,
        "target_modules": sorted([*modules.values(), *copied]),
        "modules_to_save": saved or None,
        **own,
    }
    if format.bias:
        config["bias"] = bias
    if SAME in format.ends:
        config["fan_in_fan_out"] = any(names.source(path)[2] is SAME for path in weights.values())
    return config, {BASE + name: leaf for name, leaf in tree.items()} | {SHARED + name: x for name, x in shared.items()}


TYPES = {format.part: name for name, format in FORMATS.items()}


def _part(adapter):
    """The `peft_type` of a method, and its options."""
    found = [part for part in adapter.method.parts if type(part) in TYPES]
    changed = [path for path in adapter.params if path in adapter.backbone.params and not _in_head(path)]
    norms = all(f"{path.rpartition('/')[0]}/scale" in adapter.backbone.params for path in changed)
    if not adapter.method.parts and changed and norms:
        return "LN_TUNING", None
    if len(found) != 1:
        raise InputError(
            f"peft: method '{adapter.method.name}' has {len(found)} updates of kernels; an adapter of PEFT has one of "
            f"{', '.join(sorted(format.folder for format in FORMATS.values() if format.folder))}, or norms alone"
        )
    return TYPES[type(found[0])], found[0]


def _layer(format, path):
    """The layer that a leaf of the method stands beside; "" for another leaf."""
    layer, _, rest = path.rpartition(f"/{format.folder}/")
    return layer if format.folder and "/" not in rest else ""


def _weight(layer, params):
    return next(
        (f"{layer}/{name}" for name in ("kernel", "embedding") if f"{layer}/{name}" in params), f"{layer}/kernel"
    )


def _floats(backbone):
    """The leaves of a backbone; in place of quantised kernels, the shapes of those that they stand for."""
    if not backbone.config.bits:
        return backbone.params
    plain = of_config(dataclasses.replace(backbone.config, bits=0))
    return shapes_of(plain, backbone.config.inputs) | backbone.params


def _as_theirs(part, params):
    """Leaves as PEFT has them: of a start from the kernel, the difference of two products as one of twice the rank."""
    if not (isinstance(part, LoRA) and part.start in FROM_BASE):
        return params
    changed = {path: x for path, x in params.items() if not path.endswith(("/lora/a_start", "/lora/b_start"))}
    for path in params:
        if path.endswith("/lora/a_start"):
            a, b = path.removesuffix("_start"), f"{path.removesuffix('a_start')}b"
            changed[a] = np.concatenate([params[a], params[path]], axis=-1)
            changed[b] = np.concatenate([params[b], -np.asarray(params[f"{b}_start"])])
    return changed


def _without_known_head(params, backbone):
    """Without the head where all of it but A and B is the backbone's."""
    head = {path for path in params if path.startswith(SOURCE_HEAD) and not BESIDE.fullmatch(path)}
    known = all(path in backbone.params and np.array_equal(params[path], backbone.params[path]) for path in head)
    return {path: leaf for path, leaf in params.items() if not (known and path in head)}


def _changed(params, layers, names, base, format):
    """PEFT's `bias`, `modules_to_save` and copied modules for the leaves that the method did not add."""
    heads = {names.called(path)[0].split(".")[0] for path in params if _in_head(path) and not _layer(format, path)}
    if any(map(_in_head, layers)):
        heads = set()  # PEFT does not adapt what it saves; it loads the kernels below its own nonetheless
    changed = {path for path in params if path in base and not _in_head(path)}
    biases = {path for path in base if path.endswith("/bias") and not _in_head(path)}
    kinds = {"none": set(), format.bias: {f"{x}/bias" for x in layers} & biases, "all": biases}
    for bias, paths in kinds.items() if format.bias else [("none", set())]:
        if changed == paths:
            return bias, sorted(heads), []
    modules = {path.rpartition("/")[0] for path in changed}
    parts = {path for path in base if path.rpartition("/")[0] in modules}
    if parts != changed or modules & set(layers) or any(names.source(path) is None for path in changed):
        raise InputError(
            f"peft: what was learned beside {format.folder or 'norms'} is neither all biases, nor those of its layers, "
            f"nor whole modules: {', '.join(sorted(changed))}"
        )
    whole = {names.called(path)[0].rpartition(".")[0] for path in changed}
    return ("none", sorted(heads), sorted(whole)) if format.whole else ("none", sorted(heads | whole), [])


def _auto_mapping(model_type, family, kind):
    """The class that the adapter was trained on, where no `task_type` says it, as PEFT does."""
    package = re.sub(r"_(text|vision)_model$", "", model_type)
    return {
        "base_model_class": architecture_of(family, kind),
        "parent_library": f"transformers.models.{package}.modeling_{package}",
    }


def _base(backbone):
    """What `from_pretrained` loads the base from: its name on the hub, or a directory."""
    if not values_of(backbone):
        return None
    return str(backbone.origin.directory.resolve()) if epath.Path(backbone.name).exists() else backbone.name


def _in_head(layer):
    return f"{layer}/".startswith(SOURCE_HEAD)
