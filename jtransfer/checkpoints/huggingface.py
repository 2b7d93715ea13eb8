"""What a backbone and its head are in Hugging Face's terms: model type, class, table of names."""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.checkpoints import pooled
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.families import FAMILIES, Family
from jtransfer.checkpoints.names import Names
from jtransfer.errors import InputError
from jtransfer.models import MODELS, Head, Heads, ViTConfig, apply, of_config

DIALECTS = {
    "bert": ("bert", "roberta", "distilbert", "electra"),
    "clip": ("clip", "siglip", "siglip2"),
    "convnext": ("convnext", "convnextv2"),
    "efficientnet": ("efficientnet", "mobilenet_v2"),
    "llama": ("llama", "qwen2", "qwen3", "mistral"),
    "naflex_vit": ("siglip2", "siglip2_vision_model"),
    "vit": ("vit", "deit", "dinov2", "dinov2_with_registers", "siglip", "siglip_vision_model", "clip_vision_model"),
    "clip_text": ("clip_text_model", "siglip_text_model", "siglip2_text_model"),
}
"""Model types of an architecture that is not called as its only one; see `dialects`."""


def dialects(architecture: str) -> list[str]:
    """Model types that say the models of an architecture, in the order in which they are tried."""
    return [name for name in DIALECTS.get(architecture, (architecture,)) if name in FAMILIES]


def family_of(backbone: Backbone, head: Head | None = None) -> tuple[str, Family]:
    """The model type of the checkpoint that a backbone came from; in another layout the first that can say the model.

    Args:
        backbone: Which may have a head.
        head: That it is to have, where it has none.

    Raises:
        InputError: an architecture that Hugging Face does not have, or a model that runs under a method.
    """
    if backbone.methods:
        raise InputError(
            f"backbone '{backbone.name}' runs under the method '{backbone.methods[-1].text}', which no model of "
            "Hugging Face has"
        )
    architecture = next(name for name, (module, _) in MODELS.items() if module is type(backbone.model))
    model_type = values_of(backbone).get("model_type")
    known = [name for name in (str(model_type),) if name in FAMILIES] if model_type else dialects(architecture)
    if not known:
        raise InputError(f"backbone '{backbone.name}': Hugging Face has no model of the architecture '{architecture}'")
    head = head or backbone.head
    fitting = (name for name in known if _says(backbone, FAMILIES[name], head)) if len(known) > 1 else ()
    name = next(iter(fitting), known[0])
    return name, FAMILIES[name]


def _says(backbone, family, head):
    """Whether a model type, in a class of its own, says a model with a head."""
    head = None if pooled.stands_beside(backbone.config, head) else head
    try:
        family.write(backbone.config)
    except InputError:
        return False
    if head is None:
        return not family.towers or bool(backbone.config.towers)
    return any(kind and _computes(backbone, family, kind, head) for kind in dict.fromkeys(family.heads.values()))


def values_of(backbone: Backbone) -> Mapping[str, Any]:
    """The values of the `config.json` in Hugging Face's layout that a backbone came with; empty for another layout."""
    origin = backbone.origin
    return origin.values if origin and origin.layout == "huggingface" else {}


def kind_of(backbone: Backbone, head: Head | None) -> str:
    """The kind of Hugging Face's head, a value of `Family.heads`, that computes what a head on this backbone does.

    Raises:
        InputError: there is none.
    """
    if head is None:
        return ""
    if isinstance(head, Heads):
        several = ", ".join(name for name, _ in head.each)
        raise InputError(f"backbone '{backbone.name}' has the heads {several}; no class of Hugging Face has several")
    model_type, family = family_of(backbone, head)
    there = ", ".join(name for name, kind in family.heads.items() if kind) or "none with a head"
    pool = f", pool='{backbone.config.pool}'" if backbone.config.pool else ""
    reason = (
        f"its head reads '{head.reads}' (by a layer with {'a' if head.bias else 'no'} bias{pool}), which no class of "
        f"Hugging Face's {model_type} does; there are {there}"
    )
    try:
        for kind in dict.fromkeys(family.heads.values()):
            if kind and _computes(backbone, family, kind, head):
                return kind
    except InputError as error:
        reason = str(error)
    raise InputError(f"backbone '{backbone.name}': {reason}{_choice(backbone, head)}")


