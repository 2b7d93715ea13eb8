"""A pretrained backbone: from any checkpoint that the tables know to a Flax module and its flat tree."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding

from jtransfer import files
from jtransfer.checkpoints import hub, layouts
from jtransfer.checkpoints.names import assign
from jtransfer.errors import InputError
from jtransfer.models import MODELS, STATISTICS, Head, Headed, apply, complete, of_config, shapes_of
from jtransfer.tree import Tree

log = logging.getLogger("jtransfer")

Place = Sharding | Callable[[str, tuple[int, ...]], Sharding] | str | None


@dataclass(frozen=True)
class Backbone:
    """A pretrained model to transfer from. Called with a batch, it gives its outputs by name.

    Attributes:
        name: As it was asked for.
        model: The Flax module, without a head.
        params: Its flat tree, with the head of its source task under `source_head/`.
        state: The leaves that are no parameters, under `batch_stats/`.
        head: The head of the source task; None when there is none.
        classes: Names of the source task's classes; empty when it has none.
        fresh: Leaves that the checkpoint did not have, and that were initialised.
        origin: The checkpoint that it came from.
    """

    name: str
    model: nn.Module
    params: Tree
    classes: tuple[str, ...] = ()
    head: Head | None = None
    state: Tree = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    origin: layouts.Origin | None = None

    def __call__(self, batch: Mapping[str, Any], **options: bool) -> dict[str, jax.Array]:
        """The outputs on a batch, in evaluation mode, compiled once for each shape.

        Args:
            batch: Arrays by Hugging Face's names of the inputs, as `preprocess` returns them.
            **options: Of the model, as `output_hidden_states=True`.

        Raises:
            InputError: an input that the model does not take.
        """
        if unknown := [name for name in batch if name not in self.model.config.inputs]:
            takes = ", ".join(self.model.config.inputs)
            raise InputError(f"backbone '{self.name}' takes {takes}, not {', '.join(map(repr, unknown))}")
        return _run(self.whole, tuple(sorted(options.items())), self.params | self.state, dict(batch))

    @property
    def config(self) -> Any:
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
        from jtransfer.data import preprocess

        return preprocess.of(self.name, self.origin, self.config)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over architecture and weights, wherever they were read from."""
        digest = hashlib.sha256(repr((self.config, self.head, self.classes)).encode())
        for path, leaf in sorted((self.params | self.state).items()):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{path}{array.dtype}{array.shape}".encode())
            digest.update(array.view(np.uint8).reshape(-1))
        return digest.hexdigest()[:16]


@partial(jax.jit, static_argnums=(0, 1))
def _run(model, options, tree, batch):
    return apply(model, tree, batch, **dict(options))


def load(
    name: str,
    *,
    head: str | None = None,
    classes: int | None = None,
    image: int | tuple[int, int] | None = None,
    channels: int | None = None,
    positions: str = "bicubic",
    dtype: str = "float32",
    param_dtype: str = "float32",
    sharding: Place = None,
) -> Backbone:
    """Load a backbone.

    Args:
        name: An embedded one, a directory or file (local or in an object store) in any layout of
            `checkpoints/layouts.py`, or a name on the Hugging Face hub.
        head: The kind of head, as "sequence" or "masked_lm"; "" for none, None for the checkpoint's own.
        classes: Number of the head's outputs; where the checkpoint has another, the head starts at zero.
        image: Height and width (or both as one) to take instead of the checkpoint's: positions are resized.
        channels: 1 to take grey images: the patch kernel is summed over its channels.
        positions: How positions are resized: "bicubic" (with antialias, as timm) or "bilinear" (as
            vision_transformer).
        dtype: Of the computation.
        param_dtype: That the parameters are read into.
        sharding: Where each leaf goes: a sharding for all, or a function from path and shape to one; "host" leaves
            NumPy arrays, which lie in the mapped file where layout and dtype allow; None is the default device.

    Raises:
        InputError: nothing of that name, or a checkpoint that is damaged, unknown or does not fit its config: one line
            that lists every offender.
    """
    where = hub.find(name)
    source = layouts.read(where, name, head, classes)
    config, kind = source.config, source.head
    adjusted = dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype) if _has_dtype(config) else config
    changes: Mapping[str, Callable] = {}
    if image is not None or channels is not None:
        adjusted, changes = source.resize(adjusted, image, channels, positions)
    shapes = _shapes(config, kind)
    sources = assign(source.names, source.tensors, shapes, where, source.may_be_fresh(classes))
    fill = _placer(sharding, param_dtype)
    tree = {path: fill(path, changes.get(path, _same)(found.read())) for path, found in sources.items()}
    fresh = tuple(path for path in shapes if path not in tree)
    if fresh:
        log.warning("backbone '%s': freshly initialised, as the checkpoint has none that fits: %s", name, list(fresh))
        model = of_config(adjusted)
        whole = _completed(Headed(model, kind) if kind else model, tree)
        tree |= {path: fill(path, np.asarray(whole[path])) for path in fresh}
    params = {path: leaf for path, leaf in tree.items() if not path.startswith(STATISTICS)}
    state = {path: leaf for path, leaf in tree.items() if path not in params}
    return Backbone(name, of_config(adjusted), params, source.classes, kind, state, fresh, source.origin)


def _completed(model: nn.Module, tree: Tree) -> Tree:
    """The whole tree of a model, of which `tree` are some leaves, the others initialised from key 0."""
    return jax.jit(partial(complete, model, example=model_inputs(model)))(jax.random.key(0), tree=tree)


def model_inputs(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """One example of each input of a model, headed or not."""
    return getattr(model, "backbone", model).config.inputs


def save(directory: epath.PathLike, model: nn.Module, tree: Tree, classes: tuple[str, ...] = ()) -> None:
    """Write a backbone (with `head/` for `classes`, if any) in our own layout: `config.json` and `model.safetensors`.

    Args:
        directory: Where; files there are replaced.
        model: Without a head.
        tree: Its leaves, the statistics under `batch_stats/`.
        classes: Names of the head's classes.
    """
    from safetensors.numpy import save as to_bytes

    architecture = next(name for name, (module, _) in MODELS.items() if module is type(model))
    config = {"architecture": architecture, **dataclasses.asdict(model.config), "classes": list(classes)}
    content = to_bytes({path: np.ascontiguousarray(leaf) for path, leaf in sorted(tree.items())})
    files.write(epath.Path(directory) / "model.safetensors", content)
    files.write(epath.Path(directory) / "config.json", json.dumps(config, indent=2) + "\n")


def _same(x):
    return x


def _has_dtype(config):
    return any(f.name == "param_dtype" for f in dataclasses.fields(config))


def _shapes(config, head):
    model = of_config(config)
    return shapes_of(Headed(model, head) if head else model, config.inputs)


def _placer(sharding: Place, dtype):
    dtype = jax.numpy.dtype(dtype)

    def host(path, x):
        return x if x.dtype == dtype else x.astype(dtype)

    def device(path, x):
        where = sharding(path, x.shape) if callable(sharding) else sharding
        if isinstance(where, Sharding) and len(where.device_set) > 1:
            return jax.make_array_from_callback(x.shape, where, lambda index: host(path, x[index]))
        return jax.device_put(host(path, x), where, may_alias=False)

    if isinstance(sharding, str) and sharding != "host":
        raise InputError(f"sharding '{sharding}' is none; expected a jax Sharding, a function, or 'host'")
    return host if sharding == "host" else device
