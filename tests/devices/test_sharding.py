"""A mesh of eight simulated devices computes what one device computes, and holds no more than its part."""

import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jtransfer import methods, models
from jtransfer.devices import sharding, tactics
from jtransfer.errors import InputError
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, make_step
from jtransfer.train.state import state_shardings
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
        layout = (state_shardings(jax.eval_shape(create, jax.random.key(0))[0], leaves, mesh), {})
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


def test_the_batch_is_not_held_to_a_mesh_where_the_program_is_lowered_for_another_platform():
    """As where FLOPs are counted: a constraint would name devices of the mesh."""
    there = SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu")]))
    context = SimpleNamespace(method_name="residual")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        assert sharding.keep_batch_split(there)(jnp.square, (3,), {}, context) == 9


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
    assert tactics.fsdp("w", (64, 256), mesh) == P(None, "data")
    assert tactics.fsdp("w", (257, 64), mesh) == P(None, "data")
    assert tactics.fsdp("w", (257, 65), mesh) == P()
    assert tactics.fsdp("w", (64,), mesh) == P()


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


def test_every_axis_of_a_mesh_is_the_compilers_to_split():
    assert set(sharding.make_mesh({"data": 2, "model": -1}).axis_types) == {AxisType.Auto}


def test_an_example_is_at_its_position_whatever_the_order_of_the_devices():
    batch = {"inputs": np.arange(16.0).reshape(8, 2), "labels": np.arange(8)}
    order = np.array(jax.devices())[[3, 0, 6, 1, 7, 2, 5, 4]]
    for mesh in (Mesh(order, "data"), Mesh(order.reshape(2, 4), ("data", "model"))):
        assert sharding.rows(mesh, 8).tolist() == list(range(8))
        jax.tree.map(np.testing.assert_array_equal, sharding.assemble(batch, 8, mesh), batch)


TWO = """
import sys
import jax, numpy as np
from jax.sharding import Mesh
from jtransfer.devices import sharding, tactics
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
whole = np.arange(8) ** 2
devices = np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
meshes = Mesh(devices, "data"), Mesh(devices[[0, 2, 3, 1]], "data"), Mesh(devices.reshape(1, 4), ("data", "model"))
for mesh in meshes:
    rows = sharding.rows(mesh, 8)
    placed = sharding.assemble({"labels": whole[rows]}, 8, mesh)["labels"]
    assert all((shard.data == whole[shard.index]).all() for shard in placed.addressable_shards)
    print(rows.tolist(), int(placed.sum()))
"""


def test_two_processes_read_what_their_devices_hold_and_a_batch_is_that_of_one():
    """In turn; apart, as on a torus; and the same, where the model is split over both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    commands = ([sys.executable, "-c", TWO, address, str(i)] for i in range(2))
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
    # Gloo writes between the lines.
    said = [re.findall(r"\[[\d, ]+\] \d+", process.communicate(timeout=300)[0]) for process in processes]
    everything = f"{list(range(8))} 140"
    assert said[0] == ["[0, 1, 2, 3] 140", "[0, 1, 6, 7] 140", everything]
    assert said[1] == ["[4, 5, 6, 7] 140", "[2, 3, 4, 5] 140", everything]


def slices(name, **options):
    """The devices of TPU slices that are not there."""
    pytest.importorskip("libtpu", reason="needs a compiler for TPUs: pip install -e '.[pod]'")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:
        pytest.skip(f"no TPU compiler: {error}")


def test_neighbours_on_a_mesh_are_neighbours_on_the_torus_of_a_tpu_slice():
    devices = slices("v5e:4x4")
    ring = sharding.make_mesh({"data": -1}, devices).devices
    at = np.array([device.coords for device in ring])
    steps = np.abs(at - np.roll(at, 1, axis=0)).sum(axis=1)
    assert steps.tolist() == [1] * 16  # the list as it comes has steps of up to 6
    assert list(ring) == list(jax.make_mesh((16,), ("data",), devices=devices).devices)


def test_a_mesh_spans_several_slices_along_its_first_axis_and_cuts_a_torus_where_it_must():
    devices = slices("v5e:4x4", num_slices=2)
    mesh = sharding.make_mesh({"data": 4, "model": -1}, devices)
    assert [{device.slice_index for device in row} for row in mesh.devices] == [{0}, {0}, {1}, {1}]
    cube = slices("v5p:4x4x4")  # no product of its sides is 8
    mesh = sharding.make_mesh({"data": 8, "model": 8}, cube)
    assert mesh.shape == {"data": 8, "model": 8} and set(mesh.devices.flat) == set(cube)
