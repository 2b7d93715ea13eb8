"""The command line as a user meets it: quick, one line for each mistake, exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jtransfer.cli import main, run

CONFIGS = Path(__file__).parents[2] / "configs"
HEAD = "from ml_collections import ConfigDict\ndef get_config():\n"
QUICKSTART = str(CONFIGS / "quickstart.py")


def python(code, *arguments, **env):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | env, check=True
    )


def test_help_and_a_typo_do_not_import_jax():
    code = """
import sys
from jtransfer.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print("exit", stop.code, file=sys.stderr)
assert not {"jax", "flax", "numpy", "matplotlib"} & sys.modules.keys(), sorted(sys.modules)
"""
    assert "curve" in python(code, "--help").stdout
    assert "did you mean 'curve'?; see jtransfer --help\nexit 2" in python(code, "curv", "--config=x").stderr
    assert (
        "did you mean '--workdir'?; see jtransfer --help\nexit 2"
        in python(code, "curve", "--config=x", "--workdir=y", "--workdr=z").stderr
    )


def test_importing_jtransfer_imports_nothing_heavy_beside_jax_and_flax():
    code = """
import sys
import jax, flax.linen
before = set(sys.modules)
import jtransfer
added = {name.partition(".")[0] for name in set(sys.modules) - before}
assert added == {"jtransfer"}, added
assert jtransfer.methods.lora(rank=2).name == "lora"
"""
    python(code)


def test_the_core_runs_without_the_libraries_that_only_one_room_needs():
    blocked = ["ml_collections", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "tensorboardX"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import jtransfer
jtransfer.tree, jtransfer.methods, jtransfer.models, jtransfer.train
import jtransfer.devices.sharding, jtransfer.train.costs, jtransfer.objectives, jtransfer.data, jtransfer.checkpoints
"""
    python(code)


def error(capsys, *arguments):
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("jtransfer: error: ")
    assert not captured.out
    return captured.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "unknown key 'config.seed'; did you mean 'seeds'?"),
        ("optimiser.rat=3", "unknown key 'config.optimiser.rat'; did you mean 'rate'?"),
        ("optimiser=3", "expected --config.key=value"),
        ("steps=many", "--config.steps=many"),
        ("methods=prob", "unknown method 'prob'; did you mean 'probe'?"),
        ("data=digit", "did you mean 'digits'?"),
        ("backbone=glyph-vit", "unknown backbone 'glyph-vit'"),
        ("shots=1000", "the most shots possible are"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2_and_writes_nothing(capsys, tmp_path, override, message):
    workdir = tmp_path / "run"
    line = error(capsys, "curve", f"--config={QUICKSTART}", f"--workdir={workdir}", f"--config.{override}")
    assert message in line
    assert not workdir.exists()


def test_a_config_file_that_is_missing_or_broken_is_named(capsys, tmp_path):
    line = error(capsys, "curve", f"--config={QUICKSTART}:argument", f"--workdir={tmp_path}")
    assert "TypeError: get_config() takes 0 positional arguments but 1 was given" in line
    line = error(capsys, "curve", f"--config={CONFIGS / 'quickstrat.py'}", f"--workdir={tmp_path}")
    assert "quickstrat.py' does not exist; did you mean" in line and "quickstart.py" in line
    broken = tmp_path / "broken.py"
    for text, message in {
        "def get_config(:": "SyntaxError",
        "x = 1": "get_config",
        "def get_config():\n    return 1 / 0": "ZeroDivisionError: division by zero",
        "def get_config():\n    return 3": "must return an ml_collections.ConfigDict",
        f"{HEAD}    return ConfigDict({{'stesp': 3}})": "did you mean 'steps'",
        f"{HEAD}    return ConfigDict({{'steps': {{'a': 3}}}})": "must be a value",
    }.items():
        broken.write_text(text)
        assert message in error(capsys, "curve", f"--config={broken}", f"--workdir={tmp_path / 'run'}")


def test_a_script_says_the_command_it_runs_and_ends_with_its_exit_code(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run("curve", "--config=no such file.py", f"--workdir={tmp_path}")
    assert stopped.value.code == 2
    assert f"\njtransfer curve '--config=no such file.py' --workdir={tmp_path}\n" in capsys.readouterr().out
    run("inspect", f"--config={QUICKSTART}", "--json", "--config.methods=pixels")
    assert f"jtransfer inspect --config={QUICKSTART} --json --config.methods=pixels\n[" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ("images=np.full((20, 8, 8), np.nan), labels=np.arange(20) % 2", "'images'.*NaN|NaN"),
        ("images=np.zeros((20, 8, 8)), labels=np.arange(20) - 1", "-1"),
        (
            "images=np.zeros((20, 8, 8)), labels=np.eye(4, dtype=int)[np.arange(20) % 4]",
            "several labels a row; expected",
        ),
    ],
)
def test_own_arrays_that_cannot_be_used_are_refused_by_row(capsys, tmp_path, arrays, message):
    import re

    import numpy as np

    np.savez(tmp_path / "own.npz", **eval(f"dict({arrays})", {"np": np, "dict": dict}))
    flags = (f"--workdir={tmp_path / 'run'}", f"--config.data=npz:{tmp_path / 'own.npz'}")
    assert re.search(message, error(capsys, "curve", f"--config={QUICKSTART}", *flags))


