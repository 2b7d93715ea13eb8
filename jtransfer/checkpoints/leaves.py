"""The leaves of a model that is loaded: which there are, where each goes, and those that start anew."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jtransfer import patterns
from jtransfer.checkpoints.names import SourceTensor, assign
from jtransfer.errors import InputError, first_line
from jtransfer.models import STATISTICS, Architecture, Head, Headed, complete, of_config, quantized, shapes_of
from jtransfer.storage.arrays import aligned
from jtransfer.tree import Tree, label, prefixed, size

Place = Sharding | Callable[[str, tuple[int, ...]], Sharding] | str | None

MOST_FRESH = 1 << 28
"""Values that a head may have that starts anew: a gigabyte in float32."""


SHOWN = 10
"""The most leaves that a line of a log names."""


def summed_up(paths: Collection[str]) -> str:
    """Leaves as a line of a log has them: each by its path, or of many their number in each module.

    >>> summed_up([f"encoder/block_{i}/norm_1/scale" for i in range(30)])
    'encoder/... (30 leaves); `fresh` of the backbone lists them'
    """
    if len(paths) <= SHOWN:
        return ", ".join(paths)
    numbers = Counter(path.split("/")[0] for path in paths)
    each = ", ".join(f"{module}/... ({number} leaves)" for module, number in numbers.items())
    return f"{each}; `fresh` of the backbone lists them"


def expected(where: Any, config: Architecture, head: Head | None) -> Tree:
    """Shapes of every leaf of the model that a checkpoint's config describes.

    Raises:
        InputError: whatever tracing the model of a hostile config raises, as an error of `where` it is from.
    """
    try:
        return _shapes(config, head)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: the config describes no model that can be built ({first_line(error)})") from error


@lru_cache(maxsize=32)
def _shapes(config, head):
    """Blocks are alike from the second on, which is traced and stands for the others: it takes longer than reading."""
    depth = vars(config).get("depth", 1)  # a property of that name is a sum over stacks whose blocks differ
    model = of_config(dataclasses.replace(config, depth=2) if depth > 2 else config)
    shapes = shapes_of(Headed(model, head) if head else model, config.inputs)
    second = {path: leaf for path, leaf in shapes.items() if "/block_1/" in path} if depth > 2 else {}
    others = {path.replace("/block_1/", f"/block_{i}/"): x for i in range(2, depth) for path, x in second.items()}
    return shapes | others


def included(what: str, pattern: str | None, paths: Collection[str]) -> set[str]:
    """The paths of the leaves that a checkpoint is to give: those that a pattern matches as a whole, or all for None.

    The statistics of a BatchNorm go with its layer: they are matched without the `batch_stats/` before their paths.

    >>> included("include", "stem/.*", ["stem/norm/scale", "batch_stats/stem/norm/mean", "stage_0/block_0/conv/kernel"])
    {'stem/norm/scale', 'batch_stats/stem/norm/mean'}

    Raises:
        InputError: a pattern that matches nothing, with the nearest path, or that could take long, as it may be of a
            directory of somebody else's; `what` is the pattern's name.
    """
    if pattern is None:
        return set(paths)
    own = {path: path.removeprefix(STATISTICS) for path in paths}
    try:
        patterns.check([pattern])
        labels = label(own.values(), [(pattern, True), (".*", False)])
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    return {path for path in paths if labels[own[path]]}


def sources(
    where: Any, checkpoint: Any, shapes: Tree, taken: Collection[str], fresh: Callable[[str], bool], headless: bool
) -> dict[str, SourceTensor]:
    """The tensor that fills each leaf which is taken of a checkpoint.

    Args:
        where: The checkpoint, for errors.
        checkpoint: With its `names` and `tensors`.
        shapes: Of all leaves of its model.
        taken: Paths of leaves. Where these are not all, tensors that fill none of them are not looked at.
        fresh: As of `assign`.
        headless: As of `assign`.

    Raises:
        InputError: as `assign`.
    """
    names, tensors = checkpoint.names, checkpoint.tensors
    if len(taken) < len(shapes):
        tensors = {name: x for name, x in tensors.items() if any(to.path in taken for to in names.targets(name))}
    found = assign(names, tensors, shapes, where, lambda path: path not in taken or fresh(path), headless=headless)
    return {path: source for path, source in found.items() if path in taken}


def placer(sharding: Place, dtype: str) -> Callable[[str, np.ndarray], Any]:
    """What brings an array to the place and the dtype of the leaf at a path; `sharding` is as for `load`."""
    dtype = jax.numpy.dtype(dtype)

    def wanted(path, own):  # statistics lose a tenth of a step in half precision
        if quantized.is_part(path):
            return own
        return np.dtype(np.float32) if path.startswith(STATISTICS) else dtype

    def host(path, x):
        return x if x.dtype == wanted(path, x.dtype) else x.astype(wanted(path, x.dtype))

    def device(path, x):
        where = sharding(path, x.shape) if callable(sharding) else sharding
        if isinstance(where, Sharding) and len(where.device_set) > 1:
            return jax.make_array_from_callback(x.shape, where, lambda index: host(path, x[index]))
        if x.dtype == wanted(path, x.dtype):  # a copy: the file may change under its mapping
            return jax.device_put(x, where, may_alias=False)
        return jax.device_put(_cast(x, wanted(path, x.dtype)), where, may_alias=True)

    return host if sharding == "host" else device


def filled(
    sources: Mapping[str, SourceTensor],
    changes: Mapping[str, Callable],
    fill: Callable[[str, np.ndarray], Any],
    kept: Collection[str],
    bits: int,
) -> Tree:
    """The leaves of a model, read one after the other.

    Args:
        sources: By leaf, what it is read from.
        changes: By leaf, what becomes of it, if anything.
        fill: As of `placer`.
        kept: Leaves that stay as they are read; of all others, which are kernels, quantised parts are made.
        bits: Of these.
    """
    tree = {}
    for path, source in sources.items():
        leaf = changes.get(path, np.asarray)(source.read())
        if path in kept:
            tree[path] = fill(path, leaf)
            continue
        parts = prefixed(quantized.quantize(leaf, bits), path.removesuffix("kernel"))
        tree |= {part: fill(part, np.asarray(x)) for part, x in parts.items()}
    return tree


def fingerprint(about: str, tree: Tree) -> str:
    """16 hexadecimal digits over what is said of a model and all of its leaves, wherever they were read from."""
    digest = hashlib.sha256(about.encode())
    for path, leaf in sorted(tree.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path}{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).reshape(-1))
    return digest.hexdigest()[:16]


def _cast(x, dtype):
    """`x` in another dtype, aligned so that a CPU device takes the memory over instead of copying it."""
    cast = aligned(x.shape, dtype)
    np.copyto(cast, x, casting="unsafe")
    return cast


def initialised(where: Any, config: Architecture, head: Head | None, tree: Tree, fresh: Tree, there: int = 0) -> Tree:
    """The leaves `fresh` of a model, from key 0; of the others in `tree` only the shapes are used, and no copy made.

    Args:
        where: The checkpoint, for errors.
        config: Of the model.
        head: Of the model; None for none.
        tree: Leaves that it has.
        fresh: Shapes of those that are made.
        there: Values in the checkpoint's files, as many of which may be made anew.

    Raises:
        InputError: a size that no tensor of the checkpoint vouches for, and that is too large to be made.
    """
    if size(fresh) > max(MOST_FRESH, there):
        path, leaf = max(fresh.items(), key=lambda item: math.prod(item[1].shape))
        raise InputError(
            f"{where}: a new {path} of {list(leaf.shape)} has {math.prod(leaf.shape):,} values; expected "
            f"{max(MOST_FRESH, there):,} at most"
        )
    model = Headed(of_config(config), head) if head else of_config(config)
    shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in tree.items()}

    @jax.jit
    def make(key):
        others = {path: jax.numpy.zeros(*shape) for path, shape in shapes.items()}
        whole = complete(model, key, others, config.inputs)
        return {path: whole[path] for path in fresh}

    return make(jax.random.key(0))
