"""Word vectors: a table with a vector for each word, and what is made of a text's words: their mean.

    in/embedding, out/embedding
    in_bias/embedding, out_bias/embedding

The tables are those of word2vec (Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546), `in` of the words that are
kept and `out` of the words as they are predicted; or of GloVe (Pennington et al. 2014, doi:10.3115/v1/D14-1162), which
has a bias for each word, and whose vectors are the sum of both tables.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.models.architecture import Architecture
from jtransfer.tree import Tree

SPECIAL = 2
"""The first ids are no words: padding is 0, and a word that is not known is 1."""


@dataclass(frozen=True)
class WordVectorsConfig(Architecture):
    """The architecture.

    Attributes:
        vocabulary: Number of words, with the `SPECIAL` ids before them; where a model is trained from scratch, the most
            that are kept, the frequent ones first.
        width: Of a vector.
        output: Whether there is a table `out`, which only training on a corpus needs.
        symmetric: Whether both tables start at random and have biases, and a word's vector is the sum of its two.
        spread: Tables that start at random are uniform up to so much over the width: 1 as in gensim, 0.5 as in the C
            code of word2vec and GloVe.
        dtype: Of the computation; `param_dtype` is that of the parameters.
    """

    vocabulary: int = 1 << 20
    width: int = 100
    output: bool = True
    symmetric: bool = False
    spread: float = 1.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.vocabulary <= SPECIAL or self.width < 1:
            raise InputError(f"word_vectors: expected a vocabulary above {SPECIAL} and a width of at least 1")
        if self.symmetric and not self.output:
            raise InputError("word_vectors: symmetric tables are two; set output to True")

    masks_padding = True
    pad_token = 0
    longest = 1 << 20

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return dict.fromkeys(("input_ids", "attention_mask"), jax.ShapeDtypeStruct((1, 8), jnp.int32))

    @property
    def tables(self) -> dict[str, int]:
        return {"input_ids": self.vocabulary}


class WordVectors(nn.Module):
    """The backbone.

    Called with `input_ids [batch, tokens]` and, if there is padding, `attention_mask` of that shape, it returns
    `last_hidden_state [batch, tokens, width]`, the vectors of the words, and `features [batch, width]`, the mean of
    those that are known; 0 where none is.

    With `output_ids [batch, others]`, as objectives on a corpus give them, it also returns `input_states` and
    `output_states`, the rows of both tables, and with biases `input_bias` and `output_bias`. The `windows` beside them
    are the objective's, and change nothing here.
    """

    config: WordVectorsConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        output_ids: jax.Array | None = None,
        windows: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        c = self.config

        def start(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -c.spread, c.spread) / c.width

        def table(name, width, random=True):
            init = start if random else nn.initializers.zeros
            return layers.Embed(c.vocabulary, width, c.dtype, c.param_dtype, init, name=name)

        rows, more = table("in", c.width)(input_ids), {}
        vectors = rows
        if c.output:  # looked up in any case, so that the leaves are there
            others = input_ids if output_ids is None else output_ids
            out = table("out", c.width, c.symmetric)
            more = {"input_states": rows, "output_states": out(others)}
            if c.symmetric:
                more["input_bias"] = table("in_bias", 1)(input_ids)[..., 0]
                more["output_bias"] = table("out_bias", 1)(others)[..., 0]
                vectors = rows + out(input_ids)
            more = {} if output_ids is None else more
        known = input_ids >= SPECIAL
        known = (known if attention_mask is None else known & (attention_mask > 0))[..., None]
        count = jnp.maximum(known.sum(1), 1)
        mean = jnp.where(known, vectors, 0).sum(1) / count.astype(vectors.dtype)
        return {"last_hidden_state": vectors, "features": mean} | more


def table(config: WordVectorsConfig, tree: Tree) -> np.ndarray:
    """The vectors of all words, `[vocabulary - SPECIAL, width]` float32, in the order of their ids."""
    found = np.asarray(tree["in/embedding"], np.float32)
    if config.symmetric:
        found = found + np.asarray(tree["out/embedding"], np.float32)
    return found[SPECIAL:]
