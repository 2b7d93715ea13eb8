"""Each part of a user's, a file beside this one: in a curve, trained, killed, resumed, read elsewhere and exported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import cli, models
from jtransfer.cli import display
from jtransfer.errors import InputError
from jtransfer.stopping import Stopped
from jtransfer.train import loop
from jtransfer.train.pace import learned

HERE = Path(__file__).parent
OWN = sorted(file.stem for file in HERE.glob("my_*.py"))
CURVE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "base/model", "data": "digits", "methods": ("finetune",), "shots": (1,), "seeds": 1,
        "test_rows": 20, "batch": 4, "steps": 2, "hyper": {"default": {"rate": (0.01,)}},
    })
"""
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "base/model", "data": "digits", "method": "finetune", "batch": 8, "steps": 4,
        "log_every": 1, "eval_every": 4, "checkpoint_every": 3, "optimiser": {"rate": 0.01},
    })
"""
VIT = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "heads": 2, "depth": 1}
MIXER = {"architecture": "convmixer", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "depth": 1, "kernel": 2}
READ = """
import hashlib, sys
import numpy as np
import jtransfer as jt
from jtransfer import models
from my_family import ConvMixer, ConvMixerConfig

models.MODELS["convmixer"] = ConvMixer, ConvMixerConfig
for name in sys.argv[1:]:
    backbone = jt.load(f"{name}/model", trust=["my_methods", "my_prefix"])
    outputs = backbone({"pixel_values": np.load("pixels.npy")})
    print(name, hashlib.sha256(np.asarray(outputs["logits"]).tobytes()).hexdigest())
assert not {"my_losses", "my_data", "my_metrics", "my_penalties"} & sys.modules.keys()
"""


class Part(NamedTuple):
    """How a config names a part, and what tells that it ran.

    Attributes:
        train: Flags of `train`.
        curve: Flags of `curve`.
        logs: A metric of the last step in training.
        measures: The metric that the curve shows.
    """

    train: tuple[str, ...]
    curve: tuple[str, ...]
    logs: str = "loss"
    measures: str = "accuracy"


def of_method(text, *flags, **tells):
    return Part((f"--config.method={text}", *flags), (f"--config.methods={text}", *flags), **tells)


FOCAL, SURELY = "--config.objective=my_losses.focal(gamma=2)", "my_metrics.surely(least=0.1)"
METRIC, MIXED = f"--config.metrics={SURELY}", "--config.backbone=mixer/model"
PARTS = {
    "bottleneck": of_method("my_methods.houlsby(width=2)"),
    "prefix": of_method("my_prefix.prefix(length=2)"),
    "phases": of_method("my_phases.head_first(slower=2)"),
    "penalty": of_method("finetune + my_penalties.elastic(square=0.1)", logs="pull"),
    "teacher": of_method("finetune + my_teachers.imitate", "--config.teacher=base/model", logs="distance"),
    "objective": Part((FOCAL,), (FOCAL,), logs="test_accuracy"),
    "metric": Part((METRIC,), (METRIC,), logs=f"test_{SURELY}", measures=SURELY),
    "reader": Part(("--config.data=my_data.in_order:shards",), ("--config.data=my_data.shards:shards",)),
    "family": Part((MIXED,), (MIXED,)),
}
UNMERGED = {"bottleneck": "my_methods", "prefix": "my_prefix"}
"""Parts that no plain model has, and the modules that reading them imports."""
UNSAYABLE = {
    "bottleneck": "method 'my_methods.houlsby(width=2)' adds what no plain model has",
    "prefix": "method 'my_prefix.prefix(length=2)' adds what no plain model has",
    "family": "Hugging Face has no model of the architecture 'convmixer'",
}
"""Parts that Hugging Face does not have, and why."""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory, write_shards):
    """The working directory: the user's files, configs, pictures, and two backbones, `base` and the user's `mixer`."""
    where, before = tmp_path_factory.mktemp("place"), os.getcwd()
    os.chdir(where)
    for file in HERE.glob("my_*.py"):
        shutil.copy(file, where)
    Path("curve.py").write_text(CURVE)
    Path("train.py").write_text(TRAIN)
    write_shards(Path("shards"))
    forget()
    sys.path.insert(0, str(where))
    from my_family import ConvMixer, ConvMixerConfig

    models.MODELS["convmixer"] = ConvMixer, ConvMixerConfig
    for name, model in {"base": VIT, "mixer": MIXER}.items():
        Path(f"{name}.py").write_text(TRAIN.replace('"backbone": "base/model"', f'"model": {model}'))
        assert here("train", f"--config={name}.py", f"--workdir={name}") == 0
    np.save("pixels.npy", np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32))
    yield where
    del models.MODELS["convmixer"]
    sys.path.remove(str(where))
    os.chdir(before)
    forget()


def forget():
    """Forget the user's modules, as a new process has not imported them."""
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def here(*arguments):
    """The exit code of a command, as of a new process."""
    forget()
    return cli.main(arguments)


