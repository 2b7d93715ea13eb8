"""LoRA adapters in PEFT's files, `adapter_config.json` and `adapter_model.safetensors`, in and out.

Their names are those of PyTorch's modules, which transformers 5 renamed for some architectures while files of whole
models kept the old ones. Both are read. The new ones are written, because PEFT looks for modules in memory by them.
"""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jtransfer import files, methods
from jtransfer.checkpoints import hub, peft_config, peft_prompts, pooled, recognition, tensors, tying
from jtransfer.checkpoints.adapter import HEAD, Adapter
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.huggingface import architecture_of, as_their_class_reads, family_of, kind_of, values_of
from jtransfer.checkpoints.names import SAME, SourceTensor, assign
from jtransfer.checkpoints.peft_config import by_pattern, is_adapted
from jtransfer.checkpoints.peft_names import is_dense, table
from jtransfer.errors import InputError, nearest
from jtransfer.methods.lora import LoRA
from jtransfer.models import SOURCE_HEAD, Head, Headed, shapes_of
from jtransfer.storage import directories
from jtransfer.tree import Tree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model.model."

TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS", "causal_lm": "CAUSAL_LM"}
"""PEFT's `task_type` for kinds of heads."""


def load_adapter(
    backbone: Backbone, name: str, *, head: str | None = None, revision: str | None = None, subfolder: str | None = None
) -> Adapter:
    """Load a LoRA adapter that PEFT wrote for the checkpoint of a backbone.

    Args:
        backbone: What it was trained on.
        name: A directory (local or in an object store) with `adapter_config.json` and `adapter_model.safetensors`, or
            a name on the Hugging Face hub.
        head: The kind of head that it was trained with, where neither its config nor the backbone tells.
        revision: As of `jtransfer.load`.
        subfolder: As of `jtransfer.load`.

    Returns:
        The adapter. A head that it was saved with is that of the adapted task; where it changed layers of the
        backbone's head, the rest of that head is copied to it.

    Raises:
        InputError: what is not supported, by name; tensors that have no place, layers that lack theirs, shapes and
            ranks that differ: one line that lists every offender.
    """
    where = _find(str(name), revision, subfolder)
    directories.verify(where)
    config, found = peft_config.read(where / CONFIG), _read_tensors(where)
    kind = _kind(where, backbone, config, head)
    saved = peft_config.saved(config)
    backbone, found = tying.settle(
        where, backbone, kind, found, table, lambda names, path: any(map(saved, _modules(names, path)))
    )
    names = table(family_of(backbone)[1].names(backbone.config, kind))
    own, borrowed = _own_head(where, backbone, kind, names, found)
    shapes = _shapes(backbone, own)
    layers = _layers(config, names, shapes)

    filled = {target.path for name in found for target in names.targets(name)}
    whole_head = {path for path in shapes if own and path.startswith(SOURCE_HEAD)} - borrowed.keys()
    wanted = filled | whole_head | _expected(config, names, shapes, layers, filled)
    for layer, (rank, _) in layers.items():
        *wide, high = shapes[f"{layer}/kernel"].shape
        shapes |= {f"{layer}/lora/a": _shape(*wide, rank), f"{layer}/lora/b": _shape(rank, high)}
    wanted = {path: shapes[path] for path in shapes if path in wanted}
    sources = assign(names, found, wanted, where, lambda path: False, f"backbone '{backbone.name}'")
    used = {source.name for source in sources.values()}
    if idle := [name for name in found if name not in used and not names.ignores(name)]:
        raise InputError(f"{where / WEIGHTS}: backbone '{backbone.name}' has no place for {tensors.some(idle)}")
    if not any(path.endswith("/lora/a") for path in sources):
        raise InputError(f"{where / WEIGHTS} has no lora_A")

    dtype = next(iter(backbone.params.values())).dtype
    params = {path: jnp.array(source.read(), dtype) for path, source in sources.items()} | borrowed
    if own:
        params = {_renamed(path, SOURCE_HEAD, HEAD): leaf for path, leaf in params.items()}
        layers = {_renamed(layer, SOURCE_HEAD, HEAD): options for layer, options in layers.items()}
    classes = backbone.classes
    if own is None and backbone.config.sentence_pooling and (beside := pooled.read(where)):
        classes, found = beside
        own = Head(len(classes))
        params[f"{HEAD}kernel"] = jnp.array(found["head.weight"].read().T, dtype)
        params[f"{HEAD}bias"] = jnp.array(found["head.bias"].read(), dtype)
    if own and own.classes != len(classes):
        classes = tuple(map(str, range(own.classes)))
    return Adapter(backbone, _method(config, layers, params, backbone.params), params, own, classes)


