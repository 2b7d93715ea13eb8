"""ViT in the `.npz` layout of vision_transformer (with AugReg) and big_vision: names of Flax modules of their time.

    cls    embedding/{kernel, bias}    Transformer/posembed_input/pos_embedding    pre_logits/    head/
    Transformer/encoderblock_0/{LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3/{Dense_0, Dense_1}}
    Transformer/encoder_norm

All sizes are in the shapes. Where the names differ between the two, or between their years, those of the file count.
"""

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jtransfer.checkpoints.families.family import Description, preprocessor
from jtransfer.checkpoints.names import LEAF, SAME, LayerKind, Layout, Names, Row, padded
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError
from jtransfer.models import Head, ViTConfig
from jtransfer.models.vit import waves

log = logging.getLogger("jtransfer")

PREFIXES = ("", "params/", "opt/target/", "img/", "params/img/")
"""What names begin with: parameters alone, with the optimiser (Optax or Flax), or the image tower of two."""
POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
"""Where positions were kept over the years, the oldest first."""
IGNORED = (
    (r"opt/(?!target/).*|chrono/.*|states/.*", "the state of training, not of the model"),
    (r"(params/)?(txt/.*|t|b)", "the text tower of two, and the scale and bias of their logits"),
)
OTHERS = {
    "conv_root": "a hybrid with a ResNet stem",
    "MixerBlock_": "an MLP-Mixer",
    "root_block": "a ResNet (BiT)",
    "token_mixing": "an MLP-Mixer",
}
"""What parts of names tell of models that this layout also holds and that have no table here."""

HALF = (0.5, 0.5, 0.5)
DEEPEST = 1000
"""Blocks that a stack of them may claim."""

DENSE: LayerKind = {"/kernel": ("{}/kernel", SAME), "/bias": ("{}/bias", SAME)}
NORM: LayerKind = {"/scale": ("{}/scale", SAME), "/bias": ("{}/bias", SAME)}


def describe(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Description:
    """What is in an `.npz` file.

    Args:
        tensors: By their names.
        values: None; there is no config.

    Raises:
        InputError: no ViT, or one of a kind that our model cannot be.
    """
    prefix = next((p for p in reversed(PREFIXES) if p + "embedding/kernel" in tensors), None)
    others = [what for part, what in OTHERS.items() if any(part in name for name in tensors)]
    if others or prefix is None:
        found = others[0] if others else f"names such as {', '.join(map(repr, sorted(tensors)[:3]))}"
        raise InputError(f"expected a ViT, with 'embedding/kernel' and 'Transformer/encoder_norm/scale'; found {found}")
    shapes = {name.removeprefix(prefix): x.shape for name, x in tensors.items() if name.startswith(prefix)}
    config, positions = _config(shapes)
    if positions not in shapes:
        log.warning("the file has no positions: those of big_vision's 'sincos2d' are taken, for images of 224 pixels")
        tensors = tensors | {prefix + positions: _waves(config)}
    pooled = "pre_logits/kernel" in shapes
    if pooled and config.pool != "cls":
        raise InputError(f"'pre_logits' are read from a class token here, and the file pools by '{config.pool}'")
    tower = prefix.endswith("img/")
    if tower:
        log.warning("of the two towers in the file, that of images is taken")
    head = "head/kernel" in shapes and not tower
    classes = shapes["head/kernel"][-1] if head else 0
    return Description(
        config,
        Head(classes, "pooler_output" if pooled else "features") if head else None,
        Names(_rows(config, shapes, positions, prefix), ignored=IGNORED),
        _shared(tensors, config.depth) if _stacked(shapes) else tensors,
        # Whatever the aspect, and values in -1..1.
        preprocessor(dict(zip(("height", "width"), config.image, strict=True)), None, "bilinear", HALF, HALF),
    )


def _stacked(shapes):
    return any(name.startswith("Transformer/encoderblock/") for name in shapes)


def _block(name):
    return re.sub(r"encoderblock_\d+", "encoderblock_0", name)


def _config(shapes: Mapping[str, tuple[int, ...]]) -> tuple[ViTConfig, str]:
    """The architecture, and the name of its positions."""
    patch, other, channels, width = shapes["embedding/kernel"]
    if patch != other:
        raise InputError(f"'embedding/kernel' is of patches of {patch}x{other}; expected square ones")
    if _stacked(shapes):
        first, depth = "Transformer/encoderblock/", shapes["Transformer/encoderblock/LayerNorm_0/scale"][0]
        if depth > DEEPEST:
            raise InputError(f"'{first}' claims {depth} blocks; expected {DEEPEST} at most")
    else:
        numbers = {int(found[1]) for name in shapes if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))}
        first, depth = "Transformer/encoderblock_0/", len(numbers)
    query = next((x for name, x in shapes.items() if name.startswith(first) and name.endswith("query/kernel")), None)
    up = next((x for name, x in shapes.items() if name.startswith(first) and name.endswith("Dense_0/kernel")), None)
    if query is None or up is None:
        raise InputError(f"'{first}' lacks the kernels of 'query' and 'Dense_0'")
    positions = next((name for name in POSITIONS if name in shapes), POSITIONS[-1])
    pool = "cls" if "cls" in shapes else "map" if "MAPHead_0/probe" in shapes else "mean"
    patches = shapes[positions][1] if positions in shapes else (224 // patch) ** 2
    if pool == "cls" and math.isqrt(patches) ** 2 == patches - 1:
        patches -= 1
    side = math.isqrt(patches)
    if side**2 != patches:
        raise InputError(f"'{positions}' has {patches} positions, which are of no square image")
    config = ViTConfig(
        image=(side * patch, side * patch),
        channels=channels,
        patch=patch,
        width=width,
        depth=depth,
        heads=query[-2],
        hidden=up[-1],
        pool=pool,
        pooler="pre_logits/kernel" in shapes,
        epsilon=1e-6,
        activation="gelu_tanh",
    )
    return config, positions


def _rows(config: ViTConfig, shapes: Collection[str], positions: str, prefix: str) -> tuple[Row, ...]:
    names = {_block(name) for name in shapes}
    old = any("/MultiHeadDotProductAttention_1/" in name for name in names)
    norm_1, attention, norm_2, mlp = (
        ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        if old
        else ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    )
    block = (
        (norm_1, "norm_1", NORM),
        *_attention(attention, "attention", config.heads),
        (norm_2, "norm_2", NORM),
        (f"{mlp}/Dense_0", "mlp/up", DENSE),
        (f"{mlp}/Dense_1", "mlp/down", DENSE),
    )
    if _stacked(shapes):
        blocks = [
            Row(
                f"Transformer/encoderblock/{theirs}",
                tuple(f"encoder/block_{i}/{ours}" for i in range(config.depth)),
                _stack(kind, config.depth),
            )
            for theirs, ours, kind in block
        ]
    else:
        blocks = [
            Row(f"Transformer/encoderblock_{{}}/{theirs}", f"encoder/block_{{}}/{ours}", k) for theirs, ours, k in block
        ]
    pool = (
        ("MAPHead_0/probe", "pooler/probe", LEAF),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "pooler/attention", config.heads),
        ("MAPHead_0/LayerNorm_0", "pooler/norm", NORM),
        ("MAPHead_0/MlpBlock_0/Dense_0", "pooler/mlp/up", DENSE),
        ("MAPHead_0/MlpBlock_0/Dense_1", "pooler/mlp/down", DENSE),
    )
    rows = (
        Row("cls", "embeddings/cls", LEAF),
        Row("embedding", "embeddings/patch", _patches(config)),
        Row(positions, "embeddings/positions", {"": ("{}", _positions(config, shapes, positions))}),
        *blocks,
        Row("Transformer/encoder_norm", "encoder/norm", NORM),
        *(Row(*row) for row in pool),
        Row("pre_logits", "pooler", DENSE),
        Row("head", "source_head", DENSE),
    )
    return tuple(Row(prefix + row.theirs, row.ours, row.kind) for row in rows)


