"""What a step costs and keeps: frozen means free, whatever reads the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtransfer import methods, models, objectives
from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, costs, make_step, predict
from jtransfer.tree import flat, partition, select

# The size of the claim: 12 blocks of width 384.
VIT_S = models.build("vit", image=(64, 64), patch=16, width=384, depth=12, heads=6)
EVERYTHING = {"accumulate": 2, "ema": 0.99}


@pytest.fixture(scope="module")
def large():
    model = models.Classifier(VIT_S, 10)
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"])
    return model, {path: leaf for path, leaf in shapes.items() if not path.startswith("head")}


def step_flops(large, text, batch=16):
    """With grad-norm metric, global-norm clip, two accumulated parts and a moving average all on."""
    model, base = large
    adapted = methods.adapt(methods.parse(text), model, base, (64, 64, 3))
    shapes = costs.step_shapes(adapted, classification(), Optimiser(clip=1.0, decay=0.1), batch, **EVERYTHING)
    return costs.step_flops(shapes)


def test_a_probe_step_costs_at_most_1_05_forward_passes(large):
    model, base = large
    head = {"head/kernel": jnp.zeros((384, 10)), "head/bias": jnp.zeros(10)}
    forward = costs.forward_flops(model, base | head, jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.float32))
    assert forward > 16 * 2 * 12 * 12 * 384**2 * 17  # batch x 2 x (12 w^2 a block) x tokens, attention aside
    assert step_flops(large, "probe") <= 1.05 * forward


def test_a_lora_step_costs_at_most_0_70_of_a_full_finetuning_step(large):
    assert step_flops(large, "lora(rank=8)") <= 0.70 * step_flops(large, "finetune")


def test_accumulated_parts_are_counted_each(large):
    model, base = large
    adapted = methods.adapt(methods.probe(), model, base, (64, 64, 3))
    whole = costs.step_flops(costs.step_shapes(adapted, classification(), Optimiser(), 16))
    parts = costs.step_flops(costs.step_shapes(adapted, classification(), Optimiser(), 16, accumulate=4))
    assert parts == pytest.approx(whole, rel=0.01)


def test_the_compiled_step_agrees_with_the_lowered_count_and_needs_less_memory_when_frozen(vit, backbone):
    def shapes(text):
        adapted = methods.adapt(methods.parse(text), models.Classifier(vit, 3), backbone, (8, 8, 1))
        return costs.step_shapes(adapted, classification(), Optimiser(), 64)

    compiled = jax.jit(shapes("finetune").step).lower(*shapes("finetune").arguments).compile()
    assert costs.step_flops(shapes("finetune")) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)
    assert costs.temporary_bytes(shapes("probe")) < 0.5 * compiled.memory_analysis().temp_size_in_bytes


def test_flops_are_counted_in_the_forms_of_the_cpu_whatever_the_platform(large, monkeypatch):
    """JAX counts nothing for GPU and TPU, and a fused attention kernel would count as zero."""
    here = step_flops(large, "probe")
    with layers.compiling_for("gpu"):
        assert step_flops(large, "probe") == here

    def missing(backend):
        raise RuntimeError("Unknown backend")

    monkeypatch.setattr(jax, "local_devices", missing)
    with pytest.raises(InputError, match="JAX_PLATFORMS=cpu leaves out the CPU, for which FLOPs are counted"):
        step_flops(large, "probe")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("text", ["probe", "lora(rank=2)", "finetune(backbone=0.1)"])
def test_the_optimiser_keeps_state_for_exactly_the_leaves_that_learn(name, text, vit, backbone):
    adapted = methods.adapt(methods.parse(text), models.Classifier(vit, 3), backbone, (8, 8, 1))
    shapes = costs.step_shapes(adapted, classification(), Optimiser(name), 8)
    state, frozen, _ = shapes.arguments
    trainable, _ = partition(adapted.shapes, adapted.rates)
    keys = [
        [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in adapted.shapes]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if leaf.ndim
    ]
    moments = {"adamw": 2, "sgd": 1}[name]
    assert sorted(key for (key,) in keys) == sorted([*trainable] * moments)
    assert not trainable.keys() & frozen.keys()
    parameters = sum(np.prod(leaf.shape) for leaf in trainable.values())
    assert costs.optimiser_bytes(shapes) == pytest.approx(4 * moments * parameters, abs=64)  # and a few counters


@pytest.fixture(scope="module")
def small(vit, backbone):
    """A probe, so that everything can be checked by hand: start, one step's function and its loss."""
    adapted = methods.adapt(methods.probe(), models.Classifier(vit, 3), backbone, (8, 8, 1))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    return adapted, *partition(tree, adapted.rates)


