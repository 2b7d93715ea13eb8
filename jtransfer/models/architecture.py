"""What the rest of the code may ask of an architecture, and the names that tell where a leaf stands in one."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jtransfer.errors import InputError
from jtransfer.models.heads import Head

BEFORE_BLOCKS = ("embeddings", "stem")
"""Names of the modules that compute before the first block; what is in neither these nor a block computes after."""

CONVOLUTION = r"(.*/)?conv(_\d+)?"
"""Paths of the convolutions; every other `kernel` is of a dense layer."""


def check_sides(what: str, sides: tuple[int, ...], least: int) -> None:
    """Refuse an image that is too small for the strides of a network.

    Args:
        what: Name of the architecture, for the error.
        sides: Height and width of the image in pixels.
        least: The smallest side that is taken.

    Raises:
        InputError: with both.
    """
    if min(sides) < least:
        shown = "x".join(map(str, sides))
        raise InputError(
            f"{what}: images of {shown} are too small for its strides; expected at least {least} pixels a side"
        )


def of_texts(longest: int, *names: str) -> dict[str, jax.ShapeDtypeStruct]:
    """One example of each input of texts, `[1, tokens]` int32: 8 tokens, or `longest` if they are fewer."""
    return dict.fromkeys(names, jax.ShapeDtypeStruct((1, min(longest, 8)), "int32"))


class Architecture(Protocol):
    """What may be asked of the config of any model, with the answer of a model that has no such thing.

    A config is a frozen dataclass that derives from this class and states only what differs, as a field, a property or
    a plain class attribute:

        @dataclass(frozen=True)
        class PixelsConfig(Architecture):
            image: tuple[int, int]
            channels: int

            @property
            def inputs(self): ...

    Attributes:
        depth: Number of blocks, over all stages and towers.
        heads: Number of attention heads, or that of each stage; 0 for a model without attention.
        patch: Side of a patch of the image in pixels.
        grid: Patches along height and width; None for a model that has no patches.
        cls: Whether the first token is a class token, whose state stands for the whole input.
        prefix_tokens: Number of tokens before those of the patches: class, distillation and register tokens.
        final_norm: Path of the LayerNorm after the last block, of all tokens or of the pooled one; "" for none.
        epsilon: Of every LayerNorm.
        pool: How `features` are made of the last states, in the words of the config; "" where there is one way.
        pooler: Whether a layer of its own makes `pooler_output`.
        sentence_pooling: Which pooling of sentence-transformers `features` are, "cls" or "mean"; "" for none.
        normalize: Whether `sentence_embedding` is scaled to length 1.
        longest: The largest number of tokens that a text may have; 0 for a model of images.
        right_padded: Whether padding must stand on the right, as positions count it.
        masks_padding: Whether what it makes of a text is the same however far the text is padded on the right, as far
            as the attention mask goes: its outputs `[batch, width]`, and the states of the text's own tokens.
        masks_documents: Whether tokens of a row may be told, by `document_ids`, to see those of their own text alone.
        generates: Whether the model continues texts, from `cache(batch, size)` on.
        recurrent: Whether all that it keeps of what it has read has one size: `cache` is then a state that a text of
            any length can be read on from.
        eos_tokens: The tokens that end a text that it generates.
        pad_token: The token that pads such texts; None for none.
        tied: Whether a head over the vocabulary reads the table of words; None for a model without such heads.
        language_head: The head over the vocabulary that such a model is trained with; None for one without.
        param_dtype: Of the parameters; "" for a model without any.
        bits: Of kernels that are quantised, 0 where none are; None for a model that has no such form.
    """

    depth: int = 0
    heads: int | tuple[int, ...] = 0
    patch: int = 1
    grid: tuple[int, int] | None = None
    cls: bool = False
    prefix_tokens: int = 0
    final_norm: str = ""
    epsilon: float = 1e-6
    pool: str = ""
    pooler: int = False
    sentence_pooling: str = ""
    normalize: bool = False
    longest: int = 0
    right_padded: bool = False
    masks_padding: bool = False
    masks_documents: bool = False
    generates: bool = False
    recurrent: bool = False
    eos_tokens: tuple[int, ...] = ()
    pad_token: int | None = None
    tied: bool | None = None
    language_head: Head | None = None
    param_dtype: str = ""
    bits: int | None = None

    @property
    @abstractmethod
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One example of each input that the model is called with."""

    @property
    def tables(self) -> Mapping[str, int]:
        """Rows of the table that each input of whole numbers is looked up in, by the name of the input."""
        return {}

    @property
    def towers(self) -> Mapping[str, "Architecture"]:
        """The configs of the towers of a dual encoder, "vision" and "text", whose leaves stand under these names."""
        return {}

    @property
    def vision_tower(self) -> "Architecture":
        """The tower of images; a model without towers is its own."""
        return self.towers.get("vision", self)

    @property
    def text_tower(self) -> "Architecture":
        """The tower of texts; a model without towers is its own."""
        return self.towers.get("text", self)

    def heads_at(self, path: str) -> int:
        """Number of heads of the attention that a leaf belongs to, by its path; 0 for a model without attention."""
        tower, _, rest = path.partition("/")
        if tower in self.towers:
            return self.towers[tower].heads_at(rest)
        stage = re.match(r"stage_(\d+)/", path)
        return self.heads[int(stage[1])] if stage and isinstance(self.heads, tuple) else self.heads

    def cache(self, batch: int, size: int) -> Any:
        """Empty `past_key_values` of `batch` texts, with place for `size` tokens, of a model that `generates`."""
        raise NotImplementedError
