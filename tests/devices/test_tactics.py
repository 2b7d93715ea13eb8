"""Each tactic on eight simulated devices computes what one device computes, and no device holds more than its part."""

import re
from functools import lru_cache, partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jtransfer import methods, models
from jtransfer.config.checks import TACTICS
from jtransfer.devices import sharding, tactics
from jtransfer.errors import InputError
from jtransfer.objectives import classification, contrastive
from jtransfer.train import Optimiser, costs
from jtransfer.train.state import TrainState, lay_out
from jtransfer.tree import partition

VISION = {"image": (8, 8), "channels": 1, "patch": 4, "width": 64, "depth": 1, "heads": 2}
TEXT = {"vocabulary": 20, "positions": 6, "width": 64, "depth": 1, "heads": 2, "eos_token": 1}
CASES = [
    ({"data": 8}, "replicated"),
    ({"data": 8}, "fsdp"),
    ({"data": 2, "fsdp": 4}, "fsdp"),
    ({"data": 4, "tensor": 2}, "tensor"),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp_tensor"),
    ({"tensor": 2, "data": 4}, "tensor"),
    ({"data": 2, "fsdp": 2, "tensor": 2}, [(".*(query|up)/kernel", (None, "tensor")), (".*", "fsdp")]),
]


def vit_on_classes(mesh):
    model = models.Classifier(models.build("vit", **VISION), 3)
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.random((16, 8, 8, 1), np.float32), "labels": np.arange(16, dtype=np.int32) % 3}
    return model, classification(), batch, (8, 8, 1), costs.LABELS


def clip_on_pairs(mesh):
    model = models.build("clip", vision=VISION, text=TEXT, projection=8)
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 20, (16, 6)).astype(np.int32)
    ids[:, -1] = 1
    inputs = {"pixel_values": rng.random((16, 8, 8, 1), np.float32), "input_ids": ids}
    one = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in inputs.items()}
    return model, contrastive("clip", mesh=mesh), {"inputs": inputs}, one, {}


def two_steps(task, mesh=None, how="replicated"):
    """Losses of two steps of SGD, and the leaves after them: at a rate of 1 they tell the gradients."""
    model, objective, batch, example, parts = task(mesh)
    wrap = (sharding.keep_batch_split(mesh),) if mesh else ()
    adapted = methods.adapt(methods.scratch(), model, {}, example, wrap)
    optimiser = Optimiser(name="sgd", rate=1.0, momentum=0.0, clip=0.0, decay=0.0, warmup=0.0)
    shapes = costs.step_shapes(adapted, objective, optimiser, 16, parts=parts)

    def create(key):
        tree, state = adapted.start(key, {})
        # Away from zero, so that every gradient counts.
        keys = iter(jax.random.split(key, len(tree)))
        tree = {path: x + 0.05 * jax.random.normal(next(keys), x.shape) for path, x in sorted(tree.items())}
        trainable, _ = partition(tree, adapted.rates)
        return TrainState.create(key, trainable, state, optimiser.build(adapted.rates, 100))

    layout = None
    if mesh:
        leaves = sharding.tree_shardings(adapted.shapes, mesh, how, lambda path: 2)
        laid_out = lay_out(shapes.arguments, leaves, mesh)
        layout = jax.tree.map(lambda x: x.sharding, laid_out[0])
        batch = sharding.assemble(batch, 16, mesh)
    state = jax.jit(create, out_shardings=layout)(jax.random.key(0))
    step = jax.jit(shapes.step, out_shardings=(layout, sharding.everywhere(mesh)) if mesh else None)
    losses = []
    for _ in range(2):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    return losses, state.trainable


@pytest.fixture(scope="module")
def alone():
    """What one device comes to, for each task, computed once."""
    return lru_cache(two_steps)


def each():
    """Every task on every mesh, most of them slow: a compilation takes seconds."""
    for task in (vit_on_classes, clip_on_pairs):
        for axes, how in CASES:
            own = how if isinstance(how, str) else "rules"
            name = f"{task.__name__}-{'x'.join(axes)}-{own}"
            marks = () if name == "vit_on_classes-dataxtensor-tensor" else pytest.mark.slow
            yield pytest.param(task, axes, how, id=name, marks=marks)


