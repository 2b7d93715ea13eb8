"""What is wrong with a user's part: one line, exit code 2, nothing compiled, and nothing written."""

import sys
from pathlib import Path

import pytest

from jtransfer import cli
from jtransfer.config import load
from jtransfer.curves import trained
from jtransfer.train import loop, runs

CURVE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "glyphs-vit", "data": "digits", "methods": ("probe",), "shots": (1,), "seeds": 1,
        "test_rows": 20, "batch": 4, "steps": 2,
    })
"""
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    model = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "heads": 2, "depth": 1}
    return ConfigDict({
        "data": "digits", "model": model, "method": "finetune", "batch": 8, "steps": 2,
        "log_every": 1, "eval_every": 2, "checkpoint_every": 2,
    })
"""
PARTS = '''
from dataclasses import replace

from jtransfer.methods import Method, learn
from jtransfer.methods import probe as our_probe
from jtransfer.objectives import classification


def part(*args):
    """Of no type that anything expects."""
    return 0.5


def halved(output="features", of="ViT"):
    """Half of an output of the model, or of what has a head on the model."""

    def interceptor(call, args, kwargs, context):
        found = call(*args, **kwargs)
        if context.method_name == "__call__" and type(context.module).__name__ == of:
            found = found | {output: found[output][:, : found[output].shape[1] // 2]}
        return found

    return Method("halved", learn((".*", 1.0)), adds=(interceptor,))


def dropped(output="features"):
    """No output of that name."""

    def interceptor(call, args, kwargs, context):
        found = call(*args, **kwargs)
        top = context.method_name == "__call__" and isinstance(found, dict)
        return {name: x for name, x in found.items() if name != output} if top else found

    return Method("dropped", learn((".*", 1.0)), adds=(interceptor,))


def failing():
    """An interceptor that fails."""

    def interceptor(call, args, kwargs, context):
        return call(*args, **kwargs) + context.width

    return Method("failing", learn((".*", 1.0)), adds=(interceptor,))


def unruly():
    """Rates that fail."""
    return replace(our_probe(), learns=lambda paths: paths["head/kernel"])


def listed():
    """Paths, and no rates."""
    return replace(our_probe(), learns=lambda paths: list(paths))


def misspelt():
    """A rate of a path that is not there."""
    return replace(our_probe(), learns=lambda paths: {"hed/kernel": 1.0})


def backwards():
    """A rate that is none."""
    return replace(our_probe(), learns=lambda paths: dict.fromkeys(paths, -1.0))


def unheld():
    """Leaves beside the backbone's that cannot be made."""
    return replace(our_probe(), holds=lambda base: {"fisher/a": base["absent"]})


def unmerged():
    """An addition that cannot be merged."""
    return replace(our_probe(), adds=(lambda call, args, kwargs, context: call(*args, **kwargs),), merge=lambda t: t[0])


def unscored():
    """A term that fails."""
    return replace(our_probe(), scores=lambda score: lambda params, outputs, batch: params["nothing"])


def each():
    """An objective whose score is one number for each example."""
    own = classification()
    return replace(own, score=lambda params, outputs, batch: (outputs["logits"].sum(-1), {}))


def unmeasured():
    """An objective whose measure is of the whole."""
    return replace(classification(), measure=lambda outputs, batch: {"loss": outputs["logits"].mean()})


def blind():
    """An objective that measures nothing of an example."""
    return replace(classification(), measure=None)


def lossless():
    """An objective that measures no loss of an example."""
    return replace(classification(), measure=lambda outputs, batch: {"largest": outputs["logits"].max(-1)})


def aimless():
    """An objective without a metric."""
    return replace(classification(), metrics=())
'''


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The working directory, with configs and the user's module; whatever would compile ends the test."""

    def compiled(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_parts", None)
    for name, text in {"curve": CURVE, "train": TRAIN, "my_parts": PARTS}.items():
        Path(f"{name}.py").write_text(text)
    monkeypatch.setattr(loop, "Programs", compiled)
    monkeypatch.setattr(trained.Trained, "compile", compiled)
    yield
    sys.modules.pop("my_parts", None)


KINDS = {
    "method": "--config.{method}={{}}",
    "objective": "--config.objective={{}}",
    "metric": "--config.metrics={{}}",
    "reader": "--config.data={{}}:rest",
}


def refused(capsys, command, kind, text):
    """The one line in which a command refuses a part."""
    flag = KINDS[kind].format(method="methods" if command == "curve" else "method").format(text)
    capsys.readouterr()
    sys.modules.pop("my_parts", None)
    assert cli.main([command, f"--config={command}.py", "--workdir=run", flag]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not Path("run").exists(), said
    return said


@pytest.mark.parametrize("command", ["curve", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_not_there_is_refused_with_the_nearest(command, kind, capsys):
    said = refused(capsys, command, kind, "my_prts.part")
    assert f"{kind} 'my_prts.part': there is no module 'my_prts' in" in said and "did you mean 'my_parts'?" in said
    said = refused(capsys, command, kind, "my_parts.prt")
    assert "my_parts.py' has no 'prt'; did you mean 'part'?" in said


@pytest.mark.parametrize("command", ["curve", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_fails_when_it_is_imported_is_named_with_the_line(command, kind, capsys):
    Path("my_parts.py").write_text("import sys\n\nraise RuntimeError('no such luck')\n")
    said = refused(capsys, command, kind, "my_parts.part")
    assert f"{kind} 'my_parts.part': file '{Path.cwd()}/my_parts.py', line 3: RuntimeError: no such luck" in said


@pytest.mark.parametrize("command", ["curve", "train"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("method", "a Method"),
        ("objective", "an Objective"),
        ("metric", "a Metric"),
        ("reader", "a Dataset or a Stream"),
    ],
)
def test_a_function_that_returns_something_else_is_told_what_is_expected(command, kind, expected, capsys):
    assert f"{kind} 'my_parts.part' returned 0.5; expected {expected}" in refused(
        capsys, command, kind, "my_parts.part"
    )


@pytest.mark.parametrize("command", ["curve", "train"])
@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("my_parts.halved", "makes [1, {half}] of the model's output 'features', [1, {width}]; expected the same"),
        ("my_parts.halved('logits', 'Headed')", "makes [1, 5] of the model's output 'logits', [1, 10]"),
        ("probe >> my_parts.halved('logits', 'Headed')", "makes [1, 5] of the model's output 'logits', [1, 10]"),
        ("my_parts.dropped('pooler_output')", "makes nothing of the model's output 'pooler_output', [1, {width}]"),
        ("my_parts.failing", "my_parts.py', line 41: AttributeError: 'InterceptorContext' object has no"),
        ("my_parts.unruly", "my_parts.py', line 48: TypeError: list indices must be integers"),
    ],
)
def test_a_method_that_does_not_leave_the_outputs_their_shapes_is_refused(command, method, said, capsys):
    width = 64 if command == "curve" else 8
    line = refused(capsys, command, "method", method)
    assert f"method '{method}'" in line and said.format(width=width, half=width // 2) in line, line


@pytest.mark.parametrize(
    "whole", ["{}", "{} + bitfit", "bitfit + {}", "finetune >> {}", "{} >> finetune", "(probe >> finetune) + {}"]
)
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("unruly", "{file}', line {line}: TypeError: list indices must be integers"),
        ("listed", "learns returned ['embeddings/cls', "),
        ("misspelt", "learns has a rate for 'hed/kernel'; did you mean 'head/kernel'?"),
        ("backwards", "the rate of 'embeddings/cls': expected a number of at least 0, found -1.0"),
        ("unheld", "{file}', line {line}: KeyError: 'absent'"),
        ("unmerged", "{file}', line {line}: KeyError: 0"),
    ],
)
def test_what_a_function_of_a_method_raises_is_told_with_its_line_alone_in_a_sum_and_in_a_phase(
    part, said, whole, capsys
):
    line = refused(capsys, "train", "method", whole.format(f"my_parts.{part}"))
    lines = Path("my_parts.py").read_text().split("\n")
    number = lines.index(f"def {part}():") + 3
    assert f"my_parts.{part}" in line
    assert said.format(file=Path("my_parts.py").resolve(), line=number) in line, line


def test_a_function_that_leaves_paths_out_freezes_them_alone_and_in_a_sum():
    part = 'def some():\n    return replace(our_probe(), learns=lambda paths: {"head/bias": 1.0})\n'
    Path("my_parts.py").write_text(PARTS + "\n\n" + part)
    for method, learns in (
        ("my_parts.some", {"head/bias"}),
        ("my_parts.some + rules('head/kernel')", {"head/bias", "head/kernel"}),
    ):
        rates = runs.prepare(load("train", "train.py", [f"--config.method={method}"])[1]).adapted.rates
        assert {path for path, rate in rates.items() if rate} == learns


@pytest.mark.parametrize("command", ["curve", "train"])
def test_more_phases_than_steps_are_refused(command, capsys):
    said = refused(capsys, command, "method", "probe >> top_blocks(1) >> finetune")
    assert "config.steps is 2; expected at least 3, one for each phase of the method" in said


@pytest.mark.parametrize("command", ["curve", "train"])
def test_an_objective_of_texts_is_refused_where_the_data_are_images(command, capsys):
    said = refused(capsys, command, "objective", "masked_lm")
    assert "config.objective 'masked_lm' learns from texts; digits has images with one class a row" in said
    assert "expected 'classification'" in said


@pytest.mark.parametrize("command", ["curve", "train"])
@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        ("method", "unscored", "or objective of yours fails: file '{file}', line {line}: KeyError: 'nothing'"),
        ("objective", "each", "the score has shape [{rows}] for {rows} examples; expected one number"),
        (
            "objective",
            "unmeasured",
            "measure's 'loss' has shape [] for {rows} examples; expected one number for each",
        ),
    ],
)
def test_a_term_or_an_objective_that_fails_on_a_batch_is_told_before_anything_compiles(
    command, kind, part, message, capsys
):
    said = refused(capsys, command, kind, f"my_parts.{part}")
    lines = Path("my_parts.py").read_text().split("\n")
    line = next(number for number, text in enumerate(lines, 1) if "nothing" in text)
    rows = {"curve": 4, "train": 8}[command]
    assert message.format(file=Path("my_parts.py").resolve(), line=line, rows=rows) in said


@pytest.mark.parametrize("command", ["curve", "train"])
def test_an_objective_of_rows_that_measures_none_of_them_is_refused(command, capsys):
    said = refused(capsys, command, "objective", "my_parts.blind")
    assert "config.objective 'my_parts.blind' has no measure; expected the loss of every example" in said


def test_a_curve_refuses_an_objective_without_the_loss_that_chooses_between_equal_metrics(capsys):
    said = refused(capsys, "curve", "objective", "my_parts.lossless")
    assert "measure gives 'largest'; expected 'loss' of every example too" in said


@pytest.mark.parametrize(("command", "method"), [("curve", "probe"), ("train", "logistic >> finetune")])
def test_an_objective_without_a_metric_is_refused_where_one_has_to_choose(command, method, capsys):
    text = Path(f"{command}.py").read_text().replace('"finetune"', f'"{method}"')
    Path(f"{command}.py").write_text(text)
    said = refused(capsys, command, "objective", "my_parts.aimless")
    assert (
        "config.metrics is empty, and objective 'my_parts.aimless' names no metric; expected one that chooses" in said
    )
    assert "of 'accuracy', " in said


def test_training_by_steps_needs_no_metric(capsys):
    with pytest.raises(AssertionError, match="compiled"):
        refused(capsys, "train", "objective", "my_parts.aimless")
