"""Adapters in PEFT's files, `adapter_config.json` and `adapter_model.safetensors`: how they are read.

Their names are those of PyTorch's modules, which transformers 5 renamed for some architectures while files of whole
models kept the old ones. Both are read. The new ones are written (`peft_writing`), because PEFT looks for modules in
memory by them.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jtransfer import methods
from jtransfer.checkpoints import hub, peft_config, pooled, recognition, tensors, tying
from jtransfer.checkpoints.adapter import HEAD, Adapter
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.huggingface import architecture_of, as_their_class_reads, family_of, values_of
from jtransfer.checkpoints.names import Names, SourceTensor, assign
from jtransfer.checkpoints.peft_config import by_pattern, is_adapted, is_named
from jtransfer.checkpoints.peft_formats import FORMATS
from jtransfer.checkpoints.peft_names import is_adaptable, is_dense, table
from jtransfer.errors import InputError, nearest
from jtransfer.methods.lora import FROM_BASE, LoRA
from jtransfer.methods.method import HEAD as HEAD_RULE
from jtransfer.methods.updates import site_of
from jtransfer.models import SOURCE_HEAD, Head, Headed, quantized, shapes_of
from jtransfer.storage import directories
from jtransfer.tree import Tree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE, SHARED = "base_model.model.", "base_model."

TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS", "causal_lm": "CAUSAL_LM"}
"""PEFT's `task_type` for kinds of heads."""


