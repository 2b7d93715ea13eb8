"""What a backbone is called with, checked before anything compiles."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from jtransfer import files
from jtransfer.data import keys
from jtransfer.errors import InputError, first_line, nearest
from jtransfer.models import check_ids, of_config


def parameters(backbone: Any) -> Mapping[str, inspect.Parameter]:
    """What a backbone's model can be called with, whatever it runs under."""
    return inspect.signature(type(of_config(backbone.config)).__call__).parameters


def refuse_unknown(what: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that are not known.

    Raises:
        InputError: with the nearest that is.
    """
    for name in options:
        if name not in known:
            raise InputError(f"{what} has no option '{name}'; {nearest(name, known)}")


def checked(backbone: Any, batch: Any) -> dict[str, Any]:
    """The inputs in a batch as arrays, each with the axes and of the kind that the backbone takes.

    Raises:
        InputError: no mapping, an input that is unknown, missing, or of another shape or type.
    """
    what, examples = f"backbone '{backbone.name}'", backbone.config.inputs
    if not isinstance(batch, Mapping):
        raise InputError(f"{what} takes a dict with {', '.join(examples)}, not a bare {type(batch).__name__}")
    if unknown := [name for name in batch if name not in examples]:
        raise InputError(f"{what} takes {', '.join(examples)}, not {', '.join(map(repr, unknown))}")
    given = {name: x for name, x in batch.items() if x is not None}
    needed = [name for name, p in parameters(backbone).items() if p.default is p.empty and name in examples]
    if "spatial_shapes" in examples and given.keys() & SPATIAL.keys():
        needed += [name for name in SPATIAL if name not in needed]
    if missing := [name for name in needed if name not in given]:
        raise InputError(f"{what} needs {', '.join(missing)}; the batch has {', '.join(given) or 'nothing'}")
    arrays = {name: _array(f"{what}: {name}", x, examples[name]) for name, x in given.items()}
    of_texts = backbone.config.text_tower.inputs
    of_texts = () if "pixel_values" in of_texts else of_texts
    texts = {name: list(x.shape) for name, x in arrays.items() if x.ndim == 2 and name in of_texts}
    whole = [max(axis) for axis in zip(*texts.values(), strict=True)]
    if any(shape not in (whole, [1, *whole[1:]]) for shape in texts.values()):  # one row may serve the whole batch
        raise InputError(f"{what}: expected one shape, found {', '.join(f'{k} {v}' for k, v in texts.items())}")
    rows = backbone.config.tables
    for name, x in arrays.items():
        if not _readable(x):
            continue  # a number without a row is NaN there
        if name in rows:
            check_ids(what, name, x, rows[name])
        elif name.endswith("attention_mask") and not np.isin(x, (0, 1)).all():
            raise InputError(f"{what}: {name} holds {_strange(x)}; expected 1 for a token, 0 for padding")
    if "spatial_shapes" in given:
        _check_grids(what, *(arrays[name] for name in SPATIAL))
    return arrays


SPATIAL = dict.fromkeys(("pixel_values", "pixel_attention_mask", "spatial_shapes"))
"""What images of any sides are given as, all three."""


def _check_grids(what, pixel_values, pixel_attention_mask, spatial_shapes):
    """Refuse rows and columns of patches that are not as many as a mask counts, or of other images than the patches."""
    images, patches = pixel_values.shape[:2]
    for name, x, shape in (
        ("pixel_attention_mask", pixel_attention_mask, (images, patches)),
        ("spatial_shapes", spatial_shapes, (images, 2)),
    ):
        if x.shape != shape:
            raise InputError(f"{what}: {name} have shape {list(x.shape)}; expected {list(shape)}")
    if _readable(spatial_shapes) and _readable(pixel_attention_mask):
        grids, counts = np.asarray(spatial_shapes), np.asarray(pixel_attention_mask).sum(1)
        wrong = np.flatnonzero((grids < 1).any(1) | (grids.prod(1) != counts))
        if wrong.size:
            row = wrong[0]
            raise InputError(
                f"{what}: spatial_shapes[{row}] is {grids[row].tolist()}, but pixel_attention_mask counts "
                f"{counts[row]} patches there"
            )


def _readable(x):
    """Whether values can be looked at: those of a traced array, or of one on several hosts, cannot."""
    return not isinstance(x, jax.core.Tracer) and (not isinstance(x, jax.Array) or x.is_fully_addressable)


def _strange(mask):
    """The first value of a mask that is neither 0 nor 1."""
    mask = np.asarray(mask)
    return mask[~np.isin(mask, (0, 1))][0]


def _array(what, x, example):
    if not isinstance(x, jax.Array | np.ndarray):
        try:
            x = np.asarray(x)
        except Exception as error:  # of whatever library it belongs to
            kind = type(x).__name__
            raise InputError(f"{what} are a {kind} that does not become an array ({first_line(error)})") from error
    whole = jax.numpy.issubdtype(example.dtype, np.integer)
    if not any(jax.numpy.issubdtype(x.dtype, kind) for kind in (np.bool_, np.integer if whole else np.number)):
        raise InputError(f"{what} are of {x.dtype}; expected {'integers' if whole else 'numbers'}")
    image = len(example.shape) == 4
    patches = len(example.shape) == 3
    if x.ndim != len(example.shape) or ((image or patches) and x.shape[-1] != example.shape[-1]):
        axes = f"[batch, patches, {example.shape[-1]}]" if patches else "[batch, tokens]"
        axes = f"[batch, height, width, {example.shape[-1]}]" if image else axes
        advice = _advice(x.shape, example.shape[-1]) if image else "the batch axis is missing: x[None]" * (x.ndim == 1)
        raise InputError(f"{what} have shape {list(x.shape)}; expected {axes}{advice and '; ' + advice}")
    return x


def _advice(shape, channels):
    """What makes `[batch, height, width, channels]` of images of some other shape; empty where that is unclear."""
    last = "channels come last"
    match shape:
        case (_, found, _, _) if found == channels:
            return f"{last}: x.transpose(0, 2, 3, 1)"
        case (_, _, found) if found == channels:
            return "the batch axis is missing: x[None]"
        case (found, _, _) if found == channels:
            return f"{last}, and the batch axis is missing: x.transpose(1, 2, 0)[None]"
        case (_, _, _) if channels == 1:
            return "the axis of channels is missing: x[..., None]"
    return ""


COLUMNS = 16
"""Columns of padding that are cut off at once, so that few shapes are compiled."""


def without_padding(inputs: Mapping[str, Any], new: int, positions: int) -> dict[str, Any]:
    """Prompts without leading columns that are padding in every row; as they are where the mask is traced.

    `COLUMNS` go at once, or, where the new tokens need the place, every one.

    Args:
        inputs: `input_ids` and perhaps `attention_mask`, `[batch, tokens]`.
        new: Tokens that are to follow.
        positions: That the model has.

    Raises:
        InputError: the prompts are padded on the right.
    """
    mask = inputs.get("attention_mask")
    if mask is None or isinstance(mask, jax.core.Tracer):
        return dict(inputs)
    mask = np.asarray(mask)
    if not mask[:, -1:].all():
        raise InputError("generate: the prompts are padded on the right; expected preprocess(texts, side='left')")
    start = int(mask.any(axis=0).argmax())
    if mask.shape[1] - (start - start % COLUMNS) + new <= positions:
        start -= start % COLUMNS
    return {name: x[:, start:] for name, x in inputs.items()}


SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""What transformers draws tokens with where a checkpoint says `do_sample` and nothing more."""


def generation_options(backbone: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate`, and where they leave one out what the checkpoint says of it.

    As in transformers, that is `generation_config.json` if there is one, and else `config.json`: tokens are drawn only
    where `do_sample` is true, or a temperature above 0 is among the options.

    Args:
        backbone: Whose checkpoint it is.
        options: Of a call.

    Raises:
        InputError: the checkpoint asks for a way of generating that is not here, as `repetition_penalty`, or its file
            is damaged, or has a value that is no number.
    """
    file, values, config = None, {}, backbone.config
    said: dict[str, Any] = {
        "eos_token_id": config.eos_tokens,
        "pad_token_id": config.pad_token,
    }
    if backbone.origin is not None and backbone.origin.layout == "huggingface":
        file = backbone.origin.directory / "generation_config.json"
        if file.exists():
            values = files.read_json(file)
            said = {key: values.get(key) for key in said}
            keys.check(file, values, keys.GENERATION)
        else:
            file = backbone.origin.directory / "config.json"
            known = (*keys.GENERATION.only, "do_sample", *SAMPLING)
            values = {key: x for key, x in backbone.origin.values.items() if key in known}
            keys.check(file, values, keys.GENERATION)
    given = {key: values[key] for key in SAMPLING if values.get(key) is not None}
    if wrong := [key for key, x in given.items() if isinstance(x, bool) or not isinstance(x, int | float)]:
        raise InputError(f"{file}: {wrong[0]} is {given[wrong[0]]!r}; expected a number")
    given = SAMPLING | given if values.get("do_sample") else given | {"temperature": 0.0}
    if options.get("temperature", given["temperature"]) == 0:
        given = {"temperature": 0.0}
    ends = (said | options)["eos_token_id"]
    ends = (ends,) if isinstance(ends, int) else tuple(ends or ())
    return given | said | dict(options) | {"eos_token_id": ends}
