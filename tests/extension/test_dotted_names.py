"""A method in a file of the user's, beside their config: run, run again, edited, trained, and read back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jtransfer import cli, imports, methods, models
from jtransfer.errors import InputError
from jtransfer.train import results

HERE = Path(__file__).parent
NAME = "my_methods.houlsby(width=2) + bitfit"
CURVE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "glyphs-vit", "methods": ("pixels",), "shots": (1,), "seeds": 1, "test_rows": 20, "batch": 4,
        "steps": 2, "hyper": {"default": {"rate": (0.01,)}, "houlsby": {"rate": (0.003,)}},
    })
"""
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    model = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "heads": 2, "depth": 1}
    return ConfigDict({
        "data": "digits", "model": model | {"hidden": 8}, "method": "finetune + my_methods.houlsby(width=2)",
        "batch": 8, "steps": 2, "log_every": 1, "eval_every": 2, "checkpoint_every": 2,
    })
"""


def anew():
    """Forget the user's module, as a new process has not imported it."""
    sys.modules.pop("my_methods", None)


def here(*arguments):
    """The exit code of a command, as of a new process."""
    anew()
    return cli.main(arguments)


def in_a_new_process(*arguments):
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    line = [sys.executable, "-m", "jtransfer.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with `configs/`, in which the user's module and config lie."""
    monkeypatch.chdir(tmp_path)
    anew()
    (tmp_path / "configs").mkdir()
    shutil.copy(HERE / "my_methods.py", tmp_path / "configs")
    yield tmp_path
    anew()


def edit(place):
    """Change the source of the user's method: as long as before, and perhaps within the same second."""
    path = place / "configs/my_methods.py"
    path.write_text(path.read_text().replace("gelu(", "silu("))


def test_a_method_of_the_user_s_starts_as_the_backbone_and_trains_its_own_leaves_and_the_head(vit, backbone, images):
    anew()
    with imports.beside(HERE):
        method = methods.parse("my_methods.houlsby(width=3)")
    model, inputs = models.Classifier(vit, 5), images[0][:2]
    adapted = methods.adapt(method, model, backbone, inputs.shape[1:])
    assert {path.split("/")[-3] for path, rate in adapted.rates.items() if rate and not path.startswith("head/")} == {
        "attention_bottleneck",
        "mlp_bottleneck",
    }
    assert adapted.shapes["encoder/block_0/mlp_bottleneck/down/kernel"].shape[-1] == 3
    tree, _ = adapted.start(jax.random.key(0), adapted.base)
    plain = {path: leaf for path, leaf in tree.items() if "_bottleneck/" not in path}
    ours, theirs = models.apply(adapted.model, tree, inputs), models.apply(model, plain, inputs)
    np.testing.assert_array_equal(ours["features"], theirs["features"])


@pytest.mark.slow
def test_a_curve_runs_it_from_the_command_line_and_an_edit_redoes_its_cells_alone(place, caplog):
    (place / "configs/mine.py").write_text(CURVE)
    again = ["curve", "--config=configs/mine.py", "--workdir=run", f"--config.methods=pixels,{NAME}"]
    first = in_a_new_process(*again)
    assert first.returncode == 0, first.stderr
    rows = cells(place)
    (noted,) = rows[NAME]["modules"].items()
    assert noted[0] == "my_methods" and len(noted[1]) == 16
    assert "modules" not in rows["pixels"]
    assert rows[NAME]["hyper"]["rate"] == 0.003  # that of its function's name
    assert here(*again) == 0 and cells(place) == rows

    edit(place)
    assert here(*again) == 0
    assert "the source of module 'my_methods' has changed: 1 cells made by it no longer count" in caplog.text
    assert cells(place)["pixels"] == rows["pixels"]  # down to the seconds that it took
    assert cells(place)[NAME]["modules"] != rows[NAME]["modules"]
    assert sorted(path.name for path in (place / "configs").iterdir()) == ["mine.py", "my_methods.py"]  # no bytecode


def cells(place):
    return {row["method"]: row for row in map(json.loads, (place / "run/results.jsonl").read_text().splitlines())}


@pytest.mark.slow
def test_a_training_knows_the_source_and_its_workdir_imports_nothing_that_is_not_trusted(place, capsys):
    (place / "configs/own.py").write_text(TRAIN)
    again = ["train", "--config=configs/own.py", "--workdir=run"]
    for _ in range(2):  # resumed with the user's own config, nothing has to be allowed
        assert here(*again) == 0
    capsys.readouterr()

    assert here("export", "--workdir=run", "--format=orbax", "--out=out") == 2
    said = capsys.readouterr().err
    assert "workdir run names the module 'my_methods'" in said and "say --trust=my_methods" in said
    assert said.count("\n") == 1 and "my_methods" not in sys.modules and not Path("out").exists()

    with pytest.raises(InputError, match="no module 'my_methods' in .*; --trust=DIR/my_methods.py"):
        results.result("run", trust=["my_methods"])
    step, adapter, _ = results.result("run", trust=["configs/my_methods.py"])
    assert step == 2 and "encoder/block_0/mlp_bottleneck/up/kernel" in adapter.params

    edit(place)
    assert here(*again) == 2
    said = capsys.readouterr().err
    assert "workdir run belongs to another config: fingerprints.modules.my_methods is" in said
    with pytest.raises(InputError, match="workdir run: the modules changed since the run was started"):
        anew()
        results.result("run", trust=["configs/my_methods.py"])
