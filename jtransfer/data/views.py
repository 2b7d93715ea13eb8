"""Random views of images, as training augments them: a part of the image at its full size, mirrored or not."""

import jax
import jax.numpy as jnp

AREA, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
"""Shares of an image's area that a view has, and its width over its height where the image is square."""


def view(images: jax.Array, rows: jax.Array, number: int | jax.Array, flip: bool = False) -> jax.Array:
    """A random view of every image: torchvision's `RandomResizedCrop(scale=(0.5, 1))`, bicubic.

    Area and ratio are drawn independently, the ratio in its logarithm, and sides that are longer than the image's are
    those of the image.

    Args:
        images: `[n, height, width, channels]`, floats.
        rows: `[n]` integers that tell images apart: an image has the same views in any batch.
        number: Which view, from 0.
        flip: Whether half of the views are mirrored, left to right.
    """

    def one(image, row):
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), number), 4)
        area = jax.random.uniform(keys[0], minval=AREA[0], maxval=AREA[1])
        ratio = jnp.exp(jax.random.uniform(keys[1], minval=jnp.log(RATIO[0]), maxval=jnp.log(RATIO[1])))
        share = jnp.minimum(jnp.sqrt(area * jnp.array([1 / ratio, ratio])), 1)
        scale, start = 1 / share, jax.random.uniform(keys[2], (2,)) * (1 - share) * jnp.array(image.shape[:2])
        seen = jax.image.scale_and_translate(
            image, image.shape, (0, 1), scale, -start * scale, "cubic", antialias=False
        )
        return jnp.where(flip & jax.random.bernoulli(keys[3]), seen[:, ::-1], seen)

    return jax.vmap(one)(images, rows)