def compiled(*args, **kwargs):
    """In place of what compiles, where nothing should be."""
    raise AssertionError("compiled")


@pytest.fixture(scope="module")
def trained(place):
    """`trained(name)`: the workdir of a part's training that nothing stopped."""

    def train(name):
        if not Path(name).exists():
            assert here("train", "--config=train.py", f"--workdir={name}", *PARTS[name].train) == 0
        return Path(name)

    return train


@pytest.mark.parametrize("name", PARTS)
def test_it_runs_in_a_curve(name):
    workdir = f"{name}_curve"
    assert here("curve", "--config=curve.py", f"--workdir={workdir}", *PARTS[name].curve) == 0
    (row,) = map(json.loads, Path(workdir, "results.jsonl").read_text().splitlines())
    assert row["how"] == "trained" and np.isfinite(row[f"test_{row['metric']}"])
    assert row["metric"] == PARTS[name].measures


OFTEN_KILLED = ("bottleneck", "reader", "family")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN_KILLED else pytest.param(name, marks=pytest.mark.slow) for name in PARTS]
)
@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bits(name, trained, monkeypatch):
    show = display.TrainProgress.__call__

    def stop(progress, row, speed):
        show(progress, row, speed)
        if row["step"] == 4:
            raise Stopped(15, "there")

    again = ["train", "--config=train.py", f"--workdir={name}_parts", *PARTS[name].train]
    with monkeypatch.context() as patch:
        patch.setattr(display.TrainProgress, "__call__", stop)
        assert here(*again) == 128 + 15
    assert not Path(f"{name}_parts/model").exists()
    assert here(*again) == 0
    whole, parts = trained(name), Path(f"{name}_parts")
    assert learned(whole / "metrics.jsonl") == learned(parts / "metrics.jsonl")
    for file in ("model/model.safetensors", "model/config.json"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1][PARTS[name].logs])


@pytest.mark.slow
def test_another_process_reads_them_all_with_equal_outputs(place, trained):
    ours = {}
    for name in PARTS:
        backbone = jt.load(f"{trained(name)}/model", trust=UNMERGED.values())
        ours[name] = hashlib.sha256(np.asarray(backbone({"pixel_values": np.load("pixels.npy")})["logits"]).tobytes())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(place)))}
    done = subprocess.run([sys.executable, "-c", READ, *PARTS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} {digest.hexdigest()}" for name, digest in ours.items()]


@pytest.mark.parametrize("name", UNMERGED)
def test_what_does_not_merge_is_not_read_without_trust(name, trained):
    saved = trained(name)
    forget()
    with pytest.raises(InputError, match=f"names the module '{UNMERGED[name]}'"):
        jt.load(f"{saved}/model")
    assert UNMERGED[name] not in sys.modules


@pytest.mark.parametrize("name", PARTS)
def test_it_is_exported_to_hugging_face_or_refused_before_anything_is_compiled(name, trained, capsys, monkeypatch):
    export = ["export", f"--workdir={trained(name)}", "--format=hf", f"--out={name}_hf", f"--trust={','.join(OWN)}"]
    if name not in UNSAYABLE:
        assert here(*export) == 0
        assert Path(f"{name}_hf/model.safetensors").exists()
        return
    monkeypatch.setattr(loop, "Programs", compiled)
    capsys.readouterr()
    assert here(*export) == 2
    said = capsys.readouterr().err
    assert UNSAYABLE[name] in said and said.count("\n") == 1 and not Path(f"{name}_hf").exists()
