"""(IA)³: which layers have scales, and when it is refused."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.methods.intercepted import Intercepted
from jtransfer.tree import FROZEN, flat, nested

GPT2 = {"vocabulary": 11, "positions": 8, "width": 8, "heads": 2, "depth": 2}


def test_every_block_has_scales_of_keys_values_and_hidden_units_that_start_as_nothing(vit, backbone, images):
    adapted = methods.adapt(methods.ia3(), models.Classifier(vit, 3), backbone, (8, 8, 1))
    learning = {path for path, rate in adapted.rates.items() if rate != FROZEN}
    layers = ("attention/key", "attention/value", "mlp/down")
    assert learning == {f"encoder/block_{i}/{layer}/ia3/scale" for i in (0, 1) for layer in layers} | {
        "head/kernel",
        "head/bias",
    }
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    plain = models.apply(vit, backbone, images[0][:2])["features"]
    np.testing.assert_array_equal(models.apply(adapted.model, tree, images[0][:2])["features"], plain)


def test_a_fused_layer_has_one_scale_for_query_key_and_value():
    model = models.build("gpt2", **GPT2)
    shapes = methods.adapt(methods.ia3(), models.Classifier(model, 3), {}, model.config.inputs).shapes
    assert shapes["encoder/block_1/attention/qkv/ia3/scale"].shape == (24,)


def test_patterns_that_name_no_layer_are_refused_with_those_there_are(vit, backbone):
    message = r"ia3: '.*/kye' and '.*/dwn' match neither a dense layer nor a convolution; there are .*mlp/down"
    with pytest.raises(InputError, match=message):
        methods.adapt(methods.ia3(".*/kye", ".*/dwn"), models.Classifier(vit, 3), backbone, (8, 8, 1))


@pytest.mark.parametrize(
    ("groups", "outputs", "inputs"), [(1, ".*conv", "(?!)"), (1, "(?!)", ".*conv"), (2, "(?!)", ".*conv")]
)
def test_channels_of_a_convolution_are_scaled_and_merge_into_its_kernel(groups, outputs, inputs):
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(6, (3, 3), feature_group_count=groups, name="conv")(x)

    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    method = methods.ia3(outputs, inputs)
    model = Intercepted(Grouped(), method.adds)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    keys = iter(jax.random.split(jax.random.key(1), 9))
    params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), shapes)
    merged = nested(method.merge(flat(params)))
    assert shapes["conv"]["ia3"]["scale"].shape == (6 if inputs == "(?!)" else 4,)
    np.testing.assert_allclose(
        Grouped().apply({"params": merged}, x), model.apply({"params": params}, x), rtol=1e-4, atol=1e-4
    )
