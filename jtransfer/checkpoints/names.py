"""Name tables: what a tensor is called elsewhere and which leaf of our tree it is, as data, in both directions.

    Row("encoder.layer.{}.output.dense", "encoder/block_{}/mlp/down", DENSE)

says that `encoder.layer.3.output.dense.weight`, transposed, is `encoder/block_3/mlp/down/kernel`, the bias its bias.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError, nearest
from jtransfer.models import SOURCE_HEAD, of_source_head
from jtransfer.tree import Tree


class Layout(NamedTuple):
    """How an array lies elsewhere and here; one of theirs may be several of ours.

    Attributes:
        load: From theirs to the tuple of ours; views where NumPy can.
        save: From ours, in that order, to theirs.
    """

    load: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    save: Callable[..., np.ndarray]


SAME = Layout(lambda x: (x,), lambda x: x)
TRANSPOSED = Layout(lambda x: (x.T,), lambda x: x.T)
CONVOLUTION = Layout(lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1))
"""PyTorch's `[out, in, height, width]` and `[height, width, in, out]`."""
ONE_BY_ONE = Layout(lambda x: (x.reshape(x.shape[:2]).T,), lambda x: x.T[:, :, None, None])
"""A 1x1 convolution as our dense layer: `[out, in, 1, 1]` and `[in, out]`."""

LayerKind = Mapping[str, tuple[str, Layout]]
LEAF: LayerKind = {"": ("{}", SAME)}
DENSE: LayerKind = {".weight": ("{}/kernel", TRANSPOSED), ".bias": ("{}/bias", SAME)}
NORM: LayerKind = {".weight": ("{}/scale", SAME), ".bias": ("{}/bias", SAME)}
EMBED: LayerKind = {".weight": ("{}/embedding", SAME)}
CONV: LayerKind = {".weight": ("{}/kernel", CONVOLUTION), ".bias": ("{}/bias", SAME)}
POINTWISE: LayerKind = {".weight": ("{}/kernel", ONE_BY_ONE), ".bias": ("{}/bias", SAME)}


def patches(patch: int, channels: int) -> LayerKind:
    """A convolution over patches as our dense layer: `[out, channels, p, p]` to `[p * p * channels, out]`."""

    def load(x):
        return (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),)

    def save(x):
        return x.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)

    return {".weight": ("{}/kernel", Layout(load, save)), ".bias": ("{}/bias", SAME)}


def fused(parts: int) -> LayerKind:
    """A dense layer whose outputs are those of `parts` of ours, one after the other."""
    kernel = Layout(
        lambda x: tuple(part.T for part in np.split(x, parts)), lambda *xs: np.concatenate([x.T for x in xs])
    )
    bias = Layout(lambda x: tuple(np.split(x, parts)), lambda *xs: np.concatenate(xs))
    return {".weight": ("{}/kernel", kernel), ".bias": ("{}/bias", bias)}


def padded(leading: int) -> Layout:
    """Positions `[1, patches, width]`, before which `leading` tokens have some here: zeros, which change nothing.

    Raises:
        InputError: in a call of `save`, positions of those tokens that are not zero.
    """

    def save(x):
        if np.any(x[:, :leading]):
            raise InputError("this layout has no positions of class tokens, and those of this tree are not zero")
        return x[:, leading:]

    return Layout(lambda x: (np.pad(x, ((0, 0), (leading, 0), (0, 0))),), save)


