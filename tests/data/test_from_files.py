"""From files to results: a training, a curve and an evaluation on tables and tar files, and what is refused at once."""

import csv
import io
import json
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from jtransfer import cli

VIT = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "depth": 1, "heads": 2}
VISION = {"image": (8, 8), "channels": 1, "patch": 4, "width": 8, "depth": 1, "heads": 2}
TEXT = {"vocabulary": 514, "positions": 32, "width": 8, "depth": 1, "heads": 2, "eos_token": 513}
CLIP = {"architecture": "clip", "vision": VISION, "text": TEXT, "projection": 8}
CURVE = {
    "methods": ("probe",),
    "shots": (4,),
    "seeds": 1,
    "batch": 8,
    "steps": 40,
    "hyper": {"probe": {"rate": (0.3,)}},
}
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **more: COMPILED.append(name) if "backend_compile" in name else None
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(command, workdir, **config)`: the exit code of a command in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(command, workdir, **values):
        source = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n"
        (tmp_path / f"{workdir}.py").write_text(source)
        return cli.main([command, f"--config={workdir}.py", f"--workdir={workdir}"])

    return call


def grey(i):
    """An 8x8 picture whose brightness tells its class, `i % 2`."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40 + 150 * (i % 2) + i, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_table(directory, count=30):
    (directory / "pictures").mkdir()
    with (directory / "own.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        for i in range(count):
            (directory / "pictures" / f"{i}.png").write_bytes(grey(i))
            rows.writerow([f"pictures/{i}.png", ("dark", "light")[i % 2]])


def write_tars(directory, shards=2, each=10):
    (directory / "pairs").mkdir()
    for shard in range(shards):
        with tarfile.open(directory / "pairs" / f"{shard:05}.tar", "w") as tar:
            for i in range(shard * each, (shard + 1) * each):
                said = f"{('a dark', 'a light')[i % 2]} square, number {i}".encode()
                for ending, content in (("png", grey(i)), ("txt", said), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{i:09}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def last(path):
    return json.loads(path.read_text().splitlines()[-1])


@pytest.mark.slow
def test_a_table_of_paths_is_trained_on_and_gives_a_curve(run, tmp_path):
    write_table(tmp_path)
    steps = {"batch": 8, "steps": 60, "log_every": 20, "eval_every": 60, "optimiser": {"rate": 0.02}}
    assert run("train", "a", data="table:own.csv", model=VIT, **steps) == 0
    assert last(tmp_path / "a" / "metrics.jsonl")["test_accuracy"] == 1.0
    assert run("evaluate", "b", backbone="a/model", data="table:own.csv", protocols=("knn",)) == 0
    assert run("curve", "c", backbone="a/model", data="table:own.csv", **CURVE) == 0
    assert last(tmp_path / "c" / "results.jsonl")["test_accuracy"] == 1.0


def test_a_table_of_texts_gives_a_curve(run, tmp_path, bert):
    rows = [{"sentence": f"the film was {('good', 'bad')[i % 2]}", "label": i % 2} for i in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("curve", "a", backbone=bert, data="table:own.jsonl", load={"tokens": 8}, **CURVE) == 0
    assert last(tmp_path / "a" / "results.jsonl")["test_accuracy"] >= 0.5


@pytest.mark.slow
def test_pairs_in_tar_files_are_trained_on(run, tmp_path):
    write_tars(tmp_path)
    steps = {"batch": 8, "steps": 4, "log_every": 2, "eval_every": 4, "mesh": {"data": 1, "rest": -1}}
    clip = {"objective": "clip", "tokenizer": "bytes", "model": CLIP, **steps}
    assert run("train", "a", data="tar:pairs/{00000..00001}.tar", **clip) == 0
    row = last(tmp_path / "a" / "metrics.jsonl")
    assert row["step"] == 4 and 0 <= row["test_image_to_text_r1"] <= 1


@pytest.mark.parametrize(
    ("command", "values"),
    [("train", {"model": VIT}), ("curve", CURVE), ("evaluate", {}), ("advise", {})],
)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("table:own.csv?label=lable", "there is no column 'lable' in own.csv; did you mean 'label'?"),
        ("table:cut.csv", "cut.csv: line 6 cannot be read (1 column, expected 2, as line 1 has names (image, label))"),
        ("table:gone.csv", "gone.csv: line 2: 'image': ./gone.png cannot be read (No such file or directory)"),
        ("tar:pairs/00002.tar", "pairs/00002.tar: no such file"),
        ("hf:pairs", "pairs: expected a directory that save_to_disk wrote"),
    ],
)
def test_files_that_cannot_be_used_end_every_command_before_anything_compiles(
    run, tmp_path, capsys, command, values, data, said
):
    write_table(tmp_path, 8)
    write_tars(tmp_path, 1, 4)
    lines = (tmp_path / "own.csv").read_text().splitlines()
    (tmp_path / "cut.csv").write_text("\n".join([*lines[:5], lines[5][:9]]))
    (tmp_path / "gone.csv").write_text("image,label\ngone.png,a\ngone.png,b\ngone.png,a\ngone.png,b\n")
    before = len(COMPILED)
    assert run(command, "a", data=data, **values) == 2
    error = capsys.readouterr().err
    assert error.startswith("jtransfer: error: ") and error.count("\n") == 1 and said in error
    assert len(COMPILED) == before and not (tmp_path / "a").exists()
