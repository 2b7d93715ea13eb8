"""What one `model_type` of a Hugging Face `config.json` means here, in both directions."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jtransfer.checkpoints.names import Names
from jtransfer.errors import InputError, nearest
from jtransfer.models import Head


@dataclass(frozen=True)
class Family:
    """One model type.

    Attributes:
        heads: From the class names under `architectures` to the kind of head each has, "" for none. The first of
            those with the same kind is the one that is written.
        read: From the values of `config.json`, and the names of the tensors beside it, to our config. A `KeyError`
            names a value that is missing.
        head: From the values, a kind and the number of classes to the head.
        names: From our config and the kind of head to the table.
        write: From our config to the values of `config.json`, `model_type` among them.
    """

    heads: Mapping[str, str]
    read: Callable[[Mapping[str, Any], Collection[str]], Any]
    head: Callable[[Mapping[str, Any], str, int], Head]
    names: Callable[[Any, str], Names]
    write: Callable[[Any], dict[str, Any]]


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Hugging Face's names of activations, and ours."""


def activation(name: str) -> str:
    """Our name of one of theirs.

    Raises:
        InputError: there is none.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"config.json: unknown activation '{name}'; {nearest(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


THEIR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}
"""The other direction."""
