"""Several labels a row, values, other metrics and teachers: in a curve and in a training alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets
from sklearn.metrics import average_precision_score, mean_squared_error

import jtransfer as jt
from jtransfer import checkpoints, cli, config
from jtransfer.curves import report
from jtransfer.curves import run as curves
from jtransfer.errors import InputError
from jtransfer.train import loop, runs

TFDS = Path(__file__).parents[2] / "shared/tfds"
CURVE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "glyphs-vit", "methods": ("probe",), "shots": (40,), "seeds": 1, "test_rows": 0, "batch": 16,
        "steps": 40, "hyper": {"default": {"rate": (0.003, 0.03)}},
    })
"""
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "glyphs-vit", "method": "probe", "batch": 32, "steps": 6, "log_every": 3, "eval_every": 6,
        "checkpoint_every": 3, "optimiser": {"rate": 0.02},
    })
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Configs, and 300 digits with what can be asked of them: which of three properties they have, and their number."""
    directory = tmp_path_factory.mktemp("targets")
    raw = datasets.load_digits()
    images, digits = (raw.images[:300] / 16).astype(np.float32), raw.target[:300]
    parts = {"images": images[:200], "test_images": images[200:]}
    several = np.stack([digits % 2 == 0, digits > 4, digits == 0], 1).astype(np.int32)
    values = (digits / 9).astype(np.float32)
    shifted = {"labels": digits[:200], "test_labels": (digits[200:] + 1) % 10}
    for name, labels in {"several": several, "values": values, "digits": digits}.items():
        np.savez(directory / f"{name}.npz", **parts, labels=labels[:200], test_labels=labels[200:])
    np.savez(directory / "shifted.npz", **parts | shifted)
    (directory / "curve.py").write_text(CURVE)
    (directory / "train.py").write_text(TRAIN)
    return directory, several[200:], values[200:]


def prepared(place, data, *overrides):
    flags = [f"--config.data=npz:{place / data}.npz", *(f"--config.{one}" for one in overrides)]
    return curves.prepare(config.load("curve", str(place / "curve.py"), flags)[1])


def trained(place, directory, data, *overrides):
    flags = [f"--config.data=npz:{place / data}.npz", *(f"--config.{one}" for one in overrides)]
    run = runs.prepare(config.load("train", str(place / "train.py"), flags)[1])
    return loop.train(run, directory, lambda *row: None)


def test_several_labels_a_row_have_a_curve_that_shows_the_metric_which_chose(place, tmp_path):
    curve = prepared(place[0], "several", "objective=multilabel", "metrics=map,f1,auroc")
    (row,) = curves.run(curve, tmp_path / "run", lambda *cell: None)
    assert (row["metric"], row["better"], row["unit"], row["labels"]) == ("map", "higher", "%", "rows")
    assert row["test_map"] > 0.6 and row["test_auroc"] > 0.7 and 0 < row["test_f1"] < 1 and row["val_map"] > 0.6
    assert row["trainable"] == 3 * (curve.backbone.config.width + 1)
    said = "\n".join(curves.protocol(curve, [row]))
    assert "3 labels, several a row; tested on the 100 rows" in said
    assert "40 + 10 rows" in said and "best validation map, the mean average precision" in said
    table = report.table_markdown([row], [])
    assert f"{100 * row['test_map']:.1f}" in table and "Test map in % by training rows" in table


def test_values_have_one_where_the_smallest_error_is_best(place, tmp_path):
    flags = "objective=regression", "metrics=mse,pearson", "shots=20,100", "seeds=2"
    few = prepared(place[0], "values", *flags, "test_rows=30").examples.test
    assert len(np.unique(few)) == 30 and set(few) <= set(range(200, 300))
    several = prepared(place[0], "several", "objective=multilabel", "test_rows=30")
    assert len(several.examples.test) == 30 and "(drawn once)" in curves.protocol(several, [])[0]
    curve = prepared(place[0], "values", *flags)
    rows = curves.run(curve, tmp_path / "run", lambda *cell: None)
    assert {(row["metric"], row["better"], row["unit"]) for row in rows} == {("mse", "lower", "")}
    few, many = (np.mean([row["test_mse"] for row in rows if row["shots"] == shots]) for shots in (20, 100))
    assert many < few < np.var(place[2]) and all(row["test_pearson"] > 0.5 for row in rows)
    assert "lowest mean of a column" not in report.table_markdown(rows, [])  # a cell alone beats nobody
    report.write(rows, tmp_path / "report", [], "values")
    assert "Test mse by training rows" in (tmp_path / "report/table.md").read_text()


@pytest.mark.parametrize(("data", "objective"), [("several", "multilabel"), ("values", "regression")])
def test_a_training_measures_them_goes_on_where_it_stopped_and_saves_a_head_that_predicts_the_same(
    place, tmp_path, data, objective
):
    whole = trained(place[0], tmp_path / "whole", data, f"objective={objective}")
    model = jt.load(str(tmp_path / "whole/model"))
    images = np.load(place[0] / f"{data}.npz")["test_images"][..., None]
    logits = np.asarray(model({"pixel_values": model.preprocess(images)["pixel_values"]})["logits"])
    if objective == "multilabel":
        assert whole[-1]["test_map"] == pytest.approx(
            average_precision_score(place[1], logits, average="macro"), abs=1e-5
        )
        assert model.classes == ("0", "1", "2")
    else:
        assert whole[-1]["test_mse"] == pytest.approx(mean_squared_error(place[2], logits[:, 0]), rel=1e-4)
        assert whole[-1]["test_mse"] == pytest.approx(whole[-1]["test_loss"], rel=1e-5)


def test_every_misfit_of_data_objective_metric_and_method_is_one_line(place):
    for data, flags, message in (
        (
            "several",
            [],
            "learns from one class a row; .*several.npz has several labels a row; expected 'multilabel'",
        ),
        ("values", ["objective=multilabel"], "has numbers as labels; expected 'regression'"),
        ("values", ["objective=regression", "metrics=accuracy"], "metric 'accuracy' needs .*; the data has 1 values"),
        ("several", ["objective=multilabel", "methods=logistic"], "'logistic' is of one class a row"),
        ("digits", ["metrics=acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'"),
        ("digits", ["objective=masked_lm"], "'masked_lm' learns from texts; .* has images with one class a row"),
        (
            "digits",
            ["methods=finetune + distill"],
            "'finetune \\+ distill' needs a teacher: name one in config.teacher",
        ),
        ("digits", ["teacher=glyphs-vit"], "config.teacher is read by no method here"),
        ("several", ["objective=multilabel", "methods=probe + distill", "teacher=glyphs-vit"], "not one class a row"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(place[0], data, *flags)


@pytest.fixture(scope="module")
def wrong(place):
    """A teacher that takes every digit for the next one."""
    source = jt.load("glyphs-vit")
    names = [str((int(name) + 1) % 10) if name in "0123456789" else name for name in source.classes]
    tree = {path.replace("source_head/", "head/"): leaf for path, leaf in source.params.items()}
    checkpoints.save(place[0] / "wrong", source.model, tree, tuple(names))
    return place[0] / "wrong"


@pytest.mark.slow
def test_the_student_of_a_wrong_teacher_learns_the_wrong_answers(place, wrong, tmp_path):
    teacher = f"teacher={wrong}", "shots=10", "steps=60"
    rows = {}
    for weight in (0.0, 1.0):
        curve = prepared(place[0], "shifted", f"methods=finetune + distill(weight={weight})", *teacher)
        (rows[weight],) = curves.run(curve, tmp_path / f"{weight}", lambda *cell: None)
        assert set(curve.fingerprints) >= {"data", "backbone", "teacher"}
    # Of the pool the labels are right, of the test rows each is the next digit, as the teacher has it.
    assert rows[0.0]["test_accuracy"] < 0.2 and rows[1.0]["test_accuracy"] > 0.35
    assert rows[1.0]["flops_per_step"] < 1.02 * rows[0.0]["flops_per_step"]  # there is no second forward pass


@pytest.mark.slow
def test_a_training_follows_its_teacher_too_and_another_teacher_is_another_run(place, wrong, tmp_path):
    flags = f"teacher={wrong}", "method=finetune + distill(weight=1)", "steps=30", "log_every=30", "eval_every=30"
    rows = trained(place[0], tmp_path / "run", "shifted", *flags, "checkpoint_every=30", "optimiser.rate=0.001")
    assert rows[-1]["test_accuracy"] > 0.5 and rows[-1]["distillation"] < rows[0]["distillation"]
    arguments = [
        f"--config={place[0] / 'train.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data=npz:{place[0]}/shifted.npz",
    ]
    other = [
        *(f"--config.{flag}" for flag in flags[1:]),
        "--config.checkpoint_every=30",
        "--config.optimiser.rate=0.001",
    ]
    assert cli.main(["train", *arguments, *other, "--config.teacher=glyphs-vit"]) == 2


@pytest.mark.skipif(not (TFDS / "glue/cola").exists(), reason="needs the prepared glue/cola")
def test_cola_shows_matthews_correlation_as_glue_does(bert, tmp_path):
    path = tmp_path / "curve.py"
    path.write_text(CURVE.replace("glyphs-vit", str(bert)))
    flags = ["data=tfds:glue/cola?test=validation", f"data_dir={TFDS}", "shots=8", "steps=4", "test_rows=60"]
    curve = curves.prepare(config.load("curve", str(path), [f"--config.{flag}" for flag in flags])[1])
    (row,) = curves.run(curve, tmp_path / "run", lambda *cell: None)
    assert row["metric"] == "matthews" and -1 <= row["test_matthews"] <= 1 and "val_matthews" in row
    assert "Test matthews in % by training labels per class" in report.table_markdown([row], [])
    assert json.loads((tmp_path / "run/results.jsonl").read_text())["test_matthews"] == row["test_matthews"]
