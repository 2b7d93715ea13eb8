"""Inverted bottlenecks: what their convolutions compute on the CPU, what methods find in them, what is refused."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.tree import FROZEN

TINY = {"image": (16, 16), "channels": 2, "stem": 4, "depths": (1, 2), "widths": (4, 6), "sides": (3, 5)}
TINY |= {"strides": (1, 2), "expanded": (0, 8, 12), "squeezed": (0, 2, 3), "top": 8}
FORMS = {
    "odd sides, padded alike": ((2, 11, 8, 5), 3, (2, 2), ((1, 1), (1, 1))),
    "even and odd, as TensorFlow": ((2, 10, 7, 3), 5, (2, 2), ((1, 2), (2, 2))),
    "no stride": ((1, 4, 9, 5), 5, (1, 1), ((2, 2), (2, 2))),
    "a last row that no kernel sees": ((2, 7, 7, 4), 3, (2, 2), ((0, 1), (0, 1))),
    "an image smaller than the kernel": ((2, 1, 2, 3), 5, (2, 2), ((2, 2), (1, 2))),
    "two strides": ((1, 9, 9, 2), 3, (3, 1), ((1, 1), (0, 0))),
}
NAMES = ("NHWC", "HWIO", "NHWC")


def of_xla(strides, padding, groups):
    return lambda x, kernel: lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=NAMES, feature_group_count=groups
    )


def ours(strides, padding, groups):
    return lambda x, kernel: layers.depthwise(
        x, kernel, strides, padding, dimension_numbers=NAMES, feature_group_count=groups
    )


def value_and_gradients(convolve, x, kernel, key):
    y, back = jax.vjp(convolve, x, kernel)
    return y, *back(jax.random.normal(key, y.shape))


@pytest.mark.parametrize("form", FORMS)
def test_a_depthwise_convolution_and_its_gradients_are_those_of_xla(form):
    shape, side, *options = FORMS[form]
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (side, side, 1, shape[-1]))
    results = []
    for of in (of_xla, ours):
        results.append(jax.jit(partial(value_and_gradients, of(*options, shape[-1])))(x, kernel, keys[2]))
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(one).max()), rtol=0)


@pytest.mark.slow
def test_in_training_an_example_skips_a_block_at_a_rate_that_grows_with_the_depth():
    """Of three blocks the first and the last add to their input; what is kept makes up for what is not."""
    model = models.build("efficientnet", **TINY, drop_path=0.9)
    seen = {}

    def watch(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout):
            seen[context.module.path[:2]] = context.module.rate, args[0], y
        return y

    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 2))
    tree = models.complete(model, jax.random.key(0), {}, model.config.inputs)
    with nn.intercept_methods(watch):
        models.apply(model, tree, images, train=True, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])
    rates = {path: rate for path, (rate, *_) in seen.items()}
    assert rates == {("stage_0", "block_0"): 0.0, ("stage_1", "block_1"): pytest.approx(0.6)}
    _, before, after = seen["stage_1", "block_1"]
    kept = np.asarray(after).any((1, 2, 3))
    assert 0 < kept.sum() < 8
    np.testing.assert_allclose(after, before * kept[:, None, None, None] / 0.4, rtol=1e-5)
    with nn.intercept_methods(watch):
        models.apply(model, tree, images)
    np.testing.assert_array_equal(*seen["stage_1", "block_1"][1:])


def test_on_the_cpu_no_convolution_is_left_but_the_stem_s_and_elsewhere_all_are():
    model = models.build("efficientnet", **TINY)
    shapes = models.shapes_of(model, model.config.inputs)

    def convolutions():
        jaxpr = jax.make_jaxpr(lambda tree, x: models.apply(model, tree, x))(shapes, model.config.inputs)
        return str(jaxpr).count("conv_general_dilated[")

    with layers.compiling_for("gpu"):
        assert convolutions() == 1 + 3 + 2 + 3 + 1  # stem, depthwise, expand, project, top
    with layers.compiling_for("cpu"):
        assert convolutions() == 1


def test_kernels_of_several_trials_at_once_give_what_each_gives_alone():
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=(2, 5, 5, 3)), rng.normal(size=(4, 3, 3, 1, 3))
    one = ours((1, 1), ((1, 1), (1, 1)), 3)
    slope = jax.grad(lambda kernel: jnp.square(one(x, kernel)).sum())
    alone = jax.jit(lambda kernels: jnp.stack([slope(kernel) for kernel in kernels]))(kernels)
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(kernels), alone, rtol=1e-4)


def test_what_methods_find_in_it():
    model = models.Classifier(models.build("efficientnet", **TINY), 3)

    def learning(text):
        adapted = methods.adapt(methods.parse(text), model, {}, model.backbone.config.inputs)
        return {path for path, rate in adapted.rates.items() if rate != FROZEN}, set(adapted.rates)

    biases, every = learning("bitfit")
    assert biases == {path for path in every if path.endswith("/bias")} | {"head/kernel"}
    assert {"stage_1/block_0/squeeze/reduce/bias", "stage_1/block_1/project/norm/bias", "top/norm/bias"} <= biases
    top, _ = learning("top_blocks(1)")
    assert {path.split("/")[0] for path in top} == {"stage_1", "top", "head"}
    assert {path.split("/")[1] for path in top if path.startswith("stage")} == {"block_1"}
    added, _ = learning("lora(rank=1, target='.*squeeze/(reduce|expand)')")
    assert {re.sub(r"\d", "", path) for path in added} == {
        "head/kernel",
        "head/bias",
        *(f"stage_/block_/squeeze/{layer}/lora/{side}" for layer in ("reduce", "expand") for side in "ab"),
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "hardswish"}, "unknown activation 'hardswish'; did you mean 'hard_swish'?"),
        ({"gate": "hard"}, "unknown gate 'hard'"),
        ({"padding": "sam"}, "unknown padding 'sam'; did you mean 'same'?"),
        ({"widths": (4,)}, "1 widths do not fit the depths of 2 stages"),
        ({"expanded": (0, 8)}, "2 numbers in expanded do not fit 3 blocks"),
        ({"sides": (3, 4)}, "sides [3, 4]; expected odd numbers"),
        ({"strides": (1, 4)}, "strides [1, 4]; expected 1 or 2"),
        ({"even": (3,)}, "even [3]; expected numbers of blocks, 0..2"),
        ({"image": (1, 16), "padding": "after"}, "images of 1x16 are too small"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(wrong, message):
    with pytest.raises(InputError) as refused:
        models.build("efficientnet", **TINY | wrong)
    assert message in str(refused.value) and "\n" not in str(refused.value)
