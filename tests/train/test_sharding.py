"""A mesh of eight simulated devices computes what one device computes, and holds no more than its part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, make_step, sharding
from jtransfer.tree import merge, partition

STEPS = 10


def run(mesh, how, images, remat=False):
    """Ten steps of a ViT from scratch: losses, the gradients of the first, and the state at the end."""
    vit = models.build("vit", image=(8, 8), channels=1, patch=4, width=64, depth=2, heads=2, pool="cls", remat=remat)
    wrap = (sharding.keep_batch_split(mesh),) if mesh else ()
    adapted = methods.adapt(methods.scratch(), models.Classifier(vit, 3), {}, (8, 8, 1), wrap)
    transformation = Optimiser(rate=1e-3).build(adapted.rates, STEPS)
    loss = make_loss(adapted.model, classification())
    step = make_step(loss, transformation)

    def create(key):
        tree, state = adapted.start(key, {})
        head = jax.random.normal(key, tree["head/kernel"].shape)  # away from zero, so that every gradient counts
        trainable, frozen = partition(tree | {"head/kernel": head}, adapted.rates)
        return TrainState.create(key, trainable, state, transformation), frozen

    batch = {"inputs": images[0], "labels": images[1]}
    layout = None
    if mesh:
        leaves = sharding.tree_shardings(adapted.shapes, mesh, how)
        layout = (sharding.state_shardings(jax.eval_shape(create, jax.random.key(0))[0], leaves, mesh), {})
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    state, frozen = jax.jit(create, out_shardings=layout)(jax.random.key(0))

    def value(trainable):
        return loss(merge(trainable, frozen), {}, batch, jax.random.key(1))[0]

    gradients = jax.jit(jax.grad(value))(state.trainable)
    step = jax.jit(step, out_shardings=(layout[0], None) if mesh else None)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    return losses, gradients, state


@pytest.fixture(scope="module")
def alone(images):
    return run(None, None, images)


@pytest.mark.parametrize("how", ["replicated", "fsdp"])
def test_a_step_on_eight_devices_agrees_with_one(how, alone, images, capfd):
    losses, gradients, state = run(sharding.make_mesh({"data": 8}), how, images)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for path, leaf in alone[1].items():
        np.testing.assert_allclose(gradients[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)
    assert "rematerialization" not in capfd.readouterr().err

    kernel = state.trainable["encoder/block_0/mlp/up/kernel"]
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if any(getattr(key, "key", None) == "encoder/block_0/mlp/up/kernel" for key in path)
    ]
    part = (64, 32) if how == "fsdp" else (64, 256)  # a leaf's largest axis in eight parts
    assert [leaf.addressable_shards[0].data.shape for leaf in (kernel, *moments)] == [part] * 3


def test_fsdp_splits_the_largest_axis_that_divides_and_copies_small_leaves():
    mesh = sharding.make_mesh({"data": 8})
    assert sharding.fsdp((64, 256), mesh) == P(None, "data")
    assert sharding.fsdp((257, 64), mesh) == P(None, "data")
    assert sharding.fsdp((257, 65), mesh) == P()
    assert sharding.fsdp((64,), mesh) == P()


def test_rules_on_paths_choose_a_strategy_or_a_spec():
    mesh = sharding.make_mesh({"data": 2, "model": -1})
    shapes = {path: jax.ShapeDtypeStruct((64, 256), jnp.float32) for path in ("mlp/up/kernel", "head/kernel")}
    layout = sharding.tree_shardings(shapes, mesh, [(".*up/kernel", (None, "model")), (".*", "fsdp")])
    assert mesh.shape == {"data": 2, "model": 4}
    assert layout["mlp/up/kernel"].spec == P(None, "model")
    assert layout["head/kernel"].spec == P(None, "data")


def test_what_does_not_fit_is_refused_before_any_compile():
    mesh = sharding.make_mesh({"data": -1})
    shapes = {"head/kernel": jax.ShapeDtypeStruct((64, 10), jnp.float32)}
    with pytest.raises(InputError, match="unknown 'fspd'.*did you mean 'fsdp'"):
        sharding.tree_shardings(shapes, mesh, "fspd")
    with pytest.raises(InputError, match="'hed/kernel' matches none"):
        sharding.tree_shardings(shapes, mesh, [("hed/kernel", "fsdp"), (".*", "replicated")])
    with pytest.raises(InputError, match=r"'head/kernel' \[64, 10\] cannot be split"):
        sharding.tree_shardings(shapes, mesh, [(".*", (None, "data"))])
    with pytest.raises(InputError, match="does not fit 8 devices"):
        sharding.make_mesh({"data": 3})
