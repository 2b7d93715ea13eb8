"""LoRA: rank and alpha of each layer, what is dropped in training, and when it is refused."""

import re

import jax
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.models import apply

SHAPE = (8, 8, 1)


def adapt(method, vit, backbone):
    return methods.adapt(method, models.Classifier(vit, 3), backbone, SHAPE)


def test_ranks_are_given_by_pattern_and_the_first_that_matches_decides(vit, backbone):
    method = methods.lora(rank=2, ranks={".*block_1/.*query": 5, ".*query": 3})
    shapes = {path: x.shape for path, x in adapt(method, vit, backbone).shapes.items() if path.endswith("lora/a")}
    assert shapes == {
        "encoder/block_0/attention/query/lora/a": (16, 3),
        "encoder/block_0/attention/value/lora/a": (16, 2),
        "encoder/block_1/attention/query/lora/a": (16, 5),
        "encoder/block_1/attention/value/lora/a": (16, 2),
    }


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"rank": 4, "alpha": 8}, 2.0),
        ({"rank": 4, "alpha": 8, "rs": True}, 4.0),
        ({"rank": 4, "alpha": 8, "alphas": {"layer": 2}}, 0.5),
        ({"rank": 4, "alpha": 8, "ranks": {"layer": 16}, "rs": True}, 2.0),
    ],
)
def test_the_product_is_scaled_by_alpha_over_the_rank_or_over_its_root(options, scale):
    tree = {"layer/kernel": np.ones((1, 1)), "layer/lora/a": np.full((1, 1), 3.0), "layer/lora/b": np.ones((1, 1))}
    assert methods.lora(**options).merge(tree) == {"layer/kernel": 1 + 3 * scale}


def test_a_fused_layer_of_query_key_and_value_is_adapted_by_default():
    assert re.fullmatch(methods.lora().parts[0].target, "encoder/block_0/attention/qkv")


def test_dropout_reaches_the_side_path_in_training_and_nothing_else(vit, backbone, images):
    rng = np.random.default_rng(0)
    method = methods.lora(rank=2, dropout=0.5)
    adapted = adapt(method, vit, backbone)
    tree = {path: rng.normal(size=x.shape).astype("f") for path, x in adapted.shapes.items()} | backbone

    @jax.jit
    def logits(tree, seed):
        key = jax.random.key(seed)
        return {
            "training": apply(adapted.model, tree, images[0], train=True, rngs={"dropout": key})["logits"],
            "evaluation": apply(adapted.model, tree, images[0])["logits"],
        }

    one, two = logits(tree, 1), logits(tree, 2)
    assert (one["evaluation"] == two["evaluation"]).all()
    assert np.abs(one["training"] - two["training"]).max() > 0.1
    off = {path: np.zeros_like(x) if path.endswith("lora/b") else x for path, x in tree.items()}
    one, two = logits(off, 1), logits(off, 2)
    np.testing.assert_allclose(one["training"], two["training"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora: rank: expected a whole number from 1 to 65,536, found 0"),
        ({"ranks": {".*": 0}}, "lora: ranks: expected a mapping .* whole number from 1 to 65,536 or None, found"),
        ({"dropout": 1.0}, "lora: dropout: expected a number of at least 0 and below 1, found 1.0"),
        ({"target": "(query"}, r"lora: target: expected a regular expression, found '\(query'"),
        ({"alphas": {"*": 3}}, r"a key of ranks or alphas: expected a regular expression, found '\*'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        methods.lora(**options)


def test_a_pattern_that_matches_no_adapted_layer_is_refused(vit, backbone):
    with pytest.raises(InputError, match="'.*/kye' matches none of the 4 leaves; choose one of encoder/"):
        adapt(methods.lora(alphas={".*/kye": 2}), vit, backbone)


def test_patterns_can_be_written_in_a_config(vit, backbone):
    method = methods.parse("lora(rank=2, ranks={'.*query': 3}, rs=True) + bitfit")
    assert method.parts[0].of("encoder/block_0/attention/query") == (3, 8.0) and method.parts[0].rs


SIZES = {"image": (16, 16), "channels": 2, "stem": 4, "depths": (1, 1), "widths": (4, 6), "sides": (3, 5), "top": 8}
SIZES |= {"strides": (1, 2), "expanded": (0, 8), "squeezed": (0, 2)}


def test_a_convolution_has_a_path_of_its_window_and_one_in_groups_none():
    """With the padding of TensorFlow, a stride and dropout's key; merged, the plain model computes the same."""
    network = models.Classifier(models.build("efficientnet", **SIZES), 3)
    base = models.complete(network, jax.random.key(0), {}, network.backbone.config.inputs)
    method = methods.lora(rank=2, alpha=3, target=".*(conv|conv_1)")
    adapted = methods.adapt(method, network, base, network.backbone.config.inputs)
    added = {path.removesuffix("/lora/a"): x.shape for path, x in adapted.shapes.items() if path.endswith("/lora/a")}
    assert added == {
        "stem/conv": (3, 3, 2, 2),
        "stage_0/block_0/project/conv": (1, 1, 4, 2),
        "stage_1/block_0/expand/conv": (1, 1, 4, 2),
        "stage_1/block_0/project/conv": (1, 1, 8, 2),
        "top/conv": (1, 1, 6, 2),
    }
    assert any(path.endswith("depthwise/conv/kernel") for path in base)
    rng = np.random.default_rng(0)
    tree = {path: rng.normal(size=x.shape).astype("f") for path, x in adapted.shapes.items() if "/lora/" in path}
    images = rng.normal(size=(2, 16, 16, 2)).astype("f")
    base |= {"head/kernel": rng.normal(size=(8, 3)).astype("f")}

    @jax.jit
    def logits(tree):
        off = {path: x * (not path.endswith("/lora/b")) for path, x in tree.items()}
        run = [(network, base), (adapted.model, base | off), (adapted.model, base | tree)]
        return [apply(*one, images)["logits"] for one in [*run, (network, method.merge(base | tree))]]

    plain, off, on, merged = logits(tree)
    np.testing.assert_allclose(off, plain, atol=1e-6)
    np.testing.assert_allclose(merged, on, rtol=1e-5, atol=1e-5)
    assert np.abs(on - plain).max() > 0.1


def test_a_target_of_nothing_but_convolutions_in_groups_is_refused():
    network = models.Classifier(models.build("efficientnet", **SIZES), 3)
    with pytest.raises(InputError, match="matches no dense layer and no convolution of one group; there are"):
        methods.adapt(methods.lora(target=".*depthwise.*"), network, {}, network.backbone.config.inputs)
