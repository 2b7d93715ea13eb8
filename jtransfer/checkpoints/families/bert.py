"""BERT, RoBERTa (XLM-RoBERTa, CamemBERT), DistilBERT and ELECTRA in Hugging Face's layout.

One model, said in four ways: what differs between them is data, a `BertDialect` each.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jtransfer.checkpoints.families.family import THEIR_ACTIVATIONS, Family, activation, untied
from jtransfer.checkpoints.families.values import typed, words
from jtransfer.checkpoints.names import DENSE, EMBED, LEAF, NORM, Names, Row, repeated
from jtransfer.errors import InputError
from jtransfer.kinds import shown
from jtransfer.models import BertConfig, Head

OLD_NORM = NORM | {".gamma": NORM[".weight"], ".beta": NORM[".bias"]}
"""With the names that norms have in checkpoints converted from TensorFlow."""

SETTINGS = {
    "vocabulary": ("vocab_size", 30522),
    "positions": ("max_position_embeddings", 512),
    "types": ("type_vocab_size", 2),
    "padding": ("pad_token_id", 0),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 3072),
    "epsilon": ("layer_norm_eps", 1e-12),
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "activation": ("hidden_act", "gelu"),
    "tied": ("tie_word_embeddings", True),
}
"""From our settings to the keys of `config.json`, with what they are by default."""

REFUSED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
"""Settings that only one value of is supported."""

EMBEDDINGS = (
    Row("embeddings.word_embeddings", "embeddings/word", EMBED),
    Row("embeddings.position_embeddings", "embeddings/position", EMBED),
    Row("embeddings.token_type_embeddings", "embeddings/token_type", EMBED),
    Row("embeddings.LayerNorm", "embeddings/norm", OLD_NORM),
)
BLOCKS = repeated(
    (
        Row("attention.self.query", "attention/query", DENSE),
        Row("attention.self.key", "attention/key", DENSE),
        Row("attention.self.value", "attention/value", DENSE),
        Row("attention.output.dense", "attention/out", DENSE),
        Row("attention.output.LayerNorm", "norm_1", OLD_NORM),
        Row("intermediate.dense", "mlp/up", DENSE),
        Row("output.dense", "mlp/down", DENSE),
        Row("output.LayerNorm", "norm_2", OLD_NORM),
    ),
    "encoder.layer.{}.",
    "encoder/block_{}/",
)
DISTILLED_BLOCKS = repeated(
    (
        Row("attention.q_lin", "attention/query", DENSE),
        Row("attention.k_lin", "attention/key", DENSE),
        Row("attention.v_lin", "attention/value", DENSE),
        Row("attention.out_lin", "attention/out", DENSE),
        Row("sa_layer_norm", "norm_1", NORM),
        Row("ffn.lin1", "mlp/up", DENSE),
        Row("ffn.lin2", "mlp/down", DENSE),
        Row("output_layer_norm", "norm_2", NORM),
    ),
    "transformer.layer.{}.",
    "encoder/block_{}/",
)
OF_WORDS = ("masked_lm", "pretraining")
"""Kinds of heads that predict words; the second also tells whether a sentence follows another."""
POOLER = Row("pooler.dense", "pooler", DENSE)
FOLLOWS = Row("cls.seq_relationship", "source_head/next", DENSE)
CLASSIFIER = (Row("classifier", "source_head", DENSE),)
CLASSIFIER_OF_TWO = (
    Row("classifier.dense", "source_head/dense", DENSE),
    Row("classifier.out_proj", "source_head/out", DENSE),
)
IGNORED = (
    (r"embeddings\.(position_ids|token_type_ids)", "constants"),
    (r"cls\.seq_relationship\..*", "predicts whether a sentence follows another"),
    (r"discriminator_predictions\..*", "predicts which words were replaced"),
)


@dataclass(frozen=True)
class BertDialect:
    """How one of the model types says it.

    Attributes:
        model_type: In `config.json`.
        prefix: Of the backbone's names where there is a head.
        rows: Of the backbone.
        language: Names in the head of masked language modelling: dense layer, norm, output layer, its bias.
        settings: As `SETTINGS`.
        fixed: Settings that it has no key for.
        sequence: What its head for sequences reads, and the activation of that head's hidden layer.
        classifier: Rows of that head.
        transform: Activation in the head of masked language modelling; empty for that of the blocks.
    """

    model_type: str
    prefix: str
    rows: tuple[Row, ...]
    language: tuple[str, str, str, str]
    settings: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    sequence: tuple[str, str] = ("features", "")
    classifier: tuple[Row, ...] = CLASSIFIER
    transform: str = ""

    def heads(self, tied: bool) -> dict[str, tuple[Row, ...]]:
        """The rows of each kind of head."""
        dense, norm, output, bias = self.language
        transform = (Row(dense, "source_head/dense", DENSE), Row(norm, "source_head/norm", OLD_NORM))
        # The output's own bias is often there as well, and is the one that transformers reads.
        biased = Row(bias, "source_head/bias", LEAF, (f"{output}.bias",) if bias != f"{output}.bias" else ())
        untied = (Row(output, "source_head/out", DENSE), Row(bias, "source_head/out/bias", LEAF))
        words = (*transform, biased) if tied else (*transform, *untied)
        return {
            "sequence": self.classifier,
            "token": CLASSIFIER,
            "span": (Row("qa_outputs", "source_head", DENSE),),
            "masked_lm": words,
            "pretraining": (*words, FOLLOWS),
        }


def _config(dialect, values):
    said = {ours: typed(values, theirs, default) for ours, (theirs, default) in dialect.settings.items()}
    return BertConfig(**said | {"activation": activation(said["activation"])}, **dialect.fixed)


def _settle(dialect, values, tensors, kind):
    output = f"{dialect.language[2]}.weight"
    return untied(values, tensors, output, "word_embeddings.weight") if kind in OF_WORDS else values


def _read(dialect, values, tensors):
    for key, supported in REFUSED.items():
        if values.get(key) not in (None, supported):
            raise InputError(f"config.json: {key} {shown(values[key])} is not supported; expected {supported!r}")
    config = _config(dialect, values)
    if POOLER not in dialect.rows:
        return replace(config, **values.get("sentence_transformers", {}))
    # Without the pooler that it was trained with, this head would predict something else.
    needed = "BertForSequenceClassification" in words(values, "architectures")
    pooler = needed or any(name.endswith("pooler.dense.weight") for name in tensors)
    return replace(config, pooler=pooler, **values.get("sentence_transformers", {}))


def _head(dialect, values, kind, classes):
    c = _config(dialect, values)
    every = {"reads": "last_hidden_state"}
    if kind == "sequence":
        return Head(classes, *dialect.sequence)
    if kind == "token":
        return Head(classes, **every)
    if kind == "span":
        return Head(2, **every, span=True)
    follows = kind == "pretraining"
    return replace(c.language_head, hidden=dialect.transform or c.activation, follows=follows)


def _names(dialect, config, kind):
    heads = dialect.heads(config.tied)
    others = tuple(
        (re.escape(row.theirs) + r"(\..*)?", f"belongs to the head '{other}'")
        for other, rows in heads.items()
        for row in rows
        if other != kind and row not in heads.get(kind, ())
    )
    *_, output, bias = dialect.language
    copies = [(re.escape(f"{output}.weight"), "a copy of the word embeddings")] if config.tied else []
    copies += [(re.escape(bias), "another name of the output's bias")] if bias != f"{output}.bias" else []
    unread = [row for row in IGNORED if not (kind == "pretraining" and row[0].startswith(re.escape(FOLLOWS.theirs)))]
    return Names(dialect.rows + heads.get(kind, ()), dialect.prefix, (*unread, *copies, *others))


def _write(dialect, config):
    for name, expected in dialect.fixed.items():
        if (found := getattr(config, name)) != expected:
            raise InputError(f"Hugging Face's {dialect.model_type} has {name} {expected!r}; this model has {found!r}")
    if "types" in dialect.settings and not config.types:
        raise InputError(f"Hugging Face's {dialect.model_type} has token types; this model has none")
    said = {theirs: getattr(config, ours) for ours, (theirs, _) in dialect.settings.items()}
    said[dialect.settings["activation"][0]] = THEIR_ACTIVATIONS[config.activation]
    said[dialect.settings["hidden"][0]] = config.stack.hidden
    if "embedding" in dialect.settings:
        said["embedding_size"] = config.embedding or config.width
    pool = {"pool": config.pool, "normalize": config.normalize}
    extra = {"sentence_transformers": pool} if config.pool != "pooler" else {}
    return {"model_type": dialect.model_type} | said | extra


BERT = BertDialect(
    model_type="bert",
    prefix="bert.",
    rows=(*EMBEDDINGS, *BLOCKS, POOLER),
    language=(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
    settings=SETTINGS,
    fixed={"shifted": False, "embedding": 0},
)
ROBERTA = BertDialect(
    model_type="roberta",
    prefix="roberta.",
    rows=(*EMBEDDINGS, *BLOCKS, POOLER),
    language=("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
    settings=SETTINGS | {"vocabulary": ("vocab_size", 50265), "padding": ("pad_token_id", 1)},
    fixed={"shifted": True, "embedding": 0},
    sequence=("first", "tanh"),
    classifier=CLASSIFIER_OF_TWO,
    transform="gelu",
)
DISTILBERT = BertDialect(
    model_type="distilbert",
    prefix="distilbert.",
    rows=(*EMBEDDINGS, *DISTILLED_BLOCKS),
    language=("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
    settings={
        "vocabulary": ("vocab_size", 30522),
        "positions": ("max_position_embeddings", 512),
        "padding": ("pad_token_id", 0),
        "width": ("dim", 768),
        "depth": ("n_layers", 6),
        "heads": ("n_heads", 12),
        "hidden": ("hidden_dim", 3072),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.1),
        "activation": ("activation", "gelu"),
        "tied": ("tie_word_embeddings", True),
    },
    fixed={"shifted": False, "embedding": 0, "types": 0, "pooler": False, "epsilon": 1e-12},
    sequence=("first", "relu"),
    classifier=(Row("pre_classifier", "source_head/dense", DENSE), Row("classifier", "source_head/out", DENSE)),
)
ELECTRA = BertDialect(
    model_type="electra",
    prefix="electra.",
    rows=(*EMBEDDINGS, Row("embeddings_project", "embeddings/projection", DENSE), *BLOCKS),
    language=(
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        "generator_lm_head.bias",
    ),
    settings=SETTINGS
    | {
        "embedding": ("embedding_size", 128),
        "width": ("hidden_size", 256),
        "heads": ("num_attention_heads", 4),
        "hidden": ("intermediate_size", 1024),
    },
    fixed={"shifted": False, "pooler": False},
    sequence=("first", "gelu"),
    classifier=CLASSIFIER_OF_TWO,
    transform="gelu",
)


def _family(dialect, classes, **more):
    tasks = {"SequenceClassification": "sequence", "TokenClassification": "token", "QuestionAnswering": "span"}
    heads = {f"{classes}For{task}": kind for task, kind in (tasks | {"MaskedLM": "masked_lm"}).items()}
    functions = {"read": _read, "head": _head, "names": _names, "write": _write, "settle": _settle}
    bound = {name: partial(function, dialect) for name, function in functions.items()}
    return Family(heads | {f"{classes}Model": ""} | more, **bound)


FAMILIES = {
    "bert": _family(BERT, "Bert", BertForPreTraining="pretraining"),
    "roberta": _family(ROBERTA, "Roberta"),
    "xlm-roberta": _family(replace(ROBERTA, model_type="xlm-roberta"), "XLMRoberta"),
    "camembert": _family(replace(ROBERTA, model_type="camembert"), "Camembert"),
    "distilbert": _family(DISTILBERT, "DistilBert"),
    "electra": _family(ELECTRA, "Electra", ElectraForPreTraining=""),
}
