"""AWD-LSTM in fastai's names, once its `.pth` is a safetensors file; docs/text.md has the few lines that convert one.

    [0.]encoder.weight    [0.]rnns.0.{weight_hh_l0_raw, module.{weight_ih_l0, bias_ih_l0, bias_hh_l0}}    1.decoder.bias

Sizes are read from the shapes, rates of dropout from a `config.json` with the keys of fastai's `awd_lstm_lm_config`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jtransfer.checkpoints.families.family import Description
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import EMBED, SAME, TRANSPOSED, LayerKind, Names, Row
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError
from jtransfer.models import AWDLSTMConfig, Head

LAYER: LayerKind = {
    ".weight_hh_l0_raw": ("{}/hidden/kernel", TRANSPOSED),
    ".module.weight_hh_l0_raw": ("{}/hidden/kernel", TRANSPOSED),  # as of ULMFiT's own files
    ".module.bias_hh_l0": ("{}/hidden/bias", SAME),
    ".module.weight_ih_l0": ("{}/input/kernel", TRANSPOSED),
    ".module.bias_ih_l0": ("{}/input/bias", SAME),
}
BACKBONE = (Row("encoder", "embeddings/word", EMBED), Row("rnns.{}", "encoder/block_{}/lstm", LAYER))
DECODER = Row("1.decoder", "source_head", {".bias": ("{}/bias", SAME)})
IGNORED = (
    (r"encoder_(dp\.emb|with_dropout\.embed)\.weight", "the table of words again"),
    (r"rnns\.\d+\.module\.weight_hh_l0", "the recurrent kernel as the last step dropped it"),
    (r"1\.decoder\.weight", "the table of words again, which is checked"),
)
RATES = {
    "dropout": ("output_p", 0.1),
    "hidden_dropout": ("hidden_p", 0.15),
    "embedding_dropout": ("input_p", 0.25),
    "word_dropout": ("embed_p", 0.02),
    "weight_dropout": ("weight_p", 0.2),
}
"""Our options, fastai's, and its defaults."""


def mark(names: Mapping[str, Any]) -> bool:
    """Whether names of tensors are those of fastai's AWD-LSTM."""
    return any(name.endswith("rnns.0.module.weight_ih_l0") for name in names)


def describe(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Description:
    """What is in a checkpoint with these names: a language model, or its encoder alone.

    Args:
        tensors: By their names.
        values: Values of a `config.json`; empty where there is none.

    Raises:
        InputError: no table of words or no recurrent kernel, or a decoder that is not tied to the words.
    """
    prefix = "0." if any(name.startswith("0.") for name in tensors) else ""
    words = tensors.get(f"{prefix}encoder.weight")
    kernel = tensors.get(f"{prefix}rnns.0.module.weight_ih_l0")
    if words is None or kernel is None or len(words.shape) != 2 or len(kernel.shape) != 2:
        raise InputError(f"'{prefix}encoder.weight' or '{prefix}rnns.0.module.weight_ih_l0' is missing, or no matrix")
    decoder = tensors.get("1.decoder.weight")
    if decoder is not None and (decoder.shape != words.shape or not np.array_equal(decoder.read(), words.read())):
        raise InputError("'1.decoder.weight' is not '0.encoder.weight'; a decoder that is not tied is not supported")
    numbers = {int(found[1]) for name in tensors if (found := re.match(rf"{re.escape(prefix)}rnns\.(\d+)\.", name))}
    config = AWDLSTMConfig(
        vocabulary=words.shape[0],
        width=words.shape[1],
        hidden=kernel.shape[0] // 4,
        layers=max(numbers) + 1,
        **{ours: typed(values, theirs, rate) for ours, (theirs, rate) in RATES.items()},
    )
    bias = "1.decoder.bias" in tensors
    head = (
        Head(words.shape[0], reads="last_hidden_state", tied=True, bias=bias) if decoder is not None or bias else None
    )
    return Description(config, head, Names((*BACKBONE, DECODER), "0.", IGNORED), tensors, {})
