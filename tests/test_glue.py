"""`configs/text/glue.py`: BERT's recipe for every task of GLUE, as plain keys."""

from pathlib import Path

import pytest

from jtransfer import config
from jtransfer.errors import InputError

FILE = Path(__file__).parents[1] / "configs" / "text" / "glue.py"


def read(arg):
    return config.load("train", f"{FILE}:{arg}", [])[1]


@pytest.mark.parametrize(
    ("arg", "steps", "data", "metrics", "objective"),
    [
        ("task=rte", 3 * 2490 // 32, "tfds:glue/rte", ("accuracy",), "classification"),
        ("task=cola,epochs=5,batch=16", 5 * 8551 // 16, "tfds:glue/cola", ("matthews",), "classification"),
        ("task=mrpc", 3 * 3668 // 32, "tfds:glue/mrpc", ("f1", "accuracy"), "classification"),
        ("task=mnli", 3 * 392702 // 32, "tfds:glue/mnli?test=validation_matched", ("accuracy",), "classification"),
        ("task=stsb", 3 * 5749 // 32, "tfds:glue/stsb", ("pearson_spearman", "pearson", "spearman"), "regression"),
        (
            "task=rte,tuned=True",
            3 * 2241 // 32,
            "tfds:glue/rte?test=train[90%:]&train=train[:90%]",
            ("accuracy",),
            "classification",
        ),
    ],
)
def test_epochs_become_steps_and_each_task_has_its_metrics(arg, steps, data, metrics, objective):
    found = read(arg)
    assert (found.steps, found.data, found.metrics, found.objective) == (steps, data, metrics, objective)
    assert (found.optimiser.rate, found.optimiser.schedule, found.optimiser.warmup) == (2e-5, "linear", 0.1)


def test_rate_method_and_other_keys_are_those_behind_the_colon():
    found = read("task=rte,method=lora(rank=8),rate=5e-4,load.tokens=64")
    assert (found.method, found.optimiser.rate, found.load.tokens) == ("lora(rank=8)", 5e-4, 64)


def test_modernbert_has_the_rate_decay_and_epochs_of_its_paper():
    found = read("task=mnli,recipe=modernbert")
    assert (found.backbone, found.steps) == ("answerdotai/ModernBERT-base", 392702 // 32)
    optimiser = found.optimiser
    assert (optimiser.rate, optimiser.rate * optimiser.decay, optimiser.b2) == (5e-5, pytest.approx(5e-6), 0.98)
    own = read("task=rte,recipe=modernbert,backbone=runs/mnli/model,rate=1e-5")
    assert (own.backbone, own.optimiser.rate, own.steps) == ("runs/mnli/model", 1e-5, 3 * 2490 // 32)
    with pytest.raises(InputError, match="task=wnli: "):
        read("task=wnli,recipe=modernbert")
    with pytest.raises(InputError, match=r"recipe=modernbrt: did you mean 'modernbert'\?"):
        read("task=mnli,recipe=modernbrt")


def test_an_unknown_task_is_one_line_with_the_nearest():
    with pytest.raises(InputError, match=r"task=rtee: did you mean 'rte'\?"):
        read("task=rtee")
