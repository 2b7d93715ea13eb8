"""ModernBERT in Hugging Face's layout: queries, keys and values are one layer, gate and units of the MLP another."""

import re

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation, untied
from jtransfer.checkpoints.families.values import section, typed, words
from jtransfer.checkpoints.names import DENSE, EMBED, LEAF, NORM, Names, Row, fused, repeated
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown
from jtransfer.models import Head, ModernBertConfig
from jtransfer.models.modernbert import POOLS

SETTINGS = {
    "vocabulary": ("vocab_size", 50368),
    "positions": ("max_position_embeddings", 8192),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 22),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 1152),
    "window": ("local_attention", 128),
    "padding": ("pad_token_id", 50283),
    "pool": ("classifier_pooling", "cls"),
    "tied": ("tie_word_embeddings", True),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("mlp_bias", False),
    "norm_bias": ("norm_bias", False),
    "decoder_bias": ("decoder_bias", True),
    "head_activation": ("classifier_activation", "gelu"),
    "epsilon": ("norm_eps", 1e-5),
    "activation": ("hidden_activation", "gelu"),
    "embedding_dropout": ("embedding_dropout", 0.0),
}
"""From our settings to the keys of `config.json`, with what they are by default."""

WITHOUT = ("attention_dropout", "mlp_dropout")
"""Rates that must be 0: they are of places where nothing is dropped here."""

BACKBONE = (
    Row("embeddings.tok_embeddings", "embeddings/word", EMBED),
    Row("embeddings.norm", "embeddings/norm", NORM),
    *repeated(
        (
            Row("attn_norm", "norm_1", NORM),
            Row("attn.Wqkv", "attention/qkv", DENSE),
            Row("attn.Wo", "attention/out", DENSE),
            Row("mlp_norm", "norm_2", NORM),
            Row("mlp.Wi", ("mlp/gate", "mlp/up"), fused(2)),
            Row("mlp.Wo", "mlp/down", DENSE),
        ),
        "layers.{}.",
        "encoder/block_{}/",
    ),
    Row("final_norm", "encoder/norm", NORM),
)
TRANSFORM = (Row("head.dense", "source_head/dense", DENSE), Row("head.norm", "source_head/norm", NORM))
CLASSIFIER = Row("classifier", "source_head/out", DENSE)
TIED, UNTIED = Row("decoder.bias", "source_head/bias", LEAF), Row("decoder", "source_head/out", DENSE)


def _read(values, tensors):
    for key in WITHOUT:
        if typed(values, key, 0.0):
            raise InputError(f"config.json: {key} is {shown(values[key])}; expected 0, as nothing is dropped there")
    said = {ours: typed(values, theirs, default) for ours, (theirs, default) in SETTINGS.items()}
    if said["pool"] not in POOLS:
        raise InputError(f"config.json: classifier_pooling '{said['pool']}'; {nearest(said['pool'], POOLS)}")
    if typed(values, "classifier_bias", False) != said["norm_bias"]:
        raise InputError("config.json: classifier_bias and norm_bias differ; expected both, or neither")
    said |= {name: activation(said[name]) for name in ("activation", "head_activation")}
    every = _global_every(values, said["depth"])
    pool = values.get("sentence_transformers", {})
    return ModernBertConfig(**said | pool, global_every=every, **_thetas(values))


def _global_every(values, depth):
    """Every how many blocks attention looks everywhere, said as a number or block by block."""
    types = words(values, "layer_types")
    if not types:
        return typed(values, "global_attn_every_n_layers", 3)
    every = next((i for i in range(1, len(types)) if types[i] == "full_attention"), max(len(types), 1))
    expected = tuple("sliding_attention" if i % every else "full_attention" for i in range(depth))
    if types != expected:
        raise InputError(
            f"config.json: layer_types is {shown(list(types))}; expected {depth}, of which 0, n, 2n, ... are "
            "full_attention and all others sliding_attention"
        )
    return every


def _thetas(values):
    found, said = section(values, "rope_parameters"), {}
    if scaling := section(values, "rope_scaling"):
        raise InputError(f"config.json: rope_scaling {shown(dict(scaling))} is not supported; expected none")
    for ours, key, part, default in (
        ("theta", "global_rope_theta", "full_attention", 160000.0),
        ("near_theta", "local_rope_theta", "sliding_attention", 10000.0),
    ):
        own = section(found, part)
        if (kind := typed(own, "rope_type", "default")) != "default":
            raise InputError(f"config.json: rope_type '{kind}' of {part} is not supported; expected 'default' alone")
        said[ours] = float(typed(own, "rope_theta", float(typed(values, key, default))))
    return said


def _settle(values, tensors, kind):
    name = "decoder.weight"
    return untied(values, tensors, name, "tok_embeddings.weight") if kind == "masked_lm" else values


def _heads(config):
    output = UNTIED if not config.tied else TIED if config.decoder_bias else None
    masked = (*TRANSFORM, *([output] if output else []))
    return {"masked_lm": masked, "sequence": (*TRANSFORM, CLASSIFIER), "token": (*TRANSFORM, CLASSIFIER)}


def _names(config, kind):
    heads = _heads(config)
    own = heads.get(kind, ())
    others = {row.theirs for rows in heads.values() for row in rows} - {row.theirs for row in own}
    ignored = [(rf"{re.escape(name)}(\..*)?", "belongs to another head") for name in sorted(others)]
    copies = [] if UNTIED in own else [(r"decoder\.weight", "a copy of the word embeddings, or of another head")]
    return Names((*BACKBONE, *own), "model.", (*ignored, *copies))


def _head(values, kind, classes):
    c = _read({**values, "sentence_transformers": {}}, {})
    if kind == "masked_lm":
        return c.language_head
    return Head(classes, reads="features" if kind == "sequence" else "last_hidden_state", **c.transform)


def _write(config):
    said = {theirs: getattr(config, ours) for ours, (theirs, _) in SETTINGS.items()}
    said |= {"hidden_activation": THEIR_ACTIVATIONS[config.activation], "classifier_bias": config.norm_bias}
    said |= {"classifier_activation": THEIR_ACTIVATIONS[config.head_activation]}
    said |= {"global_attn_every_n_layers": config.global_every}  # no attention_dropout: theirs drops outputs too
    said |= {"global_rope_theta": config.theta, "local_rope_theta": config.near_theta}
    return {"model_type": "modernbert"} | said


HEADS = {
    "ModernBertForMaskedLM": "masked_lm",
    "ModernBertForSequenceClassification": "sequence",
    "ModernBertForTokenClassification": "token",
    "ModernBertModel": "",
}
FAMILIES = {"modernbert": Family(heads=HEADS, read=_read, head=_head, names=_names, write=_write, settle=_settle)}
