"""What a checkpoint's own image processor and tokenizer do, found beside its weights when they are first asked for."""

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
from etils import epath

from jtransfer.data import keys
from jtransfer.data.dataset import floats
from jtransfer.errors import InputError, first_line
from jtransfer.files import LARGEST_JSON, read, read_json
from jtransfer.models import Architecture

log = logging.getLogger("jtransfer")

Preprocess = Callable[..., dict[str, np.ndarray]]


def of(name: str, origin: Any, config: Architecture) -> Preprocess:
    """The function that makes a backbone's inputs.

    A model of images has `preprocess(images)`, as `images.Processor`; a model of text `preprocess(texts, pairs)`, as
    `text.Tokenizer`; a model of both `preprocess(images=..., text=...)`, of which one may be left out, and which reads
    its files when it is called. A backbone in our own layout that keeps no processor has `images.plain`: images are
    resized and scaled to 0..1, and floats of the model's shape are taken as they are. A model that takes patches of
    images of any sides has a `naflex.PatchProcessor`. If it has neither 1 nor 3
    channels, it has `as_they_are`.

    Args:
        name: Of the backbone, for messages.
        origin: Its `layouts.Origin`; None for a backbone that was not loaded from a checkpoint.
        config: Of the model; its `inputs` say what is made.

    Raises:
        InputError: the backbone was not loaded from a checkpoint; the checkpoint keeps no processor or tokenizer, or
            one that cannot be used; or the model takes neither images nor texts.
    """
    if origin is None:
        raise InputError(f"backbone '{name}' was not loaded from a checkpoint, which would say how to preprocess")
    images = "pixel_values" in config.inputs and partial(_images, name, origin, config)
    text = "input_ids" in config.inputs and partial(_text, name, origin, config)
    if images and text:
        return _both(name, cache(images), cache(text))
    if not images and not text:
        raise InputError(f"backbone '{name}' takes {', '.join(config.inputs)}, which nothing is made into here")
    return images() if images else text()


def _both(name, make_images, make_text):
    def preprocess(images: Any = None, text: Any = None, **options: Any) -> dict[str, np.ndarray]:
        """Inputs from images, from texts (with `options` of `text.Tokenizer`), or from both."""
        if images is None and text is None:
            raise InputError(f"backbone '{name}': give images=..., text=..., or both")
        pixels = {} if images is None else make_images()(images)
        return pixels | ({} if text is None else make_text()(text, **options))

    return preprocess


