"""The average of the states of all layers is the formula of ELMo, in PyTorch, on whatever model reads texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import methods
from jtransfer.errors import InputError
from jtransfer.models import Classifier, apply, build, complete
from jtransfer.objectives import classification
from jtransfer.train import cut

torch = pytest.importorskip("torch")

BERT = {"vocabulary": 20, "positions": 8, "width": 8, "depth": 2, "heads": 2, "pooler": False, "pool": "mean"}
ELMO = {"filters": (3, 2), "character_width": 2, "highways": 1, "width": 4, "hidden": 5, "vocabulary": 0}
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


def adapted(backbone, text):
    tree = jax.jit(lambda key: complete(backbone, key, {}, backbone.config.inputs))(jax.random.key(0))
    tree = {path: x + 0.1 for path, x in tree.items()}
    return tree, methods.adapt(methods.parse(text), Classifier(backbone, 3), tree, backbone.config.inputs)


def batch(backbone):
    draws, found = np.random.default_rng(0), {}
    for name, x in backbone.config.inputs.items():
        ids = draws.integers(0, 1, (2, 5)) if "type" in name else draws.integers(1, 20, (2, 5, *x.shape[2:]))
        found[name] = jnp.array(np.where(MASK.reshape(2, 5, *[1] * (ids.ndim - 2)), ids, 0))
    return found | {"attention_mask": jnp.array(MASK)}


@pytest.mark.parametrize(("architecture", "options", "norm"), [("bert", BERT, False), ("elmo", ELMO, True)])
def test_the_average_and_the_gradients_of_its_weights_are_those_of_the_formula(architecture, options, norm):
    backbone = build(architecture, **options)
    given, one = adapted(backbone, f"scalar_mix(norm={norm})")
    learning = {path for path, rate in one.rates.items() if rate}
    assert learning == {"scalar_mix/weights", "scalar_mix/gamma", "head/kernel", "head/bias"}
    inputs, kernel = batch(backbone), np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    mix = {"scalar_mix/weights": jnp.array([0.3, -1.0, 0.7]), "scalar_mix/gamma": jnp.array(1.7)}
    tree = given | {"head/kernel": jnp.array(kernel), "head/bias": jnp.zeros(3)}

    def ours(mix):
        outputs = apply(one.model, tree | mix, inputs)
        plain = apply(backbone, given, inputs, output_hidden_states=True)["hidden_states"]
        words = jnp.where(inputs["attention_mask"][..., None], outputs["last_hidden_state"], 0)
        return jnp.sum(jnp.sin(outputs["logits"])) + jnp.sum(words**3), (outputs, plain)

    (value, (outputs, plain)), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(mix)

    states, mask = torch.tensor(np.stack(plain)), torch.tensor(MASK)[None, ..., None]
    if norm:
        states = torch.nn.functional.layer_norm(states, states.shape[-1:], eps=1e-12)
    s = torch.tensor(np.asarray(mix["scalar_mix/weights"]), requires_grad=True)
    gamma = torch.tensor(1.7, requires_grad=True)
    mixed = gamma * (torch.softmax(s, 0)[:, None, None, None] * states * mask).sum(0)
    features = mixed.sum(1) / mask[0].sum(1)
    loss = torch.sin(features @ torch.tensor(kernel)).sum() + (mixed**3).sum()
    loss.backward()

    np.testing.assert_allclose(outputs["last_hidden_state"], mixed.detach(), atol=2e-6)
    np.testing.assert_allclose(outputs["features"], features.detach(), atol=2e-6)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients["scalar_mix/weights"], s.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients["scalar_mix/gamma"], gamma.grad, rtol=1e-4, atol=1e-5)


def test_with_finetune_the_backbone_learns_too_and_without_phases_it_can_be_pulled_to_equal_weights():
    backbone = build("bert", **BERT)
    _, one = adapted(backbone, "scalar_mix(pull=0.5) + finetune")
    assert all(one.rates.values())
    score = one.scores(classification().score)
    weights = {"scalar_mix/weights": jnp.array([1.0, -2.0, 0.0])}
    outputs, own = {"logits": jnp.zeros((1, 3))}, {"labels": jnp.array([0])}
    value, plain = score(weights, outputs, own)[0], classification().score({}, outputs, own)[0]
    np.testing.assert_allclose(value - plain, 2.5, rtol=1e-6)


def test_a_model_of_images_is_refused_in_one_line(vit, backbone):
    with pytest.raises(InputError, match="scalar_mix: the model reads no texts, whose states could be averaged"):
        methods.adapt(methods.scalar_mix(), Classifier(vit, 3), {}, (8, 8, 1))


def test_a_model_whose_layers_differ_in_width_is_refused_with_the_widths():
    backbone = build("awd_lstm", vocabulary=20, width=4, hidden=6, layers=2)
    with pytest.raises(InputError, match=r"scalar_mix: the states of the layers have widths \[4, 6, 4\]; expected one"):
        adapted(backbone, "scalar_mix")


def test_on_a_frozen_backbone_all_but_the_average_is_computed_once():
    backbone = build("elmo", **ELMO)
    _, one = adapted(backbone, "scalar_mix")
    (found,) = cut.cuts(one, classification(), {"labels": jax.ShapeDtypeStruct((1,), jnp.int32)})
    assert found.place == "mixed_states:States[1]" and found.one.shape == (1, 3, 8) and found.saved > 0.99
