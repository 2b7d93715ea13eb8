"""(IA)³: which layers have scales, and when it is refused."""

import jax
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.tree import FROZEN

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


def test_patterns_that_name_no_dense_layer_are_refused_with_those_there_are(vit, backbone):
    with pytest.raises(InputError, match=r"ia3: '.*/kye' and '.*/dwn' match no dense layer; there are .*mlp/down"):
        methods.adapt(methods.ia3(".*/kye", ".*/dwn"), models.Classifier(vit, 3), backbone, (8, 8, 1))
