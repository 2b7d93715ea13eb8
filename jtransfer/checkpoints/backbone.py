"""A pretrained backbone: from any checkpoint that the tables know to a Flax module and its flat tree."""

import dataclasses
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints import calls, heads, hub, layouts, leaves, options
from jtransfer.data import preprocess
from jtransfer.errors import InputError, nearest
from jtransfer.methods.intercepted import under_those_of
from jtransfer.models import (
    STATISTICS,
    Architecture,
    Head,
    Headed,
    Heads,
    apply,
    described,
    generation,
    of_config,
    of_source_head,
    shapes_of,
)
from jtransfer.storage import directories
from jtransfer.tree import Tree, prefixed, select

log = logging.getLogger("jtransfer")

IMAGES = "images"
"""Name of the part of a dual encoder that embeds images: the tower and its projection."""


class Ran(NamedTuple):
    """A method that a backbone runs under, as no plain model computes what it adds.

    Attributes:
        text: As a config has it.
        modules: The user's modules that it names, each with the digest of its source.
    """

    text: str
    modules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Backbone:
    """A pretrained model to transfer from. Called with a batch, it gives its outputs by name.

    Attributes:
        name: As it was asked for.
        model: The Flax module, without a head; a method's `Intercepted` where it runs under one.
        params: Its flat tree, with the head of its source task under `source_head/`.
        state: The leaves that are no parameters, under `batch_stats/`.
        head: The head of the source task, or several by name; None when there is none.
        classes: Names of the source task's classes; empty when it has none, and of several heads, which have their own.
        fresh: Leaves that the checkpoint did not have, and that were initialised.
        origin: The checkpoint that it came from.
        methods: That it runs under, the innermost first.
    """

    name: str
    model: nn.Module
    params: Tree
    classes: tuple[str, ...] = ()
    head: Head | Heads | None = None
    state: Tree = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    origin: layouts.Origin | None = None
    methods: tuple[Ran, ...] = ()

    def __call__(self, batch: Mapping[str, Any], **options: bool) -> dict[str, jax.Array]:
        """The outputs on a batch, in evaluation mode, compiled once for each shape.

        Args:
            batch: Arrays by Hugging Face's names of the inputs, as `preprocess` returns them; images have their
                channels last. What is no array (lists, tensors of torch) becomes one.
            **options: Of the model, as `output_hidden_states=True`.

        Raises:
            InputError: an input or option that the model does not take, or one that it needs and is not there.
        """
        return run(self, self.whole, self.params | self.state, batch, options)

    def generate(self, batch: Mapping[str, Any], *, key: jax.Array | None = None, **options: Any) -> jax.Array:
        """Continue prompts, compiled once for each shape and choice of options.

        Args:
            batch: `input_ids` and `attention_mask`, padded on the left, as `preprocess(texts, side="left")` returns
                them. Leading columns that are padding in every row are cut off first, so that they take no positions:
                sixteen at a time, for few shapes to compile, or every one where the new tokens need the place.
            key: To draw tokens with, at a temperature above 0.
            **options: Of `models.generation.generate`: `max_new_tokens`, `temperature`, `top_k`, `top_p`,
                `eos_token_id`, `pad_token_id`; all but the first are by default the checkpoint's, as in transformers:
                where its `generation_config.json` has `do_sample`, tokens are drawn unless `temperature=0`.

        Returns:
            `[batch, tokens + max_new_tokens]`, the prompts and what follows: `[:, -max_new_tokens:]` is what follows,
            and `preprocess.decode` makes it texts.

        Raises:
            InputError: a backbone without a head of language modelling, padding on the right, options that are unknown
                or cannot be, or a checkpoint that asks for another way of generating.
        """
        inputs = calls.checked(self, batch)
        if unknown := inputs.keys() - {"input_ids", "attention_mask"}:
            raise InputError(f"generate takes input_ids and attention_mask, not {', '.join(sorted(unknown))}")
        known = inspect.signature(generation.generate).parameters.values()
        calls.refuse_unknown("generate", options, {p.name for p in known if p.kind is p.KEYWORD_ONLY} - {"key"})
        if type(new := options.get("max_new_tokens")) is not int:
            raise InputError(f"generate needs max_new_tokens=..., a whole number; found {new!r}")
        inputs = calls.without_padding(inputs, new, self.config.longest)
        options = calls.generation_options(self, options)
        return _generate(self.whole, tuple(sorted(options.items())), self.params, inputs, key)

    def tower(self, name: str) -> "Backbone":
        """One tower of a dual encoder, "vision" or "text", as a backbone without a head.

        "images" is the tower of images with its projection, which gives `image_embeds` as the whole does.

        Raises:
            InputError: it has no such tower, or one that does not run alone under the methods of the whole.
        """
        towers = self.config.towers
        if name == IMAGES and towers.keys() == {"vision", "text"}:
            config = dataclasses.replace(self.config, text=None)
            towers, prefixes, prefix = {name: config}, ("vision/", "vision_projection/"), ""
        else:
            prefix = f"{name}/"
            prefixes = (prefix,)
        if name not in towers:
            raise InputError(f"backbone '{self.name}' has no tower '{name}'; {nearest(name, towers)}")
        origin = self.origin
        if origin and origin.layout == "huggingface" and name != IMAGES:
            values = {**(origin.values.get(f"{name}_config") or {})}
            values["model_type"] = f"{origin.values['model_type']}_{name}_model"
            origin = dataclasses.replace(origin, values=values)
        if origin and origin.options is not None:
            origin = dataclasses.replace(origin, options={**origin.options, "tower": name})
        model = under_those_of(self.model, of_config(towers[name]))
        params, state = (
            {path.removeprefix(prefix): leaf for path, leaf in tree.items() if path.startswith(prefixes)}
            for tree in (self.params, select(self.state, STATISTICS))
        )
        state = prefixed(state, STATISTICS)
        if self.methods and shapes_of(model, towers[name].inputs).keys() != params.keys() | state.keys():
            texts = " and ".join(f"'{method.text}'" for method in self.methods)
            raise InputError(f"backbone '{self.name}': its tower '{name}' does not run alone under the method {texts}")
        about = {"head": None, "classes": (), "fresh": (), "origin": origin}
        return dataclasses.replace(self, model=model, params=params, state=state, **about)

    def without_head(self) -> "Backbone":
        """The backbone without the head of its source task, if it has one."""
        params, state = ({p: x for p, x in tree.items() if not of_source_head(p)} for tree in (self.params, self.state))
        origin = self.origin
        if self.head and origin and origin.options is not None:
            origin = dataclasses.replace(origin, options={**origin.options, "head": ""})
        return dataclasses.replace(self, params=params, state=state, head=None, classes=(), origin=origin)

    @property
    def config(self) -> Architecture:
        """The architecture."""
        return self.model.config

    @property
    def whole(self) -> nn.Module:
        """The model with the head of its source task, if it has one."""
        return Headed(self.model, self.head) if self.head else self.model

    @cached_property
    def preprocess(self) -> Callable[..., dict[str, np.ndarray]]:
        """What the checkpoint's own processor or tokenizer does.

        Raises:
            InputError: the checkpoint has none.
        """
        return preprocess.of(self.name, self.origin, self.config)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints by what they are of, as a run keeps them.

        `backbone` is of the weights. `preprocessing`, of the files that say how inputs are made, is there where the
        backbone came from a checkpoint.

        Raises:
            InputError: one of the files is no plain file, or larger than any such file is.
        """
        found = {"backbone": self.fingerprint}
        if self.origin is not None:
            found["preprocessing"] = preprocess.fingerprint(preprocess.files_of(self.origin, self.config))
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over architecture, head, classes, methods and weights, wherever they were read from."""
        about = (self.config, self.head, self.classes, *self.methods, *getattr(self.head, "texts", ()))
        return leaves.fingerprint(repr(about), self.params | self.state)


