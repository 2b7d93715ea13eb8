"""Two cores, eight simulated devices, no network: what every test may rely on."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import models
from jtransfer.tree import flat

TINY = {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 2, "heads": 2, "pool": "mean"}


@pytest.fixture(scope="session")
def vit():
    """A ViT of two blocks on 8x8 images."""
    return models.build("vit", **TINY)


@pytest.fixture(scope="session")
def backbone(vit):
    """Leaves of that ViT, all of them away from their initial values, with a source head of 5 classes."""
    model = models.Classifier(vit, 5, "source_head")
    tree = flat(jax.jit(model.init)(jax.random.key(7), jnp.zeros((1, 8, 8, 1)))["params"])
    rng = np.random.default_rng(0)
    return {path: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in tree.items()}


@pytest.fixture(scope="session")
def images():
    """48 images of 8x8 and labels of three classes that their brightness tells."""
    rng = np.random.default_rng(1)
    labels = np.arange(48) % 3
    return (rng.random((48, 8, 8, 1)) * (1 + labels[:, None, None, None])).astype(np.float32) / 3, labels.astype(
        np.int32
    )
