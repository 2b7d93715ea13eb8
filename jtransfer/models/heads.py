"""What stands on a backbone and predicts: one linear layer for a new task, or the head that a checkpoint came with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.tree import nested

SOURCE_HEAD = "source_head/"
"""Prefix of the head of a backbone's source task, which stays in the tree, frozen, whatever the method."""

STATISTICS = "batch_stats/"
"""Prefix, in a flat tree of a whole model, of the leaves that are no parameters: the statistics of BatchNorm."""

NEIGHBOURS = "neighbours"
READS = (
    *("features", "pooler_output", "first", "last_hidden_state", "patches", "distilled", "image_embeds"),
    NEIGHBOURS,
)
"""What a head may read: see `Head`."""


def of_source_head(path: str) -> bool:
    """Whether a leaf is of the head of a backbone's source task, or a statistic of a BatchNorm in it."""
    return path.removeprefix(STATISTICS).startswith(SOURCE_HEAD)


@dataclass(frozen=True)
class Head:
    """A head as data: which output it reads, and the layers up to `logits`.

    Attributes:
        classes: Outputs for each thing it reads.
        reads: "features" or "pooler_output" `[batch, width]`, "first" (the first token of `last_hidden_state`),
            "last_hidden_state" `[batch, tokens, width]` (a prediction for every token), "patches" (the mean of it over
            the patches of an image), "distilled" (the mean of one prediction from the class token and one from the
            distillation token), a dual encoder's "image_embeds" `[batch, width]`, of length 1, or "neighbours" `[batch,
            tokens, 2, width]` (two predictions of every token, from what stands before it and from what follows).
        hidden: Activation of a dense layer before the output; empty for no such layer.
        norm: LayerNorm after that activation, with this epsilon; 0 for none.
        tied: Whether the output kernel is the transposed table of the word embeddings.
        bias: Whether the output has a bias.
        span: Whether two outputs a token are `start_logits` and `end_logits` `[batch, tokens]` instead of `logits`.
        width: Of the dense layer; 0 for the backbone's.
        output: What the output is called.
        keys: Number of examples that vote beside the output layer; see `votes`.
        texts: Tokens of one text for each class, all of one length, class after class: a dual encoder reads them in
            every call, and its `logits_per_image` are the predictions. Then there are no layers. Empty for no texts.
        start: What every bias of the output layer is before the first step.
        unbiased: Whether the dense layer and the LayerNorm before the output have no bias.
        follows: Whether another layer, `next`, tells from `pooler_output` if the second segment of a text follows the
            first: `next_logits [batch, 2]`.
        drops: Rates of dropout before the dense layer and before the output, each behind a BatchNorm, as ULMFiT's
            classifier has them (Howard and Ruder 2018, section 3.3); empty for neither.
    """

    classes: int
    reads: str = "features"
    hidden: str = ""
    norm: float = 0.0
    tied: bool = False
    bias: bool = True
    span: bool = False
    width: int = 0
    output: str = "logits"
    keys: int = field(default=0, repr=False)  # fingerprints of earlier versions are over the others
    texts: tuple[int, ...] = field(default=(), repr=False)
    start: float = field(default=0.0, repr=False)
    unbiased: bool = field(default=False, repr=False)
    follows: bool = field(default=False, repr=False)
    drops: tuple[float, ...] = field(default=(), repr=False)

    @property
    def kind(self) -> str:
        """What it predicts, as `load(head=...)` names it, whichever options it has.

        "classification" is of a whole input ("sequence" in Hugging Face's models of texts), "token" of every token, and
        "span" of where an answer starts and ends. "masked_lm" predicts the words that were masked, by a hidden layer
        before the vocabulary, "pretraining" also whether a segment follows another, "causal_lm" the word that follows,
        and "bilm" a word from either side. "projection" is an embedding.
        """
        if self.output != "logits":
            return "projection"
        if self.span:
            return "span"
        if self.reads == NEIGHBOURS:
            return "bilm"
        if self.reads != "last_hidden_state":
            return "classification"
        if self.hidden or self.norm:
            return "pretraining" if self.follows else "masked_lm"
        return "causal_lm" if self.tied or not self.bias else "token"


