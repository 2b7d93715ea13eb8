"""Checkpoints of a run outlive the API of Orbax that wrote them."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jtransfer.checkpoints.store import Store


def test_the_v1_api_reads_what_we_write(tmp_path):
    tree = {"trainable": {"head/kernel": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(3)}
    with Store(tmp_path) as store:
        store.save(3, tree, {"metrics": [1.5]})
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    found = ocp.v1.load_checkpointables(tmp_path / "3", {"state": like, "about": None})
    jax.tree.map(np.testing.assert_array_equal, found["state"], tree)
    assert found["about"]["about"] == {"metrics": [1.5]}
