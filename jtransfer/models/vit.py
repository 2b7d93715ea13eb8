"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and what grew from it.

    embeddings/{patch, cls, distillation, registers, positions, norm}
    encoder/block_0/...          as in transformer.py
    encoder/norm, or norm        of all tokens, or of the pooled one
    pooler, or pooler/{probe, attention/{query, key, value, out}, norm, mlp/{up, down}}

Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture
from jtransfer.models.transformer import Encoder, Mlp, Stack

POOLS = ("cls", "mean", "cls_mean", "map", "patches")


@dataclass(frozen=True)
class ViTConfig(Architecture):
    """Options of a vision transformer.

    Attributes:
        image: Height and width of the input in pixels; what is left over beyond the last whole patch, at the bottom
            and on the right, is not seen.
        channels: Channels of the input.
        patch: Side of a patch in pixels.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        pool: What `features` are: "cls" puts a learned token first and takes it; "mean" has no class token and
            averages the patches; "cls_mean" takes the token and the average of the patches, side by side; "map" has no
            such token either and lets a learned probe attend to the patches (Zhai et al. 2022, arXiv:2106.04560);
            "patches" has the token and averages the patches alone (as MAE is fine-tuned).
        norm_pooled: Whether the last LayerNorm is on the features alone and leaves the tokens as they are (CLIP).
        pooler: Whether `pooler_output` is `tanh(dense(token))` instead of the features.
        distilled: Whether a second learned token, which a teacher is imitated from, follows the class token (DeiT,
            Touvron et al. 2021, arXiv:2012.12877).
        registers: Number of learned tokens without positions that stand before the patches and are no features
            (Darcet et al. 2024, arXiv:2309.16588).
        patch_bias: Whether the patches' dense layer has a bias.
        embedding_norm: Whether a LayerNorm precedes the blocks (CLIP).
        qkv_bias: Whether query, key and value have a bias.
        epsilon: Added to the variance in every LayerNorm.
        activation: A key of `layers.ACTIVATIONS`, as "gelu" (exact) or "gelu_tanh".
        gated: Whether the MLP is gated, as in `transformer.Stack`.
        layer_scale: Start of the learned scale on each branch, as in `transformer.Stack`; 0 for none.
        dropout: Rate after the embeddings and in both branches of a block.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first
            (Huang et al. 2016, arXiv:1603.09382).
        remat: Recompute each block in the backward pass: less memory, a third more FLOPs.
        dtype: Type in which the model computes; its parameters have the type `param_dtype`.
        fixed_positions: Whether the positions are those of `waves`, which are no parameters, instead of learned ones.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    pool: str = "cls"
    norm_pooled: bool = False
    pooler: bool = False
    distilled: bool = False
    registers: int = 0
    patch_bias: bool = True
    embedding_norm: bool = False
    qkv_bias: bool = True
    epsilon: float = 1e-6
    activation: str = "gelu"
    gated: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    fixed_positions: bool = field(default=False, repr=False)  # fingerprints of earlier versions are over the others

    def __post_init__(self):
        if self.pool not in POOLS:
            raise InputError(f"vit: unknown pool '{self.pool}'; {nearest(self.pool, POOLS)}")
        if self.fixed_positions and (self.width % 4 or self.width < 8):
            raise InputError(f"vit: fixed_positions need a width of 8, 12, 16, ...; found {self.width}")
        check_patches(self, "vit")
        if self.registers < 0 or (self.distilled and not self.cls):
            raise InputError("vit: registers must not be negative, and a distilled model has a class token")
        if (self.pool == "map" and self.pooler) or (self.norm_pooled and (self.pooler or self.pool == "cls_mean")):
            raise InputError(f"vit: pool '{self.pool}' has one output, which neither a pooler nor two norms suit")
        _ = self.stack  # which checks the rest

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"pixel_values": jax.ShapeDtypeStruct((1, *self.image, self.channels), jnp.float32)}

    @property
    def grid(self) -> tuple[int, int]:
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def cls(self) -> bool:
        return self.pool in ("cls", "cls_mean", "patches")

    @property
    def leading(self) -> int:
        """Number of tokens with a position before those of the patches; the registers follow them and have none."""
        return self.cls + self.distilled

    @property
    def prefix_tokens(self) -> int:
        return self.leading + self.registers

    @property
    def final_norm(self) -> str:
        return "norm" if self.norm_pooled else "encoder/norm"

    @property
    def stack(self) -> Stack:
        """The blocks."""
        unbiased = () if self.qkv_bias else ("query", "key", "value")
        return Stack.of(self, last_norm=not self.norm_pooled, unbiased=unbiased)


def check_patches(config: Architecture, what: str) -> None:
    """Refuse images without a whole patch.

    Args:
        config: With `image`, `channels` and `patch`.
        what: Name of the architecture, for the error.

    Raises:
        InputError: with all sizes.
    """
    c = config
    if len(c.image) != 2 or min(c.patch, c.channels) < 1 or min(c.image) < c.patch:
        raise InputError(f"{what}: image {c.image} of {c.channels} channels has no patch of side {c.patch}")


def patches(pixel_values: jax.Array, config: Architecture, what: str) -> jax.Array:
    """The pixels of each patch, row by row.

    What is left over at the bottom and on the right is not seen, and where `config.grid` has a patch for it, that
    patch is filled up with zeros.

    Args:
        pixel_values: `[batch, height, width, channels]`.
        config: With `image`, `channels`, `patch` and `grid`.
        what: Name of the architecture, for the error.

    Returns:
        `[batch, patches, patch * patch * channels]`.

    Raises:
        InputError: images of another shape than the model takes.
    """
    c = config
    if pixel_values.shape[1:] != (*c.image, c.channels):
        found, expected = ("x".join(map(str, sides)) for sides in (pixel_values.shape[1:], (*c.image, c.channels)))
        fits = pixel_values.ndim == 4 and pixel_values.shape[-1] == c.channels
        resized = (
            f"a checkpoint is resized as it is loaded, with image=({', '.join(map(str, pixel_values.shape[1:3]))})"
        )
        advice = resized if fits else "the axes are [batch, height, width, channels]"
        raise InputError(f"{what}: pixel_values are {found}, the model takes {expected}; {advice}")
    rows, columns = c.grid
    over = (max(0, number * c.patch - side) for number, side in zip(c.grid, c.image, strict=True))
    whole = jnp.pad(pixel_values, ((0, 0), *((0, more) for more in over), (0, 0)))
    seen = whole[:, : rows * c.patch, : columns * c.patch]
    grid = seen.reshape(-1, rows, c.patch, columns, c.patch, c.channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, c.patch * c.patch * c.channels)


def prepend(module: nn.Module, name: str, number: int, x: jax.Array, std: float = 0.0) -> jax.Array:
    """Put `number` learned tokens, a parameter of `module`, before those of `x [batch, tokens, width]`."""
    tokens = module.param(name, nn.initializers.normal(std), (1, number, x.shape[-1]), module.config.param_dtype)
    return jnp.concatenate([jnp.broadcast_to(tokens.astype(x.dtype), (len(x), number, x.shape[-1])), x], axis=1)


def waves(grid: tuple[int, int], width: int) -> np.ndarray:
    """Positions of sines and cosines (Chen et al. 2021, arXiv:2104.02057), as big_vision's `posemb_sincos_2d`.

    A quarter of the width each are the sines and cosines of the column and of the row, at rates from 1 down to 1/10000.

    Args:
        grid: Patches along height and width.
        width: Width of a token, a multiple of 4.

    Returns:
        `[patches, width]` float32, row by row.
    """
    y, x = np.mgrid[: grid[0], : grid[1]].astype(np.float32)
    rates = 1 / 10_000 ** np.linspace(0, 1, width // 4, dtype=np.float32)
    y, x = y.reshape(-1, 1) * rates, x.reshape(-1, 1) * rates
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)


class ViTEmbeddings(nn.Module):
    """Pixels to tokens: linear patches and the tokens before them, learned or fixed positions."""

    config: ViTConfig

    def embed(self, pixel_values):
        """`[batch, height, width, channels]` to `[batch, tokens, width]`, before positions."""
        c = self.config
        x = c.stack.dense(c.width, use_bias=c.patch_bias, name="patch")(patches(pixel_values, c, "vit"))
        if c.distilled:
            x = prepend(self, "distillation", 1, x)
        return prepend(self, "cls", 1, x) if c.cls else x

    def positions(self, x):
        """Add the positions to `x [batch, tokens, width]`; tokens before those of the patches have no fixed ones."""
        c, init = self.config, nn.initializers.normal(0.02)
        if c.fixed_positions:
            fixed = waves(c.grid, c.width)
            return x + np.pad(fixed, ((x.shape[1] - len(fixed), 0), (0, 0))).astype(x.dtype)
        return x + self.param("positions", init, (1, *x.shape[1:]), c.param_dtype).astype(x.dtype)

    @nn.compact
    def __call__(self, pixel_values, train):
        c = self.config
        x = self.positions(self.embed(pixel_values.astype(c.dtype)))
        if c.registers:  # which start apart, as no positions tell them from each other
            others = prepend(self, "registers", c.registers, x[:, c.leading :], 0.02)
            x = jnp.concatenate([x[:, : c.leading], others], axis=1)
        x = c.stack.layer_norm(name="norm")(x) if c.embedding_norm else x
        return nn.Dropout(c.dropout)(x, deterministic=not train)


class ProbeAttention(nn.Module):
    """Multi-head attention of `query [batch, 1, width]` to `x [batch, tokens, width]`, where the mask allows."""

    config: Stack

    def attend(self, query, key, value, mask):
        """`[batch, tokens, heads, head width]`, three of them, to one."""
        return layers.attend(query, key, value, mask)

    @nn.compact
    def __call__(self, query, x, mask=None):
        c = self.config

        def project(name, tokens):
            return c.dense(c.width, name=name)(tokens).reshape(*tokens.shape[:-1], c.heads, -1)

        out = self.attend(project("query", query), project("key", x), project("value", x), mask)
        return c.dense(c.width, name="out")(out.reshape(query.shape))


class AttentionPool(nn.Module):
    """`[batch, tokens, width]` to `[batch, width]`: what a learned probe attends to, and an MLP beside it."""

    config: Stack

    @nn.compact
    def __call__(self, x, mask=None):
        c = self.config
        probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, c.width), c.param_dtype).astype(x.dtype)
        y = ProbeAttention(c, name="attention")(jnp.broadcast_to(probe, (len(x), 1, c.width)), x, mask)
        return (y + Mlp(c, name="mlp")(c.layer_norm(name="norm")(y)))[:, 0]


class ViT(nn.Module):
    """The backbone.

    Called with `pixel_values [batch, height, width, channels]`, it returns `last_hidden_state [batch, tokens, width]`
    (after the last LayerNorm, but for `norm_pooled`), `features [batch, width]` (what a head reads; twice as wide for
    "cls_mean"), `pooler_output [batch, width]` (the same, but for a config with `pooler`, and the class token alone
    for "cls_mean") and, on request, `hidden_states`: the stream before the first block and after each, `depth + 1` of
    `[batch, tokens, width]`.
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, train: bool = False, output_hidden_states: bool = False
    ) -> dict[str, jax.Array]:
        c = self.config
        x = ViTEmbeddings(c, name="embeddings")(pixel_values, train)
        x, hidden_states = Encoder(c.stack, name="encoder")(x, None, train)
        cls, mean = x[:, 0], x[:, c.prefix_tokens :].mean(1)
        pooled = mean if c.pool in ("mean", "patches") else cls
        pooled = AttentionPool(c.stack, name="pooler")(x) if c.pool == "map" else pooled
        pooled = c.stack.layer_norm(name="norm")(pooled) if c.norm_pooled else pooled
        features = jnp.concatenate([cls, mean], -1) if c.pool == "cls_mean" else pooled
        pooled = jnp.tanh(c.stack.dense(c.width, name="pooler")(cls)) if c.pooler else pooled
        outputs = {"last_hidden_state": x, "pooler_output": pooled, "features": features}
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})
