"""Learned tokens in a training that goes on exactly: what served the training alone is folded away when it is over."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer as jt
from jtransfer import config
from jtransfer.errors import InputError
from jtransfer.train import loop, programs, results, runs
from jtransfer.tree import FROZEN

OFTEN = {"batch": 8, "steps": 3, "log_every": 1, "eval_every": 3, "checkpoint_every": 1}
SPLIT = {"mesh": {"data": 8}, "sharding": "fsdp", "load": {"dtype": "bfloat16"}}
KEPT = {
    "embeddings/prompt/tokens": (8, 16),
    "encoder/block_0/attention/prefix/key": (8, 16),
    "encoder/block_0/attention/prefix/value": (8, 16),
}


@pytest.mark.slow
def test_prompts_and_a_projected_prefix_go_on_bit_identically_and_are_kept_plain(
    goes_on, reviews, bert, tmp_path_factory
):
    data = {"data": "tfds:reviews", "data_dir": reviews, "backbone": bert}
    data["method"] = "prompt(length=8) + prefix(length=8, projection=8)"

    def prepare():
        return runs.prepare(ConfigDict(config.completed("train", {**data, **OFTEN, **SPLIT})))

    whole, run = tmp_path_factory.mktemp("whole"), prepare()
    loop.train(run, whole, lambda row, speed: None)
    goes_on(prepare, 2, whole)
    _, tree = loop.restored(run, whole)
    start = programs.Programs(run).start(0)[0].trainable
    assert start.keys() == {path for path, rate in run.adapted.rates.items() if rate != FROZEN}
    assert all(tree[path].dtype == np.float32 and (tree[path] != leaf).any() for path, leaf in start.items())

    loaded, (_, adapter, _) = jt.load(str(whole / "model"), dtype="bfloat16"), results.result(str(whole))
    added = {path: x.shape for path, x in loaded.params.items() if path not in run.task.start.base.params}
    assert {path: x for path, x in added.items() if "head/" not in path} == KEPT
    said = json.loads((whole / "model/config.json").read_text())["method"]
    assert said == adapter.method.name == "prompt(length=8) + prefix(length=8)"
    batch = loaded.preprocess(run.task.data.stream.held_out[1][:4])
    np.testing.assert_array_equal(loaded(batch)["logits"], adapter(batch)["logits"])


@pytest.mark.parametrize("method", ["prompt(length=40)", "prefix(length=40)"])
def test_a_prompt_or_prefix_longer_than_the_places_is_refused_before_anything_is_compiled(method, reviews, bert):
    values = {"data": "tfds:reviews", "data_dir": reviews, "backbone": bert, "method": method, **OFTEN}
    with pytest.raises(
        InputError, match=r"40 places before texts of \d+ tokens are too many; the model has 40: expected"
    ):
        runs.prepare(ConfigDict(config.completed("train", values)))
