"""`jtransfer inspect --topology`: a training run compiled for TPUs that are not there, of data that are not there."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jtransfer import config
from jtransfer.checkpoints import load
from jtransfer.cli import main
from jtransfer.devices import chips
from jtransfer.errors import InputError
from jtransfer.train import absent, runs, standins
from jtransfer.tree import FROZEN

CONFIGS = Path(__file__).parents[2] / "configs"

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(32, 32), patch=8, width=128, depth=2, heads=4, dtype="bfloat16")
    rest = dict(batch=64, steps=10, optimiser=dict(name="sgd", momentum=0.0, clip=0.0, decay=0.0))
    return ConfigDict(dict(data="tfds:imagenet2012", model=model, mesh={"data": -1, "tensor": 2}, **rest))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pod.py"
    path.write_text(FILE)
    return str(path)


def needs_compiler():
    pytest.importorskip("libtpu", reason="needs a compiler for TPUs: pip install -e '.[pod]'")


def test_a_run_is_compiled_for_a_slice_and_what_a_chip_needs_and_sends_is_said(file, capsys):
    needs_compiler()
    arguments = ["inspect", f"--config={file}", "--topology=v5e:2x4", "--config.sharding=tensor", "--json"]
    assert main(arguments) == 0
    (report,) = json.loads(capsys.readouterr().out)
    block, tokens, width = 4 * 128**2 + 2 * 4 * 128**2, 17, 128
    products = 2 * (tokens * (2 * block + 192 * width) + width * 1000) + 2 * 2 * 2 * tokens**2 * width
    assert report["flops_per_chip"] * 8 == pytest.approx(3 * 64 * products, rel=0.1)
    assert (report["chips"], report["batch_per_chip"]) == (8, 16)
    assert report["argument_bytes"] < report["peak_bytes"] < report["chip_bytes"] == 16 << 30
    assert report["collectives"].keys() == {"all-reduce"}
    seconds, chip = report["seconds"], chips.CHIPS["v5e"]
    assert seconds["compute"] == report["flops_per_chip"] / chip.flops
    assert seconds["communication"] == report["collectives"]["all-reduce"]["bytes"] / chip.links
    assert seconds["step"] == max(seconds[name] for name in ("compute", "memory", "communication"))


@pytest.mark.slow
def test_dropout_of_attention_takes_no_array_for_each_number_of_the_generator(capsys):
    """Without the barrier of `layers.dropped` 25 of them stand side by side, 10 GB for 8 rows."""
    needs_compiler()
    flags = ["--topology=v5e:1x1", "--config.batch=8", "--config.model.depth=1", "--json"]
    assert main(["inspect", f"--config={CONFIGS / 'text' / 'gpt2.py'}", *flags]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    weights = 8 * 12 * 1024**2 * 4
    logits = 8 * 1023 * 50257 * 4
    assert report["temporary_bytes"] < 2 * (weights + logits)


@pytest.mark.slow
def test_a_step_that_does_not_fit_into_a_chip_is_one_line(file, capsys):
    needs_compiler()
    large = ("model.width=4096", "model.depth=8", "model.image=(224,224)", "model.heads=32", "batch=4096")
    flags = [f"--config.{flag}" for flag in large]
    assert main(["inspect", f"--config={file}", "--topology=v5e:2x4", *flags]) == 2
    said = capsys.readouterr().err
    assert "the step does not fit into the memory of a chip (" in said and "TiB of 15.75GiB)" in said


REFUSED = {
    ("--config=CURVE", "--topology=v5e:2x4"): "compiles the step of a training run; ",
    ("--config=FILE", "--topology=v5e:2x4", "--time"): "--time is of devices that are here",
    ("--config=FILE", "--topology=v5e:2x4", "--classes=-1"): "--classes=-1: expected a whole number",
    ("--config=FILE", "--topology=v5r:2x4"): "unknown chip 'v5r'; did you mean 'v5",
    ("--config=FILE", "--classes=10"): "--classes is of data that are not here, with --topology",
    ("--config=FILE", "--topology=v5e:2x4", "--config.data=npz:away.npz"): "away.npz",
    ("--config=FILE", "--topology=v5e:2x4", "--config.data=tfds:imagenot"): "'imagenot' is not prepared",
    ("--config=FILE", "--topology=v5e:2x4", "--config.batch=66"): "config.batch 66 must be a multiple of 4",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_compiled_for_a_pod_is_refused_in_one_line(flags, file, capsys):
    needs_compiler()
    places = {"FILE": file, "CURVE": str(CONFIGS / "quickstart.py")}
    given = [flag.replace("FILE", places["FILE"]).replace("CURVE", places["CURVE"]) for flag in flags]
    assert main(["inspect", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[flags] in line


def test_the_form_of_data_that_are_not_here_is_told_by_the_model_and_the_catalogue(file, tmp_path):
    def stream(*flags, classes=0):
        return standins.stand_in(config.load("train", file, [f"--config.{flag}" for flag in flags])[1], classes)[1]

    found = stream()
    assert (found.kind, len(found.classes), found.targets, found.inputs[[0]][0].shape) == (
        "image",
        1000,
        "classes",
        (32, 32, 3),
    )
    assert len(stream("data=tar:gs://bucket/of.tar", classes=7).classes) == 7
    assert stream("data=tar:gs://bucket/of.tar", "objective=multilabel", classes=7).held_out[2].shape == (0, 7)
    assert stream("data=digits") is None
    own, pairs = standins.stand_in(config.load("train", str(CONFIGS / "clip" / "vit_b32_openclip.py"), [])[1])
    assert pairs.kind == "pair" and own.tokenizer == "bytes"


@pytest.mark.slow
def test_a_program_for_a_slice_is_not_kept_as_it_could_not_be_read_back(file, tmp_path):
    needs_compiler()
    command = [sys.executable, "-m", "jtransfer.cli", "inspect", f"--config={file}", "--topology=v5e:2x4", "--json"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "kept"), "XLA_FLAGS": ""}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) and not done.stderr and not (tmp_path / "kept").exists()


SMALL = "model.width=32", "model.depth=1", "model.heads=2", "load.image=64", "load.dtype=bfloat16"


def test_for_a_backbone_that_is_not_here_stands_one_of_the_model_of_the_config(file, caplog):
    flags = [f"--config.{flag}" for flag in (*SMALL, "backbone=gs://away/vit.npz", "method=probe", "mesh={'data':-1}")]
    with absent.stand_in(config.load("train", file, flags)[1]) as here:
        run = runs.prepare(*standins.stand_in(here))
        assert not any(leaf.any() for leaf in load(here.backbone).params.values())
    assert "config.backbone 'gs://away/vit.npz' is not here: the vit of config.model stands for it" in caplog.text
    assert run.adapted.shapes["embeddings/positions"].shape == (1, 65, 32)
    assert run.task.data.example["pixel_values"].shape == (1, 64, 64, 3)
    assert (run.task.start.module.config.dtype, run.task.start.module.config.depth) == ("bfloat16", 1)
    assert [path for path, rate in run.adapted.rates.items() if rate != FROZEN] == ["head/bias", "head/kernel"]


def test_for_towers_that_are_not_here_stand_those_of_the_model_of_the_config(caplog):
    sizes = ("vision.width=32", "vision.heads=2", "vision.depth=2", "text.width=32", "text.heads=2", "text.depth=1")
    flags = ["--config.watch=()", *(f"--config.model.{size}" for size in sizes)]
    with absent.stand_in(config.load("train", str(CONFIGS / "clip" / "lit.py"), flags)[1]) as here:
        run = runs.prepare(*standins.stand_in(here))
    assert "'google-bert/bert-base-uncased' is not here: the bert of config.model.text stands for it" in caplog.text
    assert "config.towers.vision 'gs://" in caplog.text
    towers = run.task.start.module.config.towers
    assert {name: (tower.depth, tower.width) for name, tower in towers.items()} == {"vision": (2, 32), "text": (1, 32)}
    assert run.task.data.example["input_ids"].shape == (1, 16)
    assert {path.split("/")[0] for path, rate in run.adapted.rates.items() if rate == FROZEN} == {"vision"}


def test_a_backbone_that_is_here_is_itself_and_a_wrong_name_of_one_an_error(file):
    for name, refused in (("glyphs-vit", ""), ("glyphs-vti", "did you mean 'glyphs-vit'"), ("/away/vit", "unknown")):
        found = config.load("train", file, [f"--config.backbone={name}", "--config.mesh={'data':-1}"])[1]
        with absent.stand_in(found) as here:
            assert here.backbone == name
            if refused:
                with pytest.raises(InputError, match=refused):
                    load(here.backbone)


POD = [
    (path, line)
    for path in sorted(CONFIGS.rglob("*.py"))
    for line in path.read_text().splitlines()
    if "--topology=" in line
]


@pytest.mark.slow  # minutes each
@pytest.mark.parametrize("command", [line for _, line in POD], ids=[path.stem for path, _ in POD])
def test_every_pod_config_compiles_for_its_slice_within_the_memory_of_a_chip(command, capsys, monkeypatch):
    needs_compiler()
    monkeypatch.chdir(CONFIGS.parent)
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    for report in json.loads(capsys.readouterr().out):
        assert report["peak_bytes"] < report["chip_bytes"], report


def test_every_recipe_of_published_size_names_the_slice_that_it_is_for():
    names = ("awd_lstm", "bert_base", "elmo", "glove_paper", "gpt2", "llama_7b_qlora", "word2vec_paper")
    texts = [CONFIGS / "text" / f"{name}.py" for name in names]
    large = [*CONFIGS.glob("clip/vit_*.py"), *CONFIGS.glob("vit/*.py"), *texts]
    assert {path.stem for path in large} <= {path.stem for path, _ in POD}
