"""Batch normalisation under each method: which statistics a part uses, which move, and how far."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, methods, models
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.methods.statistics import moving
from jtransfer.models.layers import BatchNorm
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, make_step, make_trial, plan, predict
from jtransfer.train.trials import TrialData
from jtransfer.tree import FROZEN, flat, merge, partition

SHAPE, STEPS, BATCH = (8, 8, 1), 3, 16
BLOCKS = ["stage_0/block_0", "stage_0/block_1", "stage_1/block_0"]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet of three blocks in two stages, loaded from a checkpoint whose every leaf is random."""
    model = models.build("resnet", image=(8, 8), channels=1, block="basic", stem=4, widths=(4, 6), depths=(2, 1))
    rng = np.random.default_rng(0)
    shapes = models.shapes_of(models.Classifier(model, 5), model.config.inputs)
    tree = {path: (0.3 * rng.standard_normal(x.shape)).astype(np.float32) for path, x in shapes.items()}
    tree |= {path: np.exp(leaf) for path, leaf in tree.items() if path.endswith(("scale", "var"))}
    directory = tmp_path_factory.mktemp("resnet")
    checkpoints.save(directory, model, tree, tuple("abcde"))
    return jt.load(str(directory))


@pytest.fixture(scope="module")
def adapt(resnet):
    """`adapt(text, *wrap)`: a method on that ResNet with a head for three classes."""

    def make(text, *wrap):
        model = models.Classifier(resnet.model, 3)
        return methods.adapt(methods.parse(text), model, resnet.params | resnet.state, SHAPE, wrap)

    return make


def start(adapted):
    """The tree, its head away from zero so that every gradient counts, and the state."""
    tree, state = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    return tree | {"head/kernel": jax.random.normal(jax.random.key(1), tree["head/kernel"].shape)}, state


@pytest.fixture(scope="module")
def train(adapt, images):
    """`train(text)`: the tree and the state before and after a few steps of a method."""

    @functools.cache
    def run(text):
        adapted = adapt(text)
        tree, state = start(adapted)
        trainable, frozen = partition(tree, adapted.rates)
        transformation = Optimiser("sgd", rate=0.1, schedule="constant", warmup=0).build(adapted.rates, STEPS)
        step = jax.jit(make_step(make_loss(adapted.model, classification()), transformation))
        train_state = TrainState.create(jax.random.key(2), trainable, state, transformation)
        for i in range(STEPS):
            batch = {"inputs": images[0][i * BATCH :][:BATCH], "labels": images[1][i * BATCH :][:BATCH]}
            train_state, _ = step(train_state, frozen, batch)
        return (tree, state), (merge(train_state.trainable, frozen), train_state.state)

    return run


def changed(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def test_the_running_variance_follows_the_unbiased_variance_of_the_batch():
    norm, x = BatchNorm(momentum=0.9), jnp.array([[1.0], [3.0]])  # mean 2, variance 1 over n and 2 over n - 1
    variables = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}
    variables["batch_stats"] = {"mean": jnp.array([10.0]), "var": jnp.array([4.0])}
    y, updated = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, [[-1], [1]], rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * 10 + 0.1 * 2, rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * 4 + 0.1 * 2, rtol=1e-6)
    np.testing.assert_allclose(norm.apply(variables, x, use_running_average=True), [[-4.5], [-3.5]], rtol=1e-4)