def _attention(theirs, ours, heads) -> list[tuple[str, str, LayerKind]]:
    """`query [width, heads, head width]` and `out [heads, head width, width]` with the heads side by side."""
    split = Layout(lambda x: (_joined(x, -2),), lambda x: x.reshape(*x.shape[:-1], heads, -1))
    out = Layout(lambda x: (_joined(x, 0),), lambda x: x.reshape(heads, -1, x.shape[-1]))
    inward: LayerKind = {"/kernel": ("{}/kernel", split), "/bias": ("{}/bias", split)}
    return [
        *((f"{theirs}/{name}", f"{ours}/{name}", inward) for name in ("query", "key", "value")),
        (f"{theirs}/out", f"{ours}/out", {"/kernel": ("{}/kernel", out), "/bias": ("{}/bias", SAME)}),
    ]


def _joined(x, axis):
    """`x` with its axis `axis` and the next as one."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _patches(config) -> LayerKind:
    shape = (config.patch, config.patch, config.channels, -1)
    return {
        "/kernel": ("{}/kernel", Layout(lambda x: (x.reshape(-1, x.shape[-1]),), lambda x: x.reshape(shape))),
        "/bias": ("{}/bias", SAME),
    }


def _positions(config, shapes, positions) -> Layout:
    """As they are, or, where they are for patches only, with zeros for the class token, which adds nothing to it."""
    there = shapes[positions][1] if positions in shapes else math.prod(config.grid)
    return SAME if config.pool != "cls" or there > math.prod(config.grid) else padded(1)


def _stack(kind: LayerKind, depth: int) -> LayerKind:
    """The layout of one block for all of them, stacked along a leading axis (big_vision's `scan=True`)."""

    def stacked(layout):
        def load(x):
            if len(x) != depth:
                raise ValueError(f"{len(x)} blocks")
            return tuple(layout.load(part)[0] for part in x)

        return Layout(load, lambda *parts: np.stack([layout.save(part) for part in parts]))

    return {theirs: (ours, stacked(layout)) for theirs, (ours, layout) in kind.items()}


def _shared(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Tensors that hold all blocks are read once for all of them: a file in a zip is no view."""
    return {
        name: x._replace(read=_once_for(depth, x.read)) if "/encoderblock/" in name else x
        for name, x in tensors.items()
    }


def _once_for(times: int, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """A function that keeps what `read` gave until it has been asked for it so many times."""
    kept, asked = [], 0

    def get():
        nonlocal asked
        asked += 1
        if not kept:
            kept.append(read())
        return kept.pop() if asked % times == 0 else kept[0]

    return get


def _waves(config: ViTConfig) -> Tensor:
    """The positions of `vit.waves`, which big_vision computes, as a tensor of a file."""
    if config.width % 4:
        raise InputError(f"the file has no positions, and those of 'sincos2d' need a width of 4n, not {config.width}")
    shape = (1, math.prod(config.grid), config.width)
    return Tensor(shape, np.dtype(np.float32), lambda: waves(config.grid, config.width)[None])
