"""Features: what a frozen backbone makes of a dataset, at any of its layers, in one pass over the data.

A layer is named by a text:

    sentence_embedding      of a sentence encoder (modules.json): what sentence-transformers gives, of length 1 where
                            its modules normalise; the default for such backbones
    features                what a new head reads: the backbone's own pooling, of a sentence encoder before it is
                            normalised; the default for all others
    pooler_output           any output `[batch, width]` by its name; `image_embeds`, `text_embeds`, `logits` too
    hidden_3.mean           the states after block 3, pooled; hidden_0 are the embeddings, hidden_-1 the last states
    hidden_-4.cls.normed    pooled after the model's final normalisation, as DINOv2 takes intermediate layers

Poolings: `cls` is the class token, where there is one, `mean` and `max` go over patches or over what the attention mask
has, `last` is the last token of the mask.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import models
from jtransfer.checkpoints import Backbone
from jtransfer.data.coded import take
from jtransfer.devices import sharding
from jtransfer.errors import InputError, MachineError, nearest
from jtransfer.starts.batches import batches, separable
from jtransfer.starts.inputs import Prepare

SECONDS = 10
"""Of work that an extraction loses when it is killed, at most."""

POOLINGS = ("cls", "mean", "max", "last")


@dataclass(frozen=True)
class Layer:
    """Where in a backbone features are read; `parse` makes one of its name.

    Attributes:
        output: Name of an output, or "hidden_states".
        index: Which of the hidden states; below 0 counted from the last.
        pooling: One of `POOLINGS`, for hidden states.
        normed: Whether the model's final normalisation goes first.
    """

    output: str
    index: int = 0
    pooling: str = ""
    normed: bool = False

    @staticmethod
    def parse(text: str) -> "Layer":
        """The layer of a name.

        Raises:
            InputError: a name of another form, or an unknown pooling.
        """
        found = re.fullmatch(r"hidden_(-?\d+)(?:\.(\w+))?(\.normed)?", text)
        if not found:
            if not text.isidentifier() or text.startswith("hidden"):
                raise InputError(f"layer '{text}': expected the name of an output, or hidden_K.POOLING with {POOLINGS}")
            return Layer(text)
        index, pooling, normed = found.groups()
        if pooling not in POOLINGS:
            raise InputError(f"layer '{text}': unknown pooling '{pooling}'; {nearest(str(pooling), POOLINGS)}")
        return Layer("hidden_states", int(index), pooling, bool(normed))


def of_preprocessing(inputs: Any, prepare: Prepare) -> str:
    """16 hexadecimal digits over what preprocessing makes of the first rows of a dataset, and how it makes the rest."""
    digest = hashlib.sha256(getattr(prepare, "identity", "").encode())
    for name, array in sorted(prepare(inputs[np.arange(min(8, len(inputs)))]).items()):
        digest.update(f"{name}{array.dtype}{array.shape[1:]}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def extract(
    backbone: Backbone,
    inputs: Any,
    prepare: Prepare,
    layers: Sequence[str],
    *,
    batch: int = 256,
    axes: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    known: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    keep: Callable[[np.ndarray, Mapping[str, np.ndarray]], None] = lambda rows, part: None,
) -> dict[str, np.ndarray]:
    """Features of every row of a dataset: one pass over it for all layers, in batches split over the devices.

    Texts whose padding changes nothing (`starts.batches`) are read in batches of one length, in another order than that
    of the rows.

    Args:
        backbone: Run in evaluation mode.
        inputs: Rows: `inputs[rows]` gives what `prepare` takes.
        prepare: To the backbone's inputs, by name; it works one batch ahead in a thread of its own.
        layers: Names; see above.
        batch: Rows at a time, over all devices; on the CPU fewer, and of texts as `starts.batches` says.
        axes: Names and sizes of the mesh's axes; `sharding.batch_axes` split the batch. By default all devices.
        progress: Called with the rows that are done and all of them.
        known: What an earlier pass kept of every layer: numbers of rows `[some]`, and their features `[some, width]`.
        keep: Called with the numbers of rows `[some]` that are done and their features by layer, every `SECONDS` and
            when the pass is interrupted, so that the next one goes on from there.

    Returns:
        `[rows, width]` float32 by layer.

    Raises:
        InputError: a layer that the backbone does not have, before anything runs.
    """
    if jax.process_count() > 1:
        raise InputError("features are extracted by one process; start the command on one host, with all its devices")
    mesh = sharding.make_mesh(axes or {"data": -1})
    split, whole = sharding.batch_sharding(mesh), sharding.everywhere(mesh)
    widths = widths_of(backbone, layers, prepare(inputs[np.arange(1)]))
    out = {layer: np.empty((len(inputs), widths[layer]), np.float32) for layer in layers}
    left = np.arange(len(inputs))
    if known:
        for layer in layers:
            rows, values = known[layer]
            out[layer][rows] = values
        left = np.setdiff1d(left, reduce(np.intersect1d, (known[layer][0] for layer in layers)))
    program = jax.jit(lambda tree, inputs: _read(backbone, tuple(layers), tree, take(inputs, slice(None))))
    tree = jax.device_put(backbone.params | backbone.state, whole)
    by_length = separable(backbone, prepare, (Layer.parse(layer).output for layer in layers))
    upcoming_batches = batches(prepare, inputs, left, batch, sharding.batch_parts(mesh), by_length)

    def prepared():
        return next(((rows, jax.device_put(arrays, split)) for rows, arrays in upcoming_batches), None)

    done, fresh = len(inputs) - len(left), []

    def keep_fresh():
        rows = np.concatenate(fresh)
        keep(rows, {layer: out[layer][rows] for layer in layers})
        fresh.clear()

    since = time.monotonic()
    try:
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(prepared)
            while made := upcoming.result():
                rows, arrays = made
                upcoming = ahead.submit(prepared)
                for layer, values in program(tree, arrays).items():
                    out[layer][rows] = np.asarray(values)[: len(rows)]
                fresh.append(rows)
                done += len(rows)
                if time.monotonic() - since > SECONDS and done < len(inputs):
                    keep_fresh()
                    since = time.monotonic()
                progress(done, len(inputs))
    except BaseException:
        if fresh:
            with suppress(MachineError):  # of the two, what interrupted the pass is said
                keep_fresh()
        raise
    return out


def widths_of(backbone: Backbone, layers: Sequence[str], example: Mapping[str, Any]) -> dict[str, int]:
    """How wide the features of each layer are, on inputs like `example` (arrays or their shapes).

    Raises:
        InputError: a layer that the backbone does not have.
    """
    tree, program = backbone.params | backbone.state, partial(_read, backbone, tuple(layers))
    return {layer: x.shape[-1] for layer, x in jax.eval_shape(program, tree, dict(example)).items()}


def outputs_of(backbone: Backbone, example: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of what a backbone gives for inputs like `example` (arrays or their shapes)."""
    program = partial(models.apply, backbone.whole)
    return tuple(jax.eval_shape(program, backbone.params | backbone.state, dict(example)))


