"""ULMFiT's classifier in trials: phases, rates, the slanted triangle and a head with statistics, side by side."""

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import checkpoints, methods, models, objectives
from jtransfer.checkpoints.headed import headed
from jtransfer.train import Optimiser
from jtransfer.train.cut import cuts
from jtransfer.train.phases import plan
from jtransfer.train.trials import TrialData, make_trial

ROWS, TOKENS, STEPS = 64, 5, 240


def test_gradual_unfreezing_learns_whether_a_word_is_there():
    rng = np.random.default_rng(0)
    model = models.build("awd_lstm", vocabulary=8, width=8, hidden=8, layers=2)
    tree = {
        p: rng.normal(0, 0.5, x.shape).astype("f4") for p, x in models.shapes_of(model, model.config.inputs).items()
    }
    objective = objectives.parse("classification(hidden=8, drops=(0.1, 0.1))")
    whole, params, _ = headed(checkpoints.Backbone("x", model, tree), objective, 2)
    adapted = methods.adapt(methods.parse("unfreeze(1, decay=0.385)"), whole, params, model.config.inputs)
    head, block, everything = (phase.rates for phase in adapted.phases)
    rates = [one["encoder/block_0/lstm/hidden/kernel"] for one in (head, block, everything)]
    np.testing.assert_allclose(rates, [0, 0, 0.385**2])
    np.testing.assert_allclose(block["encoder/block_1/lstm/input/kernel"], 0.385)
    np.testing.assert_allclose(everything["embeddings/word/embedding"], 0.385**3)
    parts = {"labels": jax.ShapeDtypeStruct((1,), jnp.int32)}
    assert cuts(adapted, objective, parts)[0].features, "what a frozen language model makes of a text is made once"

    labels = np.arange(ROWS) % 2
    ids = rng.integers(1, 8, (ROWS, TOKENS))
    ids[labels == 1, rng.integers(0, TOKENS, ROWS // 2)] = 0
    inputs = {"input_ids": jnp.array(ids), "attention_mask": jnp.ones((ROWS, TOKENS), jnp.int32)}
    batches = rng.integers(0, ROWS, (STEPS, 16))
    data = TrialData(jnp.array(batches), jnp.arange(ROWS), jnp.ones(ROWS))
    trial = make_trial(adapted, objective, Optimiser(schedule="slanted"), plan(3, STEPS))
    examples = {"inputs": inputs, "labels": jnp.array(labels)}
    several = jax.jit(jax.vmap(lambda key, rate: trial(key, {"rate": rate}, adapted.base, examples, data)))
    found = several(jax.random.split(jax.random.key(0), 2), jnp.array([2e-2, 1e-1]))
    assert found.losses[:, -4:].mean() < found.losses[:, :4].mean()
    assert found.score.max() > 0.8
    assert not np.allclose(found.state["batch_stats/head/norm_0/mean"], 0)
