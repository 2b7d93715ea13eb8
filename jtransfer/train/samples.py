"""Texts that a causal model writes from the prompts of a config, at every evaluation of its training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer.data.text import ALL
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.methods import Adapted
from jtransfer.models import Architecture, Head, Heads
from jtransfer.models.generation import generate
from jtransfer.train.measured import Evaluate, joined

NAME = "samples"
"""The key in a row of metrics, under which the texts are, in the order of their prompts."""


@dataclass(frozen=True)
class Samples:
    """What is written.

    Attributes:
        inputs: `input_ids` and `attention_mask` of the prompts, `[prompts, tokens]`, padded on the left.
        tokenizer: Makes texts of tokens.
        options: Of `generate`, but for the key.
        seed: Of the key, which is one at every evaluation: texts differ by the model alone.
    """

    inputs: dict[str, np.ndarray]
    tokenizer: Any
    options: dict[str, Any]
    seed: int


def asked(section: Any, seed: int, config: Architecture, head: Head | Heads | None, tokenizer: Any) -> Samples:
    """What the section `samples` of a config asks for.

    Args:
        section: `prompts`, and how many `tokens` are written behind each, at which `temperature` and `top_p`.
        seed: Of the run.
        config: Of the model.
        head: That it predicts by.
        tokenizer: Of the model.

    Raises:
        InputError: a model that continues no text, a prompt without a token, or one that leaves no place for so many.
    """
    if not config.generates or getattr(head, "kind", "") != "causal_lm":
        raise InputError(
            "config.samples.prompts are continued by a causal model, under config.objective 'lm'; leave them out"
        )
    own = tokenizer.rows([*section.prompts], limit=ALL)
    rows = [(ids or list(config.eos_tokens[:1]), 0, False) for ids, _, _ in own]
    if empty := [prompt for prompt, (ids, *_) in zip(section.prompts, rows, strict=True) if not ids]:
        raise InputError(f"config.samples.prompts: '{empty[0]}' has no token to begin with; expected some text")
    longest = max(len(ids) for ids, *_ in rows)
    for prompt, (ids, *_) in zip(section.prompts, rows, strict=True):
        if len(ids) + section.tokens > config.longest:
            raise InputError(
                f"config.samples: the prompt '{prompt:.40}' has {len(ids)} tokens, with {section.tokens} more than the "
                f"{config.longest} that the model takes; set config.samples.tokens to fewer"
            )
    arrays = replace(tokenizer, names=("input_ids", "attention_mask")).padded(rows, longest, "left")
    options = {"max_new_tokens": section.tokens, "temperature": section.temperature}
    options |= {"top_p": section.top_p if section.temperature else 1.0}
    options |= {"eos_token_id": config.eos_tokens or None, "pad_token_id": tokenizer.pad}
    return Samples(arrays, tokenizer, options, seed)


def beside(evaluate: Callable[[Adapted], Evaluate], samples: Samples, mesh: Mesh, adapted: Adapted) -> Evaluate:
    """Measure what `evaluate` does, and write samples."""

    @partial(jax.jit, out_shardings=sharding.everywhere(mesh))
    def write(state, frozen, inputs):
        tree = adapted.ended(state.average, frozen) | state.state
        return generate(adapted.model, tree, **inputs, **samples.options, key=jax.random.key(samples.seed))

    def texts(state, frozen):
        return {NAME: samples.tokenizer.decode(np.asarray(write(state, frozen, samples.inputs)))}

    return joined((evaluate(adapted), Evaluate(texts, dict)))
