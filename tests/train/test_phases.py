"""Phases: one partition after another, in trials and in the loop alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtransfer import methods
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.methods import parse
from jtransfer.models import Classifier, ViT, ViTConfig, complete
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, TrialData, costs, make_step, make_trial, plan
from jtransfer.train.phases import carried, entered
from jtransfer.train.state import lay_out
from jtransfer.tree import FROZEN, merge, partition

CONFIG = ViTConfig(image=(8, 8), channels=1, patch=4, width=8, depth=2, heads=2)
MODEL = Classifier(ViT(CONFIG), 3)
EXAMPLE = CONFIG.inputs
CONSTANT = Optimiser(rate=1e-2, schedule="constant", warmup=0)


@pytest.fixture(scope="module")
def backbone():
    return jax.jit(lambda key: complete(ViT(CONFIG), key, {}, EXAMPLE))(jax.random.key(7))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = {"pixel_values": rng.random((30, 8, 8, 1)).astype(np.float32)}
    rows = TrialData(rng.integers(0, 20, (6, 8)), np.arange(20, 30), np.ones(10, np.float32))
    return inputs, jnp.arange(30) % 3, rows


def run(method, backbone, data, optimiser=CONSTANT, *, steps=6, each=(), factors=()):
    method = parse(method)
    adapted = methods.adapt(method, MODEL, backbone, EXAMPLE)
    trial = make_trial(adapted, classification(), optimiser, plan(len(method.phases), steps, each, factors))
    rows = data[2]._replace(batches=data[2].batches[:steps])
    hyper = {"rate": jnp.float32(1e-2), "decay": jnp.float32(0)}
    return jax.jit(trial)(jax.random.key(1), hyper, adapted.base, {"inputs": data[0], "labels": data[1]}, rows)


def test_steps_are_shared_evenly_or_as_they_are_given():
    assert plan(3, 8) == ((3, 3, 2), (1.0, 1.0, 1.0))
    assert plan(2, 8, (1, 7), (10.0, 1.0)).ends == (1, 8)
    assert [plan(2, 8, (1, 7)).at(step) for step in (0, 1, 2, 8)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((3, 2), "config.steps is 2; expected at least 3, one for each phase of the method"),
        ((2, 9, (1, 2, 6)), "config.phase_steps has 3 numbers; expected 2, one for each phase"),
        ((2, 9, (), (1.0,)), "config.phase_rates has 1 numbers; expected 2"),
        ((2, 9, (1, 7)), "config.phase_steps add up to 8; expected config.steps, which is 9"),
    ],
)
def test_phases_that_do_not_fit_the_steps_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        plan(*numbers)


@pytest.mark.slow
def test_the_first_phase_is_the_method_that_it_names_and_the_second_goes_on_from_it(backbone, data):
    both = run("probe >> finetune", backbone, data, each=(4, 2))
    alone = run("probe", backbone, data, steps=4)
    np.testing.assert_array_equal(both.losses[:4], alone.losses)
    assert {*alone.trainable} == {"head/kernel", "head/bias"} < {*both.trainable} == {*backbone} | {*alone.trainable}
    assert all((both.trainable[path] != leaf).any() for path, leaf in backbone.items())
    # By hand, from what the probe came to.
    finetune = methods.adapt(parse("finetune"), MODEL, backbone, EXAMPLE)
    optimiser = CONSTANT.build(finetune.rates, 2, since={path: path in backbone for path in finetune.rates})
    state = TrainState.create(jax.random.key(0), merge(backbone, alone.trainable), {}, optimiser)
    step = jax.jit(make_step(make_loss(finetune.model, classification()), optimiser))
    batch = {
        "inputs": {"pixel_values": data[0]["pixel_values"][data[2].batches[4]]},
        "labels": data[1][data[2].batches[4]],
    }
    np.testing.assert_allclose(step(state, {}, batch)[1]["loss"], both.losses[4], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_leaf_that_goes_on_learning_keeps_its_moments(name, backbone, data):
    """Two phases of one partition are one phase, where the schedule is constant."""
    optimiser = Optimiser(name, rate=1e-2, schedule="constant", warmup=0)
    once, twice = (run(method, backbone, data, optimiser) for method in ("finetune", "finetune >> finetune"))
    np.testing.assert_allclose(twice.losses, once.losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), once.trainable, twice.trainable)


def test_a_leaf_that_begins_later_has_its_moments_corrected_from_its_own_start(backbone):
    """Adam's first step is of the size of the rate, whatever the gradient: not three times that."""
    adapted = methods.adapt(parse("probe >> finetune"), MODEL, backbone, EXAMPLE)
    first, second = adapted.phases
    tree = {path: jnp.zeros(leaf.shape) for path, leaf in adapted.shapes.items()}
    trainable, frozen = partition(tree, first.rates)
    optimiser = Optimiser(rate=1e-2, schedule="constant", warmup=0, clip=0)
    before, after = (optimiser.build(one.rates, 5, since=one.since) for one in (first, second))
    state = TrainState.create(jax.random.key(0), trainable, {}, before)
    for _ in range(5):
        _, moments = before.update(
            {path: jnp.full(x.shape, 0.3) for path, x in trainable.items()}, state.opt_state, trainable
        )
        state = state.replace(opt_state=moments)
    state, kept, others = entered(adapted, 1, state, frozen, after)
    assert not kept and not others
    grads = {path: jnp.full(x.shape, 0.3) for path, x in state.trainable.items()}
    updates, _ = after.update(grads, state.opt_state, state.trainable)
    for path, update in updates.items():
        np.testing.assert_allclose(update, -1e-2, rtol=1e-3, err_msg=path)


