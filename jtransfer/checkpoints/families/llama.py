"""Llama, Mistral, Qwen 2 (and 2.5) and Qwen 3 in Hugging Face's layout.

One model, said in four ways: what differs between them is data, a `LlamaDialect` each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation, untied
from jtransfer.checkpoints.families.values import ends, section, typed, words, written_ends
from jtransfer.checkpoints.names import DENSE, EMBED, NORM, Names, Row, repeated
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown
from jtransfer.models import Head, LlamaConfig
from jtransfer.models.rotary import KINDS

SETTINGS = {
    "vocabulary": ("vocab_size", 32000),
    "positions": ("max_position_embeddings", 2048),
    "width": ("hidden_size", 4096),
    "depth": ("num_hidden_layers", 32),
    "heads": ("num_attention_heads", 32),
    "hidden": ("intermediate_size", 11008),
    "epsilon": ("rms_norm_eps", 1e-6),
    "activation": ("hidden_act", "silu"),
    "tied": ("tie_word_embeddings", False),
    "pad_token": ("pad_token_id", None),
    "attention_dropout": ("attention_dropout", 0.0),
}
"""From our settings to the keys of `config.json`, with what they are by default."""

REFUSED = {"quantization_config": None, "partial_rotary_factor": 1.0, "num_experts": None, "use_sliding_window": False}
"""Settings for which only one value is supported."""

BACKBONE = (
    Row("embed_tokens", "embeddings/word", EMBED),
    *repeated(
        (
            Row("input_layernorm", "norm_1", NORM),
            Row("self_attn.q_proj", "attention/query", DENSE),
            Row("self_attn.k_proj", "attention/key", DENSE),
            Row("self_attn.v_proj", "attention/value", DENSE),
            Row("self_attn.o_proj", "attention/out", DENSE),
            Row("self_attn.q_norm", "attention/query_norm", NORM),
            Row("self_attn.k_norm", "attention/key_norm", NORM),
            Row("post_attention_layernorm", "norm_2", NORM),
            Row("mlp.gate_proj", "mlp/gate", DENSE),
            Row("mlp.up_proj", "mlp/up", DENSE),
            Row("mlp.down_proj", "mlp/down", DENSE),
        ),
        "layers.{}.",
        "encoder/block_{}/",
    ),
    Row("norm", "encoder/norm", NORM),
)
LM, SCORE = Row("lm_head", "source_head", DENSE), Row("score", "source_head", DENSE)
ROWS = {"": (), "causal_lm": (LM,), "sequence": (SCORE,), "token": (SCORE,)}
IGNORED = ((r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "the frequencies of the places, which are computed"),)


@dataclass(frozen=True)
class LlamaDialect:
    """How one of the model types says it.

    Attributes:
        model_type: In `config.json`.
        settings: Those whose defaults differ from `SETTINGS`.
        fixed: Options of ours that it has no key for.
        biases: Keys of biases, and the options of ours that each says.
        kv_heads: How many heads of keys and values there are where nothing is said; None for as many as of queries.
        head_width: Width of a head where nothing is said; 0 for `width / heads`, None where there is no such key.
        eos: The token that ends a text where nothing is said.
        window: Places back that a token may look where nothing is said; None where all blocks must look everywhere.
    """

    model_type: str
    settings: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kv_heads: int | None = None
    head_width: int | None = 0
    eos: int | None = None
    window: int | None = None

    @property
    def all_settings(self) -> dict[str, tuple[str, Any]]:
        """Those of `SETTINGS`, with its own defaults."""
        return SETTINGS | dict(self.settings)


def _read(dialect, values, tensors):
    for key, supported in REFUSED.items():
        if values.get(key) not in (None, supported):
            advice = "; load float weights with bits=4 or bits=8" if key == "quantization_config" else ""
            raise InputError(f"config.json: {key} {shown(values[key])} is not supported; expected {supported}{advice}")
    if dialect.window is None and "sliding_attention" in words(values, "layer_types"):
        raise InputError("config.json: layer_types has sliding_attention; expected full_attention in every layer")
    said = {ours: typed(values, theirs, default) for ours, (theirs, default) in dialect.all_settings.items()}
    said |= {option: typed(values, key, False) for key, options in dialect.biases.items() for option in options}
    heads = said["heads"]
    kv_heads = typed(values, "num_key_value_heads", dialect.kv_heads) or heads
    if dialect.head_width is not None:
        width = typed(values, "head_dim", dialect.head_width or None)
        said["head_width"] = 0 if width is None or width * heads == said["width"] else width
    if dialect.window is not None:
        said["window"] = (typed(values, "sliding_window", None) if "sliding_window" in values else dialect.window) or 0
    options = {"kv_heads": 0 if kv_heads == heads else kv_heads, "eos_tokens": ends(values, dialect.eos)}
    said |= {"activation": activation(said["activation"])}
    return LlamaConfig(**said, **options, **_rotary(values), **dialect.fixed)


def _rotary(values):
    """Options of the rotary positions, which files of transformers 5 have in one object, and older ones in two keys."""
    found = {**section(values, "rope_scaling"), **section(values, "rope_parameters")}
    kind = typed(found, "rope_type", typed(found, "type", "default"))
    if kind not in KINDS:
        raise InputError(f"config.json: rope_type '{kind}' is not supported; {nearest(kind, KINDS)}")
    if typed(found, "partial_rotary_factor", 1.0) != 1:
        raise InputError("config.json: partial_rotary_factor is not 1; expected places that turn whole heads")
    theta = float(typed(found, "rope_theta", float(typed(values, "rope_theta", 10000.0))))
    said = {"theta": theta, "rope": kind}
    keys = {"rope_factor": "factor"} if kind != "default" else {}
    if kind == "llama3":
        keys |= {"rope_low": "low_freq_factor", "rope_high": "high_freq_factor"}
        said["rope_original"] = typed(found, "original_max_position_embeddings", None) or typed(
            values, "max_position_embeddings", 2048
        )
    for ours, theirs in keys.items():
        if theirs not in found:
            raise InputError(f"config.json: rope_type '{kind}' needs {theirs}")
        said[ours] = float(typed(found, theirs, 1.0))
    return said


def _settle(values, tensors, kind):
    return untied(values, tensors, "lm_head.weight", "embed_tokens.weight") if kind == "causal_lm" else values


def _names(config, kind):
    own = () if kind == "causal_lm" and config.tied else ROWS[kind]
    others = [row for row in (LM, SCORE) if row not in own]
    copies = ((rf"{row.theirs}\.(weight|bias)", "a tied copy, or another head's") for row in others)
    return Names((*BACKBONE, *own), "model.", (*IGNORED, *copies))


def _head(dialect, values, kind, classes):
    if kind == "sequence":
        return Head(classes, bias=False)
    if kind == "token":
        return Head(classes, reads="last_hidden_state")
    said = {ours: typed(values, *dialect.all_settings[ours]) for ours in ("vocabulary", "tied")}
    return Head(said["vocabulary"], reads="last_hidden_state", tied=said["tied"], bias=False)


def _write(dialect, config):
    keys = {option: key for key, options in dialect.biases.items() for option in options}
    for name, options in {key: [o for o, k in keys.items() if k == key] for key in keys.values()}.items():
        if len({getattr(config, option) for option in options}) > 1:
            raise InputError(f"Hugging Face's {dialect.model_type} has {name} for {' and '.join(options)} together")
    needed = {"qk_norm": False, "qkv_bias": False, "out_bias": False, "mlp_bias": False} | dict(dialect.fixed)
    needed |= {"head_width": 0} if dialect.head_width is None else {}
    needed |= {"window": 0} if dialect.window is None else {}
    for name, expected in needed.items():
        if name not in keys and (found := getattr(config, name)) != expected:
            raise InputError(f"Hugging Face's {dialect.model_type} has {name} {expected!r}; this model has {found!r}")
    said = {theirs: getattr(config, ours) for ours, (theirs, _) in dialect.all_settings.items()}
    said |= {key: getattr(config, option) for option, key in keys.items()}
    said |= {"hidden_act": THEIR_ACTIVATIONS[config.activation], "eos_token_id": written_ends(config.eos_tokens)}
    said |= {"intermediate_size": config.stack.hidden, "num_key_value_heads": config.kv_heads or config.heads}
    said |= {"head_dim": config.stack.of_head} if dialect.head_width is not None else {}
    said |= {"sliding_window": config.window or None} if dialect.window is not None else {}
    scaling = {"rope_type": config.rope, "factor": config.rope_factor}
    scaling |= {
        "low_freq_factor": config.rope_low,
        "high_freq_factor": config.rope_high,
        "original_max_position_embeddings": config.rope_original,
    }
    kept = {"linear": 2, "llama3": len(scaling)}.get(config.rope, 0)
    scaling = dict(list(scaling.items())[:kept])
    return {"model_type": dialect.model_type, "rope_theta": config.theta, "rope_scaling": scaling or None} | said


LLAMA = LlamaDialect(
    "llama",
    biases={"attention_bias": ("qkv_bias", "out_bias"), "mlp_bias": ("mlp_bias",)},
    eos=2,
)
MISTRAL = LlamaDialect(
    "mistral",
    settings={"positions": ("max_position_embeddings", 131072), "hidden": ("intermediate_size", 14336)},
    kv_heads=8,
    eos=2,
    window=4096,
)
QWEN = {
    "vocabulary": ("vocab_size", 151936),
    "positions": ("max_position_embeddings", 32768),
    "hidden": ("intermediate_size", 22016),
}
QWEN2 = LlamaDialect("qwen2", settings=QWEN, fixed={"qkv_bias": True}, kv_heads=32, head_width=None)
QWEN3 = LlamaDialect(
    "qwen3",
    settings=QWEN,
    fixed={"qk_norm": True},
    biases={"attention_bias": ("qkv_bias", "out_bias")},
    kv_heads=32,
    head_width=128,
)


def _family(dialect, classes):
    kinds = {"ForCausalLM": "causal_lm", "ForSequenceClassification": "sequence", "ForTokenClassification": "token"}
    heads = {f"{classes}{name}": kind for name, kind in (kinds | {"Model": ""}).items()}
    bound = {name: partial(of, dialect) for name, of in {"read": _read, "head": _head, "write": _write}.items()}
    return Family(heads, names=_names, settle=_settle, **bound)


FAMILIES = {
    "llama": _family(LLAMA, "Llama"),
    "mistral": _family(MISTRAL, "Mistral"),
    "qwen2": _family(QWEN2, "Qwen2"),
    "qwen3": _family(QWEN3, "Qwen3"),
}