@dataclass(frozen=True)
class Row:
    """One line of a table; `{}` stands for a number, the same ones on both sides.

    Attributes:
        theirs: The name as files have it.
        ours: The path, or the paths where one of theirs is several of ours.
        kind: From the ends of names to the ends of paths, with the layout of each.
        also: Other names that are accepted, as those that transformers 5 gives modules in memory.
    """

    theirs: str
    ours: str | tuple[str, ...]
    kind: LayerKind = None
    also: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """`ours` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Target(NamedTuple):
    """Where a tensor goes: `layout.load(tensor)[part]` is the leaf at `path`."""

    path: str
    layout: Layout
    part: int


@dataclass(frozen=True)
class Names:
    """The table of an architecture.

    Attributes:
        rows: Its lines.
        prefix: What the backbone's names begin with in a checkpoint that has a head, as "vit.".
        ignored: Patterns of names that nothing here needs, each with the reason.
        constants: Of the ignored ones, those that their readers miss where a name is: `(pattern of that name, the
            missing name, its value)`.
    """

    rows: tuple[Row, ...]
    prefix: str = ""
    ignored: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, str, np.generic], ...] = ()

    def targets(self, name: str) -> list[Target]:
        """The leaves that a tensor of this name fills; none if the table does not know the name."""
        for stem in dict.fromkeys((name.removeprefix(self.prefix), name)):
            for numbers, row, end, layout in _matching(self._readers, stem):
                return [Target(end.format(path.format(*numbers)), layout, part) for part, path in enumerate(row.paths)]
        return []

    def in_head(self, name: str) -> bool:
        """Whether a tensor of this name belongs to the head."""
        return any(of_source_head(target.path) for target in self.targets(name))

    def ignores(self, name: str) -> bool:
        """Whether a rule says by name that the tensor is not needed."""
        stems = {name, name.removeprefix(self.prefix)}
        return any(pattern.fullmatch(stem) for pattern in self._ignored for stem in stems)

    def source(self, path: str) -> tuple[str, list[str], Layout] | None:
        """The name, without prefix, that a leaf is part of, all the leaves that make it up, and the layout."""
        for numbers, row, theirs, end, layout in _matching(self._writers, path):
            return theirs.format(*numbers), [end.format(p.format(*numbers)) for p in row.paths], layout
        return None

    def called(self, path: str) -> tuple[str, ...]:
        """Every name, without prefix, of the tensor that a leaf is part of: that of files first, then the others."""
        for numbers, row, theirs, _, _ in _matching(self._writers, path):
            end = theirs.removeprefix(row.theirs)
            return tuple((stem + end).format(*numbers) for stem in (row.theirs, *row.also))
        return ()

    def every(self, path: str) -> list[str]:
        """The name in each row that has a leaf, where one array stands in files twice."""
        return [theirs.format(*numbers) for numbers, _, theirs, _, _ in _matching(self._writers, path)]

    def outside(self, found: Collection[str]) -> set[str]:
        """Those of a file's names that are not of the backbone, and so of some head.

        Where any name has the backbone's prefix, they lack it; elsewhere their first part is that of none of its rows.
        """
        if self.prefix and any(name.startswith(self.prefix) for name in found):
            return {name for name in found if not name.startswith(self.prefix)}
        own = [row for row in self.rows if not of_source_head(row.paths[0])]
        firsts = {re.split(r"[./]", name)[0] for row in own for name in (row.theirs, *row.also)}
        return {name for name in found if re.split(r"[./]", name)[0] not in firsts}

    def write(self, tree: Tree, prefix: str | None = None) -> dict[str, np.ndarray]:
        """A tree in their names and layouts: the inverse of reading.

        Args:
            tree: Leaves of the backbone, and of its head under `source_head/`.
            prefix: Of the backbone's names; by default the table's where the tree has a head, and none where not.

        Raises:
            InputError: leaves that have no name in the table.
        """
        headed = any(path.startswith(SOURCE_HEAD) for path in tree)
        prefix = prefix if prefix is not None else self.prefix if headed else ""
        tensors, unknown = {}, []
        for path in tree:
            if (found := self.source(path)) is None or not all(part in tree for part in found[1]):
                unknown.append(path)
                continue
            name, parts, layout = found
            name = name if path.startswith(SOURCE_HEAD) else prefix + name
            if name not in tensors:
                leaves = [np.asarray(tree[part]) for part in parts]
                tensors[name] = np.asarray(layout.save(*leaves), order="C")
        if unknown:
            raise InputError(f"no name in this format for {', '.join(unknown)}")
        for pattern, constant, value in self.constants:
            found = [match for name in tensors if (match := re.fullmatch(pattern, name))]
            tensors |= {match.expand(constant): np.asarray(value) for match in found}
        return tensors

    @cached_property
    def _ignored(self):
        return [re.compile(pattern) for pattern, _ in self.ignored]

    @cached_property
    def _readers(self):
        return _by_form(
            (theirs + ending, row, end, layout)
            for row in self.rows
            for theirs in (row.theirs, *row.also)
            for ending, (end, layout) in row.kind.items()
        )

    @cached_property
    def _writers(self):
        return _by_form(
            (end.format(path), row, row.theirs + ending, end, layout)
            for row in self.rows
            for ending, (end, layout) in row.kind.items()
            for path in row.paths
        )


def _by_form(entries):
    """Entries `(template, ...)` by what all names have in common that the template stands for: each name looks at few.

    A file may have thousands of names, and a table of our own layout a row for each.
    """
    found: dict[str, list] = {}
    for place, (template, *entry) in enumerate(entries):
        pattern = _pattern(template) if NUMBER in template else None
        found.setdefault(_form(template) if pattern else template, []).append((place, pattern, entry))
    return found


def _matching(entries, name):
    """Of entries by form those whose template stands for a name, in their order: the numbers in it, and the entry."""
    near = [entry for key in {name, _form(name)} for entry in entries.get(key, ())]
    for _, pattern, entry in sorted(near, key=itemgetter(0)):
        if pattern is None:
            yield (), *entry
        elif match := pattern.fullmatch(name):
            yield match.groups(), *entry


NUMBER = "{}"
"""What stands for a number in a template."""


def _form(name):
    """A name or a template without its numbers."""
    return re.sub(r"(?:\d|\{\})+", NUMBER, name)


def _pattern(template: str) -> re.Pattern:
    return re.compile(r"(\d+)".join(re.escape(part) for part in template.split(NUMBER)))


class SourceTensor(NamedTuple):
    """The tensor that a leaf is read from, its name in the file, and the leaf as the target of it."""

    name: str
    tensor: Tensor
    target: Target

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the leaf; None if the tensor's own shape does not fit the layout at all."""
        try:
            hollow = np.broadcast_to(np.zeros((), self.tensor.dtype), self.tensor.shape)
            return self.target.layout.load(hollow)[self.target.part].shape
        except ValueError:
            return None

    def read(self) -> np.ndarray:
        """The leaf, as a view of the file where the layout allows."""
        return self.target.layout.load(self.tensor.read())[self.target.part]


