"""BERT (Devlin et al. 2019, arXiv:1810.04805) and its kin: RoBERTa, DistilBERT, MiniLM, ELECTRA, sentence encoders.

    embeddings/{word/embedding, position/embedding, token_type/embedding, norm, projection}
    encoder/block_0/...          as in transformer.py, post-norm
    pooler

Methods reach in from outside through the small named functions `embed` and `positions`, and those of the blocks.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError, nearest
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture, of_texts
from jtransfer.models.heads import Head
from jtransfer.models.transformer import Encoder, Stack, document_mask, padding_mask

POOLS = ("pooler", "cls", "mean")


@dataclass(frozen=True)
class BertConfig(Architecture):
    """The architecture.

    Attributes:
        vocabulary: Number of words.
        positions: Rows of the table of positions.
        types: Number of token types; 0 for none, as in DistilBERT.
        hidden: Hidden width of the MLP; 0 for four times `width`.
        embedding: Width of the embeddings, which a dense layer projects to `width` where it is another (ELECTRA);
            0 for `width`.
        padding: The word that fills up a batch, whose row of the table never learns (as in PyTorch); None for none.
        shifted: Whether positions count from `padding + 1` on, over the other words only (RoBERTa), instead of from 0
            on over all.
        pooler: Whether `pooler_output` is there: `tanh(dense(first token))`.
        pool: What `features` are: "pooler" takes `pooler_output`, or the first token where there is no pooler; "cls"
            takes the first token, "mean" averages the tokens of the attention mask, and both give it as
            `sentence_embedding` too (Reimers and Gurevych 2019, arXiv:1908.10084).
        normalize: Whether `sentence_embedding` is scaled to length 1.
        tied: Whether the head of masked language modelling reads the table of words.
        epsilon: Of every LayerNorm.
        activation: A key of `layers.ACTIVATIONS`, as "gelu" (exact) or "gelu_tanh".
        dropout: Rate after the embeddings and in both branches of a block.
        attention_dropout: Rate on the attention weights.
        drop_path: Stochastic depth: rate of the last block, growing linearly from 0 at the first.
        remat: Recompute each block in the backward pass.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    embedding: int = 0
    padding: int | None = 0
    shifted: bool = False
    pooler: bool = True
    pool: str = "pooler"
    normalize: bool = False
    tied: bool = True
    epsilon: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise InputError(f"bert: unknown pool '{self.pool}'; {nearest(self.pool, POOLS)}")
        if self.shifted and self.padding is None:
            raise InputError("bert: shifted positions count from padding + 1, and padding is None")
        if min(self.vocabulary, self.longest) < 1 or min(self.types, self.embedding) < 0:
            raise InputError("bert: vocabulary and positions must be at least 1, types and embedding not negative")
        _ = self.stack  # which checks the rest

    cls = True
    right_padded = True
    masks_padding = True
    masks_documents = True

    @property
    def sentence_pooling(self) -> str:
        if self.pool == "pooler":
            return "" if self.pooler else "cls"  # the first token, which `features` then are
        return self.pool

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": self.vocabulary} | ({"token_type_ids": self.types} if self.types else {})

    @property
    def longest(self) -> int:
        return self.positions - (self.padding + 1 if self.shifted else 0)

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        names = ("input_ids", "attention_mask", "token_type_ids")[: 3 if self.types else 2]
        return of_texts(self.longest, *names)

    @property
    def language_head(self) -> Head:
        transform = {"hidden": self.activation, "norm": self.epsilon, "width": self.embedding}
        return Head(self.vocabulary, reads="last_hidden_state", tied=self.tied, **transform)

    @property
    def stack(self) -> Stack:
        """The blocks."""
        return Stack.of(self, norm="post", last_norm=False)


