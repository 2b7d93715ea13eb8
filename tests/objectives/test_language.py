"""Losses over tokens are those of transformers' models, and their means over texts are means over tokens."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import objectives
from jtransfer.objectives.language import LEFT_OUT

N, TOKENS, OUTPUTS = 4, 7, 11


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def value_and_gradients(objective, outputs, batch):
    return jax.value_and_grad(lambda outputs: objective.score({}, outputs, batch)[0])(outputs)


def weighted(objective, outputs, batch, name="loss"):
    """The mean over a set of what is measured of every example."""
    found = objective.measure(outputs, batch)
    assert all(values.shape == (N,) for values in found.values())
    return (found[name] * found["weight"]).sum() / found["weight"].sum()


def padded(rng):
    kept = (np.arange(TOKENS) < np.array([7, 5, 2, 4])[:, None]).astype(int)
    return {"input_ids": rng.integers(0, OUTPUTS, (N, TOKENS)), "attention_mask": kept}


def test_the_loss_of_a_language_model_is_that_of_the_next_token_and_of_no_padding(rng):
    torch, theirs_of = pytest.importorskip("torch"), pytest.importorskip("transformers.loss.loss_utils")
    inputs, logits = padded(rng), rng.normal(size=(N, TOKENS, OUTPUTS)).astype(np.float32)
    value, gradients = value_and_gradients(objectives.lm(), {"logits": jnp.asarray(logits)}, {"inputs": inputs})
    theirs = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(np.where(inputs["attention_mask"], inputs["input_ids"], -100))
    expected = theirs_of.ForCausalLMLoss(theirs, labels, OUTPUTS)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradients["logits"], theirs.grad, atol=1e-7)
    np.testing.assert_allclose(weighted(objectives.lm(), {"logits": logits}, {"inputs": inputs}), value, rtol=1e-6)


def test_the_loss_of_token_classes_leaves_out_what_has_no_label(rng):
    torch, theirs_of = pytest.importorskip("torch"), pytest.importorskip("transformers.loss.loss_utils")
    logits, labels = rng.normal(size=(N, TOKENS, OUTPUTS)).astype(np.float32), rng.integers(0, OUTPUTS, (N, TOKENS))
    labels[rng.random(labels.shape) < 0.4] = LEFT_OUT
    batch, tokens = {"labels": jnp.asarray(labels)}, objectives.tokens()
    value, gradients = value_and_gradients(tokens, {"logits": jnp.asarray(logits)}, batch)
    theirs, config = torch.tensor(logits, requires_grad=True), SimpleNamespace(num_labels=OUTPUTS)
    expected = theirs_of.ForTokenClassification(theirs, torch.tensor(labels), config)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradients["logits"], theirs.grad, atol=1e-7)
    np.testing.assert_allclose(weighted(tokens, {"logits": logits}, batch), value, rtol=1e-6)
    right = logits.argmax(-1)[labels != LEFT_OUT] == labels[labels != LEFT_OUT]
    np.testing.assert_allclose(weighted(tokens, {"logits": logits}, batch, "accuracy"), right.mean(), rtol=1e-6)


def test_the_loss_of_a_span_is_half_that_of_each_end_and_of_no_end_outside_the_text(rng):
    torch, theirs_of = pytest.importorskip("torch"), pytest.importorskip("transformers.loss.loss_utils")
    outputs = {f"{end}_logits": rng.normal(size=(N, TOKENS)).astype(np.float32) for end in ("start", "end")}
    labels, spans = np.array([[0, 3], [2, 2], [4, TOKENS], [TOKENS + 5, TOKENS + 9]]), objectives.spans()
    batch = {"labels": jnp.asarray(labels)}
    value, gradients = value_and_gradients(spans, {k: jnp.asarray(x) for k, x in outputs.items()}, batch)
    theirs = {name: torch.tensor(x, requires_grad=True) for name, x in outputs.items()}
    expected = theirs_of.ForQuestionAnsweringLoss(theirs["start_logits"], theirs["end_logits"], *torch.tensor(labels.T))
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    for name, x in theirs.items():
        np.testing.assert_allclose(gradients[name], x.grad, atol=1e-7)
    np.testing.assert_array_equal(spans.measure(outputs, batch)["weight"], [1, 1, 0.5, 0])
    sure = {name: 9.0 * np.eye(TOKENS)[np.minimum(labels[:, i], TOKENS - 1)] for i, name in enumerate(outputs)}
    np.testing.assert_array_equal(spans.measure(sure, batch)["accuracy"], [1, 1, 0, 0])


@pytest.mark.parametrize("name", ["masked_lm", "tokens"])
def test_a_batch_in_which_nothing_counts_has_a_loss_of_nothing_and_no_gradient(name):
    batch = {"labels": jnp.full((N, TOKENS), LEFT_OUT)}
    value, gradients = value_and_gradients(objectives.parse(name), {"logits": jnp.ones((N, TOKENS, OUTPUTS))}, batch)
    assert value == 0 and not gradients["logits"].any()
