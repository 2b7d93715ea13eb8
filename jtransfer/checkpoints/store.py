"""Checkpoints of a run: Orbax on disk, with checksums of our own, because a flipped bit restores without a word."""

import glob
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jtransfer import files
from jtransfer.checkpoints.keeping import Keep
from jtransfer.checkpoints.sums import sums
from jtransfer.devices import hosts
from jtransfer.errors import (
    LATER,
    MAKE_ROOM,
    Damaged,
    Gone,
    InputError,
    MachineError,
    Newer,
    cut,
    first_line,
    of_the_machine,
    unavailable,
)


class Store:
    """The checkpoints of a run under a directory. Use it as a context: leaving it waits for writes.

    A save returns as soon as the arrays are copied; a thread writes them. What it cannot write is an error of the next
    save, or of leaving the context.

    Args:
        directory: Local or in an object store.
        keep: Policies of Orbax, of which one is enough to keep a checkpoint; None for those of `Keep()`.
        reading: Nothing is made, written or removed; somebody else may be writing.

    Raises:
        Damaged: what is there cannot be read.
        InputError: the directory can be no such path.
        MachineError: it cannot be made; or, when the context is left, a checkpoint could not be written.
    """

    def __init__(self, directory: epath.PathLike, keep: Sequence[Any] | None = None, reading: bool = False):
        self.directory = epath.Path(directory)
        if os.fspath(self.directory).startswith("s3://"):
            raise InputError(f"{self.directory}: Orbax writes no checkpoints to s3://; choose gs:// or a disk")
        policies = Keep().policies() if keep is None else keep
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
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
                f"checkpoints {self.directory} cannot be read ({_said(error)}); move the damaged one away to go on "
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
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints that there are, rising."""
        return tuple(self.manager.all_steps())

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
            MachineError: it cannot be written, or the one before could not be.
            Gone: the object store does not answer.
        """
        tree = jax.tree.map(_raw, tree)
        record = files.seal({"sums": sums(tree), "about": dict(about or {})})
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(record))
        where = self.directory / str(step)

        def save():
            return self.manager.save(step, args=arguments)

        self._wait()
        try:  # of several processes one alone cannot save again
            written = files.patiently(save, where) if jax.process_count() == 1 else save()
        except Exception as error:
            raise self._not_written(where, error) from error
        if not written:
            raise RuntimeError(f"checkpoint of step {step} was not written; the newest is {self.latest}")

    def about(self, step: int) -> dict[str, Any]:
        """What was kept with the checkpoint of a step, which every process reads.

        Raises:
            Damaged: it is not as it was written.
            MachineError: it cannot be read at the moment.
        """
        return self._record(step).get("about", {})

    def restore(self, step: int, like: Any) -> Any:
        """Read the checkpoint of a step, whatever the mesh, the number of processes and the precision that wrote it.

        A floating-point array is cast to the dtype that is asked for, after its checksum has been compared.

        Args:
            step: Of a checkpoint that exists.
            like: A pytree of `jax.ShapeDtypeStruct` with shardings, of the structure that was saved.

        Returns:
            The pytree.

        Raises:
            Damaged: the checkpoint is not as it was written, on every process if one of them cannot read its part.
            InputError: it is whole, and of another structure.
            MachineError: it cannot be read at the moment.
        """
        where, record, wanted = self._called(step), self._record(step), jax.tree.map(_raw_shape, like)
        saved = record.get("sums")
        abstract = wanted if saved is None else _as_saved(wanted, saved, where)  # format 1 had no sums
        found, refused = None, ""
        try:
            _check_plain(self.directory / str(step))
            # The handler, not the manager: where one process fails, the manager would leave the others waiting for it.
            found = ocp.StandardCheckpointHandler().restore(
                self._place(step) / "state", args=ocp.args.StandardRestore(abstract)
            )
        except Exception as error:
            refused = self._refused(where, error)
        if refused := hosts.first_of(refused):
            raise Damaged(f"{where} cannot be read ({refused})")
        if not (_is_of_1(found, record) if saved is None else saved == sums(found)):
            raise Damaged(f"{where} is damaged (its checksum differs)")
        found = jax.tree.map(lambda x, a: x if x.dtype == a.dtype else x.astype(a.dtype), found, wanted)
        return jax.tree.map(_typed, found, like)

    def names(self, step: int) -> Iterable[str]:
        """The places of the arrays in the checkpoint of a step, as `jax.tree_util.keystr` has them.

        Raises:
            Damaged: as `about`.
            MachineError: as `about`.
        """
        return self._record(step).get("sums", {}).keys()

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; every process calls this."""
        for later in [one for one in self.steps if one > step]:
            self._wait()
            self.manager.delete(later)

    def set_aside(self, step: int) -> epath.Path:
        """Rename a damaged checkpoint, so that it is neither read nor removed any more; every process calls this.

        Returns:
            Where it is now.

        Raises:
            MachineError: it cannot be renamed.
        """

        def rename():
            names = (f"damaged-{step}{f'-{number}' if number else ''}" for number in itertools.count())
            new = next(path for name in names if not (path := self.directory / name).exists())
            with files.writing(new):
                (self.directory / str(step)).rename(new)
            return new

        new = hosts.first_does(rename)
        self.manager.reload()
        return new or self.directory / f"damaged-{step}"

    def _record(self, step):
        """The sealed record beside the arrays; in format 1 it had their SHA-256 alone, or None on several hosts."""
        self._wait()  # it may be on its way to the disk
        where, record, refused = self._called(step), None, ""
        try:
            _check_plain(self.directory / str(step))
            record = ocp.JsonCheckpointHandler().restore(self._place(step) / "about", args=ocp.args.JsonRestore())
        except Exception as error:
            refused = self._refused(where, error)
        if refused := hosts.first_of(refused):
            raise Damaged(f"{where} cannot be read ({refused})")
        if isinstance(record, dict) and record.keys() == {"sha256"}:
            return record
        try:
            return files.unseal(record, where, "")[1]
        except Newer:
            raise
        except Damaged as error:
            raise Damaged(str(error).rstrip("; ")) from None

    def _wait(self):
        """Wait for the checkpoint that is being written.

        Raises:
            MachineError: it could not be written.
        """
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(self.directory, error) from error

    def _called(self, step):
        return f"checkpoint {self.directory / str(step)}"

    def _place(self, step):
        return epath.Path(self.manager.directory) / str(step)

    def _refused(self, where, error):
        """What Orbax says of files that it cannot read, if the machine is not to blame.

        Raises:
            MachineError: it is.
            Gone: an object store does not answer.
        """
        if isinstance(error, Gone) or unavailable(error):
            raise self._not_written(self.directory, error) from error
        if of_the_machine(error):
            raise MachineError(f"{where} cannot be read: {_said(error)}; put that right, and the same command goes on")
        return _said(error)

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


def _as_saved(like, saved, where):
    """The shapes of `like` in the dtypes that were saved, as the sums of the arrays have them.

    Raises:
        InputError: arrays of other names, shapes or kinds were saved.
    """
    if wrong := sorted(saved.keys() ^ {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(like)}):
        there = "has" if wrong[0] in saved else "lacks"
        raise InputError(f"{where} {there} {wrong[0]}: it is of another structure; choose another --workdir")

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        dtype, _, shape = saved[name].partition(" ")[0].partition("[")
        floats = all(jax.numpy.issubdtype(x, jax.numpy.floating) for x in (leaf.dtype, dtype))
        if shape.rstrip("]") != ",".join(map(str, leaf.shape)) or not (floats or leaf.dtype == dtype):
            found = saved[name].partition(" ")[0]
            raise InputError(
                f"{where}: {name} is {found}, expected {leaf.dtype}{list(leaf.shape)}; choose another --workdir"
            )
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, like)


def _typed(leaf, like):
    return jax.random.wrap_key_data(leaf) if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key) else leaf
