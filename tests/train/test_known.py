"""`jtransfer train` computes once what frozen layers make of its rows: the same run, and a cheaper step."""

from dataclasses import replace

import numpy as np
import pytest

from jtransfer import config
from jtransfer.cli import inspection
from jtransfer.data.streams import Rows
from jtransfer.train import cut, known, loop, runs

FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=3, eval_every=6, checkpoint_every=6)
    mesh = {"data": 4, "rest": -1}
    rest = dict(batch=96, steps=36, backbone="glyphs-vit", method="top_blocks(1)", optimiser=dict(rate=1e-3))
    return ConfigDict(dict(data="digits", mesh=mesh, **often, **rest))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "train.py"
    path.write_text(FILE)
    return str(path)


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, list(overrides))[1])


def trained(run, directory):
    return loop.train(run, directory, lambda row, speed: None)


def places(run):
    return [one and one.place for one in run.cuts]


def same(rows, others):
    for one, two in zip(rows, others, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_a_run_behind_a_cut_is_the_run(file, tmp_path):
    """In two phases of which one is cut, on four devices, interrupted in the second, with a teacher beside."""
    flags = "method=top_blocks(1) >> finetune", "phase_steps=30,6"
    once, every = prepared(file, *flags), prepared(file, *flags, "cache=0")
    assert places(once) == ["encoder/block_1:Block", None] and places(every) == [None, None]
    rows = trained(once, tmp_path / "once")
    same(rows, trained(every, tmp_path / "every"))
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_a_run_goes_on_in_a_phase_that_is_cut_and_computes_nothing_when_it_is_done(file, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(row, speed):
        if row["step"] == 15:
            raise Enough

    whole = trained(prepared(file), tmp_path / "whole")
    with pytest.raises(Enough):
        loop.train(prepared(file), tmp_path / "halves", stop)
    assert trained(prepared(file), tmp_path / "halves") == whole
    monkeypatch.setattr(known, "read", lambda *arguments: pytest.fail("there is no step left"))
    assert trained(prepared(file), tmp_path / "halves") == whole


def test_inspection_counts_the_step_that_runs(file):
    each = (config.load("train", file, list(flags))[1] for flags in ((), ("cache=0",)))
    cached, computed = (inspection.of_train(one)[0]["flops_per_step"] for one in each)
    # 6 of the units of which one is a block's forward pass are left of 3 + 2 + 2, and less of the embedding.
    assert cached < 0.65 * computed


def test_a_mask_comes_with_what_was_computed(file, bert, reviews):
    run = prepared(file, "data=tfds:reviews", f"data_dir={reviews}", f"backbone={bert}", "batch=4", "method=probe")
    (one,), stream, prepare = run.cuts, run.task.data.stream, run.task.data.prepare
    values = np.arange(len(stream.rows))[:, None]
    masked = known.Activations(replace(one, reads=("attention_mask", "pixel_values")), stream, prepare, values)
    rows = Rows(stream.inputs, stream.rows[[3, 1]])
    found = masked(rows)
    np.testing.assert_array_equal(found.pop(one.place), [[3], [1]])
    assert found.keys() == {"attention_mask"}
    np.testing.assert_array_equal(found["attention_mask"], prepare(rows[np.arange(2)])["attention_mask"])


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("steps=8",), "each row is read once"),
        (("mixup=0.2",), "inputs are mixed anew"),
        (("augment=random_crop(8, padding=1)",), "images are cut anew"),
        (("method=finetune",), "every leaf learns"),
        (("data=glyphs",), "characters are warped anew"),
        (("method=lora",), "the first block learns"),
    ],
)
def test_nothing_is_kept_where(file, flags, why):
    assert places(prepared(file, *flags)) == [None], why


def test_what_does_not_fit_is_said(file, caplog):
    (one,) = prepared(file).cuts
    assert cut.fitting([one, one, None], 10**6, 1, "top_blocks(1)") == [None] * 3
    size = one.bytes * 10**6 / 2**20
    assert [
        f"top_blocks(1): what its frozen layers make of all examples (encoder/block_1) takes {size:.0f} MiB, more than "
        "config.cache (1): it is computed in every step"
    ] == caplog.messages
