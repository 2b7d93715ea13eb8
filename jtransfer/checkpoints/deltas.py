"""What a method made of a backbone, in our own layout: the leaves that are new, the method's text, and the base's name.

`config.json` has `method`, and `base` in place of an architecture: the name and the fingerprint of the backbone that
the leaves in `model.safetensors` stand beside. Where there is no base, as of a model that started at random, it has the
architecture, and `model.safetensors` all leaves. The method is read from its text, so that no code is kept; a user's
module that the text names is imported on the user's word alone.
"""

import ast
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jtransfer import expressions, files, imports, kinds, methods, patterns
from jtransfer.checkpoints import bases, claims, heads, layouts, leaves, resizing, tensors
from jtransfer.checkpoints.adapter import HEAD, Adapter, merges
from jtransfer.checkpoints.backbone import Backbone, Ran
from jtransfer.checkpoints.beside import files_beside
from jtransfer.checkpoints.families.values import words
from jtransfer.checkpoints.names import LEAF, Names, Row, assign
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown
from jtransfer.methods.intercepted import Intercepted, under_those_of
from jtransfer.models import SOURCE_HEAD, STATISTICS, Head, Headed, Heads, apply, described, of_config, shapes_of
from jtransfer.storage import directories
from jtransfer.tree import FROZEN, mismatches, prefixed, select

log = logging.getLogger("jtransfer")

CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
KEYS = ("method", "modules", "base", "head", "tasks", "classes", "preprocessor")


def save(directory: epath.PathLike, adapter: Adapter, beside: Mapping[str, bytes] | None = None) -> None:
    """Write what `jtransfer.load` reads as the adapted model, wherever its base is found again.

    Args:
        directory: Where; files there are replaced.
        adapter: Which passes `check`.
        beside: Files of its image processor and tokenizer; by default those of its backbone.

    Raises:
        InputError: a user's module in the method's text that cannot be imported.
        MachineError: it cannot be written.
    """
    directories.write_together(directory, _contents(directory, adapter, beside))


def fill(draft: Path, adapter: Adapter, beside: Mapping[str, bytes] | None = None) -> None:
    """Write what `save` does into a draft of a directory beside its place, without a record.

    Raises:
        InputError: as `save`.
    """
    for name, content in _contents(draft, adapter, beside).items():
        (draft / name).write_bytes(content)


def _contents(directory, adapter, beside):
    """The files of an adapter, by name."""
    from safetensors.numpy import save as to_bytes

    files_of_inputs = dict(beside if beside is not None else files_beside(adapter.backbone))
    text, backbone, own = adapter.method.name, adapter.backbone, _kept(adapter)
    values: dict[str, Any] = {"method": text, "modules": expressions.modules(text, "method")}
    told = bases.is_told(backbone)
    values |= {"base": bases.say(directory, backbone, not adapter.head)} if told else described(backbone.config)
    values |= heads.write(adapter.head, adapter.classes) if adapter.head else {}
    if processor := files_of_inputs.pop(PROCESSOR, None):
        values["preprocessor"] = json.loads(processor)
    weights = to_bytes({path: np.asarray(leaf, order="C") for path, leaf in sorted(own.items())})
    return {WEIGHTS: weights, CONFIG: files.as_json(values).encode(), **files_of_inputs}


def check(adapter: Adapter) -> None:
    """Refuse what `load` would not read back as it is, before anything is trained or written: only shapes are used.

    Raises:
        InputError: a method whose text says another one, or that changes the head itself; leaves that are not those
            which the method adds or trains; a base that no name tells.
    """
    text, backbone = adapter.method.name, adapter.backbone
    what, told = f"method '{text}'", bases.is_told(backbone)
    if any(path.startswith(STATISTICS + HEAD) for path in adapter.params):
        raise InputError(f"{what}: a head with BatchNorm is not kept apart from its backbone; expected a plain head")
    if backbone.methods and not told:
        raise InputError(f"{what}: its base '{backbone.name}' runs under a method and is no longer as it was loaded")
    try:
        _bounded(text)
        said = methods.parse(text)
    except InputError as error:
        raise InputError(f"an adapter is read by its method's text, which cannot be done here: {error}") from None
    known = _known(backbone.params | backbone.state, adapter.head) if told else {}
    _, wanted = _expected(said, adapter.model, known, backbone.config.inputs)
    if differ := sorted(path for path in _kept(adapter).keys() ^ wanted.keys() if not path.startswith(STATISTICS)):
        raise InputError(f"{what}: what is kept of it and what it adds and trains differ in {tensors.some(differ)}")
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in _known(adapter.tree, adapter.head).items()}
    if said.merge and adapter.method.merge and merges(said, adapter.model, backbone.config.inputs, shapes, known):
        same = _program(said.merge, shapes) == _program(adapter.method.merge, shapes)
    else:
        inputs, inside = backbone.config.inputs, Intercepted(backbone.model, said.adds)
        head = (adapter.head, HEAD.rstrip("/")) if adapter.head else (backbone.head,) if backbone.head else ()
        models = Intercepted(adapter.model, adapter.method.adds), Headed(inside, *head) if head else inside
        one, other = (_program(lambda tree, x, model=model: apply(model, tree, x), shapes, inputs) for model in models)
        same = one == other
    if not same:
        raise InputError(
            f"{what}: what it computes is not what its text says of the model without the head, by which an adapter is "
            "read; it may change the head, or have been made otherwise than by methods.parse"
        )