def of_tower(outputs: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The tower of a dual encoder that ran alone ("" for another model), and its outputs among those of the whole."""
    tower = next((name for name in ("vision", "text") if f"{name}_model_output" in outputs), "")
    return tower, outputs[f"{tower}_model_output"] | outputs if tower else outputs


def _read(backbone, layers, tree, inputs):
    """Every layer of one batch, `[batch, width]` float32."""
    parsed = {name: Layer.parse(name) for name in layers}
    hidden = any(layer.output == "hidden_states" for layer in parsed.values())
    outputs = models.apply(backbone.whole, tree, inputs, **({"output_hidden_states": True} if hidden else {}))
    tower, outputs = of_tower(outputs)
    prefix, config = (f"{tower}/", backbone.config.towers[tower]) if tower else ("", backbone.config)
    found = {}
    for name, layer in parsed.items():
        if layer.output != "hidden_states":
            found[name] = _output(backbone, name, layer.output, outputs)
            continue
        if layer.pooling == "cls" and not config.cls:
            others = ", ".join(POOLINGS[1:])
            raise InputError(f"layer '{name}': backbone '{backbone.name}' has no class token; choose one of {others}")
        x = _state(backbone, name, layer.index, outputs["hidden_states"]).astype(jnp.float32)
        x = _normed(backbone, name, x, tree, prefix, config) if layer.normed else x
        mask = inputs.get("attention_mask", inputs.get("pixel_attention_mask"))
        found[name] = _POOL[layer.pooling](*_tokens(config, x, mask))
    return found


def _output(backbone, name, output, outputs):
    flat = [key for key, x in outputs.items() if getattr(x, "ndim", 0) == 2]
    if output not in flat:
        raise InputError(f"layer '{name}': backbone '{backbone.name}' has no such output; {nearest(name, flat)}")
    return outputs[output].astype(jnp.float32)


def _state(backbone, name, index, states):
    if not -len(states) <= index < len(states):
        raise InputError(
            f"layer '{name}': backbone '{backbone.name}' has the hidden states 0 (its embeddings) to {len(states) - 1}"
        )
    return states[index]


def _tokens(config, x, mask):
    """All states `[batch, tokens, width]`, and which of them count `[batch, tokens, 1]`."""
    if x.ndim == 4:  # a convolutional network's, over space
        x = x.reshape(len(x), -1, x.shape[-1])
    if mask is None:
        mask = jnp.broadcast_to(jnp.arange(x.shape[1]) >= config.prefix_tokens, x.shape[:2])
    return x, mask[..., None] > 0


_POOL = {
    "cls": lambda x, mask: x[:, 0],
    "mean": lambda x, mask: jnp.sum(x * mask, axis=1) / jnp.sum(mask, axis=1),
    "max": lambda x, mask: jnp.max(jnp.where(mask, x, -jnp.inf), axis=1),
    "last": lambda x, mask: x[jnp.arange(len(x)), mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1, 0], axis=1)],
}


def _normed(backbone, name, x, tree, prefix, config):
    """The final LayerNorm on states of an inner layer."""
    if not config.final_norm:
        raise InputError(f"layer '{name}': backbone '{backbone.name}' has no final normalisation; drop '.normed'")
    scale, bias = (tree[f"{prefix}{config.final_norm}/{leaf}"] for leaf in ("scale", "bias"))
    if len(scale) != x.shape[-1]:  # of an early stage
        raise InputError(
            f"layer '{name}': these states of backbone '{backbone.name}' are {x.shape[-1]} wide, the final "
            f"normalisation {len(scale)}; drop '.normed'"
        )
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + config.epsilon)
    return x * scale + bias
