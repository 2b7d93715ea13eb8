"""A model under a user's method: kept by `train`, read in a new process, and taken by every command that takes one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jtransfer import cli
from jtransfer.curves import run as curves
from jtransfer.data import sources
from jtransfer.train import results

HERE = Path(__file__).parent
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "data": "digits", "backbone": "glyphs-vit", "method": "my_methods.houlsby(width=2)",
        "batch": 8, "steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1,
    })
"""
READ = """
import sys
import numpy as np
import jtransfer as jt

try:
    jt.load("run/model")
except jt.InputError as error:
    print(error)
assert "my_methods" not in sys.modules
backbone = jt.load("run/model", trust=["configs/my_methods.py"])
np.savez("outputs.npz", **backbone({"pixel_values": np.load("pixels.npy")}))
"""
TRUSTED = "--config.load.trust=configs/my_methods.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with `configs/` and the `run/` of a training by the user's method."""
    where, before = tmp_path_factory.mktemp("place"), os.getcwd()
    os.chdir(where)
    Path("configs").mkdir()
    shutil.copy(HERE / "my_methods.py", "configs")
    Path("configs/own.py").write_text(TRAIN)
    assert here("train", "--config=configs/own.py", "--workdir=run") == 0
    yield where
    os.chdir(before)
    sys.modules.pop("my_methods", None)


def here(*arguments):
    """The exit code of a command, as of a new process."""
    sys.modules.pop("my_methods", None)
    return cli.main(arguments)


def test_a_new_process_reads_it_with_outputs_equal_to_the_bit_once_the_module_is_trusted(place):
    step, adapter, _ = results.result("run", trust=["configs/my_methods.py"])
    pixels = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    np.save("pixels.npy", pixels)
    line = [sys.executable, "-c", READ]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "backbone 'run/model' names the module 'my_methods'" in done.stdout
    assert "trust=['my_methods'] to jtransfer.load, or --config.load.trust=my_methods" in done.stdout
    ours, theirs = adapter({"pixel_values": pixels}), np.load("outputs.npz")
    assert step == 1 and ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], name)


def test_its_directory_has_what_was_trained_and_the_names_of_the_rest(place):
    assert sorted(path.name for path in Path("run/model").iterdir()) == [
        "config.json",
        "jtransfer.json",
        "model.safetensors",
    ]
    values = json.loads(Path("run/model/config.json").read_text())
    assert values["method"] == "my_methods.houlsby(width=2)" and values["modules"].keys() == {"my_methods"}
    assert values["base"]["name"] == "glyphs-vit" and values["classes"] == list("0123456789")
    assert values["preprocessor"]["size"] == {"height": 8, "width": 8}
    _, adapter, _ = results.result("run", trust=["configs/my_methods.py"])
    of_all = sum(leaf.nbytes for leaf in adapter.tree.values())
    assert Path("run/model/model.safetensors").stat().st_size < of_all / 20


def test_commands_take_it_as_a_backbone_where_the_config_trusts_the_module(place, capsys):
    inspect = ["inspect", "--config=configs/own.py", "--config.backbone=run/model", "--config.method=probe"]
    assert here(*inspect) == 2
    assert "where you trust that module, say trust=['my_methods']" in capsys.readouterr().err
    assert here(*inspect, TRUSTED, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert "encoder/block_0/mlp_bottleneck/up/kernel" in {leaf["path"] for leaf in report["tree"]}

    Path("configs/evaluate.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'backbone': 'run/model', 'data': 'digits', 'protocols': ('prototypes',)})\n"
    )
    store = "--config.store=features"
    assert here("evaluate", "--config=configs/evaluate.py", "--workdir=evaluated", store, TRUSTED) == 0
    Path("configs/curve.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'backbone': 'run/model', 'methods': ('probe',), 'shots': (1,), 'seeds': 1,\n"
        "        'test_rows': 20, 'batch': 4, 'steps': 1, 'hyper': {'default': {'rate': (0.01,)}}})\n"
    )
    assert here("curve", "--config=configs/curve.py", "--workdir=curved", TRUSTED) == 0


ADVISE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "run/model", "data": "npz:few.npz", "methods": ("probe", "finetune"), "shots": (1,), "seeds": 10,
        "batch": 4, "steps": 1, "store": "features", "hyper": {"default": {"rate": (0.01,)}},
    })