@dataclass(frozen=True)
class Heads:
    """Several heads on one backbone, each of a task: leaves and outputs of each lie under its name.

    Attributes:
        each: Pairs of a name and its head, in the order of the tasks.
        classes: For each, the names of its classes; none where it has none.
    """

    each: tuple[tuple[str, Head], ...]
    classes: tuple[tuple[str, ...], ...] = ()

    @property
    def kind(self) -> str:
        """That of no single head."""
        return "tasks"


class Layers(nn.Module):
    """The layers of a head that has more than the output layer: `{dense, norm, out, next}` or `{cls, distillation}`.

    With `drops` they are `{norm_0, dense, norm_1, out}`.
    """

    config: Head

    @nn.compact
    def __call__(self, x, table, pooled=None, train=False):
        found = self.output(x, table, train)
        if not self.config.follows:
            return found
        return found, layers.Dense(2, name="next", dtype="float32")(pooled)

    def output(self, x, table, train):
        """What the head predicts from the states that it reads."""
        c = self.config

        def dropped(x, place):
            if not c.drops:
                return x
            x = layers.BatchNorm(use_running_average=not train, name=f"norm_{place}")(x)
            return nn.Dropout(c.drops[place])(x, deterministic=not train)

        if c.reads == "distilled":
            return _output(c, "cls")(x[:, 0]), _output(c, "distillation")(x[:, 1])
        if c.hidden:
            options = {"use_bias": not c.unbiased, "name": "dense", "dtype": "float32"}
            dense, x = layers.Dense(c.width or x.shape[-1], **options), dropped(x, 0)
            x = dropped(layers.ACTIVATIONS[c.hidden](dense(x)), 1)
        if c.norm:
            x = nn.LayerNorm(epsilon=c.norm, use_bias=not c.unbiased, name="norm", dtype="float32")(x)
        if not c.tied:
            return _output(c, "out")(x)
        logits = x.astype(jnp.float32) @ table.T.astype(jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (c.classes,)) if c.bias else logits


class Cached(nn.Module):
    """An output layer with a cache: `{kernel, bias, keys, values, alpha, beta}`; `x [batch, d]` has length 1."""

    config: Head

    @nn.compact
    def __call__(self, x):
        c, x, zeros = self.config, x.astype(jnp.float32), nn.initializers.zeros
        kernel = self.param("kernel", zeros, (x.shape[-1], c.classes))
        bias = self.param("bias", zeros, (c.classes,))
        keys = self.param("keys", zeros, (c.keys, x.shape[-1]))
        values = self.param("values", zeros, (c.keys, c.classes))
        alpha, beta = (self.param(name, nn.initializers.ones, ()) for name in ("alpha", "beta"))
        return x @ kernel + bias + votes(x, keys, values, alpha, beta)


def votes(x: jax.Array, keys: jax.Array, values: jax.Array, alpha: jax.Array, beta: jax.Array) -> jax.Array:
    """What a cache of examples adds to logits: `alpha exp(-beta (1 - x keys^T)) values`, `[batch, classes]`.

    `x [batch, d]` and `keys [n, d]` have length 1, and `values [n, classes]` are one-hot (Tip-Adapter, Zhang et al.
    2022, arXiv:2207.09519, equations 4 to 6).
    """
    return alpha * jnp.exp(-beta * (1 - x @ keys.T)) @ values


def _output(config: Head, name: str) -> nn.Module:
    if config.keys:
        return Cached(config, name=name)
    starts = {"kernel_init": nn.initializers.zeros, "bias_init": nn.initializers.constant(config.start)}
    return layers.Dense(config.classes, use_bias=config.bias, **starts, name=name, dtype="float32")


