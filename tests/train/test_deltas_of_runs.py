"""What a run writes of a model is what its method trains: in its checkpoints, and in an adapter of it."""

import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer as jt
from jtransfer import cli, config
from jtransfer.train import loop, results, runs

NEAR_IT = {"log_every": 1, "eval_every": 1, "checkpoint_every": 1}


def run(method, directory):
    values = {"data": "digits", "backbone": "glyphs-vit", "method": method, "batch": 8, "steps": 1, **NEAR_IT}
    prepared = runs.prepare(ConfigDict(config.completed("train", values)))
    loop.train(prepared, directory, lambda row, speed: None)
    return prepared


@pytest.mark.parametrize("method", ["probe", "bitfit", "lora(rank=1)"])
def test_a_checkpoint_has_the_leaves_that_learn_their_moments_and_a_few_numbers(method, tmp_path):
    prepared = run(method, tmp_path)
    learns = {path for path, rate in prepared.adapted.rates.items() if rate}
    sums = json.loads((tmp_path / "checkpoints/1/about/metadata").read_text())["sums"]
    found = {
        path: np.empty([int(side) for side in re.findall(r"\d+", shape)]).size * 4 for path, shape in _shapes(sums)
    }
    size = sum(np.prod(prepared.adapted.shapes[path].shape) for path in learns) * 4
    assert 3 * size <= sum(found.values()) <= 3 * size + 64  # AdamW's two moments; counts, the step and the key
    named = {match[1] for path in found if (match := re.search(r"\['([^']+/[^']+)'\]", path))}
    assert named == learns


def _shapes(sums):
    return ((path, re.search(r"\[(.*)\]", said)[1]) for path, said in sums.items())


@pytest.mark.slow
def test_an_adapter_of_lora_is_a_few_kilobytes_that_load_as_the_model_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("lora(rank=1)", "run")
    assert cli.main(["export", "--workdir=run", "--format=adapter", "--out=small"]) == 0
    ours, theirs = jt.load("small"), jt.load("run/model")
    assert ours.params.keys() == theirs.params.keys() and ours.classes == theirs.classes
    for path in ours.params:
        np.testing.assert_array_equal(ours.params[path], theirs.params[path], path)
    _, adapter, _ = results.result("run")
    size = sum(leaf.nbytes for leaf in adapter.params.values())
    assert size < sum(leaf.nbytes for leaf in theirs.params.values()) / 20
    assert (tmp_path / "small/model.safetensors").stat().st_size < size + 3000
    images = np.zeros((2, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(ours.preprocess(images)["pixel_values"], theirs.preprocess(images)["pixel_values"])
