"""A head that is solved for before the first step: `logistic >> finetune` in a training run."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

import jtransfer as jt
from jtransfer import cli, config
from jtransfer.checkpoints import deltas
from jtransfer.data import sources
from jtransfer.data.splits import stratified
from jtransfer.errors import InputError
from jtransfer.train import loop, runs

OFTEN = {"log_every": 1, "eval_every": 2, "checkpoint_every": 2}
STILL = {"name": "sgd", "rate": 1e-30, "decay": 0.0}


def prepared(method, **values):
    values = {"data": "digits", "backbone": "glyphs-vit", "method": method, "batch": 16, "steps": 4, **OFTEN} | values
    return runs.prepare(ConfigDict(config.completed("train", values)))


@pytest.fixture(scope="module")
def split():
    """Features and labels of the nine tenths that are fitted, and of the tenth that chooses."""
    digits, backbone = sources.load("digits", "", ("classes",)), jt.load("glyphs-vit")
    features = np.asarray(backbone(backbone.preprocess(digits.inputs[digits.pool]))["features"])
    labels, rows = digits.labels[digits.pool], np.arange(len(digits.pool))
    chooses = stratified(labels, rows, len(rows) // 10)
    fitted = np.setdiff1d(rows, chooses)
    return (features[fitted], labels[fitted]), (features[chooses], labels[chooses])


@pytest.mark.parametrize(
    ("mesh", "how"),
    [({"data": 1, "rest": -1}, "replicated"), pytest.param({"data": -1}, "fsdp", marks=pytest.mark.slow)],
)
def test_the_first_step_starts_at_the_optimum_that_scikit_learn_finds(split, mesh, how, tmp_path):
    """The steps change nothing here, so that the model at the end is the one at the start."""
    run = prepared("logistic(l2=(1e-4, 1e-2)) >> finetune", optimiser=STILL, mesh=mesh, sharding=how)
    (first, *_) = loop.train(run, tmp_path, lambda row, speed: None)
    (x, y), (others, theirs) = split
    peers = {l2: LogisticRegression(C=1 / (len(x) * l2), tol=1e-8, max_iter=10_000).fit(x, y) for l2 in (1e-4, 1e-2)}
    scores = {l2: peer.score(others, theirs) for l2, peer in peers.items()}
    chosen = min(peers, key=lambda l2: abs(l2 - first["solved_l2"]))
    assert scores[chosen] == max(scores.values()) == pytest.approx(first["solved_accuracy"])
    model = jt.load(str(tmp_path / "model"))
    logits = x @ np.asarray(model.params["source_head/kernel"]) + np.asarray(model.params["source_head/bias"])
    found = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(found, peers[chosen].predict_proba(x), atol=2e-3)


@pytest.mark.slow
def test_a_head_that_is_solved_for_and_learns_no_more_is_there_after_a_stop(goes_on, tmp_path_factory):
    """Nothing is solved for again: it lies in the checkpoint, beside what learns."""
    whole = tmp_path_factory.mktemp("whole")

    def prepare():
        return prepared("prototypes >> rules('encoder/block_0/.*')", ema=0.5, mesh={"data": 1, "rest": -1})

    loop.train(prepare(), whole, lambda row, speed: None)
    about = json.loads((whole / "checkpoints/4/about/metadata").read_text())
    assert any("head/kernel" in path for path in about["sums"])
    goes_on(prepare, 3, whole)


def test_a_head_that_is_solved_for_beside_an_adapter_is_kept_and_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_gates.py").write_text(GATES)
    run = prepared("ridge >> my_gates.gated()", mesh={"data": 1, "rest": -1})
    loop.train(run, tmp_path / "run", lambda row, speed: None)
    assert deltas.is_one(tmp_path / "run/model")
    model = jt.load(str(tmp_path / "run/model"), trust=["my_gates"])
    assert model.methods[0].text.startswith("ridge >> my_gates")
    assert float(np.abs(np.asarray(model.params["source_head/kernel"])).max()) > 0


GATES = """
import flax.linen as nn
from jtransfer.methods import Method, learn

def gated():
    def interceptor(call, args, kwargs, context):
        if context.method_name == "residual":
            x, y, branch = args
            gate = context.module.param(f"{branch}_gate", nn.initializers.ones, (y.shape[-1],))
            return call(x, y * gate, branch)
        return call(*args, **kwargs)
    return Method("gated", learn((".*_gate", 1.0)), (interceptor,), None)
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "glyphs"}, "no end"),
        (
            {"data": "glyphs", "tasks": {"a": {"data": "digits"}, "b": {"data": "digits"}}},
            "a head of one class a row, which digits",
        ),
        ({"data": "npz:few.npz", "method": "prototypes('lda') >> finetune"}, "needs 2 rows of each class; class '2'"),
        ({"data": "npz:values.npz", "objective": "regression"}, "one class a row, which npz:values.npz has not"),
    ],
)
def test_what_no_head_can_be_solved_for_is_refused_before_anything_compiles(values, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 1)).astype(np.uint8), np.arange(20) % 2
    np.savez("values.npz", images=images, labels=labels.astype(np.float32) + 0.5)
    np.savez("few.npz", images=images, labels=np.where(np.arange(20) < 2, 2, labels))
    values = {"method": "logistic >> finetune"} | values
    with pytest.raises(InputError, match=message) as refused:
        prepared(values.pop("method"), **values)
    assert "\n" not in str(refused.value)


def test_what_was_chosen_is_printed_with_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(CONFIG)
    assert cli.main(["train", "--config=c.py", "--workdir=run"]) == 0
    assert "solved_accuracy" in capsys.readouterr().out


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "backbone": "glyphs-vit", "data": "digits", "method": "logistic >> lora(rank=1)", "batch": 16, "steps": 2,
        "log_every": 1, "eval_every": 2, "checkpoint_every": 2, "mesh": {"data": 1, "rest": -1},
    })
"""
