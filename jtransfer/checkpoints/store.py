"""Checkpoints of a run: Orbax on disk, with checksums of our own, because a flipped bit restores without a word."""

import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jtransfer import files
from jtransfer.checkpoints.sums import sums
from jtransfer.errors import LATER, MAKE_ROOM, Damaged, Gone, InputError, MachineError, cut, first_line, unavailable

NEWEST = 2
"""How many of the newest checkpoints are kept."""


class Store:
    """The checkpoints of a run under a directory, newest two kept. Use it as a context: leaving it waits for writes.

    Args:
        directory: Local or in an object store.
        reading: Nothing is made, written or removed; somebody else may be writing.

    Raises:
        Damaged: what is there cannot be read.
        InputError: the directory can be no such path.
        MachineError: it cannot be made; or, when the context is left, a checkpoint could not be written.
    """

    def __init__(self, directory: epath.PathLike, reading: bool = False):
        self.directory = epath.Path(directory)
        if os.fspath(self.directory).startswith("s3://"):
            raise InputError(f"{self.directory}: Orbax writes no checkpoints to s3://; choose gs:// or a disk")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(NEWEST),
            cleanup_tmp_directories=not reading,
            read_only=reading,
            create=not reading,
        )
        self.alias = ExitStack()
        where = self.alias.enter_context(plain(self.directory))
        with files.writing(self.directory):
            if not reading:
                self.directory.mkdir(parents=True, exist_ok=True)
            self.manager = self._opened(where, options)

    def _opened(self, where, options):
        try:
            return ocp.CheckpointManager(where, options=options)
        except (OSError, ImportError):
            raise
        except Exception as error:  # of whatever stands in the files that it reads first
            raise Damaged(
                f"checkpoints {self.directory} cannot be read ({_said(error)}); remove the damaged one to go on "
                "from the one before"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        try:
            self.manager.wait_until_finished()
        except Exception as refused:
            if kind is None:  # an error that is on its way says more than what came of it
                raise self._not_written(self.directory, refused) from refused
        finally:
            self.manager.close()
            self.alias.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return self.manager.latest_step()

    def save(self, step: int, tree: Any, about: Mapping[str, Any] | None = None) -> None:
        """Write a pytree of arrays as the checkpoint of a step.

        Args:
            step: Above the newest.
            tree: Of equal structure on every process, which each has its part of the arrays.
            about: More to keep with it, as JSON has it.

        Raises:
            RuntimeError: Orbax declined, as it silently does for a step at or below the newest.
            MachineError: it cannot be written.
            Gone: the object store does not answer.
        """
        tree = jax.tree.map(_raw, tree)
        record = files.seal({"sums": sums(tree), "about": dict(about or {})})
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(record))
        where = self.directory / str(step)

        def save():
            return self.manager.save(step, args=arguments)

        try:  # of several processes one alone cannot save again
            written = files.patiently(save, where) if jax.process_count() == 1 else save()
        except Exception as error:
            raise self._not_written(where, error) from error
        if not written:
            raise RuntimeError(f"checkpoint of step {step} was not written; the newest is {self.latest}")

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Read the checkpoint of a step, whatever the mesh and the number of processes that wrote it.

        Args:
            step: Of a checkpoint that exists.
            like: A pytree of `jax.ShapeDtypeStruct` with shardings, of the structure that was saved.

        Returns:
            The pytree, and what was kept with it.

        Raises:
            Damaged: the checkpoint is not as it was written, or of another structure.
        """
        abstract = jax.tree.map(_raw_shape, like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
        where, way_out = self.directory / str(step), "remove it to go on from the one before"
        try:
            _check_plain(where)
            restored = self.manager.restore(step, args=arguments)
        except Exception as error:
            if unavailable(error):
                raise self._not_written(where, error) from error
            raise Damaged(f"checkpoint {where} cannot be read ({_said(error)}); {way_out}") from error
        record = restored.about
        # Format 1 had the SHA-256 of everything, and none where there were several hosts.
        earlier = isinstance(record, dict) and record.keys() == {"sha256"}
        about = {} if earlier else files.unseal(record, f"checkpoint {where}", way_out)[1]
        wrong = [
            x.dtype
            for x, a in zip(jax.tree.leaves(restored.state), jax.tree.leaves(abstract), strict=True)
            if x.dtype != a.dtype
        ]
        if wrong or not (_is_of_1(restored.state, record) if earlier else about.get("sums") == sums(restored.state)):
            raise Damaged(f"checkpoint {where} is damaged (its checksum differs); {way_out}")
        return jax.tree.map(_typed, restored.state, like), about.get("about", {})

    def _not_written(self, where, error):
        if isinstance(error, Gone) or (why := unavailable(error)):
            return error if isinstance(error, Gone) else Gone(f"checkpoint {where}: {why}; {LATER}")
        return MachineError(
            f"checkpoint {where} cannot be written: {_said(error)}; {MAKE_ROOM} from step {self.latest or 0}"
        )


@contextmanager
def plain(directory: epath.PathLike) -> Iterator[epath.Path]:
    """A path to a directory that Orbax takes for a path: a link to it where its own is `lr[1e-3]` or `C:\\runs`.

    Orbax looks for files by patterns, and TensorStore takes a backslash for a slash: what is written into another
    directory, or not found again, is lost without a word.
    """
    where = epath.Path(directory)
    if "://" in os.fspath(where):  # of which `resolve` makes a directory called `gs:`
        yield where
        return
    words = os.fspath(where := where.resolve())
    if words == glob.escape(words).replace("\\", "/"):
        yield where
        return
    with tempfile.TemporaryDirectory() as made:
        os.symlink(where, os.path.join(made, "it"), target_is_directory=True)
        yield epath.Path(made) / "it"


def _check_plain(directory):
    """Refuse a checkpoint with anything but files and directories in it: Orbax would wait for a pipe for ever.

    Raises:
        OSError: with the path.
    """
    if "://" in os.fspath(directory):
        return
    for place, directories, names in os.walk(directory):
        for path in (os.path.join(place, name) for name in directories + names):
            if not stat.S_ISREG(mode := os.lstat(path).st_mode) and not stat.S_ISDIR(mode):
                raise OSError(f"{path} is a link, a pipe or a device; expected a file")


LONGEST = 300
"""Characters that are shown of what Orbax says, which may hold its whole configuration."""


def _said(error):
    return cut(first_line(error), LONGEST)


def _is_of_1(tree, record):
    """Whether a checkpoint of format 1 has its checksum, if it has one and all of the tree is within reach."""
    leaves = jax.tree.leaves(tree)
    if record["sha256"] is None or not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return True
    digest = hashlib.sha256()
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest() == record["sha256"]


def _raw(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _raw_shape(leaf):
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    raw = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=leaf.sharding)


def _typed(leaf, like):
    return jax.random.wrap_key_data(leaf) if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key) else leaf
