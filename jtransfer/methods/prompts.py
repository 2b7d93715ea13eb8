"""Learned tokens: among the patches of an image, and before the words of a text.

    vision/encoder/vpt/tokens       text/embeddings/prompt/tokens

A model gives no more outputs for them: what it makes of them is cut off, so that every head finds what it expects. No
plain model has them, so they do not merge: what is kept is the tokens, beside the name of their backbone.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import checked, whole
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.models import MODELS, check_ids
from jtransfer.models.transformer import Block, Encoder

LENGTH = whole(1, 2**16)


class Tokens(nn.Module):
    """Learned vectors, `[..., tokens, width]`.

    Attributes:
        shape: Of all of them.
        start: Their initialiser.
        param_dtype: Of the leaf.
    """

    shape: tuple[int, ...]
    start: Callable
    param_dtype: str

    @nn.compact
    def __call__(self):
        return self.param("tokens", self.start, self.shape, self.param_dtype)


@checked
def vpt(length: Annotated[int, LENGTH] = 10, deep: bool = False) -> Method:
    """Visual prompts, learned tokens that stand after the class token; they and the head learn.

    Shallow prompts enter before the first block (Jia et al. 2022, arXiv:2203.12119, equation 4). Deep prompts enter
    each block in place of what the block before made of its own (equation 6). They have no positions, start as
    U(-b, b) with `b = sqrt(6 / (3 patch² + width))`, and leave after the last block. Of a transformer of `depth` blocks
    and width d they are `length d` parameters, and deep `depth length d`.

    Args:
        length: Number of prompts; of deep ones, in each block.
        deep: Whether every block has prompts of its own.

    Raises:
        InputError: a length below 1; and, of a model, one without a sequence of patches that all blocks see.
    """

    def interceptor(call, args, kwargs, context):
        encoder = context.module
        if not (isinstance(encoder, Encoder) and context.method_name == "__call__" and reads(encoder.parent, IMAGES)):
            return call(*args, **kwargs)
        c, model = encoder.config, encoder.parent.config
        bound, before = math.sqrt(6 / (3 * model.patch**2 + c.width)), model.prefix_tokens
        shape, start = (c.depth if deep else 1, length, c.width), _uniform(bound)
        prompts = Tokens(shape, start, c.param_dtype, parent=encoder, name="vpt")()

        def among(x, i, behind):
            """`x` with the prompts of block i between the first tokens and those from `behind` on."""
            own = jnp.broadcast_to(prompts[i].astype(x.dtype), (len(x), *prompts[i].shape))
            return jnp.concatenate([x[:, :before], own, x[:, behind:]], axis=1)

        def inside(call, args, kwargs, context):
            if context.method_name == "tokens" and isinstance(context.module, Encoder):
                x, mask = call(*args, **kwargs)
                if mask is not None:  # [batch, 1, 1, tokens]: every token may look at a prompt
                    mask = jnp.insert(mask, np.full(length, before), True, axis=-1)
                return among(x, 0, before), mask
            if deep and context.method_name == "__call__" and isinstance(context.module, Block):
                i = int(context.module.name.removeprefix("block_"))
                args = (among(args[0], i, before + length), *args[1:])
            return call(*args, **kwargs)

        with nn.intercept_methods(inside):
            x, hidden_states = call(*args, **kwargs)
        x, *hidden_states = (jnp.delete(y, np.arange(length) + before, axis=1) for y in (x, *hidden_states))
        return x, hidden_states

    def learns(paths):
        if not any(path.endswith("encoder/vpt/tokens") for path in paths):
            raise InputError(
                "vpt: the model has no sequence of patches that every block sees; expected a vision transformer, and "
                "no CNN, Swin (whose windows hold patches alone) or model of texts (see prompt and prefix)"
            )
        return learn(HEAD, (".*encoder/vpt/tokens", 1.0))(paths)

    return Method("vpt", learns, adds=(interceptor,), merge=None)


@checked
def prompt(length: Annotated[int, LENGTH] = 10, ids: Sequence[int] = ()) -> Method:
    """Learned tokens that stand before the words of every text; they and the head learn.

    The model reads a text as if it began with `length` words more (Lester et al. 2021, arXiv:2104.08691, section 2, and
    PEFT's prompt tuning): positions count them, causal models let every word look back at them, and what `features` are
    made of may be a prompt, as BERT's first token is. `last_hidden_state` and `hidden_states` are those of the words
    alone. Of embeddings of width d they are `length d` parameters.

    Args:
        length: Number of prompts.
        ids: Words whose embeddings they start as, one after the other and again from the first as often as needed
            (PEFT's `TEXT`); empty for words drawn from the whole vocabulary (section 3.2 there).

    Raises:
        InputError: a length below 1; and, of a model, one that reads no texts, a word that it lacks, or fewer places
            than the prompts and a text need.
    """

    def interceptor(call, args, kwargs, context):
        model = context.module
        if not (context.method_name == "__call__" and reads(model, TEXTS)):
            return call(*args, **kwargs)
        inputs = by_name(model, args, kwargs)
        if inputs[TEXTS].ndim != 2:
            raise InputError("prompt: the model reads words by their characters, before which no token can stand")
        if model.config.recurrent:
            raise InputError("prompt: the model reads on from a state, which takes the place of tokens before a text")
        if _follows(length, inputs):
            return call(**lengthened(length, inputs, model.config, also=("attention_mask",)))
        if inputs.get("document_ids") is not None:
            raise InputError(
                "prompt: rows of several documents have no one beginning; expected config.packing 'joined' or none"
            )
        check_places("prompt", length, tokens_of(inputs), model.config)

        def inside(call, args, kwargs, context):
            if context.method_name != "embed":
                return call(*args, **kwargs)
            (longer,), embeddings = args, context.module
            words = call(longer[:, length:])
            start, types = _words(embeddings, length, ids), embeddings.config.param_dtype
            own = Tokens((length, words.shape[-1]), start, types, parent=embeddings, name="prompt")()
            own = jnp.broadcast_to(own.astype(words.dtype), (len(words), *own.shape))
            return jnp.concatenate([own, words], axis=1)

        with nn.intercept_methods(inside):
            outputs = call(**lengthened(length, inputs, model.config))
        states = {key: outputs[key] for key in ("last_hidden_state", "hidden_states") if key in outputs}
        return outputs | jax.tree.map(lambda x: x[:, length:], states)

    def learns(paths):
        if not any(path.endswith("embeddings/prompt/tokens") for path in paths):
            raise InputError("prompt: the model reads no texts; see vpt and prefix, which serve models of images")
        return learn(HEAD, (".*embeddings/prompt/tokens", 1.0))(paths)

    return Method("prompt", learns, adds=(interceptor,), merge=None)


def _words(embeddings: nn.Module, length: int, ids: Sequence[int]) -> Callable:
    """An initialiser of prompts as rows of the table of words, which is there already."""
    table = embeddings.get_variable("params", "word")["embedding"]
    check_ids("prompt", "ids", [ids], len(table))

    def start(key, shape, dtype):
        rows = np.resize(ids, length) if ids else jax.random.randint(key, (length,), 0, len(table))
        return jnp.asarray(table, dtype)[rows]

    return start


def by_name(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], method: str = "__call__") -> dict:
    """All arguments of a call of a module's method, by their names."""
    names = list(inspect.signature(getattr(type(module), method)).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def check_places(what: str, length: int, texts: int, config: Any) -> None:
    """Refuse texts that are too long for the positions of a model once `length` places before them are taken.

    Args:
        what: The method, for the error.
        length: Places before each text.
        texts: Tokens of the texts, padding among them.
        config: Of the model.

    Raises:
        InputError: with all numbers.
    """
    if length + texts > config.longest:
        raise InputError(
            f"{what}: {length} places before texts of {texts} tokens are too many; the model has {config.longest}: "
            f"expected {max(0, config.longest - texts)} at most, or shorter texts (config.load.tokens)"
        )


def tokens_of(inputs: Mapping[str, Any]) -> int:
    """Tokens of the texts of a call: those of the cache that it goes on from, or its own."""
    past = inputs.get("past_key_values")
    return past[0].key.shape[1] if past else inputs[TEXTS].shape[1]


def _follows(length: int, inputs: Mapping[str, Any]) -> bool:
    """Whether a call goes on from a cache that holds prompts: it is longer than the mask, which covers the text alone.

    Raises:
        InputError: a cache without that mask.
    """
    if inputs.get("past_key_values") is None:
        return False
    if inputs.get("attention_mask") is None:
        raise InputError("prompt: past_key_values need the attention_mask beside them, which covers the text alone")
    return tokens_of(inputs) == inputs["attention_mask"].shape[1] + length


def lengthened(length: int, inputs: Mapping[str, Any], config: Any, also: Sequence[str] = ()) -> dict[str, Any]:
    """Inputs of texts that begin with `length` words more, which are of no type, no padding and no end of a text.

    Args:
        length: Number of those words.
        inputs: By their names: `[batch, tokens]` or None.
        config: Of the model.
        also: What alone is lengthened, where the words are not in the call itself but in what came before it.
    """
    special = {getattr(config, name, None) for name in ("padding", "pad_token", "eos_token")}
    filler = {TEXTS: next(i for i in itertools.count() if i not in special), "attention_mask": 1, "token_type_ids": 0}
    longer = {
        name: jnp.pad(x, ((0, 0), (length, 0)), constant_values=filler[name])
        for name, x in inputs.items()
        if name in (also or filler) and x is not None
    }
    if (places := inputs.get("position_ids")) is not None:
        first = jnp.broadcast_to(jnp.arange(length), (len(places), length))
        longer["position_ids"] = places + length if also else jnp.concatenate([first, places + length], axis=1)
    if (past := inputs.get("past_key_values")) is not None and not also:
        longer["past_key_values"] = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, length), (0, 0), (0, 0))) if x.ndim else x, past
        )
    return {**inputs, **longer}


def _uniform(bound: float) -> Callable:
    def start(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start


IMAGES, TEXTS = "pixel_values", "input_ids"
BACKBONES = tuple(module for module, _ in MODELS.values())


def reads(module: nn.Module | None, inputs: str) -> bool:
    """Whether a module is a backbone of one kind of inputs, or the tower of that kind in a dual encoder."""
    return isinstance(module, BACKBONES) and not module.config.towers and inputs in module.config.inputs