def own_size(origin: Any, config: Architecture) -> tuple[int, int] | None:
    """Height and width that a checkpoint's own image processor gives.

    Args:
        origin: The `layouts.Origin` of the checkpoint.
        config: Of its model, which takes images.

    Returns:
        None if there is no processor, or if it neither resizes nor crops.

    Raises:
        InputError: the processor's file is damaged, or describes a processor that is not supported.
    """
    if not any((origin.directory / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        return None
    from jtransfer.data import images

    values, file = _processor_values(origin)
    with _errors_of(file):
        kind = images.OF_MODELS.get(origin.values.get("model_type"), "")
        return images.processor(values, kind, tuple(config.inputs["pixel_values"].shape[1:])).own


def _images(name, origin, config):
    from jtransfer.data import images, naflex

    shape, tower = tuple(config.inputs["pixel_values"].shape[1:]), config.vision_tower
    unsaid, any_sides = origin.layout == "jtransfer" and not origin.values.get("preprocessor"), len(shape) == 2
    if unsaid and not any_sides:
        return images.plain(shape) if shape[-1] in (1, 3) else partial(as_they_are, shape=shape)
    values, file = ({}, origin.directory) if unsaid else _processor_values(origin)
    kind = images.OF_MODELS.get(origin.values.get("model_type"), "")
    with _errors_of(file):
        if any_sides:
            return naflex.processor(values, tower.patch, tower.channels)
        processor = images.processor(values, kind, shape)
    if processor.own not in (None, shape[:2]):
        (height, width), (own_height, own_width) = shape[:2], processor.own
        log.warning(
            "backbone '%s' takes images of %dx%d, its own processor gives %dx%d: sizes are scaled to the former "
            "(jtransfer.load(..., image=(%d, %d)) takes the latter)",
            *(name, height, width, own_height, own_width, own_height, own_width),
        )
    return processor


def _processor_values(origin):
    """Values of the image processor, and the file that has them; a newer `processor_config.json` goes first."""
    if origin.values.get("preprocessor"):
        return origin.values["preprocessor"], origin.directory
    file = origin.directory / "processor_config.json"
    values = read_json(file).get("image_processor") if file.exists() else None
    if values is None:
        file = origin.directory / "preprocessor_config.json"
        if not file.exists() and origin.layout == "timm":
            there = origin.values.get("pretrained_cfg")
            found = "has no square images, cropped or squashed" if there else "is not there"
            raise InputError(
                f"{origin.directory / 'config.json'}: pretrained_cfg, which says how images are preprocessed, {found}; "
                f"{file.name} may say it instead"
            )
        if not file.exists():
            raise InputError(f"{file} is not there, which would say how images are preprocessed; copy it from the hub")
        values = read_json(file)
    if not isinstance(values, Mapping):
        raise InputError(f"{file}: expected an object under 'image_processor'")
    keys.check(file, values, keys.PREPROCESSOR)
    return values, file


def _text(name, origin, config):
    if origin.layout == "jtransfer" and not (origin.directory / "tokenizer_config.json").exists():
        raise InputError(
            f"backbone '{name}' is in our own layout, which keeps no tokenizer unless it was trained on texts"
        )
    from jtransfer.data import text

    of_text = config.text_tower
    with _errors_of(origin.directory), _beside(origin) as directory:
        names, clean = tuple(config.inputs), cleaning_of(origin)
        made = text.tokenizer(
            directory,
            origin.values,
            names,
            of_text.longest,
            whole=of_text.pool == "last",
            tables=config.tables,
            clean=clean,
        )
        made = dataclasses.replace(made, where=str(origin.directory)) if origin.tokenizer else made
        # BERT's positions count padding: on the left it would give a text other numbers than it has alone.
        return dataclasses.replace(made, side="right") if of_text.right_padded else made


@contextmanager
def _beside(origin):
    """The directory that the files of a checkpoint's tokenizer are in."""
    if not origin.tokenizer:
        yield origin.directory
        return
    with tempfile.TemporaryDirectory() as directory:
        for name, content in origin.tokenizer.items():
            (epath.Path(directory) / name).write_bytes(content)
        yield epath.Path(directory)


def tokenizer_files(origin: Any) -> dict[str, bytes]:
    """The files of a checkpoint's tokenizer, by name; `origin` is its `layouts.Origin`.

    Raises:
        InputError: one of them is no plain file, or larger than any such file is.
    """
    from jtransfer.data.text import files_in

    return dict(origin.tokenizer) or files_in(origin.directory)


def cleaning_of(origin: Any) -> str:
    """What open_clip does to texts before they become words, as a key of `cleaning.CLEANERS`; "" for other layouts.

    Args:
        origin: The `layouts.Origin` of the checkpoint.

    Raises:
        InputError: `open_clip_config.json` asks for what is not supported.
    """
    if origin.layout != "open_clip":
        return ""
    file = origin.directory / "open_clip_config.json"
    options = (origin.values.get("model_cfg") or {}).get("text_cfg") or {}
    if mode := options.get("tokenizer_mode"):
        raise InputError(f"{file}: tokenizer_mode is {mode!r}, which is not done here; take it out to do without")
    given = options.get("tokenizer_kwargs") or {}
    keys.check(file, given, keys.OPEN_CLIP_TOKENIZER)
    return given.get("clean") or ("whitespace" if options.get("hf_tokenizer_name") else "lower")


PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of an image processor."""


def files_of(origin: Any, config: Architecture) -> dict[str, bytes]:
    """The files that `of` reads, by name, and under the name "" what the checkpoint's config says of preprocessing.

    Args:
        origin: The `layouts.Origin` of the checkpoint.
        config: Of its model.

    Raises:
        InputError: one of the files is no plain file, or larger than any such file is; or as `cleaning_of`.
    """
    own = origin.values.get("preprocessor")
    found = {"": json.dumps([own, cleaning_of(origin)]).encode()}
    if "input_ids" in config.inputs:
        found |= tokenizer_files(origin)
    beside = "pixel_values" in config.inputs and not own and origin.layout != "jtransfer"
    for file in (origin.directory / name for name in PROCESSORS):
        if beside and file.exists():
            try:
                found[file.name] = read(file, LARGEST_JSON)
            except OSError as error:
                raise InputError(f"{file} cannot be read ({error})") from None
    return found


def fingerprint(contents: Mapping[str, bytes]) -> str:
    """16 hex digits of a SHA-256 over files by name, as those of a processor and of a tokenizer."""
    each = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _errors_of(file):
    """Whatever values of a wrong type raise is said of the file that has them."""
    try:
        yield
    except InputError as error:
        named = str(error).startswith(str(file))
        raise (error if named else InputError(f"{file}: {error}")) from None
    except Exception as error:
        raise InputError(f"{file}: {type(error).__name__}: {first_line(error)}") from error


def as_they_are(images: Any, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Images that have the model's shape already, as float32; uint8 is scaled by 1/255.

    Args:
        images: `[n, height, width, channels]`, or a list of `[height, width, channels]`, uint8 or floats; the axis of
            a single channel may be left out.
        shape: `[height, width, channels]` of the model.

    Returns:
        `pixel_values [n, height, width, channels]` float32.

    Raises:
        InputError: no images, or images of another shape or dtype.
    """
    expected = f"expected [n, {', '.join(map(str, shape))}] of float or uint8"
    try:
        array = np.asarray(images)
    except ValueError:
        raise InputError(f"images have several shapes; {expected}") from None
    if array.ndim == 3 and shape[-1] == 1:
        array = array[..., None]
    if array.shape[1:] != shape or not len(array):
        raise InputError(f"images have shape {list(array.shape)}; {expected}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"images have dtype {array.dtype}; {expected}")
    return {"pixel_values": floats(array)}
