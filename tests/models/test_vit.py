"""The ViT: outputs and shapes, its forms on other platforms, randomness, precision."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import models
from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.models.vit import waves

# Compiling takes longer than running, so it is done without optimisations.
QUICKLY = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OPTIONS = {"image": (8, 12), "channels": 2, "patch": 4, "width": 16, "depth": 2, "heads": 2}


def outputs(key=0, train=False, **options):
    """A randomly initialised model and what it returns for three images."""
    return compiled(train, **options)(jax.random.key(key))


@cache
def compiled(train, **options):
    model = models.build("vit", **OPTIONS | options)
    images = jax.random.normal(jax.random.key(1), (3, 8, 12, 2))

    @QUICKLY
    def run(key):
        variables = model.init(jax.random.key(0), images)
        return variables, model.apply(variables, images, train, True, rngs={"dropout": key})

    return run


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


def test_registers_and_a_distillation_token_stand_before_the_patches_and_are_no_features():
    variables, out = outputs(pool="cls_mean", distilled=True, registers=3)
    made = variables["params"]["embeddings"]
    assert made["positions"].shape == (1, 2 + 6, 16), "registers have no positions"
    assert (made["registers"].shape, made["distillation"].shape) == ((1, 3, 16), (1, 1, 16))
    first, states = out["hidden_states"][0], out["last_hidden_state"]
    np.testing.assert_allclose(first[0, 1], made["distillation"][0, 0] + made["positions"][0, 1], atol=1e-6)
    np.testing.assert_allclose(first[0, 2:5], made["registers"][0], atol=1e-6)
    expected = np.concatenate([states[:, 0], states[:, 5:].mean(1)], axis=-1)
    np.testing.assert_allclose(out["features"], expected, atol=1e-6)


def test_a_gated_mlp_has_a_gate_and_layer_scale_starts_at_its_value():
    block = outputs(gated=True, layer_scale=0.1, hidden=20)[0]["params"]["encoder"]["block_1"]
    assert block["mlp"]["gate"]["kernel"].shape == block["mlp"]["up"]["kernel"].shape == (16, 20)
    assert (block["scale_1"] == np.float32(0.1)).all() and (block["scale_2"] == np.float32(0.1)).all()


def test_pixels_beyond_the_last_whole_patch_are_not_seen():
    model = models.build("vit", **OPTIONS | {"image": (10, 15)})
    images = jax.random.normal(jax.random.key(1), (2, 10, 15, 2))
    other = images.at[:, 8:].add(1.0).at[:, :, 12:].add(1.0)

    @QUICKLY
    def run():
        variables = model.init(jax.random.key(0), images)
        return [model.apply(variables, x)["features"] for x in (images, other, images.at[:, 7, 11].add(1.0))]

    as_it_is, outside, inside = run()
    assert (as_it_is == outside).all() and (as_it_is != inside).any()


def test_images_of_another_size_than_the_models_are_refused_with_both():
    model = models.build("vit", **OPTIONS)
    with pytest.raises(InputError, match=r"pixel_values are 8x8x2, the model takes 8x12x2; .* with image=\(8, 8\)"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_the_cpu_agrees_with_the_fused_form_of_other_platforms(masked):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, tokens, 3, 8)).astype("f") for tokens in (5, 7, 7))
    mask = rng.random((2, 1, 5, 7)) < 0.7 if masked else None
    ours = layers.attend(query, key, value, mask)
    with layers.compiling_for("tpu"):
        fused = layers.attend(query, key, value, mask)
    np.testing.assert_allclose(ours, fused, atol=1e-6)


@pytest.mark.parametrize(("tokens", "kernel"), [(8, "cudnn"), (7, None)])
def test_a_padding_mask_has_a_row_for_each_query_where_cudnn_is_asked_for(monkeypatch, tokens, kernel):
    """Its kernel refuses `[batch, 1, 1, key tokens]`, and the gradient of an odd number of tokens, mask or none."""
    asked = {}

    def attention(query, key, value, bias, mask, implementation):
        asked.update(mask=mask.shape, implementation=implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    half = jnp.ones((2, tokens, 3, 8), jnp.bfloat16)
    with layers.compiling_for("gpu"):
        layers.attend(half, half, half, jnp.ones((2, 1, 1, tokens), bool))
        assert layers.kernel(half, half, None, None) == kernel
    assert asked == {"mask": (2, 1, tokens if kernel else 1, tokens), "implementation": kernel}


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
        ({"pool": "median"}, "unknown pool 'median'; did you mean 'mean'"),
        ({"patch": 9}, r"vit: image \(8, 12\) of 2 channels has no patch of side 9"),
        ({"pool": "mean", "distilled": True}, "a distilled model has a class token"),
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


def test_a_model_has_one_head():
    headed = models.Classifier(models.build("vit", **OPTIONS), 3, "source_head")
    with pytest.raises(InputError, match="under head 'head' has the head 'source_head' already; put the new one on"):
        models.Classifier(headed, 2)


def test_fixed_positions_are_big_visions_sines_of_the_column_then_of_the_row_and_no_leaf():
    found = waves((2, 3), 16)
    rates = [10_000 ** -(i / 3) for i in range(4)]
    row, column = 1, 2
    expected = [f(place * rate) for place in (column, row) for f in (np.sin, np.cos) for rate in rates]
    np.testing.assert_allclose(found[row * 3 + column], expected, rtol=1e-6)
    variables, _ = outputs(pool="mean", fixed_positions=True)
    assert "positions" not in variables["params"]["embeddings"]


def test_fixed_positions_equal_learned_ones_of_these_values_and_are_zero_for_a_class_token():
    images = jax.random.normal(jax.random.key(1), (2, 8, 12, 2))
    for pool in ("mean", "cls"):
        fixed, learned = (models.build("vit", **OPTIONS, pool=pool, fixed_positions=own) for own in (True, False))
        tree = learned.init(jax.random.key(0), images)["params"]
        table = np.pad(waves((2, 3), 16), ((int(pool == "cls"), 0), (0, 0)))[None]
        tree["embeddings"] = {**tree["embeddings"], "positions": table}
        expected = learned.apply({"params": tree}, images)["features"]
        tree["embeddings"] = {name: leaf for name, leaf in tree["embeddings"].items() if name != "positions"}
        np.testing.assert_allclose(fixed.apply({"params": tree}, images)["features"], expected, atol=1e-6)


def test_fixed_positions_of_a_width_that_sines_and_cosines_do_not_share_are_refused():
    with pytest.raises(InputError, match="fixed_positions need a width of 8, 12, 16"):
        models.build("vit", **OPTIONS | {"width": 18}, fixed_positions=True)
