"""GPT-2 in Hugging Face's layout, whose `Conv1D` keeps kernels as `[in, out]`, as we do."""

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation, untied
from jtransfer.checkpoints.families.values import ends, typed, words, written_ends
from jtransfer.checkpoints.names import DENSE, EMBED, NORM, SAME, LayerKind, Names, Row
from jtransfer.errors import InputError
from jtransfer.models import GPT2Config, Head

CONV1D: LayerKind = {".weight": ("{}/kernel", SAME), ".bias": ("{}/bias", SAME)}

BACKBONE = (
    Row("wte", "embeddings/word", EMBED),
    Row("wpe", "embeddings/position", EMBED),
    Row("h.{}.ln_1", "encoder/block_{}/norm_1", NORM),
    Row("h.{}.attn.c_attn", "encoder/block_{}/attention/qkv", CONV1D),
    Row("h.{}.attn.c_proj", "encoder/block_{}/attention/out", CONV1D),
    Row("h.{}.ln_2", "encoder/block_{}/norm_2", NORM),
    Row("h.{}.mlp.c_fc", "encoder/block_{}/mlp/up", CONV1D),
    Row("h.{}.mlp.c_proj", "encoder/block_{}/mlp/down", CONV1D),
    Row("ln_f", "encoder/norm", NORM),
)
LM, SEQUENCE = Row("lm_head", "source_head", DENSE), Row("score", "source_head", DENSE)
REFUSED = ("GPT2DoubleHeadsModel", "GPT2ForTokenClassification", "GPT2ForQuestionAnswering")


def _settle(values, tensors, kind):
    return untied(values, tensors, "lm_head.weight", "wte.weight") if kind == "causal_lm" else values


def _read(values, tensors):
    architecture = (words(values, "architectures") or ("",))[0]
    if architecture in REFUSED:
        raise InputError(f"config.json: {architecture} is not supported; expected one of {', '.join(HEADS)}")
    if typed(values, "add_cross_attention", False):
        raise InputError("config.json: add_cross_attention=true is not supported; expected a decoder alone")
    # `reorder_and_upcast_attn` asks for scores in float32, which they are here in any case.
    return GPT2Config(
        vocabulary=typed(values, "vocab_size", 50257),
        positions=typed(values, "n_positions", 1024),
        width=typed(values, "n_embd", 768),
        depth=typed(values, "n_layer", 12),
        heads=typed(values, "n_head", 12),
        hidden=typed(values, "n_inner", None) or 0,
        epsilon=typed(values, "layer_norm_epsilon", 1e-5),
        activation=activation(typed(values, "activation_function", "gelu_new")),
        scale_scores=typed(values, "scale_attn_weights", True),
        scale_by_depth=typed(values, "scale_attn_by_inverse_layer_idx", False),
        tied=typed(values, "tie_word_embeddings", True),
        pad_token=typed(values, "pad_token_id", None),
        eos_tokens=ends(values, 50256),
        dropout=typed(values, "resid_pdrop", 0.1),
        embedding_dropout=typed(values, "embd_pdrop", 0.1),
        attention_dropout=typed(values, "attn_pdrop", 0.1),
    )


def _names(config, kind):
    head = {"": (), "sequence": (SEQUENCE,), "causal_lm": () if config.tied else (LM,)}[kind]
    ignored = (
        (r"h\.\d+\.attn\.(masked_)?bias", "the causal mask, which is computed"),
        *((rf"{row.theirs}\.weight", "a tied copy, or another head's") for row in (LM, SEQUENCE) if row not in head),
    )
    return Names((*BACKBONE, *head), "transformer.", ignored)


def _write(config):
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocabulary,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.stack.hidden,
        "layer_norm_epsilon": config.epsilon,
        "activation_function": (THEIR_ACTIVATIONS | {"gelu_tanh": "gelu_new"})[config.activation],
        "scale_attn_weights": config.scale_scores,
        "scale_attn_by_inverse_layer_idx": config.scale_by_depth,
        "tie_word_embeddings": config.tied,
        "pad_token_id": config.pad_token,
        "eos_token_id": written_ends(config.eos_tokens),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
    }


def _head(values, kind, classes):
    if kind == "sequence":
        return Head(classes, bias=False)
    tied = typed(values, "tie_word_embeddings", True)
    return Head(typed(values, "vocab_size", 50257), reads="last_hidden_state", tied=tied, bias=False)


HEADS = {"GPT2LMHeadModel": "causal_lm", "GPT2ForSequenceClassification": "sequence", "GPT2Model": ""}
FAMILIES = {"gpt2": Family(heads=HEADS, read=_read, head=_head, names=_names, write=_write, settle=_settle)}