class BertEmbeddings(nn.Module):
    """Words to tokens: the sum of three tables, normalised, and projected where the encoder has another width."""

    config: BertConfig

    def look_up(self, ids, name, number, learned=None):
        """Rows of one of the three tables; the gradient of those where `learned` is false stops here."""
        c = self.config
        x = layers.Embed(number, c.embedding or c.width, dtype=c.dtype, param_dtype=c.param_dtype, name=name)(ids)
        return x if learned is None else jnp.where(learned[..., None], x, jax.lax.stop_gradient(x))

    def embed(self, input_ids):
        """`[batch, tokens]` to `[batch, tokens, embedding]`, before positions."""
        c = self.config
        return self.look_up(input_ids, "word", c.vocabulary, None if c.padding is None else input_ids != c.padding)

    def positions(self, x, input_ids, token_type_ids):
        """Add to `x [batch, tokens, embedding]` where each token stands and, `[batch, tokens]` or None, its type."""
        c = self.config
        if c.shifted:
            counts = input_ids != c.padding
            x += self.look_up(jnp.cumsum(counts, axis=1) * counts + c.padding, "position", c.positions, counts)
        else:
            x += self.look_up(jnp.arange(x.shape[1])[None], "position", c.positions)
        if not c.types:
            return x
        types = jnp.zeros((1, 1), int) if token_type_ids is None else token_type_ids
        return x + self.look_up(types, "token_type", c.types)

    @nn.compact
    def __call__(self, input_ids, token_type_ids, train):
        c = self.config
        x = self.positions(self.embed(input_ids), input_ids, token_type_ids)
        x = nn.Dropout(c.dropout)(c.stack.layer_norm(name="norm")(x), deterministic=not train)
        return c.stack.dense(c.width, name="projection")(x) if c.embedding not in (0, c.width) else x


class Bert(nn.Module):
    """The backbone.

    Called with `input_ids [batch, tokens]` and, if they matter, `attention_mask` (1 for a token, 0 for padding) and
    `token_type_ids` of the same shape, it returns `last_hidden_state [batch, tokens, width]`, `pooler_output [batch,
    width]` where there is a pooler, `features [batch, width]` (what a head reads), `sentence_embedding [batch, width]`
    where `config.pool` is the way of a sentence encoder, and, on request, `hidden_states`: the stream before the first
    block and after each, `depth + 1` of `[batch, tokens, width]`. With `document_ids` of the shape of the mask, a token
    sees those tokens alone that have its number.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        document_ids: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        c = self.config
        if input_ids.shape[1] > c.longest:
            raise InputError(f"bert: input_ids have {input_ids.shape[1]} tokens, the model takes {c.longest} at most")
        if token_type_ids is not None and not c.types:
            raise InputError("bert: the model has no token types, and takes no token_type_ids")
        x = BertEmbeddings(c, name="embeddings")(input_ids, token_type_ids, train)
        mask = padding_mask(attention_mask)
        if document_ids is not None:
            own = document_mask(document_ids)
            mask = own if mask is None else mask & own
        x, hidden_states = Encoder(c.stack, name="encoder")(x, mask, train)
        outputs = {"last_hidden_state": x, "features": x[:, 0]}
        if c.pooler:
            outputs["pooler_output"] = jnp.tanh(c.stack.dense(c.width, name="pooler")(x[:, 0]))
        if c.pool == "pooler" and c.pooler:
            outputs["features"] = outputs["pooler_output"]
        if c.pool == "mean":
            outputs["features"] = mean(x, attention_mask)
        if c.pool != "pooler":
            outputs["sentence_embedding"] = unit(outputs["features"]) if c.normalize else outputs["features"]
        return outputs | ({"hidden_states": hidden_states} if output_hidden_states else {})


def mean(x, attention_mask):
    """The average of those of `x [batch, tokens, width]` that the mask `[batch, tokens]` keeps; None keeps all."""
    kept = jnp.ones(x.shape[:2], bool) if attention_mask is None else jnp.asarray(attention_mask, bool)
    total = jnp.where(kept[..., None], x, 0).sum(1, dtype=jnp.float32)
    return (total / jnp.maximum(kept.sum(1), 1)[:, None]).astype(x.dtype)


def unit(x):
    """`x [batch, width]` scaled to length 1 in float32; what is 0 stays 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
