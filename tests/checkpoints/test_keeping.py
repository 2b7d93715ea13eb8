"""Which checkpoints are kept: the newest, the best, and some of all others by time or by step."""

import datetime
import math
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest

from jtransfer import config
from jtransfer.checkpoints.keeping import Highest, Keep
from jtransfer.checkpoints.store import Store
from jtransfer.errors import InputError
from jtransfer.train import loop, programs, results, runs

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def kept(steps, *policies, minutes=10):
    """The steps that are kept of checkpoints which were written one after another, so many minutes apart."""
    infos, there = [], []
    for number, step in enumerate(steps):
        infos.append(
            SimpleNamespace(step=step, time=START + datetime.timedelta(minutes=minutes * number), metrics=None)
        )
        there = ocp.checkpoint_managers.AnyPreservationPolicy(policies).should_preserve(
            infos, context=ocp.checkpoint_managers.PreservationContext()
        )
        infos = [info for info, stays in zip(infos, there, strict=True) if stays]
    return [info.step for info in infos]


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        ({}, [11, 12]),
        ({"newest": 3}, [10, 11, 12]),
        ({"every_steps": 5}, [5, 10, 11, 12]),
        ({"newest": 1, "every_hours": 0.5}, [1, 4, 7, 10, 12]),
    ],
)
def test_checkpoints_are_kept_by_number_by_step_and_by_time(keep, steps):
    assert kept(range(1, 13), *Keep(**keep).policies()) == steps


def test_the_best_is_kept_whatever_comes_after_it_and_one_without_the_metric_is_never_the_best():
    scores = {2: 0.5, 4: 0.9, 6: 0.9, 8: 0.1}
    assert kept(range(1, 10), Highest(scores.get), *Keep(newest=1).policies()) == [6, 9]
    assert Highest(scores.get).of([1, 3]) is None


FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=8, depth=0, heads=1)
    often = dict(log_every=1, eval_every=2, checkpoint_every=1, keep=dict(newest=1))
    return ConfigDict(dict(data="digits", model=model, mesh={"data": 1, "rest": -1}, batch=8, steps=9, **often))
"""


def prepared(path, *flags):
    (path / "train.py").write_text(FILE)
    return runs.prepare(config.load("train", str(path / "train.py"), [f"--config.{flag}" for flag in flags])[1])


def test_a_run_keeps_the_checkpoint_of_its_best_evaluation_which_can_be_exported(tmp_path, monkeypatch):
    losses = {2: 0.5, 4: 0.2, 6: math.nan, 8: 0.3, 9: 0.4}  # of which less is better
    evaluate = lambda state, frozen: {"test_loss": losses[int(state.step)]}  # noqa: E731
    monkeypatch.setattr(programs.Programs, "_evaluate", lambda self, phase: evaluate)
    run = prepared(tmp_path, "keep.best=test_loss")

    def breaks(row, speed):
        if row["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(run, tmp_path / "run", breaks)
    loop.train(run, tmp_path / "run", lambda row, speed: None)
    with Store(tmp_path / "run" / "checkpoints", reading=True) as store:
        assert store.steps == (4, 9)
    assert [results.result(tmp_path / "run", asked=step)[0] for step in ("", "best", "4")] == [9, 4, 4]
    with pytest.raises(InputError, match="there is no checkpoint of step 5; there are those of 4, 9"):
        loop.restored(run, tmp_path / "run", "5")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["keep.best=test_acuracy"],
            "config.keep.best 'test_acuracy' is not measured .*; did you mean 'test_accuracy'",
        ),
        (
            ["keep.best=test_loss", "checkpoint_every=4"],
            "config.eval_every 2 must be a multiple of config.checkpoint_every 4",
        ),
        (["keep.newest=0"], "config.keep.newest: expected a whole number"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_run(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, *flags)


def test_every_metric_of_an_evaluation_is_known_before_it_with_its_direction(tmp_path):
    run = prepared(tmp_path, "metrics=top5")
    made = programs.Programs(run)
    state, kept, frozen = made.start(0)
    evaluate = made.evaluate(0)
    names = evaluate.names()
    assert names == {"test_loss": False, "test_accuracy": True, "test_top5": True}
    assert evaluate(state, kept | frozen).keys() == names.keys()
