"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): an encoder of long texts, most of whose blocks look near by.

    embeddings/{word/embedding, norm}
    encoder/block_0/{attention/{qkv, out}, norm_2, mlp/{up, gate, down}}    whose attention has no norm before it
    encoder/block_1/{norm_1, attention/{qkv, out}, norm_2, mlp/{up, gate, down}}
    encoder/norm

Places turn queries and keys, by other angles where attention is local. Methods reach in from outside through the small
named functions `embed` and `positions`, and those of the blocks.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture, of_texts
from jtransfer.models.bert import mean, unit
from jtransfer.models.heads import Head
from jtransfer.models.rotary import Rotary
from jtransfer.models.transformer import Encoder, Stack, document_mask, padding_mask

POOLS = ("cls", "mean")
BIASES = {"attention_bias": ("qkv", "out"), "mlp_bias": ("up", "gate", "down")}
"""Options of biases, and the dense layers of a block that each is of."""


@dataclass(frozen=True)
class ModernBertConfig(Architecture):
    """The architecture.

    Attributes:
        vocabulary: Number of words.
        positions: Tokens that the model takes at most.
        hidden: Hidden width of the MLP.
        window: Places that attention near by covers, half on either side; the places at both ends are seen too.
        global_every: Attention of blocks 0, n, 2n, ... looks everywhere, that of all others near by.
        theta: Of the rotary positions where attention looks everywhere, as in `rotary.Rotary`.
        near_theta: Of those where it looks near by.
        padding: The word that fills up a batch, whose row of the table never learns (as in PyTorch); None for none.
        pool: What `features` and `sentence_embedding` are: "cls" takes the first token, "mean" averages the tokens of
            the attention mask.
        normalize: Whether `sentence_embedding` is scaled to length 1.
        tied: Whether the head of masked language modelling reads the table of words.
        attention_bias: Whether the layers of attention have biases, and `mlp_bias` whether those of the MLP have.
        norm_bias: Whether LayerNorms, and the hidden layer of the heads, have biases.
        head_activation: In the hidden layer of the heads.
        decoder_bias: Whether the output of masked language modelling has a bias.
        epsilon: Of every LayerNorm.
        activation: Of the gate of the MLP.
        embedding_dropout: Rate after the embeddings; `attention_dropout` on the attention weights.
        remat: Recompute each block in the backward pass.
        bits: 4 or 8 for kernels of the blocks that are kept in so many bits and never learn; 0 for floats.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    vocabulary: int = 50368
    positions: int = 8192
    width: int = 768
    depth: int = 22
    heads: int = 12
    hidden: int = 1152
    window: int = 128
    global_every: int = 3
    theta: float = 160000.0
    near_theta: float = 10000.0
    padding: int | None = 50283
    pool: str = "cls"
    normalize: bool = False
    tied: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    decoder_bias: bool = True
    head_activation: str = "gelu"
    epsilon: float = 1e-5
    activation: str = "gelu"
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    bits: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise InputError(f"modernbert: unknown pool '{self.pool}'; {nearest(self.pool, POOLS)}")
        if min(self.vocabulary, self.positions, self.window, self.global_every) < 1:
            raise InputError("modernbert: vocabulary, positions, window and global_every must be at least 1")
        if self.stack.of_head % 2:
            raise InputError(f"modernbert: a head is {self.stack.of_head} wide; expected an even width")

    cls = True
    masks_padding = True
    masks_documents = True
    final_norm = "encoder/norm"

    @property
    def sentence_pooling(self) -> str:
        return self.pool

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": self.vocabulary}

    @property
    def longest(self) -> int:
        return self.positions

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return of_texts(self.positions, "input_ids", "attention_mask")

    @property
    def transform(self) -> dict:
        """What precedes the output of every head."""
        return {"hidden": self.head_activation, "norm": self.epsilon, "unbiased": not self.norm_bias}

    @property
    def language_head(self) -> Head:
        options = {"tied": self.tied, "bias": self.decoder_bias}
        return Head(self.vocabulary, reads="last_hidden_state", **options, **self.transform)

    @property
    def stack(self) -> Stack:
        """The blocks."""
        unbiased = (layer for option, of in BIASES.items() if not getattr(self, option) for layer in of)
        return Stack.of(self, unbiased=tuple(unbiased), first_norm=False, fused_qkv=True, gated=True)


class ModernBertEmbeddings(nn.Module):
    """Words, normalised, and the rotations at their places."""

    config: ModernBertConfig

    def embed(self, input_ids):
        """`[batch, tokens]` to `[batch, tokens, width]`; places change nothing of it."""
        c = self.config
        x = layers.Embed(c.vocabulary, c.width, c.dtype, c.param_dtype, name="word")(input_ids)
        return x if c.padding is None else jnp.where((input_ids != c.padding)[..., None], x, jax.lax.stop_gradient(x))

    def positions(self, x, position_ids):
        """The rotations of `x [batch, tokens, width]`, everywhere and near by, for `layers.rotate`."""
        c = self.config
        return tuple(Rotary(theta).at(position_ids, c.stack.of_head) for theta in (c.theta, c.near_theta))

    @nn.compact
    def __call__(self, input_ids, train):
        c, x = self.config, self.embed(input_ids)
        rotations = self.positions(x, jnp.arange(x.shape[1])[None])
        x = nn.Dropout(c.embedding_dropout)(c.stack.layer_norm(name="norm")(x), deterministic=not train)
        return x, rotations


class ModernBert(nn.Module):
    """The backbone.

    Called with `input_ids [batch, tokens]` and, if there is padding, `attention_mask` of that shape, it returns
    `last_hidden_state [batch, tokens, width]` (after the last LayerNorm), `features [batch, width]` (what a head
    reads), `sentence_embedding [batch, width]` and, on request, `hidden_states`: the stream before the first block and
    after each, the last one after the last LayerNorm. With `document_ids` of the shape of the mask, a token
    sees those tokens alone that have its number.
    """

    config: ModernBertConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        document_ids: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c, tokens = self.config, input_ids.shape[1]
        if tokens > c.longest:
            raise InputError(f"modernbert: input_ids have {tokens} tokens, the model takes {c.longest} at most")
        x, rotations = ModernBertEmbeddings(c, name="embeddings")(input_ids, train)
        mask = padding_mask(attention_mask)
        if document_ids is not None:
            own = document_mask(document_ids)
            mask = own if mask is None else mask & own
        near = near_mask(x.shape[1], c.window // 2)
        near = near if mask is None else near & mask
        encoder = Encoder(c.stack, name="encoder")
        x, hidden_states = encoder(x, mask, train, rotation=rotations[0], near=(near, rotations[1]))
        features = x[:, 0] if c.pool == "cls" else mean(x, attention_mask)
        outputs = {"last_hidden_state": x, "features": features}
        outputs["sentence_embedding"] = unit(features) if c.normalize else features
        return outputs | ({"hidden_states": [*hidden_states[:-1], x]} if output_hidden_states else {})


def near_mask(tokens: int, reach: int) -> jax.Array:
    """Where a token may look at what is at most `reach` places away, `[1, 1, tokens, tokens]`."""
    places = jnp.arange(tokens)
    return (jnp.abs(places - places[:, None]) <= reach)[None, None]