"""


@pytest.mark.slow
def test_advise_takes_it_and_what_to_run_next_has_the_trust_or_refuses_in_one_line(place, capsys, monkeypatch):
    Path("configs/advise.py").write_text(ADVISE)
    digits = sources.load("digits")
    np.savez("few.npz", images=digits.inputs[:90], labels=digits.labels[:90] % 3)

    def trial(curve, directory, on_cell):
        """Its rows; the curve of the test above compiles them."""
        about = {"shots": 1, "hyper": {"rate": 0.01, "decay": 0.0}}
        costs = {arm.name: {"trainable": getattr(arm, "trainable", 0), "flops_per_step": 1e6} for arm in curve.arms}
        return [
            {"method": arm.name, "seed": seed, "test_accuracy": 0.5 + 0.01 * (seed % 2), **about, **costs[arm.name]}
            for arm in curve.arms
            for seed in range(10)
        ]

    monkeypatch.setattr(curves, "run", trial)
    advise = ["advise", "--config=configs/advise.py", "--workdir=advised"]
    for flags, message in (
        ([], "where you trust that module, say trust=['my_methods'] to jtransfer.load, or --config.load.trust="),
        ([TRUSTED, "--config.methods=my_methods.houlsby(width=4)"], "adds 'attention_bottleneck' where the model has"),
    ):
        capsys.readouterr()
        assert here(*advise, *flags) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1 and not Path("advised").exists(), said
    assert here(*advise, TRUSTED) == 0
    costs = json.loads(Path("advised/advice.json").read_text())["costs"]
    assert costs.keys() == {"pixels", "scratch", "probe", "finetune"}
    _, adapter, _ = results.result("run", trust=["configs/my_methods.py"])
    of_backbone = sum(leaf.size for path, leaf in adapter.tree.items() if "head/" not in path)
    assert costs["finetune"]["trainable"] == of_backbone + 64 * 3 + 3  # the bottlenecks among them
    capsys.readouterr()
    assert here("inspect", "--config=advised/curve.py", "--json") == 0
    assert {report["method"] for report in json.loads(capsys.readouterr().out)} <= {*costs}


def test_it_teaches_where_the_config_trusts_the_module(place, capsys):
    flags = "--config.method=probe+distill", "--config.teacher=run/model"
    assert here("inspect", "--config=configs/own.py", *flags) == 2
    assert "where you trust that module, say trust=['my_methods']" in capsys.readouterr().err
    assert here("inspect", "--config=configs/own.py", *flags, TRUSTED) == 0


@pytest.mark.slow
def test_it_is_trained_on_by_another_method_and_the_same_one_is_refused_before_the_first_step(place, capsys):
    again = ["train", "--config=configs/own.py", "--config.backbone=run/model", TRUSTED]
    assert here(*again, "--workdir=second", "--config.method=lora(rank=1)") == 0
    assert json.loads(Path("second/model/config.json").read_text())["base"]["name"] == "../../run/model"
    capsys.readouterr()
    assert here(*again, "--workdir=third") == 2
    said = capsys.readouterr().err
    assert "adds 'attention_bottleneck' where the model has it already" in said and said.count("\n") == 1
    assert not Path("third").exists()
    assert here("export", "--workdir=second", "--format=adapter", "--out=exported") == 2
    assert "workdir second names the module 'my_methods'" in capsys.readouterr().err  # whatever its config trusts
    trusted = "--trust=configs/my_methods.py"
    assert here("export", "--workdir=second", "--format=adapter", "--out=exported", trusted) == 0
    one, other = (Path(where, "model.safetensors").read_bytes() for where in ("exported", "second/model"))
    assert one == other
    assert here("export", "--workdir=second", "--format=hf", "--out=hf", trusted) == 2
    assert "runs under the method 'my_methods.houlsby(width=2)'" in capsys.readouterr().err