def _choice(backbone, head):
    """The poolings with which a model of ours would go out, for the end of an error."""
    if values_of(backbone) or not isinstance(backbone.config, ViTConfig):
        return ""
    others = [
        dataclasses.replace(backbone, model=of_config(dataclasses.replace(backbone.config, pool=pool)), head=head)
        for pool in ("cls", "mean")
        if pool != backbone.config.pool
    ]
    fitting = [f"'{one.config.pool}'" for one in others if _says(one, family_of(one)[1], head)]
    return f"; a model with pool {' or '.join(fitting)} has one" if fitting else ""


def _computes(backbone, family, kind, head):
    """Whether Hugging Face's head of a kind computes what a head on this backbone does."""
    config = backbone.config
    theirs = family.head(values_of(backbone) or family.write(config), kind, head.classes)
    if dataclasses.replace(theirs, reads=head.reads) != head:
        return False
    pooler = {"pooler.dense.weight": None} if config.pooler else {}
    back = as_their_class_reads(family, kind, family.write(config), pooler)
    same = head.reads == "last_hidden_state" or (back.pool, back.pooler) == (config.pool, config.pooler)
    reads = theirs.reads
    if reads == "patches" and isinstance(config, ViTConfig) and config.pool == "mean" and not config.norm_pooled:
        reads = "features"  # are the mean of the patches here
    return same and _same_output(backbone.model, reads, head.reads)


def as_their_class_reads(family: Family, kind: str, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    """The config that Hugging Face's class with a kind of head makes of the values of a `config.json`, and of tensors.

    A key that only we read changes nothing there.
    """
    theirs = {key: value for key, value in values.items() if key != "sentence_transformers"}
    config = family.read(theirs | {"architectures": [architecture_of(family, kind)]}, tensors)
    return config.towers[family.towers[kind]] if kind in family.towers else config


def architecture_of(family: Family, kind: str) -> str:
    """The class that has a kind of head."""
    return next(name for name, own in family.heads.items() if own == kind)


def tensors_of(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    """The kind of head and the tensors of a backbone, as Hugging Face names and lays them.

    Raises:
        InputError: a head or leaves that Hugging Face does not have.
    """
    kind, names = names_of(backbone, backbone.head)
    return kind, names.write(_written(backbone, kind), names.prefix if kind else "")


def check(backbone: Backbone) -> None:
    """Refuse a backbone that `tensors_of` refuses, by its shapes alone.

    Raises:
        InputError: a model, head or leaves that Hugging Face does not have.
    """
    kind, names = names_of(backbone, backbone.head)
    family_of(backbone)[1].write(backbone.config)
    if unknown := [path for path in _written(backbone, kind) if names.source(path) is None]:
        raise InputError(f"backbone '{backbone.name}': no name in this format for {', '.join(unknown)}")


def _written(backbone, kind):
    """The leaves that the class with a kind of head has: the pooler only where the head reads it."""
    tree = backbone.params | backbone.state
    if backbone.config.bits:
        raise InputError(
            f"backbone '{backbone.name}' has kernels of {backbone.config.bits} bits, which this format does not have; "
            "load it without bits"
        )
    if not kind or backbone.head.follows or _same_output(backbone.model, "pooler_output", backbone.head.reads):
        return tree
    return {path: leaf for path, leaf in tree.items() if path not in ("pooler/kernel", "pooler/bias")}


def names_of(backbone: Backbone, head: Head | None) -> tuple[str, Names]:
    """The kind of head, and the table of the class that has it.

    Raises:
        InputError: Hugging Face has no such head.
    """
    kind = kind_of(backbone, head)
    return kind, family_of(backbone, head)[1].names(backbone.config, kind)


@lru_cache(maxsize=32)
def _same_output(model: nn.Module, one: str, other: str) -> bool:
    """Whether two names in the outputs of a model are one and the same array."""
    if one == other:
        return True
    same = []

    def trace(key):
        example = {name: jnp.zeros(x.shape, x.dtype) for name, x in model.config.inputs.items()}
        outputs, _ = apply(model, {}, example, rngs={"params": key}, mutable=True)
        same.append(one in outputs and outputs[one] is outputs.get(other))

    jax.eval_shape(trace, jax.random.key(0))
    return same[0]