def test_outputs_and_gradients_are_those_of_flax_and_survive_a_mean_far_from_zero():
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((64, 3))).astype(np.float32)
    variables = {"params": {"scale": rng.random(3) + 0.5, "bias": rng.random(3)}}
    variables["batch_stats"] = {"mean": np.full(3, 999.0, np.float32), "var": np.ones(3, np.float32)}

    def value_and_grad(norm):
        def loss(x):
            y, _ = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
            return jnp.sum(y**3), y

        grad, y = jax.grad(loss, has_aux=True)(x)
        return y, grad

    for ours, theirs in zip(
        value_and_grad(BatchNorm()), value_and_grad(nn.BatchNorm(use_fast_variance=False)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_a_batch_of_one_value_a_channel_is_refused_in_training(adapt):
    adapted = adapt("finetune")
    tree, state = start(adapted)
    batch = {"inputs": jnp.zeros((1, *SHAPE)), "labels": jnp.zeros(1, int)}
    with pytest.raises(InputError, match="stage_1/block_0/norm_1: one value a channel has no variance"):
        make_loss(adapted.model, classification())(tree, state, batch, jax.random.key(0))


def test_finetuning_starts_from_the_checkpoint_s_statistics_and_moves_all_of_them(train, resnet):
    (_, before), (_, after) = train("finetune")
    assert before.keys() == resnet.state.keys() == after.keys()
    assert all((before[path] == leaf).all() for path, leaf in resnet.state.items())
    assert changed(before, after) == before.keys()


@pytest.mark.parametrize("text", ["probe", "finetune + frozen_norm", "frozen_norm + top_blocks(2)"])
def test_statistics_stay_to_the_bit_under_a_probe_or_frozen_norms(text, train):
    (_, before), (_, after) = train(text)
    assert changed(before, after) == set()


def test_statistics_move_only_in_the_blocks_that_learn(train):
    (_, before), (_, after) = train("top_blocks(1)")
    assert changed(before, after) == {path for path in before if "/stage_1/block_0/" in path}


def test_frozen_norms_still_learn_their_scale_and_bias(train, resnet):
    (before, _), (after, _) = train("finetune + frozen_norm")
    assert changed(before, after) == {path for path in before if not path.startswith("source_head")}
    assert {"stem/norm/scale", "stage_1/block_0/shortcut/norm/bias"} <= changed(before, after)


@pytest.mark.parametrize(("text", "same"), [("finetune", False), ("finetune + frozen_norm", True), ("probe", True)])
def test_training_computes_what_evaluation_does_exactly_where_no_statistics_are_taken(text, same, adapt, images):
    adapted = adapt(text)
    tree, state = start(adapted)

    @jax.jit
    def logits(tree, state):
        options = {"mutable": ["batch_stats"]}
        return [models.apply(adapted.model, tree | state, images[0], train=t, **options)[0] for t in (False, True)]

    evaluated, trained = (outputs["logits"] for outputs in logits(tree, state))
    assert (np.abs(evaluated - trained).max() == 0) == same


def test_evaluation_uses_the_statistics_that_training_left(train, adapt, resnet, images):
    adapted = adapt("finetune")
    (_, before), (tree, after) = train("finetune")
    model = models.Classifier(resnet.model, 3)
    new, old = (predict(adapted, tree, state, images[0]) for state in (after, before))
    expected = models.apply(model, tree | after, images[0], train=False)["logits"]
    np.testing.assert_allclose(new, expected, atol=1e-6)
    assert np.abs(new - old).max() > 1e-3


def test_a_trial_scans_with_the_statistics_in_its_state(adapt, resnet, images):
    data = TrialData(jnp.arange(STEPS * BATCH).reshape(STEPS, BATCH), jnp.arange(9), jnp.ones(9))
    adapted = adapt("top_blocks(1)")
    trial = jax.jit(make_trial(adapted, classification(), Optimiser(), plan(1, STEPS)))
    result = trial(
        jax.random.key(0), {"rate": 1e-2, "decay": 0.0}, adapted.base, {"inputs": images[0], "labels": images[1]}, data
    )
    assert result.score >= 0
    assert changed(resnet.state, result.state) == {path for path in resnet.state if "/stage_1/block_0/" in path}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_blocks_counts_on_from_stage_to_stage(k, adapt):
    rates = adapt(f"top_blocks({k})").rates
    learning = {path.rsplit("/", 2)[0] for path, rate in rates.items() if rate != FROZEN and "block" in path}
    assert {block for block in BLOCKS if any(path.startswith(block) for path in learning)} == set(BLOCKS[-k:])
    others = {path for path, rate in rates.items() if rate != FROZEN and "block" not in path}
    assert others == {"head/kernel", "head/bias"}


def test_top_blocks_takes_the_last_of_each_tower_by_number_and_not_by_letter():
    towers = [f"{tower}/encoder/block_{i}/mlp/up/kernel" for tower in ("vision", "text") for i in range(11)]
    rates = methods.top_blocks(2).learns([*towers, "vision/encoder/norm/scale", "head/kernel"])
    learning = {path for path, rate in rates.items() if rate != FROZEN}
    blocks = {f"{tower}/encoder/block_{i}/mlp/up/kernel" for tower in ("vision", "text") for i in (9, 10)}
    assert learning == {*blocks, "vision/encoder/norm/scale", "head/kernel"}


def test_methods_that_do_not_fit_a_resnet_say_what_there_is(adapt):
    for text, message in {
        "top_blocks(4)": "top_blocks: k=4 is more than the 3 blocks of the model",
        "frozen_norm": "'frozen_norm': nothing learns; add what does, as in 'finetune . frozen_norm'",
        "lora": "lora: target '.*' matches no dense layer and no convolution of one group; there are .*conv",
    }.items():
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            adapt(text)


def test_flax_s_own_batch_norm_is_frozen_as_well(images):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x.reshape(len(x), -1))
            return {"features": x}

    model = models.Classifier(Own(), 3)
    whole = models.complete(model, jax.random.key(0), {}, jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    pretrained = {path: leaf for path, leaf in whole.items() if not path.startswith("head")}
    for text, moves in (("finetune", True), ("finetune + frozen_norm", False)):
        adapted = methods.adapt(methods.parse(text), model, pretrained, SHAPE)
        tree, state = adapted.start(jax.random.key(0), adapted.base)
        _, (_, after) = make_loss(adapted.model, classification())(
            tree, state, {"inputs": images[0], "labels": images[1]}, jax.random.key(0)
        )
        assert bool(changed(state, after)) == moves


def test_every_block_s_stream_is_held_to_the_batch_s_split_and_statistics_are_those_of_the_whole_batch(adapt, images):
    mesh = sharding.make_mesh({"data": 8})
    one, split = adapt("finetune"), adapt("finetune", sharding.keep_batch_split(mesh))
    tree, state = start(one)
    batch = {"inputs": images[0], "labels": images[1]}
    spread = jax.device_put(batch, sharding.batch_sharding(mesh))

    def gradients(adapted):
        loss = make_loss(adapted.model, classification())
        return jax.jit(jax.value_and_grad(lambda *args: loss(*args, jax.random.key(0)), has_aux=True))

    (value, (_, expected)), grads = gradients(one)(tree, state, batch)
    step = gradients(split)
    assert str(step.trace(tree, state, spread).jaxpr).count("sharding_constraint[") == 2 * len(BLOCKS)  # and backward
    (other, (_, found)), other_grads = step(tree, state, spread)
    np.testing.assert_allclose(value, other, atol=1e-5)
    for one, other in ((expected, found), (grads, other_grads)):
        for path, leaf in one.items():
            np.testing.assert_allclose(leaf, other[path], atol=1e-5, err_msg=path)


def test_initialising_leaves_the_statistics_at_zero_and_one(resnet):
    init = functools.partial(resnet.model.init, train=True)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, *SHAPE)))
    assert {f"batch_stats/{path}" for path in flat(variables["batch_stats"])} == resnet.state.keys()
    made = BatchNorm(False).init(jax.random.key(0), jnp.arange(6.0).reshape(3, 2))
    assert (made["batch_stats"]["mean"] == 0).all() and (made["batch_stats"]["var"] == 1).all()


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("probe", None), ("finetune", ""), ("top_blocks(1)", "stage_1/block_0/"), ("finetune + frozen_norm", None)],
)
def test_which_statistics_a_step_moves_is_told_without_running_one(text, prefix, adapt, train):
    adapted = adapt(text)
    expected = {path for path in adapted.state if prefix is not None and path.startswith(f"batch_stats/{prefix}")}
    assert {*moving(adapted)} == expected
    (_, before), (_, after) = train(text)
    assert changed(before, after) == expected
