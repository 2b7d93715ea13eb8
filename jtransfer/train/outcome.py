"""The result of a training, under `model/`: a plain model, or what the method made of its backbone."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jtransfer import checkpoints
from jtransfer.checkpoints import Adapter, deltas
from jtransfer.devices import hosts, sharding
from jtransfer.errors import InputError
from jtransfer.models import STATISTICS, of_source_head
from jtransfer.tree import FROZEN, Tree


def is_plain(run: Any) -> bool:
    """Whether the result of a run (a `Run`) is a plain model: no method, old or new, adds to its forward pass."""
    return run.merges and not run.task.start.base.methods


def refusal(run: Any) -> str:
    """Why the result of a run (a `Run`) cannot be kept in a form that `jtransfer.load` reads; empty where it can."""
    if is_plain(run):
        return ""
    try:
        deltas.check(hollow(run))
    except InputError as error:
        return str(error)
    return ""


def save(run: Any, tree: Tree, directory: epath.PathLike) -> None:
    """Write the result of a run that has no `refusal`; every process calls this, and the first one writes.

    Args:
        run: A `Run`.
        tree: All leaves at the end, not merged, laid out over the mesh.
        directory: Where; files there are replaced.

    Raises:
        MachineError: a file cannot be written.
    """
    start, plain = run.task.start, is_plain(run)
    if plain:
        tree = {path: leaf for path, leaf in run.method.merge(tree).items() if not of_source_head(path)}
    else:
        known = _known(run)
        tree = {path: leaf for path, leaf in tree.items() if path.startswith(STATISTICS) or _is_new(run, path, known)}
    whole = jax.jit(lambda x: x, out_shardings=sharding.everywhere(run.mesh))(tree)
    if not hosts.is_first():
        return
    if plain:
        leaves, beside = whole, (start.preprocessor, start.tokenizer)
        checkpoints.save(directory, start.module, leaves, start.classes, *beside, head=start.head)
    else:
        deltas.save(directory, adapter(run, jax.device_get(whole)), start.beside())


def adapter(run: Any, tree: Mapping[str, Any]) -> Adapter:
    """What a run made of its backbone: the leaves that are new, that learned, or whose statistics changed.

    Args:
        run: A `Run`.
        tree: The leaves of the run, not merged; those of the backbone that did not learn may be missing.
    """
    start, known = run.task.start, _known(run)

    def is_new(path, leaf):
        if path.startswith(STATISTICS):
            return path not in known or not np.array_equal(leaf, known[path])
        return _is_new(run, path, known)

    params = {path: leaf for path, leaf in tree.items() if is_new(path, leaf)}
    return Adapter(start.base, run.method, params, start.head, start.classes).folded()


def hollow(run: Any) -> Adapter:
    """`adapter` of placeholders: leaves of the shapes of a run (a `Run`), filled with NaN, whole numbers with 0."""
    shapes = run.adapted.shapes | {path: x for path, x in run.adapted.state.items() if path not in _known(run)}
    fill = {path: x.dtype.type(0 if np.issubdtype(x.dtype, np.integer) else np.nan) for path, x in shapes.items()}
    return adapter(run, {path: np.broadcast_to(fill[path], x.shape) for path, x in shapes.items()})


def _known(run):
    base = run.task.start.base
    return base.params | base.state


def _is_new(run, path, known):
    return path not in known or run.adapted.rates[path] != FROZEN