def is_one(where: epath.Path) -> bool:
    """Whether a directory, or that of a file, holds what `save` writes; a damaged one is told by other readers."""
    file = _directory(where) / CONFIG
    try:
        values = files.read_json(file, layouts.LARGEST_CONFIG) if file.exists() else {}
    except InputError:
        return False
    return "method" in values and "model_type" not in values


def read(
    name: str,
    where: epath.Path,
    asked: Mapping[str, Any],
    dtype: str,
    param_dtype: str,
    sharding: leaves.Place,
    trust: Iterable[str],
) -> Backbone:
    """The backbone in a directory of which `is_one` is true; arguments are those of `load`.

    Raises:
        InputError: one line that says what is damaged, does not fit or is not there, or which module is not trusted.
    """
    directory = _directory(where)
    made = _opened(name, directory, trust)
    base, method, ran, own, names, sources = made.base, made.method, made.ran, made.head, made.classes, made.sources
    known = _known(base.params | base.state, own)
    tree = known | {path: source.read() for path, source in sources.items()}
    if made.plain:
        tree = method.merge(known | {path: jnp.asarray(tree[path]) for path in sources})
        under, ran_under = base.model, base.methods
    else:
        under, ran_under = Intercepted(base.model, method.adds), (*base.methods, ran)
    if own:
        rest = {path: leaf for path, leaf in tree.items() if not path.startswith(HEAD)}
        tree = rest | prefixed(select(tree, HEAD), SOURCE_HEAD)
    options = {key: x for key, x in asked.items() if x is not None}
    origin = layouts.Origin(directory, made.values, "jtransfer", layouts.CLASSIFICATION if own else "", options)
    head, classes = (own, names) if own else (base.head, base.classes)
    about = {"name": name, "model": under, "head": head, "classes": classes, "methods": ran_under, "origin": origin}
    return _placed(dataclasses.replace(base, **about), tree, asked, dtype, param_dtype, sharding)


def adapter(backbone: Backbone, name: str, where: epath.Path, trust: Iterable[str]) -> Adapter:
    """What is in a directory of which `is_one` is true, on the base that it was made of.

    Raises:
        InputError: another base; and as `read`.
    """
    made = _opened(name, _directory(where), trust, backbone)
    params = {path: jnp.asarray(source.read()) for path, source in made.sources.items()}
    return Adapter(backbone, made.method, params, made.head, made.classes)


class Opened(NamedTuple):
    """What a directory says and has, with nothing read but its tensors' names.

    Attributes:
        values: Of its config.
        base: The backbone that its leaves stand beside.
        method: That made them.
        ran: What a backbone that runs under the method says of it.
        head: Of the adapted task, if any.
        classes: Names of its classes.
        sources: By leaf, what it is read from.
        plain: Whether the method merges into the plain model.
    """

    values: dict[str, Any]
    base: Backbone
    method: methods.Method
    ran: Ran
    head: Head | Heads | None
    classes: tuple[str, ...]
    sources: dict[str, Any]
    plain: bool


def _opened(name: str, directory: epath.Path, trust: Iterable[str], base: Backbone | None = None) -> Opened:
    """Check all that a directory says; the base is the one given, or the one that it names."""
    directories.verify(directory)
    file, found = directory / CONFIG, tensors.read_directory(directory)
    values = files.read_json(file, layouts.LARGEST_CONFIG)
    with _said_of(file):
        _check_keys(values)
        names = words(values, "classes")
        method, ran = _method(name, values, trust)
    headed = bool(names) or bool({heads.KEY, heads.SEVERAL} & values.keys())
    if base is None:
        base = _base(name, file, values, headed, found, trust)
    else:
        bases.refuse_other(file, values.get("base"), base, not headed)
    with _said_of(file):
        own = heads.read(values, names, base.config)
    model = Headed(base.model, own, HEAD.rstrip("/")) if own else base.whole
    known = _known(base.params | base.state, own)
    with _said_of(file, f"method '{ran.text}' does not run on the base"):
        adapted, wanted = _expected(method, model, known, base.config.inputs)
        plain = merges(method, model, adapted.example, adapted.shapes, adapted.base)
    wanted |= {path: leaf for path, leaf in adapted.state.items() if path in found}
    rows = tuple(Row(path, path, LEAF) for path in found if not {"{", "}"}.intersection(path))
    sources = assign(Names(rows), found, wanted, directory, lambda path: False, f"method '{ran.text}' on its base")
    return Opened(values, base, method, ran, own, names, sources, plain)


def _base(name, file, values, headed, found, trust):
    """The backbone that the leaves stand beside; without leaves where they are all there are."""
    if "base" in values:
        return bases.find(file, values["base"], not headed, trust)
    with _said_of(file):
        module = layouts.own_module(values)
    claims.size(file.parent, module.config, len(found))
    return Backbone(name, module, {})


