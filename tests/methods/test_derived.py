"""Leaves that a method adds and that follow from the backbone's, as magnitudes (Liu et al. 2024, arXiv:2402.09353)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jtransfer as jt
from jtransfer import models
from jtransfer.checkpoints.headed import headed
from jtransfer.methods import Method, adapt, learn
from jtransfer.objectives import classification


def magnitudes():
    """The norm of each column of the queries' kernels learns, and its direction stays."""

    def interceptor(call, args, kwargs, context):
        y = call(*args, **kwargs)  # before it the kernel need not be there
        module = context.module
        if not (isinstance(module, nn.Dense) and module.name == "query" and context.method_name == "__call__"):
            return y
        kernel, bias = (module.get_variable("params", name) for name in ("kernel", "bias"))
        norm = jnp.linalg.norm(kernel, axis=0)
        magnitude = module.param("magnitude", lambda key, shape: norm, norm.shape)
        return (y - bias) * magnitude / norm + bias

    def merge(tree):
        kept = {path: leaf for path, leaf in tree.items() if not path.endswith("/magnitude")}
        for path in tree.keys() - kept.keys():
            kernel = path.replace("magnitude", "kernel")
            kept[kernel] = tree[kernel] * tree[path] / jnp.linalg.norm(tree[kernel], axis=0)
        return kept

    return Method("magnitudes", learn((".*/magnitude", 1.0), ("head/.*", 1.0)), (interceptor,), merge)


def test_a_leaf_that_is_added_starts_at_what_the_backbones_weights_say():
    backbone = jt.load("glyphs-vit")
    model, params, _ = headed(backbone, classification(), 10)
    adapted = adapt(magnitudes(), model, params, backbone.config.inputs)
    tree, state = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    added = [path for path in tree if path.endswith("/magnitude")]
    assert len(added) == backbone.config.depth
    for path in added:
        norms = np.linalg.norm(np.asarray(params[path.replace("magnitude", "kernel")]), axis=0)
        np.testing.assert_allclose(tree[path], norms, rtol=1e-6)
    images = jax.random.uniform(jax.random.key(1), (2, *backbone.config.inputs["pixel_values"].shape[1:]))
    plain = models.apply(model, {path: leaf for path, leaf in tree.items() if path not in added} | state, images)
    np.testing.assert_allclose(
        models.apply(adapted.model, tree | state, images)["features"], plain["features"], atol=1e-5
    )
    moved = tree | {path: tree[path] * 1.5 for path in added}
    merged = models.apply(model, magnitudes().merge(moved) | state, images)["features"]
    np.testing.assert_allclose(models.apply(adapted.model, moved | state, images)["features"], merged, atol=1e-5)
    assert float(np.abs(merged - plain["features"]).max()) > 1e-3
