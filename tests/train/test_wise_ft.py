"""WiSE-FT: what a phase is evaluated at lies between its start and its end, in trials and in the loop alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import checkpoints, config, methods, models
from jtransfer.errors import InputError
from jtransfer.models import Classifier, ViT, ViTConfig, complete
from jtransfer.objectives import classification
from jtransfer.train import Optimiser, TrialData, loop, make_trial, plan, predict, runs

CONFIG = ViTConfig(image=(8, 8), channels=1, patch=4, width=8, depth=1, heads=2)
MODEL = Classifier(ViT(CONFIG), 3)
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=2)
    return ConfigDict(dict(data="digits", backbone="BACKBONE", batch=8, steps=8, optimiser=dict(rate=1e-2), **often))
"""


@pytest.fixture(scope="module")
def backbone():
    return jax.jit(lambda key: complete(ViT(CONFIG), key, {}, CONFIG.inputs))(jax.random.key(7))


def run(text, backbone, solved=()):
    rng = np.random.default_rng(0)
    inputs = {"pixel_values": rng.random((30, 8, 8, 1)).astype(np.float32)}
    rows = TrialData(rng.integers(0, 20, (6, 8)), np.arange(20, 30), np.ones(10, np.float32))
    method = methods.parse(text)
    adapted = methods.adapt(method, MODEL, backbone, CONFIG.inputs)
    trial = make_trial(adapted, classification(), Optimiser(schedule="constant", warmup=0), plan(len(method.phases), 6))
    hyper = {"rate": jnp.float32(1e-2), "decay": jnp.float32(0)}
    examples, base = {"inputs": inputs, "labels": jnp.arange(30) % 3}, backbone | dict(solved)
    return jax.jit(trial)(jax.random.key(1), hyper, base, examples, rows), adapted, examples, rows


def assert_between(found, start, end, alpha):
    assert found.keys() == end.keys()
    for path, leaf in end.items():
        np.testing.assert_allclose(found[path], (1 - alpha) * start[path] + alpha * leaf, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_a_trial_ends_between_the_solved_head_and_the_end_and_is_scored_there(backbone):
    head = {"head/kernel": jnp.ones((8, 3)), "head/bias": jnp.arange(3.0)}
    end, *_ = run("logistic >> finetune", backbone, head)
    found, adapted, examples, rows = run("logistic >> finetune + wise_ft(0.25)", backbone, head)
    np.testing.assert_array_equal(found.losses, end.losses)  # the training is the same
    assert_between(found.trainable, backbone | head, end.trainable, 0.25)
    inputs = jax.tree.map(lambda x: x[rows.validation], examples["inputs"])
    labels = examples["labels"][rows.validation]
    logits = predict(adapted, found.trainable, {}, inputs)
    expected = -jax.nn.log_softmax(logits)[jnp.arange(10), labels].mean()
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)


def test_a_phase_begins_where_the_one_before_it_ended_and_ends_between_by_itself(backbone):
    end, *_ = run("probe >> finetune", backbone)
    found, *_ = run("probe >> finetune + wise_ft(0.5)", backbone)
    start = run("probe >> finetune + wise_ft(0)", backbone)[0].trainable
    assert all((start[path] == leaf).all() for path, leaf in backbone.items())
    assert start["head/kernel"].any()  # of the probe
    assert_between(found.trainable, start, end.trainable, 0.5)


def test_a_phase_that_follows_begins_between(backbone):
    found, *_ = run("(probe >> finetune + wise_ft(0)) >> probe", backbone)
    assert all((found.trainable[path] == leaf).all() for path, leaf in backbone.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("finetune + wise_ft", "the head of the first knows nothing; start it, as in 'logistic >> finetune"),
        ("logistic >> lora + wise_ft", "none has the leaf '.*lora/a' that it adds and trains"),
        ("logistic >> finetune + wise_ft(1.5)", "expected a number from 0 to 1"),
        ("logistic >> wise_ft", "nothing learns; add what does"),
    ],
)
def test_where_nothing_lies_between_two_models_it_is_refused_in_one_line(text, said, backbone):
    with pytest.raises(InputError, match=said) as refused:
        methods.adapt(methods.parse(text), MODEL, backbone, CONFIG.inputs)
    assert "\n" not in str(refused.value)


def test_batch_statistics_that_move_are_refused():
    resnet = models.build("resnet", image=(32, 32), channels=1, block="basic", stem=4, widths=(4,), depths=(1,))
    model = Classifier(resnet, 3)
    tree = jax.jit(lambda key: complete(resnet, key, {}, resnet.config.inputs))(jax.random.key(0))
    with pytest.raises(InputError, match="batch statistics move, between which there is none; add frozen_norm"):
        methods.adapt(methods.parse("logistic >> finetune + wise_ft"), model, tree, resnet.config.inputs)
    methods.adapt(methods.parse("logistic >> finetune + frozen_norm + wise_ft"), model, tree, resnet.config.inputs)


@pytest.fixture(scope="module")
def file(vit, backbone, tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    checkpoints.save(directory, ViT(CONFIG), backbone)
    path = directory / "train.py"
    path.write_text(FILE.replace("BACKBONE", str(directory)))
    return str(path)


def prepared(file, method, *overrides):
    return runs.prepare(config.load("train", file, [f"--config.method={method}", *overrides])[1])


@pytest.mark.slow
def test_a_run_keeps_what_lies_between_and_goes_on_to_it_after_a_stop(file, backbone, tmp_path, goes_on):
    flag, trees = "--config.ema=0.5", []
    for name in ("logistic >> finetune", "logistic >> finetune + wise_ft(0.25)"):
        directory = tmp_path / str(len(trees))
        loop.train(prepared(file, name, flag), directory, lambda row, speed: None)
        trees.append(checkpoints.load(str(directory / "model")).params)
    end, between = ({path: tree[path] for path in backbone} for tree in trees)
    assert_between(between, backbone, end, 0.25)
    goes_on(lambda: prepared(file, name, flag), 6, directory)
    step, tree = loop.restored(prepared(file, name, flag), directory)
    assert step == 8 and not [path for path in tree if path.startswith("began/")]
    np.testing.assert_array_equal(tree["encoder/norm/scale"], between["encoder/norm/scale"])