def test_moments_are_carried_by_the_names_of_leaves_into_another_partition():
    rates = {"a": 1.0, "b": 1.0, "c": FROZEN}
    old = CONSTANT.build(rates, 3)
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    _, state = old.update(params, old.init(params), params)
    new = CONSTANT.build({"a": FROZEN, "b": 1.0, "c": 1.0}, 3, since={"b": 0, "c": 1})
    moved = carried(new.init({"b": jnp.ones(3), "c": jnp.ones(1)}), state)
    found = {}
    for one in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)):
        if isinstance(one, optax.ScaleByAdamState):
            found |= {path: (int(one.count), float(x[0])) for path, x in one.mu.items() if hasattr(x, "shape")}
    assert found["b"][0] == 1 and found["b"][1] != 0 and found["c"] == (0, 0.0)


def test_a_factor_on_the_rate_of_a_phase_is_that_of_the_optimiser(backbone, data):
    whole = run("probe >> finetune", backbone, data, factors=(1.0, 1e-6))
    assert max(np.abs(whole.trainable[path] - leaf).max() for path, leaf in backbone.items()) < 1e-6


def test_phase_k_of_gradual_unfreezing_costs_what_the_top_k_blocks_cost(backbone):
    """Howard & Ruder 2018 (arXiv:1801.06146)."""
    names = ["probe", "top_blocks(1)", "top_blocks(2)", "finetune"]
    adapted = methods.adapt(parse(" >> ".join(names)), MODEL, backbone, EXAMPLE)

    def shapes(one):
        return costs.step_shapes(one, classification(), Optimiser(), 8)

    def flops(one):
        return costs.step_flops(shapes(one))

    alone = [flops(methods.adapt(parse(name), MODEL, backbone, EXAMPLE)) for name in names]
    each = [flops(phase) for phase in adapted.phases]
    np.testing.assert_allclose(each, alone, rtol=0.01)  # steps of leaves of two ages are counted apart
    assert each == sorted(each)
    assert costs.flops_per_step([*map(shapes, adapted.phases)], plan(4, 8)) == pytest.approx(np.mean(each))


def test_gradual_unfreezing_by_name_is_the_same_phases_written_out(backbone):
    short, long = (
        methods.adapt(parse(text), MODEL, backbone, EXAMPLE)
        for text in ("unfreeze(1)", "probe >> top_blocks(1) >> finetune")
    )
    assert [one.rates for one in short.phases] == [one.rates for one in long.phases]
    decayed = methods.adapt(parse("unfreeze(1, decay=0.5)"), MODEL, backbone, EXAMPLE)
    whole = methods.adapt(parse("layerwise(0.5)"), MODEL, backbone, EXAMPLE).rates
    for phase, plain in zip(decayed.phases, long.phases, strict=True):
        assert phase.rates == {path: rate and whole[path] for path, rate in plain.rates.items()}
    assert decayed.phases[1].rates["encoder/block_1/mlp/up/kernel"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unfreeze(2, 1)", "unfreeze: expected numbers of blocks that rise, found 2, 1"),
        ("unfreeze(0)", "'unfreeze': blocks: expected a whole number of at least 1, found 0"),
        ("unfreeze(3)", "k=3 is more than the 2 blocks of the model"),
        ("unfreeze(decay=0)", "decay: expected a number above 0, found 0"),
    ],
)
def test_unfreezing_that_cannot_be_is_refused(text, message, backbone):
    with pytest.raises(InputError, match=message):
        methods.adapt(parse(text), MODEL, backbone, EXAMPLE)