def write_adapter(directory: epath.PathLike, adapter: Adapter) -> None:
    """Write an adapter as PEFT's `PeftModel.from_pretrained(base, directory)` loads it on the same base.

    The directory appears whole or not at all; an earlier export there is replaced.

    Raises:
        InputError: something that PEFT's LoRA cannot say, by name; another directory that is in the way, or an object
            store.
        MachineError: it cannot be written.
    """
    with directories.replacing(directory, {"format": "peft"}) as draft:
        fill(draft, adapter)


def fill(directory: epath.PathLike, adapter: Adapter) -> None:
    """Write the two files of an adapter.

    Raises:
        InputError: something that PEFT's LoRA cannot say.
    """
    config, tree = to_peft(adapter)
    tensors.write_safetensors(epath.Path(directory) / WEIGHTS, tree)
    (epath.Path(directory) / CONFIG).write_text(files.as_json(config))


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], Tree]:
    """The values of `adapter_config.json`, and the tensors by PEFT's names.

    Raises:
        InputError: something that PEFT's LoRA cannot say.
    """
    backbone, head = adapter.backbone, adapter.head or adapter.backbone.head
    if peft_prompts.is_of(adapter):
        return peft_prompts.to_peft(adapter, _base(backbone))
    model_type, family = family_of(backbone)
    kind = kind_of(backbone, head)
    plain = family.names(backbone.config, kind)
    names = table(plain)
    params = _without_known_head({_renamed(path, HEAD, SOURCE_HEAD): x for path, x in adapter.params.items()}, backbone)
    if head and head.tied and any(path.startswith(SOURCE_HEAD) and "/lora/" not in path for path in params):
        raise InputError("peft: a head that is tied to the word embeddings cannot be saved with an adapter")
    adapted = [path.removesuffix("/lora/a") for path in adapter.params if path.endswith("/lora/a")]
    layers = {_renamed(layer, HEAD, SOURCE_HEAD): layer for layer in adapted}
    options = _options(adapter.method, adapted)
    modules = {layer: names.called(f"{layer}/kernel")[0].removesuffix(".weight") for layer in layers}
    tree = names.write(params, names.prefix if kind else "")
    for path in filter(_in_head, params):
        tree |= {name: tree[names.called(path)[0]] for name in plain.every(path)}  # PEFT misses a name of the two
    for layer, module in modules.items():
        module = module if _in_head(layer) or not kind else names.prefix + module
        for end in (".weight", ".bias"):
            if module + end in tree:
                tree[f"{module}.base_layer{end}"] = tree.pop(module + end)
    bias, saved = _changed(params, layers, names, backbone.params)
    rank, alpha = options.ranks[-1][1], options.alphas[-1][1]
    own = {modules[layer]: options.of(path) for layer, path in layers.items()}
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(kind),
        "auto_mapping": None if kind in TASKS else _auto_mapping(model_type, family, kind),
        "base_model_name_or_path": _base(backbone),
        "revision": backbone.origin and (backbone.origin.options or {}).get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": options.dropout,
        "use_rslora": options.rs,
        "target_modules": sorted(own),
        "rank_pattern": {module: r for module, (r, _) in sorted(own.items()) if r != rank},
        "alpha_pattern": {module: x for module, (_, x) in sorted(own.items()) if x != alpha},
        "modules_to_save": saved or None,
        "bias": bias,
        "fan_in_fan_out": any(names.source(f"{layer}/kernel")[2] is SAME for layer in layers),
        "init_lora_weights": True,
        "use_dora": False,
    }
    return config, {BASE + name: leaf for name, leaf in tree.items()}


def _find(name, revision, subfolder):
    where = hub.find(name, "adapter", revision, subfolder)
    if where.is_file():
        where = where.parent if where.name in (CONFIG, WEIGHTS) else where
    if not (where / CONFIG).exists():
        said = recognition.what(where)
        raise InputError(f"adapter '{name}' has no {CONFIG}{said and ': ' + said}")
    return where


