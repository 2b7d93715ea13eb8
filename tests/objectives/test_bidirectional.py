"""A language model of both directions: samples stand in place of the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.errors import InputError
from jtransfer.models import ElmoConfig
from jtransfer.objectives import bilm
from jtransfer.objectives.bidirectional import sampled_logits

torch = pytest.importorskip("torch")


def test_sampled_logits_are_those_of_the_formula_in_torch():
    draws, size, samples = np.random.default_rng(0), 11, 40
    states, kernel = draws.normal(size=(2, 3, 4)).astype(np.float32), draws.normal(size=(4, size)).astype(np.float32)
    bias, ids = draws.normal(size=size).astype(np.float32), draws.integers(0, size, (2, 3))
    drawn = draws.random(samples).astype(np.float32)
    found = sampled_logits(*map(jnp.array, (states, kernel, bias, ids, drawn)))

    chance = torch.log((torch.arange(size) + 2.0) / (torch.arange(size) + 1.0)) / np.log(size + 1)
    assert chance.sum().item() == pytest.approx(1)
    others = torch.searchsorted(chance.cumsum(0), torch.tensor(drawn))  # the word whose share of 0..1 a number is in
    logits = torch.tensor(states) @ torch.tensor(kernel) + torch.tensor(bias)
    rest = (logits - torch.log(samples * chance))[..., others]
    wanted = torch.cat([logits.gather(2, torch.tensor(ids)[..., None]), rest], -1)
    hits = torch.tensor(ids)[..., None] == others
    assert hits.any()
    wanted[..., 1:][hits] = -torch.inf
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_samples_lead_where_the_whole_vocabulary_leads():
    """With many samples the gradient of a step comes near that of the whole softmax."""
    draws, size = np.random.default_rng(1), 6
    params = {"head/kernel": jnp.array(draws.normal(size=(4, size))), "head/bias": jnp.zeros(size)}
    states = jnp.array(draws.normal(size=(2, 3, 2, 4)))
    inputs = {
        "word_ids": jnp.array(draws.integers(0, size, (2, 3))),
        "attention_mask": jnp.array([[1, 1, 1], [1, 0, 0]]),
    }

    def slope(objective):
        batch = {"inputs": inputs}
        batch = objective.targets(jax.random.key(0), batch) if objective.targets else batch

        def value(states):
            logits = states @ params["head/kernel"] + params["head/bias"]
            return objective.score(params, {"logits": logits, "neighbours": states}, batch)[0]

        return jax.jit(jax.grad(value))(states)

    whole, some = slope(bilm()), slope(bilm(samples=20_000))
    assert not np.any(some[1, 1:])  # padding
    np.testing.assert_allclose(some, whole, atol=0.02)


def test_a_model_without_a_vocabulary_and_more_samples_than_words_are_refused():
    with pytest.raises(InputError, match="objective 'bilm' trains a head 'bilm' over a vocabulary; the model takes"):
        bilm().head(ElmoConfig(vocabulary=0), 0)
    with pytest.raises(InputError, match="bilm: samples=20 of 20 words; expected fewer, or 0 for all"):
        bilm(samples=20).head(ElmoConfig(vocabulary=20), 0)