@pytest.mark.parametrize(("task", "axes", "how"), each())
def test_two_steps_on_eight_devices_are_those_of_one(task, axes, how, alone, capfd):
    losses, leaves = alone(task)
    found, own = two_steps(task, sharding.make_mesh(axes), how)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for path, leaf in leaves.items():
        np.testing.assert_allclose(own[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)
    assert "rematerialization" not in capfd.readouterr().err


def test_a_config_may_name_every_tactic():
    assert tuple(tactics.TACTICS) == TACTICS


def test_the_batch_is_split_over_the_first_axis_and_over_data_and_fsdp_and_never_over_tensor():
    axes = {
        ("data",): ("data",),
        ("data", "fsdp"): ("data", "fsdp"),
        ("data", "fsdp", "tensor"): ("data", "fsdp"),
        ("tensor", "data"): ("data",),
        ("replica", "model"): ("replica",),
        ("replica", "fsdp"): ("replica", "fsdp"),
        ("tensor",): (),
    }
    for names, expected in axes.items():
        mesh = sharding.make_mesh({name: -1 if i == 0 else 2 for i, name in enumerate(names)})
        assert tactics.batch_axes(mesh) == expected
    for sizes, parts in (({"data": 8}, 8), ({"data": 2, "fsdp": 2, "tensor": 2}, 4), ({"rows": 4, "model": 2}, 4)):
        assert tactics.batch_parts(sharding.make_mesh(sizes)) == parts


def split_over(mesh, how, shape, path):
    return sharding.tree_shardings({path: jax.ShapeDtypeStruct(shape, np.float32)}, mesh, how)[path].spec


def test_tensor_splits_heads_and_hidden_units_and_fsdp_tensor_another_side_too():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    both = {
        "encoder/block_0/attention/query/kernel": (P(None, "tensor"), P("fsdp", "tensor")),
        "text/encoder/block_0/attention/out/kernel": (P("tensor", None), P("tensor", "fsdp")),
        "encoder/block_0/mlp/up/kernel": (P(None, "tensor"), P("fsdp", "tensor")),
        "encoder/block_0/mlp/down/kernel": (P("tensor", None), P("tensor", "fsdp")),
    }
    for path, specs in both.items():
        assert tuple(split_over(mesh, how, (64, 128), path) for how in ("tensor", "fsdp_tensor")) == specs, path
    assert split_over(mesh, "tensor", (64,), "block_0/attention/key/bias") == P("tensor")
    assert split_over(mesh, "fsdp_tensor", (64,), "block_0/mlp/gate/bias") == P("tensor")
    assert split_over(mesh, "tensor", (4, 64), "block_0/mlp/up/lora/b") == P(None, "tensor")
    others = {"embeddings/word/embedding": (512, 64), "up/kernel": (64, 128)}
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in others.items()}
    shapes["mlp/up/kernel"] = jax.ShapeDtypeStruct((64, 128), np.float32)
    found = {how: sharding.tree_shardings(shapes, mesh, how) for how in ("tensor", "fsdp_tensor")}
    assert [found["tensor"][path].spec for path in others] == [P(), P()]
    assert [found["fsdp_tensor"][path].spec for path in others] == [P("fsdp", None), P(None, "fsdp")]


ARCHITECTURES = {
    "vit": {},
    "clip": {"vision": VISION, "text": TEXT},
    "swin": {"image": (32, 32), "width": 16, "depths": (1, 1), "heads": (2, 4), "window": 4},
    "dinov3_vit": {"image": (32, 32), "width": 32, "depth": 1, "heads": 2},
    "bert": {"vocabulary": 20, "width": 32, "depth": 1, "heads": 2},
    "gpt2": {"vocabulary": 20, "width": 32, "depth": 1, "heads": 2},
    "convnext": {"image": (32, 32), "widths": (8, 16), "depths": (1, 1)},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kernel_of_attention_and_of_an_mlp_is_split_in_every_architecture(name):
    model = models.build(name, **ARCHITECTURES[name])
    tree = jax.eval_shape(partial(models.complete, model, tree={}, example=model.config.inputs), jax.random.key(0))
    mesh = sharding.make_mesh({"data": 4, "tensor": 2})
    layout = sharding.tree_shardings(tree, mesh, "tensor", model.config.heads_at)
    inside = {path for path in tree if re.search(r"(attention|mlp)/\w+/kernel", path)}
    assert inside and {path for path, one in layout.items() if "tensor" in one.spec and "kernel" in path} == inside


def test_a_tactic_that_does_not_fit_is_one_line_before_any_compile():
    shapes = {"block_0/attention/query/kernel": jax.ShapeDtypeStruct((48, 48), np.float32)}
    data, both = sharding.make_mesh({"data": 8}), sharding.make_mesh({"data": 2, "tensor": 4})
    with pytest.raises(InputError, match=r"'tensor' needs an axis 'tensor', config.mesh is \{'data': 8\}"):
        sharding.tree_shardings(shapes, data, "tensor")
    with pytest.raises(InputError, match=r"the 3 heads of 'block_0/attention/query/kernel' cannot be split over 4"):
        sharding.tree_shardings(shapes, both, "fsdp_tensor", lambda path: 3)
    shapes = {"block_0/mlp/down/kernel": jax.ShapeDtypeStruct((42, 8), np.float32)}
    with pytest.raises(InputError, match=r"'block_0/mlp/down/kernel' \[42, 8\] cannot be split over 4 devices"):
        sharding.tree_shardings(shapes, both, "tensor")
    with pytest.raises(InputError, match="no leaf is one of attention or of an MLP"):
        sharding.tree_shardings({"conv/kernel": jax.ShapeDtypeStruct((3, 3, 8, 8), np.float32)}, both, "tensor")


def test_weights_on_the_host_are_placed_part_by_part():
    """An array that says what was read of it: no process reads the part of a device that it does not have."""
    seen = []

    class Mapped:
        shape = (64, 256)

        def __getitem__(self, index):
            part = np.zeros((64, 256), np.float32)[index]
            seen.append(part.shape)
            return part

    layout = sharding.tree_shardings({"w": Mapped()}, sharding.make_mesh({"data": 2, "fsdp": 4}), "fsdp")
    placed = sharding.place({"w": Mapped()}, layout)["w"]
    assert set(seen) == {(64, 64)} and {shard.data.shape for shard in placed.addressable_shards} == {(64, 64)}
