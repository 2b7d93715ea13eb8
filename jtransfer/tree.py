"""Flat trees and rules: the vocabulary in which everything else is said.

A tree is a flat `dict[path, leaf]` with paths such as `encoder/block_3/attention/query/kernel`. Rules are an
ordered list of `(pattern, value)`; a pattern is a regular expression that must match a whole path, and the first
that does decides. Nested dicts appear only where a Flax module is called.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flax.traverse_util import flatten_dict, unflatten_dict

from jtransfer.errors import InputError, nearest

Tree = dict[str, Any]
Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]

FROZEN = 0.0
"""The learning rate, relative to the schedule, of a leaf that does not learn: its gradient is never formed."""


def flat(nested_tree: Mapping) -> Tree:
    """Flatten nested dicts: `{"head": {"bias": b}}` becomes `{"head/bias": b}`."""
    return flatten_dict(nested_tree, sep="/")


def nested(tree: Tree) -> dict:
    """The inverse of `flat`: `{"head/bias": b}` becomes `{"head": {"bias": b}}`."""
    return unflatten_dict(tree, sep="/")


def label(paths: Iterable[str], rules: Rules[Value]) -> dict[str, Value]:
    """Give every path the value of the first rule whose pattern matches all of it.

    >>> label(["encoder/kernel", "head/kernel", "head/bias"], [("head/.*", 1.0), (".*", FROZEN)])
    {'encoder/kernel': 0.0, 'head/kernel': 1.0, 'head/bias': 1.0}

    A rule whose paths were all taken by earlier rules is shadowed, which is fine.

    Raises:
        InputError: a path that no rule matches, a rule that matches no path at all, or a pattern that is no
            regular expression: a typo must never freeze or train something silently.
    """
    paths = list(paths)
    matches = [{path for path in paths if _compiled(pattern).fullmatch(path)} for pattern, _ in rules]
    idle = [pattern for (pattern, _), hits in zip(rules, matches, strict=True) if not hits]
    if idle:
        stem = re.sub(r"[\\^$.*+?()\[\]{}|]+", "/", idle[0]).strip("/")
        begun = {"/".join(path.split("/")[: stem.count("/") + 1]) for path in paths}
        near = [nearest(stem, paths), nearest(stem, begun)]  # of 'encodr/.*' only 'encoder' is near, and no whole path
        closest = next((said for said in near if said.startswith("did you mean")), near[0])
        raise InputError(
            f"rule '{idle[0]}' matches none of the {len(paths)} leaves; {closest if paths else ''}".strip()
        )
    unmatched = [path for path in paths if not any(path in hits for hits in matches)]
    if unmatched:
        more = f" (and {len(unmatched) - 1} more leaves)" if len(unmatched) > 1 else ""
        raise InputError(
            f"no rule matches leaf '{unmatched[0]}'{more}; end the rules with ('.*', value) to match the rest"
        )
    return {path: next(v for (_, v), hits in zip(rules, matches, strict=True) if path in hits) for path in paths}


def partition(tree: Tree, labels: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """Split a tree into the leaves that learn and the frozen ones.

    >>> partition({"encoder/kernel": w, "head/kernel": k}, {"encoder/kernel": FROZEN, "head/kernel": 1.0})
    ({'head/kernel': k}, {'encoder/kernel': w})
    """
    trainable = {path: leaf for path, leaf in tree.items() if labels[path] != FROZEN}
    return trainable, {path: leaf for path, leaf in tree.items() if path not in trainable}


def merge(*trees: Tree) -> Tree:
    """Put disjoint trees together: the inverse of `partition`.

    Raises:
        InputError: a leaf that stands in more than one of the trees.
    """
    merged: Tree = {}
    for tree in trees:
        if twice := merged.keys() & tree.keys():
            raise InputError(f"leaf '{min(twice)}' stands in more than one of the trees to merge")
        merged |= tree
    return merged


def select(tree: Tree, prefix: str) -> Tree:
    """The leaves under a prefix, without it: `select({"ema/head/bias": b}, "ema/")` is `{"head/bias": b}`."""
    return {path.removeprefix(prefix): leaf for path, leaf in tree.items() if path.startswith(prefix)}


def prefixed(tree: Tree, prefix: str) -> Tree:
    """The inverse of `select`: `prefixed({"head/bias": b}, "ema/")` is `{"ema/head/bias": b}`."""
    return {prefix + path: leaf for path, leaf in tree.items()}


def size(tree: Tree) -> int:
    """The number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in tree.values())


def mismatches(expected: Tree, found: Tree) -> list[str]:
    """Every way in which a tree of arrays or shapes is not the expected one; leaves that are not expected come last.

    >>> mismatches({"head/kernel": zeros(3, 2), "head/bias": zeros(2)}, {"head/kernel": zeros(3, 4), "hea/bias": ...})
    ["head/kernel has shape [3, 4], expected [3, 2]", "head/bias is missing",
     "hea/bias belongs to no leaf (did you mean 'head/bias'?)"]
    """
    offenders = []
    for path, leaf in expected.items():
        if path not in found:
            offenders.append(f"{path} is missing")
        elif tuple(found[path].shape) != tuple(leaf.shape):
            offenders.append(f"{path} has shape {list(found[path].shape)}, expected {list(leaf.shape)}")
    return offenders + [
        f"{path} belongs to no leaf ({nearest(path, expected)})" for path in found if path not in expected
    ]


def summary(tree: Tree, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a leaf: its path, shape, dtype, number of parameters and label.

    >>> summary({"head/bias": jnp.zeros(10)}, {"head/bias": 1.0})
    [{'path': 'head/bias', 'shape': [10], 'dtype': 'float32', 'parameters': 10, 'label': 1.0}]
    """
    return [
        {
            "path": path,
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "parameters": math.prod(leaf.shape),
            "label": labels[path],
        }
        for path, leaf in tree.items()
    ]


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"rule '{pattern}' is not a regular expression: {error}") from None
