"""A trial alone and the same trial among others; what a diverged one does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.objectives import classification
from jtransfer.train import Optimiser, TrialData, costs, make_trial, plan, predict, predict_rows
from jtransfer.train.trials import in_blocks
from jtransfer.tree import merge, partition

STEPS = 10
KEYS = jax.random.split(jax.random.key(0), 3)
RATES = {"rate": jnp.array([1e-3, 1e-2]), "decay": jnp.zeros(2)}


def trial_data(images):
    rng = np.random.default_rng(0)
    order = np.stack([rng.integers(0, 36, (STEPS, 8)) for _ in KEYS])
    return TrialData(order, np.tile(np.arange(36, 48), (3, 1)), np.ones((3, 12), np.float32))


def examples(images):
    return {"inputs": images[0], "labels": images[1]}


def at(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def runs(request, vit, backbone, images):
    """A LoRA trial for every seed and rate: all side by side, and one by one."""
    adapted = methods.adapt(methods.lora(rank=2) + methods.bitfit(), models.Classifier(vit, 3), backbone, (8, 8, 1))
    trial = make_trial(adapted, classification(), Optimiser(request.param), plan(1, STEPS))
    data = trial_data(images)
    over_rates = jax.vmap(trial, (None, 0, None, None, None))
    together = jax.jit(jax.vmap(over_rates, (0, None, None, None, 0)))(
        KEYS, RATES, adapted.base, examples(images), data
    )
    alone = partial(jax.jit(trial), base=adapted.base, examples=examples(images))
    singles = {(i, j): alone(KEYS[i], at(RATES, j), data=at(data, i)) for i in range(3) for j in range(2)}
    return request.param, adapted, together, singles


def test_a_trial_alone_and_among_others_agree(runs, images):
    name, adapted, together, singles = runs
    _, frozen = partition(adapted.base | {p: None for p in adapted.shapes if p not in adapted.base}, adapted.rates)
    logits = jax.jit(lambda trainable: predict(adapted, merge(trainable, frozen), {}, images[0]))
    for index, alone in singles.items():
        np.testing.assert_allclose(together.losses[index], alone.losses, atol=1e-5)
        np.testing.assert_allclose(together.score[index], alone.score)
        np.testing.assert_allclose(logits(at(together.trainable, *index)), logits(alone.trainable), atol=1e-5)
        if name == "sgd":  # Adam divides by gradients that are zero but for rounding (the bias of the keys)
            for path, leaf in alone.trainable.items():
                np.testing.assert_allclose(together.trainable[path][index], leaf, atol=1e-5, err_msg=path)


def test_seeds_and_rates_make_a_difference(runs):
    _, _, together, _ = runs
    last = np.asarray(together.losses[..., -1])
    assert len(np.unique(last)) == 6


def test_frozen_weights_are_held_once(vit, backbone, images):
    """Arguments and temporaries of 8 probe trials hold one copy of the backbone, not 8."""
    adapted = methods.adapt(methods.probe(), models.Classifier(vit, 3), backbone, (8, 8, 1))
    trial = make_trial(adapted, classification(), Optimiser(), plan(1, STEPS))
    over = jax.jit(jax.vmap(trial, (None, 0, None, None, None)))
    hyper = {"rate": jnp.linspace(1e-3, 1e-2, 8), "decay": jnp.zeros(8)}
    lowered = over.lower(KEYS[0], hyper, adapted.base, examples(images), at(trial_data(images), 0))
    single = jax.jit(trial).lower(KEYS[0], at(hyper, 0), adapted.base, examples(images), at(trial_data(images), 0))
    # Eight heads on one frozen forward pass: far less than twice the work of one.
    assert lowered.cost_analysis()["flops"] < 1.5 * single.cost_analysis()["flops"]


def test_a_diverged_trial_counts_as_the_worst_and_the_others_go_on(vit, backbone, images):
    adapted = methods.adapt(methods.finetune(), models.Classifier(vit, 3), backbone, (8, 8, 1))
    trial = make_trial(adapted, classification(), Optimiser("sgd", clip=0.0), plan(1, STEPS))
    over = jax.jit(jax.vmap(trial, (None, 0, None, None, None)))
    hyper = {"rate": jnp.array([1e-2, 1e30]), "decay": jnp.zeros(2)}
    result = over(KEYS[0], hyper, adapted.base, examples(images), at(trial_data(images), 0))
    assert result.score[1] == -np.inf and result.loss[1] == np.inf
    assert 0 <= result.score[0] <= 1 and np.isfinite(result.loss[0]) and np.isfinite(result.losses[0]).all()


def test_inputs_by_name_make_the_same_program_as_one_array(vit, backbone, images):
    model, data, hyper = models.Classifier(vit, 3), at(trial_data(images), 0), at(RATES, 0)
    programs = []
    for example, inputs in (((8, 8, 1), images[0]), (vit.config.inputs, {"pixel_values": images[0]})):
        adapted = methods.adapt(methods.lora(rank=2), model, backbone, example)
        trial = jax.jit(make_trial(adapted, classification(mixup=0.2), Optimiser(), plan(1, STEPS)))
        programs.append(trial.lower(KEYS[0], hyper, adapted.base, examples((inputs, images[1])), data).as_text())
    assert programs[0] == programs[1]


def test_whole_numbers_are_not_mixed(vit, backbone):
    model = models.build("bert", vocabulary=9, positions=8, width=16, depth=1, heads=2)
    adapted = methods.adapt(methods.scratch(), models.Classifier(model, 3), {}, model.config.inputs)
    shapes = costs.step_shapes(adapted, classification(mixup=0.2), Optimiser(), 4)
    with pytest.raises(
        InputError, match=r"mixup is 0.2, but attention_mask, input_ids, .* are whole numbers, which cannot be mixed"
    ):
        jax.eval_shape(shapes.step, *shapes.arguments)


@pytest.mark.parametrize("count", [5, 6, 7, 23])
def test_predictions_in_blocks_are_those_at_once(vit, backbone, images, count):
    rows = np.random.default_rng(count).permutation(48)[:count]
    seen = []

    def call(some):
        seen.append(len(some["x"]))
        return {"sum": some["x"].sum((1, 2, 3)), "double": 2 * some["x"]}

    blocked = in_blocks(call, {"x": jnp.asarray(images[0])}, rows, block=6)
    whole = call({"x": images[0][rows]})
    assert seen[:-1] and set(seen[:-1]) == {-(-count // -(-count // 6))}  # even blocks
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape and jnp.allclose(a, b), blocked, whole))


def test_memory_of_predictions_does_not_grow_with_their_number(vit, backbone, images):
    adapted = methods.adapt(methods.probe(), models.Classifier(vit, 3), backbone, (8, 8, 1))
    tree, _ = jax.eval_shape(adapted.start, KEYS[0], adapted.base)

    def temporary(count):
        program = jax.jit(lambda tree, x: predict_rows(adapted, tree, {}, x, np.arange(count)))
        inputs = jax.ShapeDtypeStruct((count, 8, 8, 1), jnp.float32)
        return program.lower(tree, inputs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 1.5 * temporary(512)
