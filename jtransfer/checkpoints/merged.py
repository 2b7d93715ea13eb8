"""Several backbones that were trained from one start, made one: `methods.merging` on whole checkpoints."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath

from jtransfer.checkpoints.backbone import Backbone, save
from jtransfer.checkpoints.beside import files_beside
from jtransfer.errors import InputError
from jtransfer.methods import merging
from jtransfer.models import SOURCE_HEAD, STATISTICS
from jtransfer.tree import Tree

LINEAR = (f"{SOURCE_HEAD}kernel", f"{SOURCE_HEAD}bias")
PROCESSOR = "preprocessor_config.json"


def merge(
    backbones: Sequence[Backbone],
    how: merging.Merge,
    base: Backbone | None = None,
    score: Callable[[Backbone], float] | None = None,
) -> tuple[Backbone, list[int]]:
    """Merge backbones that were trained from one start.

    >>> soup, _ = merge([jt.load("runs/a/model"), jt.load("runs/b/model")], merging.soup())  # doctest: +SKIP

    A linear head that the base does not have, or has for other classes, started at zero, and is what training added.

    Args:
        backbones: Of one architecture, with heads of the same classes, under the same methods, if any.
        how: The way of merging.
        base: Where they started; needed where `how.needs` says so.
        score: How good a backbone is on held-out rows, for a way that needs data; higher is better.

    Returns:
        The merged backbone, which has the name of the first, and the numbers of the backbones in it, from 0.

    Raises:
        InputError: too few backbones, what `how` needs is missing or what it does not need is given, or backbones
            that differ, in one line.
    """
    check_count(how, len(backbones))
    check_given(how, {"base": base, "data": score})
    first, *others = backbones
    for other in (*others, *filter(None, [base])):
        _refuse_another(first, other, other is base)
    trees = [backbone.params | backbone.state for backbone in backbones]
    start = base and _start(base, first)
    names = [f"{backbone.name} ({i})" for i, backbone in enumerate((*backbones, *filter(None, [base])))]
    merging.check(dict(zip(names, [*trees, *filter(None, [start])], strict=True)))
    tree, chosen = how.call(trees, start, score and (lambda tree: score(_with(first, tree))))
    return _with(first, tree), chosen


def check_count(how: merging.Merge, count: int) -> None:
    """Refuse fewer models than a way of merging takes.

    Raises:
        InputError: with both numbers.
    """
    if count < how.least:
        raise InputError(f"merge '{how.name}': {count} model{'s' * (count != 1)}; expected {how.least} at least")


def check_given(how: merging.Merge, given: Mapping[str, Any]) -> None:
    """Refuse what a way of merging needs and is not given, and what it is given and does not read.

    Args:
        how: The way of merging.
        given: Under "base" and "data", what is given; None or empty where it is not.

    Raises:
        InputError: naming it.
    """
    for name, value in given.items():
        if name == how.needs and not value:
            raise InputError(f"merge '{how.name}' needs {name}; name it in --{name}")
        if name != how.needs and value:
            raise InputError(f"merge '{how.name}' does not read --{name}; leave it out")


def write(directory: epath.PathLike, backbone: Backbone) -> None:
    """Write a merged backbone in our own layout, with what makes its inputs, as `jtransfer.load` reads it.

    Raises:
        InputError: it runs under a method that no plain model has.
        MachineError: it cannot be written.
    """
    refuse_methods(backbone)
    files = files_beside(backbone)
    processor = files.pop(PROCESSOR, None)
    tree = backbone.params | backbone.state
    about = backbone.classes, json.loads(processor) if processor else None, files
    save(directory, backbone.model, tree, *about, head=backbone.head)


def refuse_methods(backbone: Backbone) -> None:
    """Refuse a backbone that runs under a method: what is written is a plain model.

    Raises:
        InputError: naming the method.
    """
    if backbone.methods:
        raise InputError(
            f"'{backbone.name}' runs under '{backbone.methods[-1].text}', which no plain model has; merge it from "
            "Python, with jtransfer.checkpoints.merge"
        )


def _refuse_another(first: Backbone, other: Backbone, is_base: bool) -> None:
    """Refuse a backbone that computes otherwise than the first does, or tells other classes."""
    compared = {"another architecture": lambda b: b.config, "other methods": lambda b: b.methods}
    if not is_base:
        compared |= {"another head": lambda b: b.head, "other classes": lambda b: b.classes}
    for what, of in compared.items():
        if of(first) != of(other):
            raise InputError(f"'{other.name}' has {what} than '{first.name}'; expected models of one start")


def _start(base: Backbone, model: Backbone) -> Tree:
    """The leaves of the base, with the start of the model's head."""
    tree = base.params | base.state
    own = {path for path in model.params if path.startswith(SOURCE_HEAD)}
    if (base.head, base.classes) != (model.head, model.classes):
        tree = {path: leaf for path, leaf in tree.items() if not path.startswith(SOURCE_HEAD)}
        if own <= set(LINEAR):
            tree |= {path: jnp.zeros_like(model.params[path]) for path in own}
    return tree


def _with(backbone: Backbone, tree: Tree) -> Backbone:
    """A backbone with other leaves."""
    state = {path: jnp.asarray(leaf) for path, leaf in tree.items() if path.startswith(STATISTICS)}
    params = {path: jnp.asarray(leaf) for path, leaf in tree.items() if path not in state}
    origin = backbone.origin and dataclasses.replace(backbone.origin, options=None)
    return dataclasses.replace(backbone, params=params, state=state, fresh=(), origin=origin)
