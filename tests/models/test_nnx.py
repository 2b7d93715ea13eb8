"""What docs/nnx.md says: a model of ours within NNX computes what it computes here, and learns what it learns here."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jtransfer import models
from jtransfer.tree import flat, merge, nested, prefixed

PAGE = (Path(__file__).parents[2] / "docs" / "nnx.md").read_text()


@pytest.fixture(scope="module")
def page():
    """The names that the page's code leaves."""
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)), names)
    return names


def ours(page, trainable):
    tree = merge(trainable, page["frozen"])
    return models.apply(page["adapted"].model, tree, page["images"], train=False)["logits"]


def test_a_step_of_a_method_in_nnx_is_the_step_here(page):
    def loss(trainable):
        logits = ours(page, trainable)
        return optax.softmax_cross_entropy_with_integer_labels(logits, page["labels"]).mean()

    gradients = jax.jit(jax.grad(loss))(page["trainable"])
    theirs = flat(nnx.to_pure_dict(page["gradients"]))
    assert theirs.keys() == gradients.keys()
    for path, leaf in gradients.items():
        np.testing.assert_allclose(theirs[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    assert any(np.any(leaf) for leaf in gradients.values())

    expected = merge({path: leaf - 0.1 * gradients[path] for path, leaf in page["trainable"].items()}, page["frozen"])
    assert page["trained"].keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(page["trained"][path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    for path, leaf in page["frozen"].items():
        np.testing.assert_array_equal(page["trained"][path], leaf, err_msg=path)


def test_outputs_are_equal_within_nnx_and_here_and_once_merged(page):
    within = page["net"](page["images"])["logits"]
    trained = {path: page["trained"][path] for path in page["trainable"]}
    np.testing.assert_array_equal(within, ours(page, trained))
    assert np.any(within)  # the head has left zero
    plain = models.apply(models.Classifier(page["backbone"].model, 10), page["plain"], page["images"], train=False)
    np.testing.assert_allclose(plain["logits"], within, rtol=1e-5, atol=1e-6)


def test_batch_statistics_are_taken_and_updated_as_here():
    """As the page says of a ResNet."""
    model = models.build("resnet", image=(16, 16), stem=4, widths=(8, 16), depths=(1, 1), block="basic")
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    tree = jax.jit(lambda key: models.complete(model, key, {}, images))(jax.random.key(0))
    rng = np.random.default_rng(1)
    tree = {path: leaf + 0.1 * rng.random(leaf.shape, np.float32) for path, leaf in tree.items()}
    variables = nested(tree)
    statistics = variables.pop("batch_stats")

    net = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images)
    nnx.update(net, variables)
    nnx.update(net, statistics)
    options = {"train": True, "mutable": ["batch_stats"]}
    expected, made = jax.jit(lambda tree: models.apply(model, tree, images, **options))(tree)
    found = nnx.jit(lambda net: net(images, **options))(net)
    np.testing.assert_allclose(found["pooler_output"], expected["pooler_output"], rtol=1e-5)
    kept = flat(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
    assert prefixed(kept, models.STATISTICS).keys() == {path for path in tree if path.startswith(models.STATISTICS)}
    for path, leaf in flat(made["batch_stats"]).items():
        np.testing.assert_allclose(kept[path], leaf, rtol=1e-5, err_msg=path)
        assert (leaf != tree[models.STATISTICS + path]).any(), path
