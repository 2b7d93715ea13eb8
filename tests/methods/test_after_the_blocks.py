"""`top_blocks(k)` of every architecture: the last `k` blocks learn and what comes after them, and nothing else."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.models import architecture
from jtransfer.tree import FROZEN

VIT = {"image": (8, 8), "patch": 4, "width": 8, "heads": 2, "depth": 2}
WORDS = {"vocabulary": 11, "positions": 8, "width": 8, "heads": 2, "depth": 2}
CLIP = {"projection": 4, "text": WORDS}
RESNET = {"image": (16, 16), "stem": 4, "widths": (8, 8), "depths": (1, 1)}
CONVNEXT = {"image": (16, 16), "widths": (8, 8), "depths": (1, 1)}
SWIN = {"image": (8, 8), "patch": 2, "width": 4, "window": 2, "depths": (1, 1), "heads": (1, 2)}
EFFICIENTNET = {"image": (16, 16), "stem": 4, "widths": (4, 6), "depths": (1, 1), "sides": (3, 3), "strides": (1, 2)}
EFFICIENTNET |= {"expanded": (0, 8), "squeezed": (2, 2), "top": 8}
ATTENTION = ("probe", "attention/query", "attention/key", "attention/value", "attention/out")
MAP = {f"pooler/{name}" for name in (*ATTENTION, "norm", "mlp/up", "mlp/down")}
ARCHITECTURES = {
    "vit": ("vit", VIT, {"encoder/norm"}),
    "timm's vit with fc_norm": ("vit", {**VIT, "pool": "mean", "norm_pooled": True}, {"norm"}),
    "vit with a tanh pooler": ("vit", {**VIT, "pooler": True}, {"encoder/norm", "pooler"}),
    "siglip's tower of images": ("vit", {**VIT, "pool": "map"}, {"encoder/norm", *MAP}),
    "dinov2": ("vit", {**VIT, "registers": 2, "pool": "cls_mean", "layer_scale": 1.0}, {"encoder/norm"}),
    "dinov3": ("dinov3_vit", {**VIT, "registers": 2}, {"encoder/norm"}),
    "resnet": ("resnet", RESNET, set()),
    "convnext": ("convnext", CONVNEXT, {"norm"}),
    "convnext v2": ("convnext", {**CONVNEXT, "grn": True, "layer_scale": 0.0}, {"norm"}),
    "swin": ("swin", SWIN, {"norm"}),
    "efficientnet": ("efficientnet", EFFICIENTNET, {"top/conv", "top/norm"}),
    "mobilenet v3": ("efficientnet", {**EFFICIENTNET, "pooler": 6}, {"top/conv", "top/norm", "pooler"}),
    "bert": ("bert", WORDS, {"pooler"}),
    "electra": ("bert", {**WORDS, "embedding": 4, "pooler": False}, set()),
    "gpt2": ("gpt2", WORDS, {"encoder/norm"}),
    "clip": (
        "clip",
        {**CLIP, "vision": {**VIT, "norm_pooled": True, "embedding_norm": True}},
        {"vision/norm", "text/encoder/norm", "vision_projection", "text_projection", "logit_scale"},
    ),
    "siglip": (
        "clip",
        {"projection": 0, "logit_bias": -10.0, "vision": {**VIT, "pool": "map"}, "text": {**WORDS, "pooler": 8}},
        {f"vision/{path}" for path in ("encoder/norm", *MAP)}
        | {"text/encoder/norm", "text/pooler", "logit_scale", "logit_bias"},
    ),
    "a resnet beside bert": (
        "clip",
        {**CLIP, "vision": {**RESNET, "architecture": "resnet"}, "text": {**WORDS, "architecture": "bert"}},
        {"text/pooler", "vision_projection", "text_projection", "logit_scale"},
    ),
}
LAST = r"(.*/)?(stage_1/block_0|encoder/block_1)"
"""The last block of each tower of these models."""


@pytest.fixture(params=ARCHITECTURES, scope="module")
def case(request):
    name, options, after = ARCHITECTURES[request.param]
    backbone = models.build(name, **options)
    model = backbone if name == "clip" else models.Classifier(backbone, 3)
    adapted = methods.adapt(methods.top_blocks(1), model, {}, backbone.config.inputs)
    return adapted, after if name == "clip" else {*after, "head"}


def learning(adapted):
    return {path for path, rate in adapted.rates.items() if rate != FROZEN}


def test_the_last_block_of_each_tower_learns_and_the_layers_named_here(case):
    adapted, after = case
    layers = {re.sub("/(kernel|bias|scale)$", "", path) for path in learning(adapted) if not re.match(LAST, path)}
    assert layers == after
    assert {path for path in adapted.rates if re.match(LAST, path)} <= learning(adapted)


def test_a_convolution_is_told_from_a_dense_layer_by_its_name(case):
    kernels = {path: len(x.shape) for path, x in case[0].shapes.items() if path.endswith("kernel")}
    assert {path for path in kernels if re.fullmatch(f"{architecture.CONVOLUTION}/kernel", path)} == {
        path for path, axes in kernels.items() if axes == 4
    }


def test_a_leaf_is_frozen_just_where_what_enters_a_last_block_depends_on_it(case):
    adapted, _ = case
    tree, state = (
        {path: jnp.ones(x.shape, x.dtype) for path, x in of.items()} for of in (adapted.shapes, adapted.state)
    )
    batch = {name: jnp.ones(x.shape, x.dtype) for name, x in adapted.example.items()}

    @jax.jit
    def entering(tree):
        entered = []

        def interceptor(call, args, kwargs, context):
            if context.method_name == "__call__" and re.fullmatch(LAST, "/".join(context.module.path)):
                entered.append(jnp.sum(args[0]))
            return call(*args, **kwargs)

        with nn.intercept_methods(interceptor):
            models.apply(adapted.model, tree | state, batch)
        return sum(entered)

    assert jnp.isfinite(entering(tree))
    # Not a number in a leaf makes one of all that is computed from it, which a gradient of 0 would hide.
    reached = {path for path in tree if jnp.isnan(entering({**tree, path: jnp.full_like(tree[path], jnp.nan)}))}
    assert reached == tree.keys() - learning(adapted)


def test_layerwise_halves_the_rate_from_block_to_block_and_once_more_before_the_first(case):
    """timm's and BEiT's groups: scale ** (layers - layer), with layer 0 before the blocks and the head in the last."""
    adapted, after = case
    rates = methods.layerwise(0.5).learns([path for path in adapted.shapes if not path.startswith("source_head")])
    for path, rate in rates.items():
        if re.match(rf"{LAST}/", path):
            assert rate == 0.5, path
        elif "block_" in path:
            assert rate == 0.25, path
        elif any(path == one or path.startswith(f"{one}/") for one in after):
            assert rate == 1, path
        else:
            assert rate == 0.125 and re.match(r"(.*/)?(embeddings|stem)/", path), path


def test_layerwise_of_towers_of_other_depths_counts_in_each():
    towers = [
        f"{tower}/encoder/block_{i}/kernel" for tower, depth in (("vision", 3), ("text", 2)) for i in range(depth)
    ]
    rates = methods.layerwise(0.1).learns([*towers, "vision/embeddings/cls", "text/embeddings/word", "logit_scale"])
    assert [round(rate, 9) for rate in rates.values()] == [1e-3, 1e-2, 1e-1, 1e-2, 1e-1, 1e-4, 1e-3, 1]


TIED = ["embeddings/word/embedding", "encoder/block_0/kernel", "encoder/block_1/kernel", "head/bias"]


def test_a_table_of_words_that_the_head_shares_learns_at_the_rate_of_the_head():
    rates = methods.layerwise(0.5, tied="embeddings/.*").learns(TIED)
    assert [*rates.values()] == [1, 0.25, 0.5, 1]
    phases = methods.unfreeze(1, decay=0.5, tied="embeddings/.*").phases
    assert [[*phase.learns(TIED).values()] for phase in phases] == [[1, 0, 0, 1], [1, 0, 0.5, 1], [1, 0.25, 0.5, 1]]
    with pytest.raises(InputError, match="layerwise: tied: no leaf of the model matches 'table/.*'"):
        methods.layerwise(tied="table/.*").learns(TIED)


def test_layerwise_needs_blocks_and_a_decay_above_nothing():
    with pytest.raises(InputError, match="layerwise: the model has no blocks, whose rates could differ"):
        methods.layerwise().learns(["head/kernel"])
    with pytest.raises(InputError, match="layerwise: decay: expected a number above 0, found 0"):
        methods.layerwise(0.0)


def test_norm_trains_the_scales_and_biases_of_all_norms_and_no_other_leaf(case):
    paths = [path for path in case[0].shapes if not path.startswith("source_head")]
    learning = {path for path, rate in methods.norm().learns(paths).items() if rate != FROZEN}
    scaled = {path.removesuffix("/scale") for path in paths if path.endswith("/scale")}
    norms = {one for one in scaled if not re.search(r"(block_\d+|/grn)$", one)}  # ConvNeXt's scales of branches
    assert norms
    assert learning == {path for path in paths if path.rpartition("/")[0] in norms or path.startswith("head/")}
