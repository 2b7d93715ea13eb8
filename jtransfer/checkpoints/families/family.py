"""What one `model_type` of a Hugging Face `config.json` means here, in both directions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import Names
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError, nearest
from jtransfer.models import Architecture, Head


@dataclass(frozen=True)
class Family:
    """One model type.

    Attributes:
        heads: From the class names under `architectures` to the kind of head each has, "" for none. The first of
            those with the same kind is the one that is written.
        read: From the values of `config.json`, and the tensors beside it by their names, to our config.
        head: From the values, a kind and the number of classes to the head.
        names: From our config and the kind of head to the table.
        write: From our config to the values of `config.json`, `model_type` among them.
        towers: From a kind of head to the part of our config that it stands on, where that is not the whole.
        interpolates: How transformers resizes positions to whatever images come, a key of `resizing.RESIZERS`; empty
            where it takes images of one size.
        settle: From the values, the tensors and the kind of head that is wanted to the values that hold for them, where
            the tensors contradict what `config.json` says.
    """

    heads: Mapping[str, str]
    read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]
    head: Callable[[Mapping[str, Any], str, int], Head]
    names: Callable[[Any, str], Names]
    write: Callable[[Any], dict[str, Any]]
    towers: Mapping[str, str] = field(default_factory=dict)
    interpolates: str = ""
    settle: Callable[[Mapping[str, Any], Mapping[str, Tensor], str], Mapping[str, Any]] = lambda values, *_: values


def untied(values: Mapping[str, Any], tensors: Mapping[str, Tensor], output: str, words: str) -> Mapping[str, Any]:
    """The values of `config.json`, with nothing tied where the file has an output kernel of its own.

    Transformers likewise believes the file where the two disagree.

    Args:
        values: Values of `config.json`, in which the output kernel and the table of words are tied if nothing is said.
        tensors: Tensors of the checkpoint by name.
        output: Name of the output kernel.
        words: Name of the table of words, with or without a prefix in the file.
    """
    kernel = tensors.get(output)
    table = next((x for name, x in tensors.items() if name == words or name.endswith(f".{words}")), None)
    if not typed(values, "tie_word_embeddings", True) or kernel is None or table is None:
        return values
    same = kernel.shape == table.shape and np.array_equal(kernel.read(), table.read())
    return values if same else {**values, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Description:
    """What the tensors of a checkpoint that is not in Hugging Face's layout say about it.

    Attributes:
        config: The options of our model.
        head: The head that the file has; None for none.
        names: The table of names.
        tensors: The tensors that the table reads, by name.
        preprocessor: How images are made, in the keys of a `preprocessor_config.json`; empty where nothing is known.
        classes: Names of the head's classes, where they are known.
    """

    config: Architecture
    head: Head | None
    names: Names
    tensors: Mapping[str, Tensor]
    preprocessor: Mapping[str, Any]
    classes: tuple[str, ...] = ()


RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""PIL's numbers of the filters."""


def preprocessor(
    size: Mapping[str, int], crop: int | None, filter: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The values of a `preprocessor_config.json`.

    Args:
        size: `{"shortest_edge": pixels}`, or `height` and `width`.
        crop: Side of the square in the middle that is kept; None for all.
        filter: A key of `RESAMPLE`.
        mean: Mean of each channel, from 0 to 1.
        std: Standard deviation of each channel, from 0 to 1.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": dict(size),
        "resample": RESAMPLE.get(filter, RESAMPLE["bicubic"]),
        "do_center_crop": crop is not None,
        "crop_size": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
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
    "relu6": "relu6",
    "silu": "silu",
    "tanh": "tanh",
}
"""The other direction."""
