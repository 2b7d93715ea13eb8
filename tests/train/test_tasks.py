"""Several tasks on one backbone: a head and a loss for each, and gradients by task that are combined."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtransfer import methods
from jtransfer.errors import InputError
from jtransfer.models import Classifier, Head, Headed, Heads, apply
from jtransfer.objectives import classification, make_loss, of_task, regression
from jtransfer.train import TrainState, combine, make_step
from jtransfer.tree import partition, select

OBJECTIVES = {"kinds": of_task("kinds", classification()), "light": of_task("light", regression())}


@pytest.fixture(scope="module")
def both(vit, backbone):
    """The tiny ViT with two heads away from zero, finetuned: the adapted model and its tree."""
    heads = Heads((("kinds", Head(3)), ("light", Head(1))))
    adapted = methods.adapt(methods.finetune(), Headed(vit, heads, "head"), backbone, (8, 8, 1))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    rng = np.random.default_rng(2)
    return adapted, {p: rng.normal(size=x.shape).astype("f") if p.startswith("head/") else x for p, x in tree.items()}


@pytest.fixture(scope="module")
def batch(images):
    """A batch of each task, of other images."""
    x, labels = images
    return {
        "kinds": {"inputs": x[:8], "labels": labels[:8]},
        "light": {"inputs": x[8:16], "labels": x[8:16].mean((1, 2, 3))},
    }


def losses_of(adapted):
    return {name: make_loss(adapted.model, objective) for name, objective in OBJECTIVES.items()}


def stepped(both, loss, batch, **options):
    """One step of gradient descent at the rate 1: the change of every leaf is minus its gradient."""
    adapted, tree = both
    trainable, frozen = partition(tree, adapted.rates)
    optimiser = optax.sgd(1.0)
    state = TrainState.create(jax.random.key(1), trainable, {}, optimiser)
    step = jax.jit(make_step(loss, optimiser, **options))
    state, metrics = step(state, frozen, batch)
    flops = step.lower(state, frozen, batch).cost_analysis()["flops"]
    return {path: trainable[path] - leaf for path, leaf in state.trainable.items()}, metrics, flops


@pytest.fixture(scope="module")
def alone(both, batch):
    """The step of each task without the other."""
    return {name: stepped(both, loss, batch[name]) for name, loss in losses_of(both[0]).items()}


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-6, err_msg=path, **tolerance)


def test_each_head_predicts_what_it_would_alone_under_its_name(both, vit, batch):
    adapted, tree = both
    x = batch["kinds"]["inputs"]
    outputs = apply(adapted.model, tree, x, train=False)
    for name, classes in {"kinds": 3, "light": 1}.items():
        assert tree[f"head/{name}/kernel"].shape == (16, classes)
        alone = {f"head/{path}": leaf for path, leaf in select(tree, f"head/{name}/").items()}
        expected = apply(Classifier(vit, classes), tree | alone, x, train=False)["logits"]
        np.testing.assert_array_equal(outputs[name]["logits"], expected)
    assert "logits" not in outputs


def test_a_method_that_trains_the_head_trains_all_and_the_source_head_stays(vit, backbone):
    heads = Heads((("kinds", Head(3)), ("light", Head(1))))
    adapted = methods.adapt(methods.probe(), Headed(vit, heads, "head"), backbone, (8, 8, 1))
    learns = {path for path, rate in adapted.rates.items() if rate}
    assert learns == {f"head/{name}/{leaf}" for name in ("kinds", "light") for leaf in ("kernel", "bias")}
    assert adapted.rates["source_head/kernel"] == 0


@pytest.mark.parametrize("parts", [1, 4])
def test_the_mean_of_two_tasks_is_half_the_sum_of_their_gradients(parts, both, batch, alone):
    found, metrics, _ = stepped(both, losses_of(both[0]), batch, accumulate=parts)
    assert_close(found, {path: (alone["kinds"][0][path] + alone["light"][0][path]) / 2 for path in found}, rtol=1e-4)
    np.testing.assert_allclose(metrics["kinds_loss"], alone["kinds"][1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["light_loss"], alone["light"][1]["loss"], rtol=1e-5)
    assert metrics.keys() == {"kinds_loss", "kinds_accuracy", "light_loss", "grad_norm"}


def test_the_gradient_of_a_task_s_head_is_untouched_by_the_other_task(both, batch):
    sums = {}

    def keep(grads):
        sums.update({name: {p: float(abs(x).sum()) for p, x in tree.items()} for name, tree in grads.items()})
        return combine.mean(grads)

    adapted, tree = both
    trainable, frozen = partition(tree, adapted.rates)
    state = TrainState.create(jax.random.key(1), trainable, {}, optax.sgd(1.0))
    make_step(losses_of(adapted), optax.sgd(1.0), combine=keep)(state, frozen, batch)
    for name, other in (("kinds", "light"), ("light", "kinds")):
        assert sums[name][f"head/{name}/kernel"] > 0 and sums[name][f"head/{other}/kernel"] == 0


def test_a_task_of_weight_0_leaves_its_head_as_it_was_and_the_others_as_if_it_were_not(both, batch, alone):
    found, _, _ = stepped(both, losses_of(both[0]), batch, combine=combine.weighted({"kinds": 2.0, "light": 0.0}))
    assert not found["head/light/kernel"].any() and not found["head/light/bias"].any()
    assert_close(found, alone["kinds"][0], rtol=1e-5)


def test_weights_count_by_their_ratios(both, batch, alone):
    found, _, _ = stepped(both, losses_of(both[0]), batch, combine=combine.weighted({"kinds": 6.0, "light": 2.0}))
    expected = {path: 0.75 * alone["kinds"][0][path] + 0.25 * alone["light"][0][path] for path in found}
    assert_close(found, expected, rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_single_task_by_name_takes_the_steps_of_a_loss_without_one_to_the_bit(parts, both, batch):
    loss = losses_of(both[0])["kinds"]
    by_name, named, _ = stepped(both, {"kinds": loss}, {"kinds": batch["kinds"]}, accumulate=parts)
    plain, metrics, _ = stepped(both, loss, batch["kinds"], accumulate=parts)
    for path, leaf in plain.items():
        np.testing.assert_array_equal(by_name[path], leaf, err_msg=path)
    assert named.pop("grad_norm") == metrics.pop("grad_norm")
    assert named == {f"kinds_{name}": value for name, value in metrics.items()}


def test_a_step_of_two_tasks_costs_no_more_than_a_step_of_each(both, batch, alone):
    _, _, flops = stepped(both, losses_of(both[0]), batch)
    assert flops <= alone["kinds"][2] + alone["light"][2]


def test_a_combination_need_not_be_linear(both, batch, alone):
    """Gradients that conflict lose what points against each other (PCGrad, arXiv:2001.06782, of two tasks)."""

    def surgery(grads):
        flat = {name: jnp.concatenate([x.ravel() for x in tree.values()]) for name, tree in grads.items()}
        a, b = flat.values()
        against = jnp.minimum(a @ b, 0)
        scale = dict(zip(grads, (1 - against / (a @ a), 1 - against / (b @ b)), strict=True))
        return {path: sum(scale[name] * tree[path] for name, tree in grads.items()) for path in grads["kinds"]}

    found, _, _ = stepped(both, losses_of(both[0]), batch, combine=surgery)
    a, b = (np.concatenate([np.ravel(leaf) for leaf in alone[name][0].values()]) for name in ("kinds", "light"))
    dot = min(a @ b, 0)
    expected = a - dot / (b @ b) * b + b - dot / (a @ a) * a
    np.testing.assert_allclose(
        np.concatenate([np.ravel(found[path]) for path in alone["kinds"][0]]), expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vit: combine.weighted({"a": -1.0, "b": 1.0}), "weight of task 'a': expected a number of at least 0"),
        (lambda vit: combine.weighted({"a": 0, "b": 0}), "the weights of the tasks a, b are all 0; expected one above"),
        (
            lambda vit: methods.adapt(
                methods.scratch(), Headed(vit, Heads((("features", Head(2)),)), "head"), {}, (8, 8, 1)
            ),
            "a head cannot be called 'features', as an output of the backbone is; rename it",
        ),
    ],
)
def test_weights_and_names_that_cannot_be_are_refused(call, message, vit):
    with pytest.raises(InputError, match=message):
        call(vit)
