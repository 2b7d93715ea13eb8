"""`jtransfer train` with several tasks: rows by task, exact resume, a model with all heads, and what is refused."""

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import config
from jtransfer.checkpoints import export
from jtransfer.cli import main
from jtransfer.data import sources
from jtransfer.errors import InputError
from jtransfer.train import results, runs
from jtransfer.train.pace import learned

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2, dropout=0.1)
    tasks = {"kind": {"data": "digits"}, "ink": {"data": "npz:INK", "objective": "regression", "weight": 3.0}}
    often = dict(log_every=2, eval_every=4, checkpoint_every=4)
    return ConfigDict(dict(tasks=tasks, model=model, batch=8, steps=8, optimiser=dict(rate=1e-2), **often))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A config of two tasks on digits: which one it is, and how much ink it has."""
    directory = tmp_path_factory.mktemp("config")
    images = np.asarray(sources.load("digits").inputs[np.arange(120)])
    np.savez(directory / "ink.npz", images=images, labels=images.mean((1, 2, 3)).astype(np.float32))
    path = directory / "tasks.py"
    path.write_text(FILE.replace("INK", str(directory / "ink.npz")))
    return str(path)


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, list(overrides))[1])


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Eight steps in one go, from the command line."""
    directory = tmp_path_factory.mktemp("whole")
    assert main(["train", f"--config={file}", f"--workdir={directory}"]) == 0
    return directory, learned(directory / "metrics.jsonl")


def test_rows_have_the_metrics_of_each_task_by_its_name(whole):
    _, rows = whole
    steps = {"step", "grad_norm", "kind_loss", "kind_accuracy", "ink_loss"}
    tests = {"kind_test_loss", "kind_test_accuracy", "ink_test_loss", "ink_test_mse"}
    assert [row.keys() for row in rows] == [steps, steps, steps | tests, steps, steps | tests]
    assert rows[0]["kind_loss"] == pytest.approx(np.log(10), rel=1e-5)  # heads start at zero
    assert rows[-1]["ink_test_mse"] < rows[0]["ink_loss"]


@pytest.mark.slow
def test_a_run_that_breaks_and_goes_on_is_bit_identical(whole, file, goes_on):
    goes_on(lambda: prepared(file), 6, whole[0])


def test_the_model_comes_back_with_all_heads_and_gives_each_alone(whole, images):
    directory = str(whole[0] / "model")
    model, inputs = jt.load(directory), {"pixel_values": images[0][:4]}
    assert [name for name, _ in model.head.each] == ["ink", "kind"]
    assert model.head.classes == ((), tuple("0123456789"))
    outputs = model(inputs)
    assert outputs["kind"]["logits"].shape == (4, 10) and outputs["ink"]["logits"].shape == (4, 1)
    kind = jt.load(directory, head="kind")
    assert kind.classes == tuple("0123456789")
    np.testing.assert_array_equal(kind(inputs)["logits"], outputs["kind"]["logits"])
    assert not any(path.startswith("source_head") for path in jt.load(directory, head="").params)
    with pytest.raises(InputError, match="no head 'kinds'; did you mean 'kind'"):
        jt.load(directory, head="kinds")


def test_its_heads_stay_as_they_were_where_other_tasks_train_on_it(whole, file):
    run = prepared(file, f"--config.backbone={whole[0] / 'model'}", "--config.method=probe", "--config.load.image=8")
    learns = {path for path, rate in run.adapted.rates.items() if rate}
    assert learns == {f"head/{task}/{leaf}" for task in ("kind", "ink") for leaf in ("kernel", "bias")}
    assert run.adapted.rates["source_head/kind/kernel"] == 0


def test_an_export_has_all_heads_or_is_refused_by_their_names(whole, tmp_path):
    step, result, _ = results.result(whole[0])
    assert step == 8 and {"head/kind/kernel", "head/ink/bias"} <= result.params.keys()
    export.write(tmp_path / "orbax", result, "orbax")
    with pytest.raises(InputError, match="has the heads ink, kind; no class of Hugging Face has several; .*=orbax"):
        export.write(tmp_path / "hf", result, "hf")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.kind.weigth=2", "unknown key 'config.tasks.kind.weigth'; did you mean 'weight'"),
        ("tasks.kind.weight=-1", "config.tasks.kind.weight: expected a number of at least 0"),
        ("tasks.third.weight=1", "config.tasks.third.data: expected a text that is not empty"),
        ("tasks.a-b.data=digits", "config.tasks: 'a-b' is no name of a task; expected letters, digits and _"),
        (
            "tasks.kind.objective=regression",
            "config.tasks.kind.objective 'regression' learns from numbers as labels",
        ),
        (
            "tasks.kind.objective=clip",
            "config.tasks.kind.objective 'clip' learns from pairs; several tasks from rows",
        ),
        ("tasks.kind.metrics=mse", "config.tasks.kind: metric 'mse' needs predicted and true values"),
        ("tasks.kind.data=npz:SMALL", "config.tasks.kind.data: images of npz:.* are 4x4x1, the model takes 8x8x1"),
        (
            "tasks.kind.data=npz:TEXTS",
            "config.tasks.kind.data: npz:.* holds texts, npz:.* images; tasks on",
        ),
        ("tasks.features.data=digits", "a head cannot be called 'features', as an output of the backbone is"),
        ("data=letters", "config.data is of a single task, config.tasks has several; leave it out"),
        ("smoothing=0.1", "config.smoothing is of a single task, config.tasks has several; leave it out"),
        ("teacher=glyphs-vit", "config.teacher is of a single task, config.tasks has several; leave it out"),
    ],
)
def test_what_several_tasks_cannot_have_is_refused_in_one_line(override, message, file, tmp_path):
    np.savez(tmp_path / "texts.npz", texts=[f"line {i}" for i in range(40)], labels=np.arange(40) % 2)
    np.savez(tmp_path / "small.npz", images=np.zeros((40, 4, 4, 1), "f"), labels=np.arange(40) % 2)
    for name in ("texts", "small"):
        override = override.replace(name.upper(), str(tmp_path / f"{name}.npz"))
    with pytest.raises(InputError, match=message) as error:
        prepared(file, f"--config.{override}")
    assert "\n" not in str(error.value)