def test_methods_on_the_command_line_may_hold_commas_of_their_own():
    from jtransfer import config

    _, loaded = config.load("curve", QUICKSTART, ["--config.methods=lora(rank=4, alpha=8),probe + bitfit"])
    assert loaded.methods == ("lora(rank=4, alpha=8)", "probe + bitfit")


def test_inspect_prints_the_same_as_json(capsys):
    flags = ("--config.backbone=glyphs-vit", "--config.methods=probe,lora(rank=2)", "--config.batch=8")
    assert main(["inspect", f"--config={QUICKSTART}", "--json", *flags]) == 0
    probe, lora = json.loads(capsys.readouterr().out)
    assert probe["trainable"] == sum(row["parameters"] for row in probe["tree"] if row["group"] != "frozen")
    assert probe["optimiser_bytes"] < lora["optimiser_bytes"]
    assert probe["flops_per_step"] < lora["flops_per_step"] and probe["temporary_bytes"] < lora["temporary_bytes"]
    groups = {row["path"]: row["group"] for row in lora["tree"]}
    assert groups["encoder/block_0/attention/query/lora/a"] == "1" and groups["source_head/kernel"] == "frozen"
    assert {row["sharding"] for row in lora["tree"]} == {"replicated"}
    assert probe["kept_bytes"] == 4 * probe["trainable"] and lora["peak_bytes"] > 4 * lora["parameters"]
    assert probe["peak_bytes"] < 4 * probe["parameters"]  # its features are computed once, before the steps

    assert main(["inspect", f"--config={QUICKSTART}", *flags]) == 0
    text = capsys.readouterr().out
    assert f"{probe['trainable']:,}" in text and "encoder/block_0/attention/query/lora/a" in text


def test_inspect_says_of_each_leaf_that_learns_whether_weight_decay_applies(capsys):
    flags = ("--config.backbone=glyphs-vit", "--config.methods=bitfit", "--config.optimiser.decay=0.05")
    assert main(["inspect", f"--config={QUICKSTART}", "--json", *flags]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    decays = {row["path"]: row["decay"] for row in report["tree"]}
    assert decays["head/kernel"] == 0.05 and decays["head/bias"] == 0 and decays["encoder/block_0/mlp/up/kernel"] == 0


def test_where_no_method_is_trained_by_steps_there_is_nothing_to_inspect(capsys):
    assert main(["inspect", f"--config={QUICKSTART}", "--time", "--config.methods=zero_shot"]) == 0
    assert "One training step" in capsys.readouterr().out


@pytest.mark.slow
def test_a_curve_counts_and_times_what_its_methods_cost(capsys, tmp_path):
    flags = ("--config.backbone=glyphs-vit", "--config.methods=probe,lora,houlsby(width=2)", "--config.costs=True")
    small = ("--config.shots=1", "--config.seeds=1", "--config.steps=2", "--config.test_rows=20")
    assert main(["curve", f"--config={QUICKSTART}", f"--workdir={tmp_path}", *flags, *small]) == 0
    probe, lora, houlsby = json.loads((tmp_path / "costs.json").read_text())
    assert [one["method"] for one in (probe, lora, houlsby)] == ["probe", "lora", "houlsby(width=2)"]
    assert all(one["seconds_step"] > 0 and one["seconds_prediction"] > 0 for one in (probe, lora, houlsby))
    assert lora["seconds_merged"] > 0 and houlsby["seconds_merged"] is None
    assert "prediction" in capsys.readouterr().out and (tmp_path / "frontier.png").stat().st_size > 10_000


def test_inspect_reads_a_training_config_and_shows_its_sharding(capsys):
    arguments = ["inspect", f"--config={CONFIGS / 'pretrain_glyphs.py'}", "--json", "--config.sharding=fsdp"]
    assert main(arguments) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["method"] == "scratch" and report["percent"] == 100
    kernels = {row["sharding"] for row in report["tree"] if row["path"].endswith("mlp/up/kernel")}
    assert kernels == {"(None, 'data')"}
