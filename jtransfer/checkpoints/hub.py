"""From a name to a directory: embedded, local, in an object store, or on the Hugging Face hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from etils import epath

from jtransfer import files
from jtransfer.checkpoints import recognition
from jtransfer.checkpoints.tensors import PICKLED, conversion, refuse_pickles
from jtransfer.errors import InputError, first_line, nearest
from jtransfer.kinds import shown

ASSETS = Path(__file__).parents[1] / "assets"
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.npz"]
"""Files of a hub repository that anything here reads."""

WEIGHTS = (".safetensors", ".npz")
"""Ends of the names of files of weights."""

TOLD_BY = ("config.json", *WEIGHTS)
"""Ends of the names of files of which a checkpoint's directory has one."""


def embedded() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def find(name: str, what: str = "backbone") -> epath.Path:
    """The directory (or the file) that a name means, downloaded to the hub's cache if need be.

    Args:
        name: Of a backbone or an adapter.
        what: "backbone", or "adapter", which may be any directory here: its reader says what it lacks.

    Raises:
        InputError: nothing of that name; no weights there that are read; or the hub cannot be reached: what to
            download, and where to put it.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"{what}: expected a name or a path, found {shown(name)}")
    name = os.fspath(name)
    if name in embedded():
        return epath.Path(ASSETS / name)
    if found := re.match(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", name):
        raise InputError(f"{what} '{name}' is an address; its name on the Hugging Face hub is '{found[1]}'")
    if "://" in name and "://" not in name[:6]:
        raise InputError(f"{what} '{name[:100]}' is an address; download it, and name the directory")
    path = files.path(name, what)
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
        if path.exists() and not (is_file or is_directory):
            raise InputError(f"{what} '{name}' is a pipe or device; expected a directory or a file of weights")
    except (OSError, ImportError) as error:  # an object store whose client is not installed, a name that is too long
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{what} '{name[:100]}' cannot be read: {reason}") from None
    if is_file:
        return path
    if not is_directory:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or ".." in name or len(name) > LONGEST:
            raise InputError(
                f"unknown {what} '{name[:100]}': neither embedded nor a file or directory"
                f"{_or_embedded(name[:100], what)}"
            )
        path = _download(name, what)
    if what == "backbone":
        _check_directory(path, name)
    return path


LONGEST = 96
"""Characters of the name of a repository, by the hub's own rule."""


def _check_directory(path, name):
    """Refuse a directory that is something else than a model, by what it is.

    Raises:
        InputError: with what is to be done.
    """
    names = recognition.entries(path)
    adapter = recognition.is_adapter(names)
    if adapter or not recognition.has_weights(names):
        refuse_pickles(path, () if adapter else sorted(names))
        if said := recognition.what(path):
            raise InputError(f"backbone '{name}' is no model: {said}")
    if not any(file.endswith(TOLD_BY) for file in names):
        raise InputError(f"backbone '{name}': the directory has no config.json, and no weights that tell without one")


_cached: ContextVar[bool] = ContextVar("cached", default=False)


@contextmanager
def from_cache_alone() -> Iterator[None]:
    """Within this block no name is looked for on the network: it was not the user who gave it."""
    before = _cached.set(True)
    try:
        yield
    finally:
        _cached.reset(before)


def snapshot(name: str, patterns: list[str]) -> epath.Path:
    """The directory of a repository in the hub's cache, with the files of some patterns.

    Raises:
        Exception: whatever the network and the hub's library raise.
    """
    from huggingface_hub import snapshot_download

    return epath.Path(snapshot_download(name, allow_patterns=patterns, local_files_only=_cached.get()))


def _download(name, what):
    from huggingface_hub import errors

    try:
        directory = snapshot(name, WANTED)
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        reason = "is gated" if isinstance(error, errors.GatedRepoError) else "does not exist, or is private"
        raise InputError(
            f"unknown {what} '{name}': the repository {reason} on the Hugging Face hub{_or_embedded(name, what)}"
        ) from None
    except Exception as error:  # whatever the network and its libraries raise
        raise InputError(
            f"unknown {what} '{name}': not embedded, no local directory, and not in the hub's cache, which cannot be "
            f"filled from here ({type(error).__name__}); {_elsewhere(name)}{_or_embedded(name, what, '; or ')}"
        ) from error
    cached = [path.name for path in directory.iterdir()]
    if not any(file.endswith(WEIGHTS) for file in cached):
        _refuse(name, what, cached)
    return directory


def _refuse(name, what, cached):
    """Say why there are no weights: the repository has none that are read, or the cache could not be filled.

    Without a network the hub's library is content with whatever was cached once, if only a `config.json`.
    """
    from huggingface_hub import model_info

    try:
        if _cached.get():
            raise LookupError("not asked")
        there = [file.rfilename for file in model_info(name, timeout=10).siblings or ()]
    except Exception as error:  # whatever the network and its libraries raise
        if not any(file.endswith(PICKLED) for file in cached):
            raise InputError(
                f"{what} '{name}': the hub's cache has no weights of it, and cannot be filled from here "
                f"({type(error).__name__}); {_elsewhere(name)}"
            ) from error
        there = cached
    if any(file.endswith(WEIGHTS) and "/" not in file for file in there):
        raise InputError(
            f"{what} '{name}': the hub's cache has no weights of it, as the download broke off; {_elsewhere(name)}"
        )
    raise InputError(
        f"{what} '{name}': its repository has no safetensors, and pickled weights, as pytorch_model.bin, are not read, "
        "as reading a pickle runs whatever code is in it; convert them where you trust them: "
        f"{conversion(name, what)}"
    )


def _or_embedded(name, what, before="; "):
    """The embedded backbone that may have been meant, for the end of an error; of adapters none is embedded."""
    return f"{before}{nearest(name, embedded())}" if what == "backbone" else ""


def _elsewhere(name):
    return f"where there is a network, run 'hf download {name} --local-dir DIR', and name DIR"
