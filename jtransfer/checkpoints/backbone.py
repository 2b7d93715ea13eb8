"""A pretrained backbone on disk: `config.json` (architecture and classes) and `model.safetensors` (the flat tree)."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.errors import InputError, nearest
from jtransfer.models import MODELS, SOURCE_HEAD, Classifier, build
from jtransfer.tree import Tree, flat

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class Backbone:
    """A pretrained model to transfer from.

    Attributes:
        name: As it was asked for.
        model: The Flax module, without a head.
        params: Its flat tree, with the head of its source task under `source_head/`.
        classes: Names of the source task's classes; empty when it has no head.
        fingerprint: 16 hexadecimal digits over architecture and weights.
    """

    name: str
    model: nn.Module
    params: Tree
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`[height, width, channels]` of one input."""
        return self.model.config.input_shape


def load(name: str) -> Backbone:
    """Load an embedded backbone by name, or any directory in this layout (local or in an object store).

    Raises:
        InputError: nothing of that name, or a file that is missing, truncated or does not fit its config.
    """
    directory = epath.Path(ASSETS / name if name in embedded() else name)
    if not (directory / "config.json").exists():
        close = nearest(name, embedded())
        raise InputError(f"unknown backbone '{name}': neither embedded nor a directory with a config.json; {close}")
    config, weights = directory / "config.json", directory / "model.safetensors"
    if not weights.exists():
        raise InputError(f"backbone '{name}': {weights} is missing")
    try:
        options = json.loads(config.read_text())
        architecture, classes = options.pop("architecture"), tuple(options.pop("classes"))
    except (ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{config}: expected JSON with 'architecture' and 'classes' ({error})") from None
    model = build(architecture, **options)
    content = weights.read_bytes()
    params = _read(weights, content)
    head = Classifier(model, len(classes)) if classes else model
    example = jax.ShapeDtypeStruct((1, *model.config.input_shape), jnp.float32)
    shapes = flat(jax.eval_shape(head.init, jax.random.key(0), example).get("params", {}))
    _check(weights, params, shapes)
    params = {f"{SOURCE_HEAD}{p.removeprefix('head/')}" if p.startswith("head/") else p: x for p, x in params.items()}
    digest = hashlib.sha256(json.dumps([architecture, options, classes], sort_keys=True).encode() + content)
    return Backbone(name, model, params, classes, digest.hexdigest()[:16])


def save(directory: epath.PathLike, model: nn.Module, params: Tree, classes: tuple[str, ...] = ()) -> None:
    """Write a backbone (with `head/` for `classes`, if any) so that `load` reads it."""
    from safetensors.numpy import save as to_bytes

    architecture = next(name for name, (module, _) in MODELS.items() if module is type(model))
    config = {"architecture": architecture, **dataclasses.asdict(model.config), "classes": list(classes)}
    content = to_bytes({path: np.asarray(leaf) for path, leaf in sorted(params.items())})
    files.write(epath.Path(directory) / "model.safetensors", content)
    files.write(epath.Path(directory) / "config.json", json.dumps(config, indent=2) + "\n")


def embedded() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def _read(path, content):
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file ({len(content)} bytes): {error}") from None


def _check(file, params, shapes):
    """Every leaf filled, every tensor used, every shape as the config says: all offenders in one line."""
    missing = [f"{path} is missing" for path in shapes if path not in params]
    extra = [f"{path} belongs to no leaf ({nearest(path, shapes)})" for path in params if path not in shapes]
    wrong = [
        f"{path} has shape {list(params[path].shape)}, expected {list(leaf.shape)}"
        for path, leaf in shapes.items()
        if path in params and params[path].shape != leaf.shape
    ]
    if offenders := missing + extra + wrong:
        raise InputError(f"{file} does not fit its config.json: {'; '.join(offenders)}")
