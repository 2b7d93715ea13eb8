"""Checkpoints of a run: Orbax on disk, with a checksum of our own, because a flipped bit restores without a word."""

import hashlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jtransfer.errors import InputError


class Store:
    """The checkpoints of a run under a directory, newest two kept. Use it as a context: leaving it waits for writes."""

    def __init__(self, directory: epath.PathLike, keep: int = 2):
        self.directory = epath.Path(directory)
        policy = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.directory.resolve(), options=options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.manager.wait_until_finished()
        self.manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self.manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Write a pytree of arrays as the checkpoint of a step.

        Raises:
            RuntimeError: Orbax declined, as it silently does for a step at or below the newest.
        """
        tree = jax.tree.map(_raw, tree)
        about = {"sha256": checksum(tree)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about))
        if not self.manager.save(step, args=arguments):
            raise RuntimeError(f"checkpoint of step {step} was not written; the newest is {self.latest}")

    def restore(self, step: int, like: Any) -> Any:
        """Read the checkpoint of a step.

        Args:
            step: One that exists.
            like: A pytree of `jax.ShapeDtypeStruct` with shardings, of the structure that was saved.

        Raises:
            InputError: the checkpoint is damaged or of another structure.
        """
        abstract = jax.tree.map(_raw_shape, like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
        where = self.directory / str(step)
        try:
            restored = self.manager.restore(step, args=arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"checkpoint {where} cannot be read ({lines[0]}); remove it to go on from the one before"
            ) from error
        wrong = [
            x.dtype
            for x, a in zip(jax.tree.leaves(restored.state), jax.tree.leaves(abstract), strict=True)
            if x.dtype != a.dtype
        ]
        if wrong or checksum(restored.state) != restored.about["sha256"]:
            raise InputError(
                f"checkpoint {where} is damaged (its checksum differs); remove it to go on from the one before"
            )
        return jax.tree.map(_typed, restored.state, like)


def checksum(tree: Any) -> str | None:
    """SHA-256 over every array of a pytree; None where an array does not lie wholly within reach of this process."""
    leaves = jax.tree.leaves(tree)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    digest = hashlib.sha256()
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _raw(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _raw_shape(leaf):
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    raw = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)


def _typed(leaf, like):
    return jax.random.wrap_key_data(leaf) if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key) else leaf
