"""Prompt and prefix tuning in PEFT's files, in and out: one tensor `prompt_embeddings`, and the head.

Of a prompt it is `[length, width]`; of a prefix `[length, blocks * 2 * width]`, the key and the value of each block in
turn, whether PEFT made them by a projection or not: what it saves is what comes out of it.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jtransfer import files, methods
from jtransfer.checkpoints import peft_config, tensors
from jtransfer.checkpoints.adapter import HEAD, Adapter
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.huggingface import family_of, kind_of
from jtransfer.checkpoints.names import LEAF, Layout, Names, Row, assign
from jtransfer.checkpoints.peft import CONFIG, SHARED, WEIGHTS, own_head, renamed, trained_kind, with_head
from jtransfer.checkpoints.peft import TASKS as TASKS_OF_HEADS
from jtransfer.errors import InputError, cut
from jtransfer.methods.method import Intercepted
from jtransfer.models import SOURCE_HEAD, apply, quantized
from jtransfer.storage import directories
from jtransfer.tree import Tree

OWN = "prompt_embeddings"
PROMPT, PREFIX = "PROMPT_TUNING", "PREFIX_TUNING"
TASKS = {"": "FEATURE_EXTRACTION", **TASKS_OF_HEADS}
"""PEFT's `task_type` for kinds of heads."""
READ = {"peft_type", "task_type", "auto_mapping", "num_virtual_tokens", "num_transformer_submodules", "modules_to_save"}
IRRELEVANT = {
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config"),
    *("token_dim", "num_attention_heads", "num_layers", "encoder_hidden_size", "prefix_projection", "init_weights"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
}
"""Keys of how it was trained, or that follow from the base."""


def is_one(where: epath.Path) -> bool:
    """Whether a directory, or that of a file, holds a prompt or a prefix of PEFT; damage is told by other readers."""
    file = _directory(where) / CONFIG
    try:
        return file.exists() and files.read_json(file, peft_config.LARGEST).get("peft_type") in (PROMPT, PREFIX)
    except InputError:
        return False


def load(backbone: Backbone, where: epath.Path, head: str | None = None) -> Adapter:
    """Load the prompt or the prefix in a directory of which `is_one` is true.

    Args:
        backbone: What it was trained on.
        where: The directory.
        head: The kind of head that it was trained with, where neither its config nor the backbone tells.

    Raises:
        InputError: what is not supported, by name; tensors that have no place, shapes that differ, and leaves that the
            file lacks: one line that lists every offender.
    """
    where = _directory(where)
    directories.verify(where)
    _check_texts(f"{where}: ", backbone)
    config, found = _config(where / CONFIG), _tensors(where)
    length, kind = config["num_virtual_tokens"], trained_kind(where, backbone, config, head)
    names = _table(family_of(backbone)[1].names(backbone.config, kind), config["peft_type"], backbone)
    own, borrowed = own_head(where, backbone, kind, names, found)
    if config["peft_type"] == PROMPT and (predicts := own or backbone.head) and predicts.reads == "first":
        raise InputError(
            f"{where}: in PEFT the head of this base reads the first prompt, here the first word; no equal outputs"
        )
    shapes = with_head(backbone, own)
    method = methods.parse(f"{'prompt' if config['peft_type'] == PROMPT else 'prefix'}(length={length})")
    adapted = methods.adapt(method, backbone.model, _without_head(backbone.params), backbone.config.inputs)
    shapes |= {path: x for path, x in adapted.shapes.items() if path not in shapes}
    saved = peft_config.saved(config)
    filled = {target.path for name in found for target in names.targets(name)}
    wanted = filled | (adapted.shapes.keys() - backbone.params.keys())
    wanted |= {path for path in shapes if own and path.startswith(SOURCE_HEAD)} - borrowed.keys()
    wanted |= {path for path in backbone.params if any(saved(name.rpartition(".")[0]) for name in names.called(path))}
    wanted = {path: shapes[path] for path in shapes if path in wanted}
    sources = assign(names, found, wanted, where, lambda path: False, f"backbone '{backbone.name}'")
    dtype = next(x.dtype for path, x in backbone.params.items() if not quantized.is_part(path))
    params = borrowed | {path: jnp.array(source.read(), dtype) for path, source in sources.items()}
    if own:
        params = {renamed(path, SOURCE_HEAD, HEAD): leaf for path, leaf in params.items()}
    if changed := [(re.escape(path), 1.0) for path in params if path in backbone.params]:
        method += methods.Method("changed", methods.learn(*changed))
    classes = backbone.classes
    if own and own.classes != len(classes):
        classes = tuple(map(str, range(own.classes)))
    return Adapter(backbone, method, params, own, classes)


def is_of(adapter: Adapter) -> bool:
    """Whether a method added prompts of texts or a prefix."""
    return any(path.endswith("embeddings/prompt/tokens") or "/attention/prefix/" in path for path in adapter.params)


def to_peft(adapter: Adapter, base: str | None) -> tuple[dict[str, Any], Tree]:
    """The values of `adapter_config.json`, and the tensors by PEFT's names.

    Args:
        adapter: Of which `is_of` is true.
        base: What PEFT loads the base from.

    Raises:
        InputError: something that PEFT's prompt and prefix tuning cannot say.
    """
    backbone, head = adapter.backbone, adapter.head or adapter.backbone.head
    config = backbone.config
    _check_texts("peft: ", backbone)
    kind = kind_of(backbone, head)
    if kind not in TASKS:
        raise InputError(f"peft: PEFT has no prompts under a head of kind '{kind}'; expected {', '.join(TASKS)[2:]}")
    prompted = "embeddings/prompt/tokens" in adapter.params
    peft_type = PROMPT if prompted else PREFIX
    row = _row(peft_type, config.depth)
    tokens = {path: adapter.params[path] for path in row.paths if path in adapter.params}
    rest = {renamed(path, HEAD, SOURCE_HEAD): x for path, x in adapter.params.items() if path not in tokens}
    length = len(next(iter(tokens.values())))
    said = (methods.prompt if prompted else methods.prefix)(length)
    if rest.keys() - backbone.params.keys() - _heads(rest) or not _computes(adapter, said):
        raise InputError(f"peft: method '{adapter.method.name}' adds what PEFT's {peft_type} has not; it has one alone")
    if head and not head.tied:
        own = HEAD if adapter.head else SOURCE_HEAD
        rest |= {path.replace(own, SOURCE_HEAD, 1): x for path, x in adapter.tree.items() if path.startswith(own)}
    elif _heads(rest):
        raise InputError("peft: a head that is tied to the word embeddings cannot be saved with an adapter")
    names = _table(family_of(backbone)[1].names(config, kind), peft_type, backbone)
    tree = {SHARED + name: x for name, x in names.write(rest, names.prefix if kind else "").items()}
    saved = {names.called(path)[0].rpartition(".")[0] for path in rest}
    values = {
        "peft_type": peft_type,
        "task_type": TASKS[kind],
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": backbone.origin and (backbone.origin.options or {}).get("revision"),
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": next(iter(tokens.values())).shape[-1],
        "num_transformer_submodules": 1,
        "num_attention_heads": config.heads if prompted else config.heads_at("attention/key/kernel"),
        "num_layers": config.depth,
        "modules_to_save": sorted(saved) or None,
    }
    trained = {"encoder_hidden_size": config.width, "prefix_projection": False}
    values |= {"prompt_tuning_init": "RANDOM"} if prompted else trained
    return values, tree | Names((row,)).write(tokens, "")


def _check_texts(what, backbone):
    if "input_ids" not in backbone.config.inputs or backbone.config.towers:
        taken = ", ".join(backbone.config.inputs)
        raise InputError(
            f"{what}PEFT has prompts and prefixes for models of texts alone; '{backbone.name}' takes {taken}"
        )


def _directory(where):
    return where.parent if where.is_file() else where


def _config(path: epath.Path) -> Mapping[str, Any]:
    values = files.read_json(path, peft_config.LARGEST)
    shown = {key: cut(json.dumps(x)) for key, x in values.items()}
    if unknown := [f"{key}={shown[key]}" for key, x in sorted(values.items()) if x and key not in READ | IRRELEVANT]:
        raise InputError(f"{path}: not supported: {tensors.some(unknown)}")
    length = values.get("num_virtual_tokens")
    if type(length) is not int or not 1 <= length <= 2**16:
        raise InputError(
            f"{path}: num_virtual_tokens is {shown.get('num_virtual_tokens')}; expected a whole number above 0"
        )
    if values.get("num_transformer_submodules") not in (None, 1):
        raise InputError(f"{path}: num_transformer_submodules is {shown['num_transformer_submodules']}; expected 1")
    for key, kind, expected in (("auto_mapping", dict, "an object"), ("task_type", str, "a name")):
        if not isinstance(values.get(key), kind | None):
            raise InputError(f"{path}: {key} is {shown[key]}; expected {expected}")
    if not all(isinstance(x, str) for x in peft_config.listed(values.get("modules_to_save"))):
        raise InputError(f"{path}: modules_to_save is {shown['modules_to_save']}; expected a list of names")
    return values


def _tensors(where):
    if not (where / WEIGHTS).exists():
        names = sorted(path.name for path in where.iterdir())
        tensors.refuse_pickles(where, names, tensors.conversion(where, "adapter"))
        raise InputError(f"{where / WEIGHTS} is missing")
    found = tensors.read_safetensors(where / WEIGHTS)
    if offenders := [
        f"'{name}' (expected {SHARED}...)" for name in found if not name.startswith(SHARED) and name != OWN
    ]:
        raise InputError(f"{where / WEIGHTS}: not supported: {tensors.some(offenders)}")
    return {name.removeprefix(SHARED): tensor for name, tensor in found.items()}


def _row(peft_type: str, depth: int) -> Row:
    """The line of the table for `prompt_embeddings`."""
    if peft_type == PROMPT:
        return Row(OWN, "embeddings/prompt/tokens", LEAF)
    parts = [f"encoder/block_{i}/attention/prefix/{name}" for i in range(depth) for name in ("key", "value")]
    layout = Layout(lambda x: tuple(np.split(x, len(parts), axis=1)), lambda *xs: np.concatenate(xs, axis=1))
    return Row(OWN, tuple(parts), {"": ("{}", layout)})


def _table(names: Names, peft_type: str, backbone: Backbone) -> Names:
    """The table of the base by the names of modules in memory, which PEFT looks for, with `prompt_embeddings`."""

    def row(base):
        first, *others = (*base.also, base.theirs)
        return dataclasses.replace(base, theirs=first, also=tuple(others))

    return Names((*map(row, names.rows), _row(peft_type, backbone.config.depth)), names.prefix)


def _heads(paths):
    return {path for path in paths if path.startswith(SOURCE_HEAD)}


def _without_head(params):
    return {path: x for path, x in params.items() if not path.startswith(SOURCE_HEAD)}


def _computes(adapter: Adapter, said: methods.Method) -> bool:
    """Whether a method computes what another one does of the same leaves."""
    example, shapes = adapter.backbone.config.inputs, jax.eval_shape(lambda: dict(adapter.tree))

    def program(method):
        model = Intercepted(adapter.model, method.adds)
        return jax.jit(lambda tree, inputs: apply(model, tree, inputs)).lower(shapes, dict(example)).as_text()

    return program(adapter.method) == program(said)
