"""A learned average of the states of all layers (Peters et al. 2018, arXiv:1802.05365, equation 1).

    scalar_mix/weights    scalar_mix/gamma        of a tower: text/scalar_mix/weights, ...

No plain model computes it, so it does not merge: what is kept is the weights, beside the name of their backbone.
"""

from inspect import signature
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, checked
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.methods.prompts import TEXTS, by_name, reads
from jtransfer.models.bert import unit

ASKED = "output_hidden_states"
EPSILON = 1e-12


class States(nn.Module):
    """The states of all layers side by side, `[batch, layers, tokens, width]`, and their means over the tokens.

    It has no leaves. Where the backbone is frozen, what it gives is computed once for each text.
    """

    norm: bool

    @nn.compact
    def __call__(self, hidden_states, mask):
        x = jnp.stack(hidden_states, 1).astype(jnp.float32)
        if self.norm:
            x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + EPSILON)
        x = jnp.where(mask[:, None, :, None], x, 0)
        return x, x.sum(2) / jnp.maximum(mask.sum(1), 1)[:, None, None]


class Mix(nn.Module):
    """`gamma sum_l softmax(weights)_l x_l` of `x [batch, layers, ...]`, for each x that is given."""

    @nn.compact
    def __call__(self, *given):
        weights = self.param("weights", nn.initializers.zeros, (given[0].shape[1],))
        shares = self.param("gamma", nn.initializers.ones, ()) * jax.nn.softmax(weights)
        return tuple(jnp.einsum("l,bl...->b...", shares, x) for x in given)


@checked
def scalar_mix(norm: bool = False, pull: Annotated[float, NOT_NEGATIVE] = 0.0) -> Method:
    """A text is read by the average of the states of all layers, whose weights learn; they and the head learn.

    The states are the embeddings and what each block gives, `h_l`; their average `gamma sum_l softmax(s)_l h_l` takes
    the place of `last_hidden_state`, and its mean over the tokens, without padding, that of `features` (and of
    `sentence_embedding`). s starts at 0, for equal weights, and gamma at 1. `scalar_mix + finetune` trains the backbone
    as well. Of L blocks they are L + 2 parameters.

    Args:
        norm: Whether the states of each token are normalised to mean 0 and variance 1 first, without a scale or bias.
            (AllenNLP's `do_layer_norm` takes mean and variance over all tokens of a batch, of which a text then is
            not independent.)
        pull: Weight of the sum of squares of s, which is added to the loss and draws towards equal weights (section
            A.2 there, with λ of 0.001 to 1).

    Raises:
        InputError: a negative `pull`; and, of a model, one that reads no texts, gives no states of its layers, or
            states of several widths.
    """

    def interceptor(call, args, kwargs, context):
        model = context.module
        if not (context.method_name == "__call__" and reads(model, TEXTS)):
            return call(*args, **kwargs)
        inputs = by_name(model, args, kwargs)
        if ASKED not in signature(type(model).__call__).parameters:
            raise InputError("scalar_mix: the model does not give the states of its layers")
        if inputs.get("past_key_values") is not None:
            raise InputError("scalar_mix: the model reads whole texts here, and continues none")
        asked = inputs.get(ASKED, False)
        outputs = call(**inputs | {ASKED: True})
        widths = [x.shape[-1] for x in outputs["hidden_states"]]
        if len({*widths}) > 1:
            raise InputError(f"scalar_mix: the states of the layers have widths {widths}; expected one width")
        mask = inputs.get("attention_mask")
        mask = jnp.ones(inputs[TEXTS].shape[:2], bool) if mask is None else mask > 0
        states = States(norm, parent=model, name="mixed_states")(outputs["hidden_states"], mask)
        mixed, mean = Mix(parent=model, name="scalar_mix")(*states)
        last = outputs["last_hidden_state"].dtype
        found = outputs | {"last_hidden_state": mixed.astype(last), "features": mean.astype(last)}
        if "sentence_embedding" in outputs:
            found["sentence_embedding"] = unit(mean) if model.config.normalize else mean.astype(last)
        return found if asked else {name: output for name, output in found.items() if name != "hidden_states"}

    def learns(paths):
        if not any(path.endswith("scalar_mix/weights") for path in paths):
            raise InputError("scalar_mix: the model reads no texts, whose states could be averaged")
        return learn(HEAD, (r"(.*/)?scalar_mix/(weights|gamma)", 1.0))(paths)

    def scores(score):
        def pulled(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            squares = sum(jnp.sum(x**2) for path, x in params.items() if path.endswith("scalar_mix/weights"))
            return value + pull * squares, metrics

        return pulled if pull else score

    return Method("scalar_mix", learns, adds=(interceptor,), merge=None, scores=scores)
