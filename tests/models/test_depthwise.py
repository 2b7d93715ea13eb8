"""The sum of shifted products is the convolution of each channel alone: values, gradients, strides and paddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jtransfer.models import layers

CHANNELS = 6
AXES = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": CHANNELS}


def arrays(height, width, side, dtype=jnp.float32):
    """Two images and a kernel."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, height, width, CHANNELS), dtype)
    return x, jax.random.normal(keys[1], (side, side, 1, CHANNELS), dtype)


@pytest.mark.parametrize(
    ("height", "width", "side", "strides", "padding"),
    [
        (8, 5, 7, (1, 1), "SAME"),
        (9, 12, 3, (2, 2), "SAME"),
        (9, 12, 3, (2, 2), [(1, 1), (1, 1)]),
        (10, 7, 5, (2, 1), [(2, 2), (0, 3)]),
        (9, 9, 3, (3, 2), "VALID"),
    ],
)
def test_values_and_gradients_are_those_of_xla(height, width, side, strides, padding):
    x, kernel = arrays(height, width, side)
    ours, pull = jax.vjp(lambda *of: layers.depthwise(*of, strides, padding, **AXES), x, kernel)
    theirs, expected = jax.vjp(lambda *of: lax.conv_general_dilated(*of, strides, padding, **AXES), x, kernel)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    dy = jax.random.normal(jax.random.key(2), theirs.shape)
    for one, other in zip(pull(dy), expected(dy), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_half_precision_is_summed_in_whole_precision():
    x, kernel = arrays(8, 8, 7, jnp.bfloat16)
    exact = layers.depthwise(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), "SAME", **AXES)
    half = layers.depthwise(x, kernel, (1, 1), "SAME", **AXES)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("platform", "groups", "dilation"), [("gpu", CHANNELS, 1), ("cpu", 2, 1), ("cpu", CHANNELS, 2)]
)
def test_accelerators_other_groups_and_dilated_kernels_are_left_to_xla(platform, groups, dilation):
    layer = nn.Conv(
        CHANNELS, (3, 3), kernel_dilation=dilation, feature_group_count=groups, conv_general_dilated=layers.depthwise
    )
    with layers.compiling_for(platform):
        program = jax.make_jaxpr(lambda x: layer.init_with_output(jax.random.key(0), x)[0])(arrays(8, 8, 3)[0])
    assert "conv_general_dilated" in str(program)