def test_what_a_later_phase_adds_is_not_there_before(backbone):
    first, second = methods.adapt(parse("finetune >> lora(rank=2)"), MODEL, backbone, EXAMPLE).phases
    added = {path for path in second.shapes if "/lora/" in path}
    assert added and all(first.rates[path] == FROZEN for path in added)
    assert {path for path, rate in second.rates.items() if rate != FROZEN} == added | {"head/kernel", "head/bias"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(probe >> finetune) + (probe >> bitfit)", "both have phases; write the sum of each"),
        ("lora >> lora", "both update kernels"),
        ("probe >> frozen_norm", "nothing learns"),
        ("probe >> finetun", "did you mean 'finetune'"),
        ("probe >>", "is not of the form"),
        ("probe << finetune", "is not of the form"),
    ],
)
def test_phases_that_cannot_be_are_refused_by_name(text, message, backbone):
    with pytest.raises(InputError, match=message):
        methods.adapt(parse(text), MODEL, backbone, EXAMPLE)


@pytest.mark.slow
def test_l2sp_of_a_huge_weight_stays_at_the_start_and_of_none_is_the_method_without_it(backbone, data):
    """Li et al. 2018 (arXiv:1802.01483)."""
    longer = *data[:2], data[2]._replace(batches=np.tile(data[2].batches, (10, 1)))

    def moved(method):
        result = run(method, backbone, longer, Optimiser(rate=1e-2), steps=60)
        return result, max(float(np.abs(result.trainable[path] - leaf).max()) for path, leaf in backbone.items())

    free, far = moved("finetune")
    none, as_far = moved("finetune + l2sp(alpha=0, beta=0)")
    np.testing.assert_allclose(none.losses, free.losses, rtol=1e-4)
    assert as_far == pytest.approx(far, rel=0.05)
    assert moved("finetune + l2sp(alpha=1e6, beta=0)")[1] < far / 10
    head = {path: float(np.abs(x).max()) for path, x in run("probe + l2sp(beta=1e6)", backbone, data).trainable.items()}
    assert max(head.values()) < 0.05


def test_l2sp_adds_what_its_formula_says(backbone, data):
    adapted = methods.adapt(parse("finetune + l2sp(alpha=0.3, beta=0.2)"), MODEL, backbone, EXAMPLE)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), backbone)
    tree = {path: leaf + 0.1 for path, leaf in tree.items()}
    batch = {"inputs": {"pixel_values": data[0]["pixel_values"][:8]}, "labels": data[1][:8]}
    values = [
        make_loss(adapted.model, classification(), scores)(tree | held, {}, batch, jax.random.key(0))[0]
        for scores, held in ((adapted.scores, adapted.holds(backbone)), (lambda score: score, {}))
    ]
    count = sum(leaf.size for leaf in backbone.values())
    head = sum(float(jnp.sum(tree[path] ** 2)) for path in tree if path not in backbone)
    np.testing.assert_allclose(values[0] - values[1], 0.15 * 0.01 * count + 0.1 * head, rtol=1e-4)


def test_l2sp_belongs_to_its_phase_alone(backbone, data):
    plain, held = (run(f"probe >> finetune{more}", backbone, data) for more in ("", " + l2sp(alpha=1e3, beta=0)"))
    np.testing.assert_array_equal(plain.losses[:3], held.losses[:3])
    assert (plain.losses[4:] != held.losses[4:]).any()


def test_what_a_method_holds_is_there_when_its_step_is_counted(backbone):
    """A score may need it: without it there would be nothing to count."""

    def scores(score):
        return lambda params, outputs, batch: (jnp.sum(params["kept/cls"]), score(params, outputs, batch)[1])

    def holds(base):
        return {"kept/cls": base["embeddings/cls"]}

    method = parse("finetune") + methods.Method("holding", methods.learn(), scores=scores, holds=holds)
    adapted = methods.adapt(method, MODEL, backbone, EXAMPLE)
    shapes = costs.step_shapes(adapted, classification(), Optimiser(), 8)
    assert "kept/cls" in shapes.arguments[1] and costs.step_flops(shapes) > 0
    leaves = sharding.tree_shardings(adapted.shapes, mesh := sharding.make_mesh({"data": -1}), "replicated")
    assert lay_out(shapes.arguments, leaves, mesh)[1]["kept/cls"].sharding.is_fully_replicated