def run(backbone: Backbone, model: nn.Module, tree: Tree, batch: Mapping[str, Any], options: Mapping[str, bool]):
    """The outputs of a model that takes what a backbone takes, compiled once for each shape.

    Raises:
        InputError: an input or option that it does not take, or an input that it needs and is not there.
    """
    inputs, what = calls.checked(backbone, batch), f"backbone '{backbone.name}'"
    if options.get("train"):
        raise InputError(f"{what} is called in evaluation mode, not with train=True; to train it, use methods.adapt")
    known = {name for name, parameter in calls.parameters(backbone).items() if parameter.default is False}  # are flags
    known |= {"logits_to_keep"} if isinstance(getattr(model, "model", model), Headed) else set()
    options = {name: value for name, value in options.items() if name != "train"}
    calls.refuse_unknown(what, options, known - {"train"})
    return _run(model, tuple(sorted(options.items())), tree, inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _run(model, options, tree, batch):
    return apply(model, tree, batch, **dict(options))


@partial(jax.jit, static_argnums=(0, 1))
def _generate(model, options, tree, batch, key):
    return generation.generate(model, tree, **batch, key=key, **dict(options))


def load(
    name: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    include: str | None = None,
    head: str | None = None,
    classes: int | None = None,
    image: int | tuple[int, int] | None = None,
    channels: int | None = None,
    positions: str | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    bits: int = 0,
    remat: bool = False,
    sharding: leaves.Place = None,
    trust: Iterable[str] = (),
) -> Backbone:
    """Load a backbone.

    A backbone in our own layout that a method made of another is the plain model where the method merges into it, and
    else runs under the method. Its base is loaded too, from where its `config.json` says, and starts no download.

    Args:
        name: An embedded one, a directory or file (local or in an object store) in any layout of
            `checkpoints/layouts.py`, or a name on the Hugging Face hub.
        revision: Of a name on the hub: a branch, a tag or a commit; None is its main branch.
        subfolder: Of a repository or directory, the folder that the checkpoint is in, as "text_encoder"; inputs are
            made as the files in it say.
        include: A regular expression for the paths of leaves that are read, as "(embeddings|encoder/block_[0-5])/.*".
            It must match a whole path; BatchNorm's statistics go with their layer. All other leaves start at random,
            from key 0, whatever the checkpoint has there. None reads all.
        head: The kind of head, as "sequence", "masked_lm" or a `Head.kind`, or the name of one of several; "" for none,
            None for the checkpoint's own.
        classes: Number of the head's outputs; where the checkpoint has another, the head starts at zero.
        image: Height and width (or both as one) to take instead of the checkpoint's: positions are resized. None is
            the checkpoint's own, which for DINOv2 is what its processor gives, as in transformers.
        channels: 1 to take grey images: the patch kernel is summed over its channels.
        positions: How positions are resized: "bicubic" (with antialias, as timm), "bicubic_torch" (without, as
            transformers' DINOv2) or "bilinear" (as vision_transformer); None is the family's own, or "bicubic".
        dtype: Of the computation.
        param_dtype: That the parameters are read into.
        bits: 4 or 8 to keep the kernels of the blocks in so many bits, each quantised as it is read (see
            `models/quantized.py`); such kernels never learn. 0 for floats, or for the checkpoint's own bits.
        remat: Whether blocks are computed again in the backward pass, for less memory.
        sharding: Where each leaf goes: a sharding for all, or a function from path and shape to one; "host" leaves
            NumPy arrays, which lie in the mapped file where layout and dtype allow; None is the default device.
        trust: The user's modules, or their files, that the method of a backbone in our own layout may name. Nothing
            else is imported: the directory may be somebody else's.

    Raises:
        InputError: nothing of that name, an option that cannot be, a module that is not trusted, a base that is not
            found, or a checkpoint that is damaged, unknown or does not fit its config: one line that lists every
            offender.
    """
    from jtransfer.checkpoints import deltas  # which load their bases

    options.check(include, head, classes, image, channels, positions, dtype, param_dtype, sharding)
    where = hub.find(name, revision=revision, subfolder=subfolder)
    asked = {"revision": revision, "subfolder": subfolder, "head": head, "classes": classes}
    asked |= {"image": image, "channels": channels, "positions": positions, "bits": bits or None}
    if deltas.is_one(where):
        if include is not None:
            raise InputError(
                f"include='{include}': backbone '{name}' is a base and what a method made of it, all or none"
            )
        options.check_base_alone(name, bits, remat)
        return deltas.read(name, where, asked, dtype, param_dtype, sharding, trust)
    source = layouts.read(where, name, head, classes)
    if (source.origin.directory / "adapter_config.json").exists():
        log.warning("backbone '%s': the adapter beside it is left out; jtransfer.load_adapter puts it on", name)
    config, kind = source.config, source.head
    types = {"dtype": dtype, "param_dtype": param_dtype} if config.param_dtype else {}
    adjusted = dataclasses.replace(config, **types, **options.of_blocks(config, bits, remat))
    asked["remat"] = True if remat and not config.remat else None
    changes: Mapping[str, Callable] = {}
    how = positions or source.interpolates or "bicubic"
    if image is not None or channels is not None:
        adjusted, changes = source.resize(adjusted, image, channels, how)
    if image is None and source.interpolates:  # transformers resizes at every call, this once
        try:
            if own := preprocess.own_size(source.origin, config):
                adjusted, changes = source.resize(adjusted, own, channels, how)
        except InputError as error:
            log.warning("backbone '%s' keeps the size of its config, %s: %s", name, config.image, error)
    shapes = leaves.expected(where, config, kind)
    taken = leaves.included(f"backbone '{name}': include", include, shapes)
    sources = leaves.sources(where, source, shapes, taken, source.may_be_fresh(classes), headless=head == "")
    fill = leaves.placer(sharding, param_dtype)
    kept = leaves.expected(where, adjusted, kind) if bits else shapes
    tree = leaves.filled(sources, changes, fill, kept, bits)
    fresh = tuple(path for path in shapes if path not in sources)
    options.check_fresh(name, bits, [path for path in fresh if path not in kept])
    if fresh:
        there = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
        made = leaves.initialised(where, adjusted, kind, tree, {path: shapes[path] for path in fresh}, there)
        tree |= {path: fill(path, np.asarray(leaf)) for path, leaf in made.items()}
    if lacking := [path for path in fresh if path in taken]:
        log.warning("backbone '%s': freshly initialised, as the checkpoint has none that fits: %s", name, lacking)
    if left_out := [path for path in fresh if path not in taken]:
        some = leaves.summed_up(left_out)
        log.warning("backbone '%s': freshly initialised, as include='%s' leaves out: %s", name, include, some)
    if kind is None and head is None and (left := [x for x in source.tensors if source.names.in_head(x)]):
        log.warning("backbone '%s': the head in the file is left out, name its kind to load it: %s", name, left)
    params = {path: leaf for path, leaf in tree.items() if not path.startswith(STATISTICS)}
    state = {path: leaf for path, leaf in tree.items() if path not in params}
    said = None if left_out else {key: x for key, x in asked.items() if x is not None}
    origin = dataclasses.replace(source.origin, options=said)
    return Backbone(name, of_config(adjusted), params, source.classes, kind, state, fresh, origin)


def save(
    directory: epath.PathLike,
    model: nn.Module,
    tree: Tree,
    classes: tuple[str, ...] = (),
    preprocessor: Mapping[str, Any] | None = None,
    beside: Mapping[str, bytes] | None = None,
    head: Head | Heads | None = None,
) -> None:
    """Write a backbone with its head, if any, in our own layout: `config.json` and `model.safetensors`.

    `jtransfer.json` beside them has the SHA-256 of each, by which `load` tells damage.

    Args:
        directory: Where; files there are replaced.
        model: Without a head.
        tree: Its leaves, the statistics under `batch_stats/` and the head's under `head/` (or, as `load` gives them,
            under `source_head/`).
        classes: Names of the head's classes; empty where its outputs have none, as those of a language model.
        preprocessor: What makes the model's inputs of images, in the keys of Hugging Face's
            `preprocessor_config.json`; None if raw pixels are used.
        beside: More files, as a tokenizer's.
        head: Whose leaves these are; None is one layer on the features for `classes`, or none without any.

    Raises:
        InputError: `classes` are not as many as the outputs of `head`.
        MachineError: it cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    config = described(model.config) | heads.write(head, classes)
    config |= {"preprocessor": dict(preprocessor)} if preprocessor else {}
    weights = to_bytes({path: np.asarray(leaf, order="C") for path, leaf in sorted(tree.items())})
    contents = {"model.safetensors": weights, "config.json": files.as_json(config).encode()}
    directories.write_together(directory, contents | dict(beside or {}))
