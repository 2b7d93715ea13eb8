"""Checkpoints of a run are written while it goes on, and outlive the API of Orbax that wrote them."""

import resource
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jtransfer.checkpoints.store import Store
from jtransfer.errors import MachineError


def test_the_v1_api_reads_what_we_write(tmp_path):
    tree = {"trainable": {"head/kernel": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(3)}
    with Store(tmp_path) as store:
        store.save(3, tree, {"metrics": [1.5]})
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    found = ocp.v1.load_checkpointables(tmp_path / "3", {"state": like, "about": None})
    jax.tree.map(np.testing.assert_array_equal, found["state"], tree)
    assert found["about"]["about"] == {"metrics": [1.5]}


def test_a_save_returns_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    may_end, finalize = threading.Event(), ocp.StandardCheckpointHandler.finalize

    def late(self, directory):
        assert may_end.wait(60)
        return finalize(self, directory)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", late)
    with Store(tmp_path) as store:
        store.save(1, {"x": jnp.ones(3)})
        assert not (tmp_path / "1").exists()
        may_end.set()
        assert store.about(1) == {}  # which waits for it
    assert (tmp_path / "1").exists()


@pytest.mark.parametrize("at", ["the next save", "the end"])
def test_what_cannot_be_written_in_the_background_is_one_line_of_the_next_save_or_of_the_end(at, tmp_path):
    tree = {"x": jax.random.normal(jax.random.key(0), (1000, 100))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may be larger: as if the disk were full
    refused = pytest.raises(MachineError, match=r"^checkpoint\S* \S+ cannot be written: .*goes on from step 0$")
    try:
        if at == "the end":
            with refused, Store(tmp_path) as store:
                store.save(1, tree)
        else:
            with Store(tmp_path) as store:
                store.save(1, tree)
                with refused:
                    store.save(2, tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    with Store(tmp_path) as store:
        assert store.steps == ()
        store.save(1, tree)