def load_adapter(
    backbone: Backbone, name: str, *, head: str | None = None, revision: str | None = None, subfolder: str | None = None
) -> Adapter:
    """Load an adapter that PEFT wrote for the checkpoint of a backbone, by a method of `peft_formats.FORMATS`.

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
    config = peft_config.read(where / CONFIG)
    format = FORMATS[config["peft_type"]]
    found = _read_tensors(where, format)
    kind = trained_kind(where, backbone, config, head)
    saved, tables = peft_config.saved(config), partial(table, format=format)
    backbone, found = tying.settle(
        where, backbone, kind, found, tables, lambda names, path: any(map(saved, _modules(names, path)))
    )
    names = tables(family_of(backbone)[1].names(backbone.config, kind))
    own, borrowed = own_head(where, backbone, kind, names, found)
    shapes = with_head(backbone, own)

    filled = {target.path for name in found for target in names.targets(name)}
    whole_head = {path for path in shapes if own and path.startswith(SOURCE_HEAD)} - borrowed.keys()
    sites = _sites(config, format, names, shapes, filled)
    values = _values(config, format, names, sites)
    method = _method(where, config, format, sites, values)
    beside = _beside(format, method, sites)
    wanted = filled | whole_head | {path for path in beside if names.source(path)}
    wanted |= _whole_modules(config, format, names, shapes, filled)
    shapes |= beside
    wanted = {path: shapes[path] for path in shapes if path in wanted}
    sources = assign(names, found, wanted, where, lambda path: False, f"backbone '{backbone.name}'")
    used = {source.name for source in sources.values()}
    if idle := [name for name in found if name not in used and not names.ignores(name)]:
        raise InputError(f"{where / WEIGHTS}: backbone '{backbone.name}' has no place for {tensors.some(idle)}")
    if not sites and not (format.whole and sources):
        raise InputError(f"{where / WEIGHTS} has no {format.first}")

    dtype = next(x.dtype for path, x in backbone.params.items() if not quantized.is_part(path))
    params = {path: jnp.array(source.read(), dtype) for path, source in sources.items()} | borrowed
    params |= _of_base(where, method, sites, backbone.params)
    params = {path: x for path, x in params.items() if not _is_copy(path, x, backbone.params, saved, names)}
    if own:
        params = {renamed(path, SOURCE_HEAD, HEAD): leaf for path, leaf in params.items()}
        sites = {new: dataclasses.replace(x, path=new) for old, x in sites.items() for new in [_own(old)]}
        values = {key: {_own(layer): x for layer, x in own.items()} for key, own in values.items()}
        method = _method(where, config, format, sites, values)
    classes = backbone.classes
    if own is None and backbone.config.sentence_pooling and (beside := pooled.read(where)):
        classes, found = beside
        own = Head(len(classes))
        params[f"{HEAD}kernel"] = jnp.array(found["head.weight"].read().T, dtype)
        params[f"{HEAD}bias"] = jnp.array(found["head.bias"].read(), dtype)
    if own and own.classes != len(classes):
        classes = tuple(map(str, range(own.classes)))
    return Adapter(backbone, _with_changed(method, format, params, backbone.params), params, own, classes)


def _find(name, revision, subfolder):
    where = hub.find(name, "adapter", revision, subfolder)
    if where.is_file():
        where = where.parent if where.name in (CONFIG, WEIGHTS) else where
    if not (where / CONFIG).exists():
        said = recognition.what(where)
        raise InputError(f"adapter '{name}' has no {CONFIG}{said and ': ' + said}")
    return where


def _read_tensors(where, format):
    if not (where / WEIGHTS).exists():
        names = sorted(path.name for path in where.iterdir())
        tensors.refuse_pickles(where, names, tensors.conversion(where, "adapter"))
        raise InputError(f"{where / WEIGHTS} is missing")
    found = tensors.read_safetensors(where / WEIGHTS)
    shared = {SHARED + name for name in format.shared}
    if offenders := [
        f"'{name}' (expected {BASE}...)" for name in found if not name.startswith(BASE) | (name in shared)
    ]:
        raise InputError(f"{where / WEIGHTS}: not supported: {tensors.some(offenders)}")
    return {name.removeprefix(SHARED if name in shared else BASE): tensor for name, tensor in found.items()}


def trained_kind(where: epath.Path, backbone: Backbone, config: Mapping[str, Any], head: str | None) -> str:
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


def own_head(
    where: epath.Path, backbone: Backbone, kind: str, names: Names, found: Mapping[str, tensors.Tensor]
) -> tuple[Head | None, Tree]:
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


def with_head(backbone: Backbone, own: Head | None) -> Tree:
    """Of every leaf of the backbone and of the head that predicts."""
    if own in (None, backbone.head):
        return dict(backbone.params)
    shapes = shapes_of(Headed(backbone.model, own), backbone.config.inputs)
    return {path: leaf for path, leaf in shapes.items() if path in backbone.params or path.startswith(SOURCE_HEAD)}


def _modules(names, path):
    """Every name of the module that has a leaf, with prefix and without."""
    stems = [name.rpartition(".")[0] for name in names.called(path)]
    return [*stems, *(names.prefix + stem for stem in stems)]


def _sites(config, format, names, shapes, filled):
    """The layers that are adapted: those that have tensors, and those that the config says have."""
    inside = re.compile(f"(.*)/{format.folder}/[^/]+")
    touched = {match[1] for path in filled if (match := inside.fullmatch(path))}
    sites = {}
    for path, leaf in shapes.items():
        layer, _, weight = path.rpartition("/")
        # A layer outside the blocks, as a pooler, may be here and not have been in the model that was adapted.
        asked = layer in touched or ("/block_" in layer and _is_adapted(config, names, path))
        if weight in ("kernel", "embedding") and asked and is_adaptable(names, format, path):
            sites[layer] = site_of(layer, {weight: leaf})
    return sites


def _is_adapted(config, names, path):
    every = str(config.get("target_modules")).lower() == "all-linear"
    modules = _modules(names, path) if not every or is_dense(names, path) else []
    return any(is_adapted(config, module) for module in modules)


def _values(config, format, names, sites):
    """Of each key of patterns, the values of layers that do not have the default; and the layers that a list names."""
    called = {
        layer: _modules(names, f"{layer}/{'embedding' if s.kind == 'embedding' else 'kernel'}")
        for layer, s in sites.items()
    }
    values = {
        key: {
            layer: x
            for layer in sites
            if (x := by_pattern(config[key], called[layer], config[default])) != config[default]
        }
        for key, default in format.patterns.items()
    }
    listed = config.get("feedforward_modules") or []
    return values | {
        "feedforward_modules": {x: True for x in sites if any(is_named(listed, name) for name in called[x])}
    }


def _method(where, config, format, sites, values):
    """The method as the adapter was trained."""
    try:
        return format.read(
            config,
            "|".join(map(re.escape, sites)),
            sites,
            lambda key: {re.escape(layer): x for layer, x in values[key].items()},
        )
    except InputError as error:
        raise InputError(f"{where / CONFIG}: {error}") from None


def _beside(format, method, sites):
    """Shapes of the leaves that the method adds."""
    if not sites or format.whole:
        return {}
    (part,) = method.parts
    shapes = {
        f"{x}/{format.folder}/{name}": shape
        for x, site in sites.items()
        for name, shape in format.shapes(part, site).items()
    }
    if format.shared:
        widest = max(site.rows for site in sites.values()), max(site.outputs for site in sites.values())
        made = part.shared(widest)
        shapes |= {path: made[path.rpartition("/")[2]][1] for path, _ in format.shared.values()}
    return {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}


def _whole_modules(config, format, names, shapes, filled):
    """Leaves of the modules that the config says are saved, and of those that the method has copies of."""
    saved = peft_config.saved(config)
    found = {path for path in shapes if any(map(saved, _modules(names, path)))}
    touched = {path.rpartition("/")[0] for path in filled} if format.whole else ()
    return found | {
        path
        for path in shapes
        if format.whole
        and (path.rpartition("/")[0] in touched or ("/block_" in path and _is_adapted(config, names, path)))
    }


def _of_base(where, method, sites, base):
    """The leaves that follow from the kernels of the base."""
    part = next(iter(method.parts), None)
    if not (isinstance(part, LoRA) and part.start in FROM_BASE):
        return {}
    leaves = {}
    for layer, site in sites.items():
        kernel = base.get(f"{layer}/{'embedding' if site.kind == 'embedding' else 'kernel'}")
        if kernel is None:
            raise InputError(f"{where / CONFIG}: a start of {part.start} for '{layer}', which the base does not have")
        made = part.makes(site, lambda kernel=kernel: jnp.asarray(kernel))
        for name in ("a_start", "b_start"):
            init, shape = made[name]
            leaves[f"{layer}/lora/{name}"] = init(None, shape, kernel.dtype)
    return leaves


def _is_copy(path, leaf, base, saved, names):
    """Whether a leaf is a table of the base, which PEFT saves beside its update."""
    copied = path.endswith("/embedding") and path in base and not any(map(saved, _modules(names, path)))
    return copied and np.array_equal(leaf, base[path])


def _with_changed(method, format, params, base):
    """The method, and what else is learned of the base."""
    changed = [(re.escape(path), 1.0) for path in params if path in base]
    if format.whole:
        return methods.Method("ln_tuning", methods.learn(HEAD_RULE, *changed))
    return method + methods.Method("changed", methods.learn(*changed)) if changed else method


def renamed(path, before, after):
    """A leaf or layer of the head under the other of its names."""
    return re.sub(f"^{before}", after, f"{path}/").rstrip("/")


def _own(layer):
    return renamed(layer, SOURCE_HEAD, HEAD)
