"""A dual encoder trained on pairs by a user's method that does not merge, on eight devices: kept as an adapter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jtransfer import cli
from jtransfer.config import load
from jtransfer.devices import sharding
from jtransfer.train import results, runs

HERE = Path(__file__).parent
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "objective": "clip", "data": "my_pairs.shards:shards", "backbone": "glyphs-clip", "batch": 8, "steps": 2,
        "method": "my_methods.houlsby(width=2)", "log_every": 1, "eval_every": 2, "checkpoint_every": 2,
    })
"""
READ = """
import jax
import numpy as np
import jtransfer as jt

for how in ("replicated", "fsdp"):
    model = jt.load(f"{how}/model", trust=["my_methods"])
    outputs = model({**model.preprocess(text=["bright", "dark noise"]), "pixel_values": np.load("pixels.npy")})
    np.savez(f"{how}.npz", *jax.tree.leaves(outputs))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_shards):
    """A working directory with two trainings: every device has all weights, or a part of each."""
    where, before = tmp_path_factory.mktemp("place"), os.getcwd()
    os.chdir(where)
    for name in ("my_methods.py", "my_pairs.py"):
        shutil.copy(HERE / name, where)
    Path("own.py").write_text(TRAIN)
    write_shards(Path("shards"))
    for how in ("replicated", "fsdp"):
        assert here("train", "--config=own.py", f"--workdir={how}", f"--config.sharding={how}") == 0
    yield
    os.chdir(before)
    here()


def here(*arguments):
    """The exit code of a command, as of a new process."""
    for name in ("my_methods", "my_pairs"):
        sys.modules.pop(name, None)
    return cli.main(arguments) if arguments else 0


def adapter(how):
    return results.result(how, trust=["my_methods"])[1]


@pytest.mark.slow
def test_split_weights_come_to_those_of_whole_ones_and_only_the_bottlenecks_of_both_towers_are_kept(place):
    whole, split = adapter("replicated").params, adapter("fsdp").params
    assert {path.split("/")[0] for path in whole} == {"vision", "text"}
    assert all("_bottleneck/" in path for path in whole) and whole.keys() == split.keys()
    for path, leaf in whole.items():
        assert np.abs(leaf).max() > 0, path  # they start with zeros in `up`, which learned
        np.testing.assert_allclose(split[path], leaf, atol=1e-6, err_msg=path)
    run = runs.prepare(load("train", "own.py", [])[1])
    places = sharding.tree_shardings(run.adapted.shapes, run.mesh, "fsdp")
    assert any(place.spec for place in places.values())


@pytest.mark.slow
def test_a_new_process_reads_both_with_outputs_equal_to_the_bit(place):
    np.save("pixels.npy", np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32))
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for how in ("replicated", "fsdp"):
        ours = adapter(how)
        texts = ours.backbone.preprocess(text=["bright", "dark noise"])
        outputs = ours({**texts, "pixel_values": np.load("pixels.npy")})
        assert {"image_embeds", "text_embeds", "logits_per_image"} <= outputs.keys()
        for one, other in zip(jax.tree.leaves(outputs), np.load(f"{how}.npz").values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_it_is_exported_as_it_is_or_refused_and_is_no_tower_of_another(place, capsys):
    export = ["export", "--workdir=fsdp", "--out=exported", "--trust=my_methods"]
    assert here(*export, "--format=adapter") == 0
    one, other = (Path(where, "model.safetensors").read_bytes() for where in ("exported", "fsdp/model"))
    assert one == other
    capsys.readouterr()
    assert here(*export, "--format=hf") == 2
    assert "'my_methods.houlsby(width=2)' adds what no plain model has" in capsys.readouterr().err
    towers = ["--config.backbone=", "--config.towers.vision=fsdp/model", "--config.load.trust=my_methods"]
    assert here("train", "--config=own.py", "--workdir=other", *towers) == 2
    said = capsys.readouterr().err
    assert "config.towers.vision: backbone 'fsdp/model' runs under the method" in said and not Path("other").exists()
