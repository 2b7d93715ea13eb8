"""The leaves of a run lie in their parts from the first moment, those that are frozen too."""

import jax
import pytest

from jtransfer import config
from jtransfer.errors import InputError
from jtransfer.train import programs, runs

FILE = """
from ml_collections import ConfigDict

def get_config():
    mesh = {"data": 2, "fsdp": 4}
    return ConfigDict(dict(data="digits", backbone="glyphs-vit", method="lora", batch=8, steps=2, mesh=mesh))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "split.py"
    path.write_text(FILE)
    return str(path)


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, [f"--config.{flag}" for flag in overrides])[1])


def on_each_device(*trees):
    """Bytes of all leaves on each device."""
    sizes = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(trees):
        for shard in leaf.addressable_shards:
            sizes[shard.device] += shard.data.nbytes
    return sizes


def test_each_device_holds_its_part_of_frozen_and_trained_weights(file):
    run = prepared(file, "sharding=fsdp")
    state, kept, frozen = programs.Programs(run).start(0)
    leaves = jax.tree.leaves((state.trainable, state.opt_state, kept, frozen))
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    whole = sum(leaf.nbytes for leaf in leaves) - sum(leaf.nbytes for leaf in split)
    held = on_each_device(state.trainable, state.opt_state, kept, frozen)
    assert set(held.values()) == {whole + sum(leaf.nbytes for leaf in split) // 4}
    assert whole < 0.25 * sum(leaf.nbytes for leaf in leaves)
    kernel = frozen["encoder/block_0/mlp/up/kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("sharding=tensor",), r"'tensor' needs an axis 'tensor', config.mesh is \{'data': 2, 'fsdp': 4\}"),
        (("sharding=tensr",), "did you mean 'tensor'"),
        (("mesh.data=1", "mesh.fsdp=-1", "batch=12"), r"config.batch 12 must be a multiple of 8"),
    ],
)
def test_what_does_not_fit_the_mesh_is_refused_before_any_compile(file, flags, said):
    with pytest.raises(InputError, match=said):
        prepared(file, *flags)


def test_heads_that_the_mesh_would_cut_are_named(file, tmp_path):
    path = tmp_path / "cut.py"
    path.write_text(FILE.replace('{"data": 2, "fsdp": 4}', '{"data": -1, "tensor": 8}'))
    with pytest.raises(InputError, match=r"the \d heads of 'encoder/block_0/attention/\w+/kernel' cannot be split"):
        prepared(str(path), "sharding=tensor")
