"""Random views: parts of an image at its full size, the same for an image in any batch."""

import jax
import numpy as np

from jtransfer.data.views import view

RAMP = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0), indexing="ij"), -1)[None].astype(np.float32)
"""An image whose two channels tell the row and the column of each pixel."""


def test_a_view_is_a_part_of_the_image_with_half_of_its_area_or_more():
    rows = np.arange(200)
    seen = np.asarray(jax.jit(view)(np.repeat(RAMP, 200, axis=0), rows, 0))
    inner = seen[:, 4:12, 4:12]  # where the cubic's edges do not reach
    steps = (np.diff(inner[..., 0], axis=1).mean((1, 2)), np.diff(inner[..., 1], axis=2).mean((1, 2)))
    area, ratio = steps[0] * steps[1], steps[1] / steps[0]
    assert area.min() > 0.45 and area.max() < 1.01 and ratio.min() > 0.5 and ratio.max() < 2
    assert area.std() > 0.1 and inner.min() >= 0 and inner.max() <= 15
    assert all((step > 0).all() for step in steps), "none is mirrored"


def test_an_image_has_its_views_in_any_batch_and_one_in_two_is_mirrored_where_asked():
    many, alone = view(np.repeat(RAMP, 3, axis=0), np.array([5, 9, 7]), 1), view(RAMP, np.array([9]), 1)
    np.testing.assert_allclose(many[1], alone[0], atol=1e-5)
    assert np.abs(alone - view(RAMP, np.array([9]), 2)).max() > 0.5
    seen = np.asarray(view(np.repeat(RAMP, 100, axis=0), np.arange(100), 0, flip=True))
    assert 30 < (seen[:, 8, 4, 1] > seen[:, 8, 12, 1]).sum() < 70
