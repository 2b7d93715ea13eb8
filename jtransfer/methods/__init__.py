"""Ways of transferring, one file per family. To add one, write a function that returns a `Method`."""

import ast
import dataclasses
import inspect
from collections.abc import Callable

from jtransfer.errors import InputError, nearest
from jtransfer.methods.freezing import bitfit, finetune, frozen_norm, probe, scratch, top_blocks
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
}


def parse(text: str) -> Method:
    """A method as a config writes it: `probe`, `lora(rank=4)`, `top_blocks(2)`, `lora(rank=4) + bitfit`.

    Raises:
        InputError: an unknown method or option (with the nearest that exists), or text of another form.
    """
    try:
        method = _build(ast.parse(text.strip(), mode="eval").body, text)
    except SyntaxError:
        raise InputError(f"method '{text}' is not of the form name, name(option=value) or a + b") from None
    return dataclasses.replace(method, name=text.strip())


def _build(node: ast.expr, text: str) -> Method:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _build(node.left, text) + _build(node.right, text)
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        raise InputError(f"method '{text}' is not of the form name, name(option=value) or a + b")
    name = call.func.id
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'; {nearest(name, METHODS)}")
    make = METHODS[name]
    options = list(inspect.signature(make).parameters)
    for keyword in call.keywords:
        if keyword.arg not in options:
            raise InputError(f"method '{name}' has no option '{keyword.arg}'; {nearest(str(keyword.arg), options)}")
    try:
        args = [ast.literal_eval(arg) for arg in call.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except ValueError:
        raise InputError(f"method '{text}': options must be plain values, as in {name}({options[0]}=...)") from None
    try:
        return make(*args, **kwargs)
    except TypeError:
        raise InputError(f"method '{text}' does not fit {name}{inspect.signature(make)}") from None