class Headed(nn.Module):
    """A backbone with a head. The backbone's paths do not change; the head's outputs join its own.

    Of several heads, each has its leaves under `HEAD/NAME/` and its outputs under its name:

        Headed(backbone, Heads((("digits", Head(10)), ("fonts", Head(4)))), "head")
        head/digits/kernel, head/fonts/kernel, ...   outputs["digits"]["logits"], outputs["fonts"]["logits"]

    Attributes:
        backbone: A module whose outputs have what the head reads.
        config: The head, or several.
        head: Its name in the tree.

    Called with what the backbone takes; `logits_to_keep` restricts the predictions of a head that makes one for every
    token to the last tokens (0 for all).

    Raises:
        InputError: a backbone that has a head already, as a model has one or several by name; or one of several that
            is called as an output of the backbone is.
    """

    backbone: nn.Module
    config: Head | Heads
    head: str = SOURCE_HEAD.rstrip("/")

    def __post_init__(self):
        if isinstance(self.backbone, Headed):
            raise InputError(
                f"the backbone under head '{self.head}' has the head '{self.backbone.head}' already; "
                "put the new one on `backbone.model` (of a loaded backbone) or `headed.backbone`"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, *inputs, train: bool = False, logits_to_keep: int = 0, **kwargs) -> dict[str, Any]:
        c, backbone = self.config, self.backbone.copy(name=None)
        nn.share_scope(self, backbone)
        if isinstance(c, Head) and c.texts:  # as constants, which interceptors may look at
            kwargs |= {"input_ids": np.array(c.texts, np.int32).reshape(c.classes, -1), "attention_mask": None}
        outputs = backbone(*inputs, train=train, **kwargs)

        def predict(head, name):
            table = self.get_variable("params", "embeddings")["word"]["embedding"] if head.tied else None
            skipped = backbone.config.prefix_tokens if head.reads == "patches" else 0
            return _predictions(head, name, outputs, table, skipped, logits_to_keep, train)

        if isinstance(c, Head):
            return outputs | predict(c, self.head)
        if taken := sorted(outputs.keys() & dict(c.each).keys()):
            raise InputError(f"a head cannot be called '{taken[0]}', as an output of the backbone is; rename it")
        return outputs | _Several(c, name=self.head)(predict)


class _Several(nn.Module):
    """The scope in which heads have their leaves, each under its name."""

    config: Heads

    @nn.compact
    def __call__(self, predict):
        return {name: predict(head, name) for name, head in self.config.each}


def _predictions(
    c: Head, name: str, outputs: dict[str, Any], table, skipped: int, keep: int, train: bool = False
) -> dict[str, jax.Array]:
    """What a head makes of a backbone's outputs; its layers are made in the module that calls this."""
    if c.texts:
        return {c.output: outputs["logits_per_image"]}
    states = outputs.get("last_hidden_state")
    read = {"first": lambda: states[:, 0], "distilled": lambda: states}
    if "patches" not in outputs:
        read["patches"] = lambda: states[:, skipped:].mean(1)
    x = read.get(c.reads, lambda: outputs[c.reads])()
    if c.reads == "last_hidden_state":
        x = x[:, -keep:]
    if c.reads == "distilled":
        cls, distillation = Layers(c, name=name)(x, None)
        return {"cls_logits": cls, "distillation_logits": distillation, "logits": (cls + distillation) / 2}
    if c.follows:
        logits, follows = Layers(c, name=name)(x, table, outputs["pooler_output"])
        return {c.output: logits, "next_logits": follows}
    logits = Layers(c, name=name)(x, table, train=train) if c.hidden or c.norm or c.tied else _output(c, name)(x)
    if c.span:
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    return {c.output: logits}


class _Alone(nn.Module):
    """A head that reads outputs of a backbone that is not run again."""

    config: Head
    skipped: int

    @nn.compact
    def __call__(self, outputs):
        return _predictions(self.config, SOURCE_HEAD.rstrip("/"), outputs, None, self.skipped, 0)


def source_logits(head: Head, prefix_tokens: int, tree: Mapping[str, jax.Array], outputs: dict[str, Any]) -> jax.Array:
    """Logits `[n, classes]` of a source head on the outputs of a backbone, whatever other head the model has.

    Args:
        head: The source head, of a kind that is not tied to the words.
        prefix_tokens: Of the backbone's architecture.
        tree: Leaves of the head under `source_head/`; others do no harm.
        outputs: What the backbone gave.
    """
    leaves = nested({path: leaf for path, leaf in tree.items() if path.startswith(SOURCE_HEAD)})
    skipped = prefix_tokens if head.reads == "patches" else 0
    return _Alone(head, skipped).apply({"params": leaves}, outputs)["logits"]


def Classifier(backbone: nn.Module, classes: int, head: str = "head") -> Headed:
    """Add `logits [batch, classes]` (float32) of one linear layer on the `features` to the outputs of a backbone.

    The layer starts at zero, so the first prediction is uniform. The tree may hold several heads: which one is read is
    a matter of its name, so `Classifier(backbone, 62, "source_head")` on the tree of an adapted model still tells what
    it knows of its source task.
    """
    return Headed(backbone, Head(classes), head)