def assign(
    names: Names,
    tensors: Mapping[str, Tensor],
    shapes: Tree,
    where: Any,
    fresh: Callable[[str], bool],
    fits: str = "its config.json",
    headless: bool = False,
) -> dict[str, SourceTensor]:
    """Find for every leaf the tensor that fills it.

    Args:
        names: The table.
        tensors: Of the checkpoint.
        shapes: Of the model that its config describes.
        where: The checkpoint, for errors.
        fresh: Whether a leaf that no tensor fills may be initialised instead.
        fits: What the checkpoint is expected to fit, for errors.
        headless: Whether tensors of a head, whichever it is, are left out.

    Returns:
        Sources by path; leaves that may be fresh are missing where the checkpoint has none, or one of another shape.

    Raises:
        InputError: tensors that are neither used nor ignored by a rule, leaves that none fills, shapes and types that
            differ: all of them, with the nearest names.
    """
    sources: dict[str, SourceTensor] = {}
    unknown, twice = [], []

    def spares(name):  # what fills a leaf only where nothing else does
        return names.ignores(name) or bool(tensors[name].alias)

    for name in sorted(tensors, key=spares):
        tensor, targets = tensors[name], names.targets(name)
        taken = sources if spares(name) else ()
        wanted = [target for target in targets if target.path in shapes and target.path not in taken]
        for target in wanted:
            if target.path in sources:
                twice.append(f"'{sources[target.path].name}' and '{name}' are the same leaf {target.path}")
            sources[target.path] = SourceTensor(name, tensor, target)
        left_out = targets and all(of_source_head(target.path) for target in targets)
        if not wanted and not left_out and not spares(name):
            unknown.append(name)
    by_alias = {source.tensor.alias for source in sources.values()}
    unknown = [name for name in unknown if name not in by_alias]
    of_heads = names.outside(tensors).intersection(unknown)
    if headless:
        unknown = [name for name in unknown if name not in of_heads]
    missing = [path for path in shapes if path not in sources and not fresh(path)]
    differ, types = [], []
    for path, source in list(sources.items()):
        expected, found = tuple(shapes[path].shape), source.shape
        if found != expected and fresh(path):
            del sources[path]
        elif found != expected:
            said = list(source.tensor.shape) if found is None else list(found)
            differ.append(f"'{source.name}' has shape {said} for {path}, expected {list(expected)}")
        elif source.tensor.dtype.kind in "biu" and source.tensor.dtype != shapes[path].dtype:
            wanted = "a floating-point type" if shapes[path].dtype.kind not in "biu" else shapes[path].dtype
            types.append(f"'{source.name}' is {source.tensor.dtype}, expected {wanted}")
    if twice or missing or unknown or differ or types:
        called = {path: (names.source(path) or (path,))[0] for path in missing}
        known = [found[0] for path in missing if (found := names.source(path))] or list(tensors.keys() - set(unknown))
        of_leaves = [
            f"'{name}' is missing for {path}" + _nearest(name, unknown) for path, name in list(called.items())[:SHOWN]
        ]
        of_none = [f"'{name}' belongs to no leaf" + _nearest(name, known) for name in unknown[:SHOWN]]
        kinds = {
            "{} twice": (len(twice), twice),
            "{} missing": (len(missing), of_leaves),
            "{} unknown": (len(unknown), of_none),
            "{} of another shape": (len(differ), differ),
            "{} of another type": (len(types), types),
        }
        foreign = unknown and of_heads.issuperset(unknown) and not (missing or headless)
        advice = "; it is of a head that is not known here, which head='' leaves out" if foreign else ""
        raise InputError(f"{where} does not fit {fits}: {_grouped(kinds, len(tensors))}{advice}")
    return sources


SHOWN = 4
"""Of each kind of offender, those that an error lists."""


def _nearest(name, choices):
    found = nearest(name, choices) if choices else ""
    return f" ({found})" if found and (len(choices) <= SHOWN or found.startswith("did you mean")) else ""


def _grouped(kinds, tensors):
    """Some offenders of every kind; where they are not all, how many there are of each goes first."""
    said = "; ".join(line for _, lines in kinds.values() for line in lines[:SHOWN])
    if all(number <= SHOWN for number, _ in kinds.values()):
        return said
    counts = ", ".join(what.format(number) for what, (number, _) in kinds.items() if number)
    return f"of {tensors} tensors, {counts}: {said}"


def repeated(rows: Sequence[Row], theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows with a prefix on both sides, as for one tower of two."""
    return tuple(
        Row(
            theirs + row.theirs, tuple(ours + path for path in row.paths), row.kind, tuple(theirs + a for a in row.also)
        )
        for row in rows
    )
