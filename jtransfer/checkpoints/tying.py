"""A head whose output kernel is the table of words, and adapters of PEFT that change one of the two or both.

PEFT gives a module of `modules_to_save` weights of its own. Where the base ties `wte` and `lm_head`, saving one of them
leaves the other as it was in the base: from then on they are two. Weights that are in a file without being named there
were saved with the adapter, as after tokens were added (`save_embedding_layers`), and both are still one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.huggingface import family_of, kind_of, values_of
from jtransfer.checkpoints.names import Names
from jtransfer.checkpoints.peft_formats import BESIDE
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError
from jtransfer.models import SOURCE_HEAD

WORDS = "embeddings/word/embedding"


def untied(backbone: Backbone) -> Backbone:
    """A backbone that computes what one with a tied head does, with a copy of the table of words as output kernel.

    In the tree `source_head/bias` becomes `source_head/out/bias`, beside a new `source_head/out/kernel`; a head without
    a hidden layer has `source_head/kernel` alone.
    """
    head = dataclasses.replace(backbone.head, tied=False)
    kernel, bias = (f"{SOURCE_HEAD}{'out/' if head.hidden or head.norm else ''}{end}" for end in ("kernel", "bias"))
    params = dict(backbone.params)
    if f"{SOURCE_HEAD}bias" in params:
        params[bias] = params.pop(f"{SOURCE_HEAD}bias")
    params[kernel] = params[WORDS].T
    model = type(backbone.model)(dataclasses.replace(backbone.config, tied=False))
    origin = backbone.origin
    if origin and values_of(backbone):
        origin = dataclasses.replace(origin, values={**origin.values, "tie_word_embeddings": False})
    return dataclasses.replace(backbone, model=model, params=params, head=head, origin=origin)


def settle(
    where: Any,
    backbone: Backbone,
    kind: str,
    found: Mapping[str, Tensor],
    table: Callable[[Names], Names],
    is_saved: Callable[[Names, str], bool],
) -> tuple[Backbone, dict[str, Tensor]]:
    """The backbone and the tensors of an adapter, with the tied pair as the adapted model of PEFT has it.

    Args:
        where: The adapter, for errors.
        backbone: The base.
        kind: Of the head that the adapter was trained with.
        found: Its tensors, by their names without PEFT's prefix.
        table: What makes the adapter's table of names of that of the base.
        is_saved: Whether `modules_to_save` names the module that a leaf is of.

    Returns:
        The base, untied where the adapter parts the two; the tensors without those that only repeat the base's.

    Raises:
        InputError: two tables for a pair that is still one, or tables of another number of words than the base's.
    """
    config, family = backbone.config, family_of(backbone)[1]
    if WORDS not in backbone.params or config.tied is None:
        return backbone, dict(found)
    names = table(family.names(dataclasses.replace(config, tied=False), kind))
    at, found = {}, dict(found)
    for name in sorted(found):
        for target in names.targets(name):
            first = at.setdefault(target.path, name)
            if first != name and _equal(found[name], found[first].read()):  # a bias that has two names
                del found[name]
                break
    output = next((path for path in (f"{SOURCE_HEAD}out/kernel", f"{SOURCE_HEAD}kernel") if names.source(path)), "")
    output = output if kind in ("causal_lm", "masked_lm", "pretraining") else ""
    words, kernel = at.get(WORDS), at.get(output)
    _check_rows(where, backbone, found, [name for name in (words, kernel) if name])
    saved = [path for path in (WORDS, output) if path and is_saved(names, path)]
    layers = {path.rpartition("/")[0] for path in (WORDS, output)}
    updated = any((match := BESIDE.fullmatch(path)) and match[1] in layers for path in at)  # of one, not of the other
    parted = config.tied and output and (saved or updated)
    if parted and backbone.head and backbone.head.tied and kind_of(backbone, backbone.head) == kind:
        return untied(backbone), found
    if config.tied and kernel and not (saved or updated):
        if words and not _equal(found[words], found[kernel].read()):
            raise InputError(
                f"{where}: '{words}' and '{kernel}' differ, but the base ties them, and modules_to_save names neither"
            )
        tensor = found.pop(kernel)
        words = words or names.called(WORDS)[0]
        found.setdefault(words, tensor)
    if words and not saved and _equal(found[words], np.asarray(backbone.params[WORDS])):
        del found[words]
    return backbone, found


def _equal(tensor, array):
    return tensor.shape == array.shape and np.array_equal(tensor.read().astype(array.dtype), array)


def _check_rows(where, backbone, found, tables):
    rows = len(backbone.params[WORDS])
    for name in tables:
        shape = found[name].shape
        if len(shape) == 2 and shape[0] != rows:
            raise InputError(
                f"{where}: '{name}' has {shape[0]:,} words, and backbone '{backbone.name}' {rows:,}: the adapter was "
                f"trained after tokens were added; load the base as it was then, by transformers' "
                f"model.resize_token_embeddings({shape[0]}) and save_pretrained"
            )