def _read_tensors(where):
    if not (where / WEIGHTS).exists():
        names = sorted(path.name for path in where.iterdir())
        tensors.refuse_pickles(where, names, tensors.conversion(where, "adapter"))
        raise InputError(f"{where / WEIGHTS} is missing")
    found = tensors.read_safetensors(where / WEIGHTS)
    offenders = [f"'{name}' (expected {BASE}...)" for name in found if not name.startswith(BASE)]
    offenders += [f"'{name}' (of an embedding)" for name in found if ".lora_embedding_" in name]
    if offenders:
        raise InputError(f"{where / WEIGHTS}: not supported: {tensors.some(offenders)}")
    return {name.removeprefix(BASE): tensor for name, tensor in found.items()}


def _kind(where, backbone, config, head):
    """The kind of head of the model that the adapter was trained on; the surest source first."""
    family = family_of(backbone)[1]
    kinds = dict.fromkeys(family.heads.values())
    if head is not None:
        if head not in kinds:
            raise InputError(f"{where}: there is no head '{head}'; {nearest(head, kinds)}")
        return head
    trained = str((config.get("auto_mapping") or {}).get("base_model_class"))
    by_task = {task: kind for kind, task in TASKS.items() if kind in kinds}.get(config.get("task_type"))
    own = backbone.origin.kind if backbone.origin and values_of(backbone) else None
    return next((kind for kind in (family.heads.get(trained), by_task, own) if kind is not None), "")


def _own_head(where, backbone, kind, names, found):
    """The head that the adapter has or changes, and the leaves of the backbone's that are then its own too."""
    places = [(target, name) for name in found for target in names.targets(name)]
    shapes = {t.path: SourceTensor(name, found[name], t).shape for t, name in places if t.path.startswith(SOURCE_HEAD)}
    if not shapes:
        return None, {}
    family = family_of(backbone)[1]
    if not kind:
        some = next(name for target, name in places if target.path in shapes)
        raise InputError(
            f"{where}: '{some}' belongs to a head, and nothing says of which kind; choose head= one of "
            f"{', '.join(kind for kind in dict.fromkeys(family.heads.values()) if kind)}"
        )
    ends = ("out/kernel", "cls/kernel", "kernel", "out/bias", "bias")
    number = next((shapes[SOURCE_HEAD + end][-1] for end in ends if shapes.get(SOURCE_HEAD + end)), None)
    number = number or (backbone.head.classes if backbone.head else 0)
    own = _reading(where, backbone, kind, family.head(values_of(backbone), kind, number))
    rest = {path: leaf for path, leaf in backbone.params.items() if path.startswith(SOURCE_HEAD) and path not in shapes}
    return own, rest if own == backbone.head else {}


def _reading(where, backbone, kind, head):
    """A head of the adapted task, reading of this backbone what it reads in the class that PEFT adapted.

    Raises:
        InputError: a pooler that the base lacks, in whose place the head would silently read the first token.
    """
    _, family = family_of(backbone)
    values = values_of(backbone)
    if head.reads != "features" or not backbone.config.pool or not values:
        return head
    theirs = as_their_class_reads(family, kind, values, {})
    if theirs.pooler and not backbone.config.pooler:
        raise InputError(
            f"{where}: it adapts {architecture_of(family, kind)}, whose head reads a pooler, and backbone "
            f"'{backbone.name}' has none, so that PEFT starts it at random; load a base that was saved with its pooler"
        )
    # A sentence encoder's features are its pooling, which that class does not know.
    elsewhere = theirs.pooler and backbone.config.pool != theirs.pool
    return dataclasses.replace(head, reads="pooler_output") if elsewhere else head


def _shapes(backbone, own):
    """Of every leaf of the backbone and of the head that predicts."""
    if own in (None, backbone.head):
        return dict(backbone.params)
    shapes = shapes_of(Headed(backbone.model, own), backbone.config.inputs)
    return {path: leaf for path, leaf in shapes.items() if path in backbone.params or path.startswith(SOURCE_HEAD)}


def _shape(*sides):
    return np.broadcast_to(np.float32(0), sides)


