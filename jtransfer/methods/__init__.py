"""Ways of transferring, one file per family. To add one, write a function that returns a `Method`."""

import ast
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable

from jtransfer import expressions
from jtransfer.methods.freezing import bitfit, finetune, frozen_norm, probe, rules, scratch, top_blocks
from jtransfer.methods.lora import lora
from jtransfer.methods.method import Adapted, Method, adapt, learn

__all__ = [
    "METHODS",
    "Adapted",
    "Method",
    "adapt",
    "bitfit",
    "finetune",
    "frozen_norm",
    "learn",
    "lora",
    "parse",
    "probe",
    "rules",
    "scratch",
    "top_blocks",
]

METHODS: dict[str, Callable[..., Method]] = {
    "probe": probe,
    "finetune": finetune,
    "scratch": scratch,
    "top_blocks": top_blocks,
    "bitfit": bitfit,
    "frozen_norm": frozen_norm,
    "lora": lora,
    "rules": rules,
}


def parse(text: str, others: Iterable[str] = ()) -> Method:
    """A method as a config writes it: `probe`, `lora(rank=4)`, `top_blocks(2)`, `lora(rank=4) + bitfit`.

    Args:
        text: What the config says.
        others: Names that may stand in its place, for the error.

    Raises:
        InputError: an unknown method or option (with the nearest that exists), or text of another form.
    """
    nodes = [expressions.parse(text, "method")]
    while isinstance(nodes[0], ast.BinOp) and isinstance(nodes[0].op, ast.Add):
        nodes[:1] = [nodes[0].left, nodes[0].right]
    parts = [expressions.call(node, text, "method", METHODS, others=others)() for node in nodes]
    return dataclasses.replace(functools.reduce(operator.add, parts), name=text.strip())
