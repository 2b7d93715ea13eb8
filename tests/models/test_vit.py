"""The ViT: outputs and shapes, its forms on other platforms, randomness, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import models
from jtransfer.errors import InputError
from jtransfer.models import layers

OPTIONS = {"image": (8, 12), "channels": 2, "patch": 4, "width": 16, "depth": 2, "heads": 2}


def outputs(key=0, train=False, **options):
    """A randomly initialised model and what it returns for three images."""
    model = models.build("vit", **OPTIONS | options)
    images = jax.random.normal(jax.random.key(1), (3, 8, 12, 2))

    @jax.jit
    def run(key):
        variables = model.init(jax.random.key(0), images)
        return variables, model.apply(variables, images, train, True, rngs={"dropout": key})

    return run(jax.random.key(key))


def test_cls_pooling_adds_a_token_and_pools_it():
    variables, out = outputs(pool="cls")
    assert variables["params"]["embeddings"]["positions"].shape == (1, 1 + 6, 16)
    assert out["last_hidden_state"].shape == (3, 7, 16)
    assert (out["pooler_output"] == out["last_hidden_state"][:, 0]).all()
    assert [h.shape for h in out["hidden_states"]] == [(3, 7, 16)] * 3


def test_mean_pooling_has_no_extra_token():
    variables, out = outputs(pool="mean")
    assert "cls" not in variables["params"]["embeddings"]
    assert out["last_hidden_state"].shape == (3, 6, 16)
    np.testing.assert_allclose(out["pooler_output"], out["last_hidden_state"].mean(1), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_the_cpu_agrees_with_the_fused_form_of_other_platforms(masked):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, tokens, 3, 8)).astype("f") for tokens in (5, 7, 7))
    mask = rng.random((2, 1, 5, 7)) < 0.7 if masked else None
    ours = layers.attend(query, key, value, mask)
    with layers.compiling_for("tpu"):
        fused = layers.attend(query, key, value, mask)
    np.testing.assert_allclose(ours, fused, atol=1e-6)


def test_a_dense_layer_is_flattened_on_the_cpu_only():
    layer = layers.Dense(4)
    x = jnp.ones((2, 3, 5))
    params = layer.init(jax.random.key(0), x)

    def ranks():
        text = str(jax.make_jaxpr(lambda x: layer.apply(params, x))(x))
        return "f32[6,5]" in text

    assert ranks()
    with layers.compiling_for("gpu"):
        assert not ranks()


def test_nothing_is_random_in_evaluation_and_dropout_draws_in_training():
    for options in ({"dropout": 0.5}, {"drop_path": 0.5}):
        evaluated = [outputs(key, **options)[1]["pooler_output"] for key in (0, 1)]
        trained = [outputs(key, train=True, **options)[1]["pooler_output"] for key in (0, 3)]
        assert (evaluated[0] == evaluated[1]).all()
        assert (trained[0] != trained[1]).any()


def test_stochastic_depth_drops_whole_branches_of_an_example_and_none_in_the_first_block():
    _, out = outputs(train=True, drop_path=1.0, pool="mean")
    before, first, last = out["hidden_states"]
    assert (first != before).any(axis=(1, 2)).all()  # the rate grows from 0 at the first block
    assert (last == first).all()  # to 1 at the last


def test_half_precision_computes_in_half_and_keeps_float32_parameters():
    variables, half = outputs(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert half["last_hidden_state"].dtype == jnp.bfloat16
    np.testing.assert_allclose(half["pooler_output"].astype("f"), outputs()[1]["pooler_output"], atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "unknown pool 'max'; choose one of cls, cls_mean, mean"),
        ({"activation": "gelu_tan"}, "unknown activation 'gelu_tan'; did you mean 'gelu_tanh'"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"widht": 3}, "has no option 'widht'; did you mean 'width'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        models.build("vit", **OPTIONS | options)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(InputError, match="unknown architecture 'vti'; did you mean 'vit'"):
        models.build("vti")
