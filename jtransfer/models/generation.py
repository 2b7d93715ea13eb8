"""Text from a causal model, token by token, with the keys and values of what came before kept in arrays of fixed size.

The prompt runs through the model once; each further token is one call on that token alone.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.models import Headed, apply, check_ids
from jtransfer.tree import Tree


def generate(
    model: nn.Module,
    tree: Tree,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continue prompts; a pure function, to be compiled with the model and all numbers below as constants.

    Args:
        model: With a head of language modelling, whether a method changed it or not.
        tree: Its leaves.
        input_ids: `[batch, tokens]`, the prompts, padded on the left.
        attention_mask: `[batch, tokens]`, 0 for padding; None where there is none.
        max_new_tokens: That are added to each prompt.
        temperature: Divides the logits before a token is drawn; at 0 the most probable token is taken instead.
        top_k, top_p: What is drawn from, as in `filtered`.
        eos_token_id: The token, or several, after which a row is only padded.
        pad_token_id: What it is padded with; None for the (first) token that ends it.
        key: To draw with; needed unless the temperature is 0.

    Returns:
        `[batch, tokens + max_new_tokens]`, the prompts and what follows. Tokens and positions are those of
        `generate` of transformers with the same options (`do_sample=temperature > 0`).

    Raises:
        InputError: a model without a cache or such a head, or options that cannot be.
    """
    config = _config(model)
    _check(max_new_tokens, temperature, top_k, top_p, key)
    ends = np.asarray(() if eos_token_id is None else eos_token_id, np.int64).reshape(-1)
    if len(ends) and pad_token_id is not None:  # which a row that has ended goes on with
        check_ids("generate", "pad_token_id", [pad_token_id], config.vocabulary)
    pad = pad_token_id if pad_token_id is not None else int(ends[0]) if len(ends) else 0
    batch, prompt = input_ids.shape
    size = prompt + max_new_tokens - 1  # what is read: the last token of all is not
    mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
    mask = jnp.pad(mask, ((0, 0), (0, size - prompt)), constant_values=1)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)

    def read(ids, place, past):
        def own(x):
            return jax.lax.dynamic_slice_in_dim(x, place, ids.shape[1], axis=1)

        # What is recurrent has read what came before; attention looks at it again.
        about = (
            {"attention_mask": own(mask)}
            if config.recurrent
            else {"attention_mask": mask, "position_ids": own(positions)}
        )
        inputs = {"input_ids": ids, "past_key_values": past, **about}
        outputs = apply(model, tree, inputs, train=False, logits_to_keep=1)
        return outputs["logits"][:, -1], outputs["past_key_values"]

    def choose(logits, new):
        if temperature == 0:
            return jnp.argmax(logits, axis=-1)
        return jax.random.categorical(jax.random.fold_in(key, new), filtered(logits, temperature, top_k, top_p))

    def append(new, tokens, done, logits):
        token = jnp.where(done, pad, choose(logits, new)).astype(tokens.dtype)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, prompt + new))
        return tokens, done | jnp.isin(token, ends)

    def goes_on(state):
        new, _, done, _ = state
        return (new < max_new_tokens) & ~done.all()

    def step(state):
        new, tokens, done, past = state
        place = prompt + new - 1
        logits, past = read(jax.lax.dynamic_slice_in_dim(tokens, place, 1, axis=1), place, past)
        return new + 1, *append(new, tokens, done, logits), past

    tokens = jnp.pad(input_ids, ((0, 0), (0, max_new_tokens)), constant_values=pad)
    logits, past = read(input_ids, 0, config.cache(batch, size))
    state = 1, *append(0, tokens, jnp.zeros(batch, bool), logits), past
    return jax.lax.while_loop(goes_on, step, state)[1]


def filtered(logits: jax.Array, temperature: float, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Logits of the distribution that is drawn from, `-inf` where a token is left out.

    Args:
        logits: `[..., vocabulary]`.
        temperature: Divides the logits.
        top_k: Leave out what is less probable than the k most probable tokens (Fan et al. 2018, arXiv:1805.04833); 0
            for no such limit.
        top_p: Of the rest, keep the fewest most probable tokens that have this probability together (Holtzman et al.
            2020, arXiv:1904.09751); of equally probable tokens at the limit, the last.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][..., -1:], -jnp.inf, logits)
    if top_p < 1:
        order = jnp.argsort(logits, axis=-1)
        below = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1)), axis=-1)
        kept = (below > 1 - top_p).at[..., -1].set(True)
        kept = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def _config(model: nn.Module) -> Any:
    """Of the backbone, inside its head and whatever else is around it."""
    predicts = False
    while (inner := getattr(model, "backbone", None) or getattr(model, "model", None)) is not None:
        predicts |= isinstance(model, Headed) and model.config.reads == "last_hidden_state"
        model = inner
    if not model.config.generates or not predicts:
        raise InputError(
            f"{type(model).__name__} cannot generate; expected GPT2, Llama or AWDLSTM with a head of kind 'causal_lm'"
        )
    return model.config


def _check(max_new_tokens, temperature, top_k, top_p, key):
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if temperature < 0 or top_k < 0 or not 0 <= top_p <= 1:
        raise InputError(f"temperature={temperature}, top_k={top_k}: expected at least 0; top_p={top_p}: from 0 to 1")
    if temperature == 0 and (top_k or top_p < 1):
        raise InputError("top_k and top_p need a temperature above 0, as 1.0: at 0 the most probable token is taken")
    if temperature > 0 and key is None:
        raise InputError(f"temperature={temperature} draws tokens: pass a key, or temperature=0")
