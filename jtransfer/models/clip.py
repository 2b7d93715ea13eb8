"""Two towers that embed images and texts side by side: CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP.

    vision/...                   as in vit.py
    text/{embeddings/{word/embedding, positions}, encoder/{block_0/..., norm}, pooler}
    vision_projection, text_projection, logit_scale, logit_bias

Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture, of_texts
from jtransfer.models.transformer import Encoder, Stack, causal_mask, padding_mask
from jtransfer.models.vit import ViTConfig

POOLS = ("eos", "largest", "last")
OPENAI = {
    "patch": 32,
    "patch_bias": False,
    "embedding_norm": True,
    "norm_pooled": True,
    "epsilon": 1e-5,
    "activation": "quick_gelu",
}
"""Options of the tower of images of CLIP ViT-B/32, beside the defaults."""


@dataclass(frozen=True)
class CLIPTextConfig(Architecture):
    """Options of a text tower.

    Attributes:
        vocabulary: Number of different tokens.
        positions: The most tokens of a text.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        causal: Whether a token sees only itself and what is before it.
        pool: Which token the features are: "eos" takes the first `eos_token`, "largest" the first of the largest id
            (the same, as long as no tokens were added), "last" the last, be it padding (SigLIP).
        eos_token: The token that ends a text.
        pooler: Width of a dense layer on that token, which makes the features; 0 for none.
        epsilon: Added to the variance in every LayerNorm.
        activation: A key of `layers.ACTIVATIONS`, as "quick_gelu".
        dropout: Rate after the embeddings and in both branches of a block.
        attention_dropout: Rate on the attention weights.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first.
        remat: Recompute each block in the backward pass.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
    """

    vocabulary: int = 49408
    positions: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    hidden: int = 0
    causal: bool = True
    pool: str = "eos"
    eos_token: int = 49407
    pooler: int = 0
    epsilon: float = 1e-5
    activation: str = "quick_gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise InputError(f"clip_text: unknown pool '{self.pool}'; {nearest(self.pool, POOLS)}")
        if min(self.vocabulary, self.positions) < 1 or self.pooler < 0:
            raise InputError("clip_text: vocabulary and positions must be at least 1, and pooler not negative")
        _ = self.stack  # which checks the rest

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return of_texts(self.positions, "input_ids", "attention_mask")

    final_norm = "encoder/norm"

    @property
    def masks_padding(self) -> bool:
        return self.pool != "last"  # which is padding

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": self.vocabulary}

    @property
    def longest(self) -> int:
        return self.positions

    @property
    def stack(self) -> Stack:
        """The blocks."""
        return Stack.of(self)


class TextEmbeddings(nn.Module):
    """Words and learned positions."""

    config: CLIPTextConfig

    def embed(self, input_ids):
        """`[batch, tokens]` to `[batch, tokens, width]`, before positions."""
        c = self.config
        return layers.Embed(c.vocabulary, c.width, c.dtype, c.param_dtype, name="word")(input_ids)

    def positions(self, x):
        """Add the learned positions to `x [batch, tokens, width]`."""
        c = self.config
        table = self.param("positions", nn.initializers.normal(0.01), (1, c.positions, c.width), c.param_dtype)
        return x + table[:, : x.shape[1]].astype(x.dtype)

    @nn.compact
    def __call__(self, input_ids, train):
        return nn.Dropout(self.config.dropout)(self.positions(self.embed(input_ids)), deterministic=not train)


class CLIPText(nn.Module):
    """A text tower.

    Called with `input_ids [batch, tokens]` and, if there is padding on the right, perhaps `attention_mask` of that
    shape, it returns `last_hidden_state [batch, tokens, width]` (after the last LayerNorm), `pooler_output` and
    `features`, the same `[batch, width or pooler]`, and, on request, `hidden_states`: the stream before the first block
    and after each, `depth + 1` of `[batch, tokens, width]`.
    """

    config: CLIPTextConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c, tokens = self.config, input_ids.shape[1]
        if tokens > c.positions:
            raise InputError(f"clip_text: {tokens} tokens are too many; the model has {c.positions} positions")
        x = TextEmbeddings(c, name="embeddings")(input_ids, train)
        mask = causal_mask(tokens, attention_mask) if c.causal else padding_mask(attention_mask)
        x, hidden_states = Encoder(c.stack, name="encoder")(x, mask, train)
        pooled = jnp.take_along_axis(x, _pooled_place(c, input_ids)[:, None, None], axis=1)[:, 0]
        pooled = c.stack.dense(c.pooler, name="pooler")(pooled) if c.pooler else pooled
        outputs = {"last_hidden_state": x, "pooler_output": pooled, "features": pooled}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})


def _pooled_place(config, input_ids):
    """`[batch, tokens]` to the place of the token that is pooled, `[batch]`; a text without an end gives its first."""
    if config.pool == "last":
        return jnp.full(len(input_ids), input_ids.shape[1] - 1)
    return jnp.argmax(input_ids if config.pool == "largest" else input_ids == config.eos_token, axis=-1)


TOWERS = {"vision": "vit", "text": "clip_text"}
"""The towers, and the architecture of each where none is named."""
INPUTS = {"vision": "pixel_values", "text": "input_ids"}


@dataclass(frozen=True)
class CLIPConfig(Architecture):
    """Options of a model with two towers.

    Attributes:
        vision: The tower of images: the config of any model of images, or its options, with the name of another
            architecture than "vit" as `architecture` among them.
        text: The tower of texts, likewise, of "clip_text" or another architecture; None for the side of images alone,
            which embeds as it does beside a tower of texts.
        projection: Width of both embeddings, to which a kernel of each tower projects its features; 0 where the
            features are the embeddings (SigLIP).
        logit_scale: Start of the learned logarithm of the factor on similarities.
        logit_bias: Start of the learned number that is added to scaled similarities; None for no such number.
        dtype: Type in which both towers compute; their parameters have the type `param_dtype`.
    """

    vision: Any = field(default_factory=lambda: ViTConfig(**OPENAI))
    text: Any = field(default_factory=CLIPTextConfig)
    projection: int = 512
    logit_scale: float = math.log(1 / 0.07)
    logit_bias: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        from jtransfer.models import MODELS  # which has this model among them

        for name in TOWERS:
            tower = getattr(self, name)
            if tower is None and name == "text":
                continue
            if isinstance(tower, Mapping):  # as a file has it
                options = {key: tuple(x) if isinstance(x, list) else x for key, x in tower.items()}
                architecture = options.pop("architecture", TOWERS[name])
                if architecture not in MODELS:
                    raise InputError(
                        f"clip: {name} has unknown architecture '{architecture}'; {nearest(architecture, MODELS)}"
                    )
                kind = MODELS[architecture][1]
                if unknown := options.keys() - {field.name for field in dataclasses.fields(kind)}:
                    known = [field.name for field in dataclasses.fields(kind)]
                    raise InputError(f"clip: {name} has no option '{min(unknown)}'; {nearest(min(unknown), known)}")
                tower = kind(**options)
            if (wanted := INPUTS[name]) not in tower.inputs:
                raise InputError(f"clip: {name} takes {', '.join(tower.inputs)}; expected a model that takes {wanted}")
            tower = dataclasses.replace(tower, dtype=self.dtype, param_dtype=self.param_dtype)
            object.__setattr__(self, name, tower)
        if self.projection < 0:
            raise InputError("clip: projection must not be negative")

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        inputs = {name: x for tower in self.towers.values() for name, x in tower.inputs.items()}
        return {name: x for name, x in inputs.items() if name != "token_type_ids"}  # which are of pairs of texts

    @property
    def towers(self) -> dict[str, Architecture]:
        return {"vision": self.vision} | ({"text": self.text} if self.text else {})

    @property
    def tables(self) -> dict[str, int]:
        return {name: rows for name, rows in self.text.tables.items() if name in self.inputs} if self.text else {}

    @property
    def depth(self) -> int:
        return sum(tower.depth for tower in self.towers.values())


def _tower(config, name):
    from jtransfer.models import MODELS

    return next(module for module, kind in MODELS.values() if kind is type(config))(config, name=name)


class CLIP(nn.Module):
    """The two towers.

    Called with `pixel_values [batch, height, width, channels]` (or with the three inputs of a NaFlex tower), with
    `input_ids [batch, tokens]` (and perhaps `attention_mask`), or with both, it returns for each of the two:

    - `image_embeds` or `text_embeds [batch, projection]`, of length 1, in float32;
    - `vision_model_output` or `text_model_output`, the outputs of the tower, but that `pooler_output` is projected, as
      transformers 5 has it: the embeddings before they are scaled to length 1. `features` are not.

    With both, `logits_per_image [images, texts]` and its transpose `logits_per_text`: cosines times
    `exp(logit_scale)`, plus `logit_bias`. With one of them alone, `features` of its tower.
    """

    config: CLIPConfig

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array | None = None,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
        pixel_attention_mask: jax.Array | None = None,
        spatial_shapes: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        c, outputs = self.config, {}
        if pixel_values is not None:
            pixels = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
            pixels = {"pixel_values": pixel_values} | {key: x for key, x in pixels.items() if x is not None}
            if missing := c.vision.inputs.keys() - pixels.keys():
                raise InputError(f"clip: {min(missing)} is missing beside pixel_values")
            tower = _tower(c.vision, "vision")(**pixels, train=train, output_hidden_states=output_hidden_states)
            outputs |= self._embedded(tower, "vision", "image_embeds")
        elif input_ids is None:
            raise InputError("clip: neither pixel_values nor input_ids are given")
        if input_ids is not None:
            tower = _tower(c.text, "text")(
                input_ids, attention_mask, train=train, output_hidden_states=output_hidden_states
            )
            outputs |= self._embedded(tower, "text", "text_embeds")
        if pixel_values is None or input_ids is None:
            return outputs | {"features": tower["features"]}
        images, texts = outputs["image_embeds"], outputs["text_embeds"]
        if images.shape[-1] != texts.shape[-1]:
            raise InputError(f"clip: embeddings of widths {images.shape[-1]} and {texts.shape[-1]} do not compare")
        scale = self.param("logit_scale", nn.initializers.constant(c.logit_scale), (), c.param_dtype)
        logits = images @ texts.T * jnp.exp(scale.astype(jnp.float32))
        if c.logit_bias is not None:
            logits += self.param("logit_bias", nn.initializers.constant(c.logit_bias), (), c.param_dtype)
        return outputs | {"logits_per_image": logits, "logits_per_text": logits.T}

    def _embedded(self, tower, name, embeds):
        c, x = self.config, tower["features"]
        if c.projection:
            dense = layers.Dense(
                c.projection, use_bias=False, dtype=c.dtype, param_dtype=c.param_dtype, name=f"{name}_projection"
            )
            x = dense(x)
        unit = x.astype(jnp.float32)
        unit /= jnp.linalg.norm(unit, axis=-1, keepdims=True)
        return {embeds: unit, f"{name}_model_output": tower | {"pooler_output": x}}