def run(small, images, steps, **options):
    adapted, trainable, frozen = small
    optimiser = Optimiser("sgd", rate=0.2, schedule="constant", warmup=0.0, clip=0.0, momentum=0.0)
    transformation = optimiser.build(adapted.rates, steps)
    step = jax.jit(make_step(make_loss(adapted.model, classification()), transformation, **options))
    state = TrainState.create(jax.random.key(1), trainable, {}, transformation, options.get("ema", 0.0))
    states = [state]
    for _ in range(steps):
        state, metrics = step(state, frozen, {"inputs": images[0], "labels": images[1]})
        states.append(state)
    return states, metrics


@pytest.mark.parametrize("unroll", [False, True])
def test_parts_of_a_mean_over_tokens_count_by_their_tokens(unroll):
    counts, x = jnp.array([1.0, 5, 0, 2, 3, 4, 0, 7]), jnp.arange(8.0)

    def loss(params, state, batch, key):  # the mean of (w - x)^2 over all tokens, of which some parts have none
        total = batch["counts"].sum()
        value = (batch["counts"] * (params["w"] - batch["x"]) ** 2).sum() / jnp.maximum(total, 1)
        return value, ({"loss": value, "weight": total}, state)

    found = []
    for parts in (1, 4):
        state = TrainState.create(jax.random.key(0), {"w": jnp.float32(1)}, {}, optax.sgd(1.0))
        step = make_step(loss, optax.sgd(1.0), parts, unroll=unroll)
        state, metrics = jax.jit(step)(state, {}, {"counts": counts, "x": x})
        assert metrics.keys() == {"loss", "grad_norm"}
        found.append((state.trainable["w"], metrics["loss"]))
    gradient = float((2 * counts * (1 - x)).sum() / counts.sum())
    np.testing.assert_allclose(found, [(1 - gradient, (counts * (1 - x) ** 2).sum() / counts.sum())] * 2, rtol=1e-6)


def test_the_gradient_of_accumulated_parts_is_that_of_the_whole_batch(small, images):
    (_, whole), metrics = run(small, images, 1)
    (_, parts), by_parts = run(small, images, 1, accumulate=4)
    for path, leaf in whole.trainable.items():
        np.testing.assert_allclose(parts.trainable[path], leaf, atol=1e-6)
    for name in ("loss", "accuracy", "grad_norm"):
        np.testing.assert_allclose(by_parts[name], metrics[name], rtol=1e-5)


def test_the_moving_average_follows_its_formula_and_is_kept_apart(small, images):
    states, _ = run(small, images, 3, ema=0.9)
    expected = states[0].trainable["head/bias"]
    for state in states[1:]:
        expected = 0.9 * expected + 0.1 * state.trainable["head/bias"]
    np.testing.assert_allclose(states[-1].average["head/bias"], expected, atol=1e-6)
    assert select(states[-1].state, "ema/").keys() == states[-1].trainable.keys()
    without, _ = run(small, images, 3)
    assert (without[-1].trainable["head/bias"] == states[-1].trainable["head/bias"]).all()


def test_the_first_loss_is_that_of_a_uniform_prediction_and_training_lowers_it(small, images):
    _, first = run(small, images, 1)
    _, later = run(small, images, 50)
    assert first["loss"] == pytest.approx(np.log(3), rel=1e-5)  # the head starts at zero
    assert later["loss"] < 0.9 * np.log(3)


def test_label_smoothing_and_mixup_follow_their_formulas(small, images):
    adapted, _trainable, frozen = small
    rng = np.random.default_rng(0)
    head = {"head/kernel": rng.normal(size=(16, 3)).astype("f"), "head/bias": rng.normal(size=3).astype("f")}
    inputs, labels = images[0][:8], images[1][:8]
    batch, key = {"inputs": inputs, "labels": labels}, jax.random.key(3)

    @jax.jit
    def log_probabilities(inputs):
        return jax.nn.log_softmax(predict(adapted, frozen | head, {}, inputs))

    def loss(**options):
        return jax.jit(make_loss(adapted.model, classification(**options)))(frozen | head, {}, batch, key)[0]

    smoothed = loss(smoothing=0.3)
    targets = 0.7 * np.eye(3)[labels] + 0.1
    assert smoothed == pytest.approx(float(-(targets * log_probabilities(inputs)).sum(1).mean()), rel=1e-5)

    mixed = loss(mixup=0.4)
    weight = float(jax.random.beta(jax.random.split(key)[0], 0.4, 0.4))
    targets = weight * np.eye(3)[labels] + (1 - weight) * np.roll(np.eye(3)[labels], 1, axis=0)
    blended = weight * inputs + (1 - weight) * np.roll(inputs, 1, axis=0)
    assert mixed == pytest.approx(float(-(targets * log_probabilities(blended)).sum(1).mean()), rel=1e-5)