def _layers(config, names, shapes):
    """Rank and alpha of every layer that could be adapted."""
    layers = {}
    for path in shapes:
        layer = path.removesuffix("/kernel")
        if layer != path and names.source(f"{layer}/lora/a"):
            modules = _modules(names, path)
            layers[layer] = tuple(
                by_pattern(config[f"{key}_pattern"], modules, config[default])
                for key, default in (("rank", "r"), ("alpha", "lora_alpha"))
            )
    return layers


def _modules(names, path):
    """Every name of the module that has a leaf, with prefix and without."""
    stems = [name.rpartition(".")[0] for name in names.called(path)]
    return [*stems, *(names.prefix + stem for stem in stems)]


def _expected(config, names, shapes, layers, filled):
    """Leaves that the config says are in the file."""
    # A layer outside the blocks, as a pooler, may be here and not have been in the model that was adapted.
    adapted = {
        layer
        for layer in layers
        if {f"{layer}/lora/a", f"{layer}/lora/b"} & filled
        or ("/block_" in layer and _is_adapted(config, names, f"{layer}/kernel"))
    }
    saved = peft_config.saved(config)
    sides = {f"{layer}/lora/{side}" for layer in adapted for side in "ab"}
    return sides | {path for path in shapes if any(map(saved, _modules(names, path)))}


def _is_adapted(config, names, path):
    every = str(config.get("target_modules")).lower() == "all-linear"
    modules = _modules(names, path) if is_dense(names, path) or not every else []
    return any(is_adapted(config, module) for module in modules)


def _in_head(layer):
    return f"{layer}/".startswith(SOURCE_HEAD)


def _renamed(path, before, after):
    """A leaf or layer of the head under the other of its names."""
    return re.sub(f"^{before}", after, f"{path}/").rstrip("/")


def _method(config, layers, params, base):
    """`lora` as the adapter was trained, and what else is learned of the base."""
    layers = {layer: options for layer, options in layers.items() if f"{layer}/lora/a" in params}
    rank, alpha = config["r"], config["lora_alpha"]
    method = methods.lora(
        rank=rank,
        alpha=alpha,
        target="|".join(map(re.escape, layers)),
        rs=bool(config.get("use_rslora")),
        dropout=config["lora_dropout"],
        ranks={re.escape(layer): r for layer, (r, _) in layers.items() if r != rank},
        alphas={re.escape(layer): x for layer, (_, x) in layers.items() if x != alpha},
    )
    if changed := [(re.escape(path), 1.0) for path in params if path in base]:
        method += methods.Method("changed", methods.learn(*changed))
    return method


def _without_known_head(params, backbone):
    """Without the head where all of it but A and B is the backbone's."""
    head = {path for path in params if path.startswith(SOURCE_HEAD) and "/lora/" not in path}
    known = all(path in backbone.params and np.array_equal(params[path], backbone.params[path]) for path in head)
    return {path: leaf for path, leaf in params.items() if not (known and path in head)}


def _options(method, layers):
    """The one LoRA of a method."""
    found = [part for part in method.parts if isinstance(part, LoRA)]
    if len(found) != 1 or not layers:
        raise InputError(f"peft: method '{method.name}' has {len(found)} LoRAs; an adapter of PEFT has one")
    return found[0]


def _changed(params, layers, names, base):
    """PEFT's `bias` and `modules_to_save` for the leaves that are no A or B."""
    heads = {names.called(path)[0].split(".")[0] for path in params if path.startswith(SOURCE_HEAD)}
    if any(map(_in_head, layers)):
        heads = set()  # PEFT does not adapt what it saves; it loads the kernels below A and B nonetheless
    changed = {path for path in params if path in base and not path.startswith(SOURCE_HEAD)}
    biases = {path for path in base if path.endswith("/bias") and not path.startswith(SOURCE_HEAD)}
    for bias, paths in {"none": set(), "lora_only": {f"{x}/bias" for x in layers} & biases, "all": biases}.items():
        if changed == paths:
            return bias, sorted(heads)
    modules = {path.rpartition("/")[0] for path in changed}
    parts = {path for path in base if path.rpartition("/")[0] in modules}
    if parts != changed or modules & layers.keys() or any(names.source(path) is None for path in changed):
        raise InputError(
            f"peft: what was learned beside LoRA is neither all biases, nor those of its layers, nor whole modules: "
            f"{', '.join(sorted(changed))}"
        )
    return "none", sorted(heads | {names.called(path)[0].rpartition(".")[0] for path in changed})


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