@contextmanager
def _said_of(file: epath.Path, what: str = "") -> Iterator[None]:
    """Whatever is raised within this block, by a user's code too, is said of a file in one line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{CONFIG}: ')}") from None
    except Exception as error:
        raise InputError(
            f"{file}: {what or 'its values describe no model'} ({imports.type_and_text(error)})"
        ) from error


def _check_keys(values: Mapping[str, Any]) -> None:
    if "base" in values and (unknown := sorted(values.keys() - set(KEYS))):
        raise InputError(f"unknown key {shown(unknown[0])}; {nearest(unknown[0], KEYS)}")
    kinds.check(values["method"], kinds.NAME, "method")
    kinds.check(values.get("modules", {}), kinds.by_name(kinds.NAME), "modules")


def _method(name, values, trust):
    """The method, and what a backbone that runs under it says of it."""
    text, before = values["method"], values.get("modules", {})
    _bounded(text)
    with imports.trusting(trust, f"backbone '{name}'", "trust=['{0}'] to jtransfer.load, or --config.load.trust={0}"):
        method, now = methods.parse(text), expressions.modules(text, "method")
    # Refusing would lose every model to an edit of anything in the file that holds its method.
    if changed := [module for module, digest in now.items() if before.get(module) != digest]:
        log.warning(
            "backbone '%s': the source of module '%s' is not the one that it was saved with; where what the method "
            "computes has changed, so have the outputs",
            *(name, changed[0]),
        )
    return method, Ran(text, tuple(now.items()))


def _bounded(text: str) -> None:
    """Refuse a method whose text could keep its reader waiting for ever, by a pattern in an option of ours.

    Raises:
        InputError: with the pattern.
    """
    calls = (node for node in ast.walk(expressions.parse(text, "method")) if isinstance(node, ast.Call))
    ours = (node for call in calls if isinstance(call.func, ast.Name) for node in ast.walk(call))
    found = [node.value for node in ours if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    try:
        patterns.check(found)
    except InputError as error:
        raise InputError(f"method {shown(text)}: {error}") from None


def _known(tree, own):
    """The leaves of a tree without a head in whose place there is another."""
    return {path: leaf for path, leaf in tree.items() if not (own and _in_head(path))}


def _kept(adapter):
    """The leaves that are written: without a base that is told, all."""
    return adapter.params if bases.is_told(adapter.backbone) else _known(adapter.tree, adapter.head)


def _expected(method, model, known, inputs):
    """The model under a method, and of its leaves those that the base does not give: added, or trained."""
    adapted = methods.adapt(method, model, known, inputs, fresh=("",))
    new = {path: x for path, x in adapted.shapes.items() if path not in known or adapted.rates[path] != FROZEN}
    return adapted, new | {path: x for path, x in adapted.state.items() if path not in known}


def _program(function: Callable, *args: Any) -> str:
    """What a function computes of arguments of some shapes, in words that are equal for equal computations."""
    return jax.jit(lambda *args: function(*args)).lower(*args).as_text()


def _placed(backbone, tree, asked, dtype, param_dtype, sharding):
    """A backbone with the leaves of a tree, for the inputs, head, dtypes and places that were asked for."""
    config, changes = backbone.config, {}
    if config.param_dtype:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype)
    if asked["image"] is not None or asked["channels"] is not None:
        how = asked["positions"] or "bicubic"
        config, changes = resizing.resize(backbone.config, config, asked["image"], asked["channels"], how)
    where, own = backbone.origin.directory, backbone.head
    kind = layouts.chosen(where, own, asked["head"], asked["classes"])
    model = under_those_of(backbone.model, of_config(config))
    expected = shapes_of(Headed(model, kind) if kind else model, config.inputs)
    tree = {path: changes.get(path, np.asarray)(np.asarray(x)) for path, x in tree.items()}
    stays = kind == own or (kind and own and kind.kind == own.kind)  # if with another number of classes
    others = {
        path: x
        for path, x in tree.items()
        if not _in_head(path) or (stays and path in expected and expected[path].shape == x.shape)
    }
    if fresh := {path: x for path, x in expected.items() if path not in others and _in_head(path)}:
        log.warning("backbone '%s': freshly initialised, as it has none that fits: %s", backbone.name, list(fresh))
        others |= leaves.initialised(where, config, kind, others, fresh)
    if wrong := mismatches(expected, others):
        raise InputError(f"backbone '{backbone.name}' cannot take such inputs: {'; '.join(wrong)}")
    fill = leaves.placer(sharding, param_dtype)
    tree = {path: fill(path, np.asarray(x)) for path, x in others.items()}
    state = {path: x for path, x in tree.items() if path.startswith(STATISTICS)}
    params = {path: x for path, x in tree.items() if path not in state}
    about = {"head": kind, "classes": heads.named(kind, backbone.classes), "fresh": tuple(fresh)}
    return dataclasses.replace(backbone, model=model, params=params, state=state, **about)


def _directory(where):
    return where.parent if where.is_file() else where


def _in_head(path):
    return path.startswith(SOURCE_HEAD)