def test_cutmix_puts_a_box_of_the_neighbour_over_a_share_of_each_image():
    """The weight is the share that is left, and its mean that of Beta(1, 1) with boxes cut at the border."""
    images = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 20, 30, 1))
    batch = {"inputs": {"pixel_values": images}, "labels": jnp.arange(4)}
    mix = jax.jit(jax.vmap(classification(cutmix=1.0).augment, (0, None)))
    found = mix(jax.random.split(jax.random.key(0), 500), batch)
    mixed, weights = found["inputs"]["pixel_values"][..., 0], found["weight"]
    np.testing.assert_allclose((mixed[:, 2] == 2).mean((1, 2)), weights, atol=1e-6)
    assert {*np.unique(mixed[:, 2]).tolist()} == {1.0, 2.0}
    rows, columns = (mixed[:, 2] == 1).any(2).sum(1), (mixed[:, 2] == 1).any(1).sum(1)
    np.testing.assert_array_equal((mixed[:, 2] == 1).sum((1, 2)), rows * columns)  # one box, the same in each image
    np.testing.assert_array_equal(mixed[:, 3] == 2, mixed[:, 2] == 1)
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.random(200_000))
    inside = [np.minimum(c + side / 2, 1) - np.maximum(c - side / 2, 0) for c in rng.random((2, len(side)))]
    assert weights.mean() == pytest.approx(1 - (inside[0] * inside[1]).mean(), abs=0.05)


def test_cutmix_beside_mixup_takes_turns():
    images = jnp.broadcast_to(jnp.arange(2.0)[:, None, None, None], (2, 8, 8, 1))
    batch = {"inputs": {"pixel_values": images}, "labels": jnp.arange(2)}
    mix = jax.jit(jax.vmap(classification(mixup=1.0, cutmix=1.0).augment, (0, None)))
    mixed = mix(jax.random.split(jax.random.key(0), 400), batch)["inputs"]["pixel_values"]
    blended = np.ptp(mixed[:, 0], axis=(1, 2, 3)) == 0
    whole = (mixed[:, 0] == 0).all((1, 2, 3)) | (mixed[:, 0] == 1).all((1, 2, 3))
    assert (blended & ~whole).mean() == pytest.approx(0.5, abs=0.1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_step(None, None, ema=NAN), "ema: expected a number of at least 0 and below 1, found nan"),
        (lambda: make_step(None, None, ema=1.0), "ema: expected a number of at least 0 and below 1, found 1.0"),
        (lambda: make_step(None, None, accumulate=0), "accumulate: expected a whole number of at least 1, found 0"),
        (lambda: make_step(None, None, accumulate=2.0), "accumulate: expected a whole number of at least 1, found 2.0"),
        (lambda: TrainState.create(None, {}, {}, None, ema=-0.1), "ema: .*, found -0.1"),
        (lambda: classification(smoothing=2), "smoothing: expected a number of at least 0 and below 1, found 2"),
        (lambda: classification(smoothing=NAN), "smoothing: .*, found nan"),
        (lambda: classification(mixup=-1), "mixup: expected a number of at least 0, found -1"),
        (lambda: classification(mixup=float("inf")), "mixup: .*, found inf"),
        (lambda: classification(mixup="0.2"), "mixup: .*, found '0.2'"),
        (lambda: classification(cutmix=-1), "cutmix: expected a number of at least 0, found -1"),
        (
            lambda: objectives.check_mixup(1.0, {"features": jnp.zeros((2, 3))}, "cutmix"),
            "cutmix is 1, but the model takes features, and no images of one size",
        ),
        (lambda: classification(smoothing=True), "smoothing: .*, found True"),
    ],
)
def test_numbers_that_would_train_to_nothing_are_refused_before_anything_is_compiled(call, message):
    with pytest.raises(InputError, match=message):
        call()
