"""From a name to a directory: embedded, local, in an object store, or on the Hugging Face hub."""

import glob
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
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.npz", "*.hdf5"]
"""Files of a hub repository that anything here reads."""

WEIGHTS = (".safetensors", ".npz", ".hdf5")
"""Ends of the names of files of weights."""

TOLD_BY = ("config.json", *WEIGHTS)
"""Ends of the names of files of which a checkpoint's directory has one."""


def embedded() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def find(name: str, what: str = "backbone", revision: str | None = None, subfolder: str | None = None) -> epath.Path:
    """The directory (or the file) that a name means, downloaded to the hub's cache if need be.

    Args:
        name: Of a backbone or an adapter.
        what: "backbone", or "adapter", which may be any directory here: its reader says what it lacks.
        revision: The branch, tag or commit of a repository on the hub; None for its main branch.
        subfolder: The folder in a repository or directory that is meant, as "text_encoder"; None for all of it.

    Raises:
        InputError: nothing of that name; no weights there that are read; or the hub cannot be reached: what to
            download, and where to put it.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"{what}: expected a name or a path, found {shown(name)}")
    name = os.fspath(name)
    _check_place(revision, subfolder)
    if name in embedded():
        _leave_out(f"{what} '{name}' is embedded", revision=revision, subfolder=subfolder)
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
        _leave_out(f"{what} '{name}' is a file", revision=revision, subfolder=subfolder)
        return path
    if is_directory:
        _leave_out(f"{what} '{name}' is a directory", revision=revision)
        path = _folder(path, subfolder, f"{what} '{name}'") if subfolder else path
    else:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or ".." in name or len(name) > LONGEST:
            raise InputError(
                f"unknown {what} '{name[:100]}': neither embedded nor a file or directory"
                f"{_or_embedded(name[:100], what)}"
            )
        path = _download(name, what, revision, subfolder)
    if what == "backbone":
        _check_directory(path, name)
    return path


OF = {"revision": "a name on the Hugging Face hub", "subfolder": "a directory or of a name on the Hugging Face hub"}
"""What the options that say a place within a name are of."""


def _check_place(revision, subfolder):
    """Refuse a revision or a folder that is none, or that leads out of its repository.

    Raises:
        InputError: with what was expected.
    """
    branch = isinstance(revision, str) and re.fullmatch(r"\w[\w.+/-]*", revision) and ".." not in revision
    if revision is not None and not (branch and len(revision) <= LONGEST_NAME):
        raise InputError(f"revision={shown(revision)}: expected the name of a branch or tag, or a commit")
    folder = isinstance(subfolder, str) and subfolder.isprintable() and "\\" not in subfolder
    folder = folder and not {"", ".", ".."}.intersection(subfolder.split("/"))
    if subfolder is not None and not (folder and len(subfolder) <= LONGEST_NAME):
        raise InputError(f"subfolder={shown(subfolder)}: expected the path of a folder within, as 'text_encoder'")


def _leave_out(said, **options):
    """Refuse options that do nothing for what a name is."""
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{said}; {option}='{value}' is of {OF[option]}: leave it out")


def _folder(directory, subfolder, said):
    """A folder in a directory.

    Raises:
        InputError: there is none, with those that there are.
    """
    if (folder := directory / subfolder).is_dir():
        return folder
    there = [path.name for path in directory.iterdir() if path.is_dir()]
    raise InputError(f"{said} has no folder '{subfolder}'; {nearest(subfolder, there)}")


LONGEST = 96
"""Characters of the name of a repository, by the hub's own rule."""

LONGEST_NAME = 255
"""Characters of the name of a branch or folder, as of a file on most disks."""


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


def snapshot(name: str, patterns: list[str], revision: str | None = None) -> epath.Path:
    """The directory of a repository in the hub's cache, with the files of some patterns.

    Raises:
        Exception: whatever the network and the hub's library raise.
    """
    from huggingface_hub import snapshot_download

    own = {"revision": revision} if revision else {}
    return epath.Path(snapshot_download(name, allow_patterns=patterns, local_files_only=_cached.get(), **own))


def _download(name, what, revision, subfolder):
    """The directory in the hub's cache that has the weights of a name."""
    from huggingface_hub import errors

    below = f"{subfolder}/" if subfolder else ""
    try:
        directory = snapshot(name, [glob.escape(below) + pattern for pattern in WANTED], revision)
    except errors.RevisionNotFoundError:
        said = f"{what} '{name}' has no revision '{revision or 'main'}' on the Hugging Face hub"
        raise InputError(f"{said}; its page lists the branches and tags that there are") from None
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        reason = "is gated" if isinstance(error, errors.GatedRepoError) else "does not exist, or is private"
        raise InputError(
            f"unknown {what} '{name}': the repository {reason} on the Hugging Face hub{_or_embedded(name, what)}"
        ) from None
    except Exception as error:  # whatever the network and its libraries raise
        why, elsewhere = f"cannot be filled from here ({type(error).__name__})", _elsewhere(name, revision)
        if there := _revisions(name):
            raise InputError(
                f"{what} '{name}': its revision '{revision or 'main'}' is not in the hub's cache, which {why}; "
                f"{elsewhere}; or {nearest(revision or 'main', there)}"
            ) from error
        raise InputError(
            f"unknown {what} '{name}': not embedded, no local directory, and not in the hub's cache, which {why}; "
            f"{elsewhere}{_or_embedded(name, what, '; or ')}"
        ) from error
    where = directory / below if below else directory
    if not where.is_dir() or not any(path.name.endswith(WEIGHTS) for path in where.iterdir()):
        _refuse(name, what, revision, below, directory)
    return where


def _revisions(name):
    """The branches and tags of a repository that are in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "refs"
    return [path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file()]


def _refuse(name, what, revision, below, directory):
    """Say why there are no weights: the repository has none that are read, or the cache could not be filled.

    Without a network the hub's library is content with whatever was cached once, if only a `config.json`.
    """
    from huggingface_hub import model_info

    said, unreachable = f"{what} '{name}'", None
    try:
        if _cached.get():
            raise LookupError("not asked")
        there = [file.rfilename for file in model_info(name, revision=revision, timeout=10).siblings or ()]
    except Exception as error:  # whatever the network and its libraries raise
        there, unreachable = [path.relative_to(directory).as_posix() for path in Path(directory).rglob("*")], error
    inside = [file.removeprefix(below) for file in there if file.startswith(below)]
    beside = [file for file in inside if "/" not in file]
    pickled = any(file.endswith(PICKLED) for file in beside)
    if not unreachable and any(file.endswith(WEIGHTS) for file in beside):
        raise InputError(
            f"{said}: the hub's cache has no weights of it, as the download broke off; {_elsewhere(name, revision)}"
        )
    folders = sorted({below + file.rpartition("/")[0] for file in inside if file.endswith(WEIGHTS)})
    if folders and not pickled:
        raise InputError(f"{said} has its weights in {', '.join(folders)}; name one of them by subfolder=")
    if unreachable and not pickled:
        lacks = "no weights" if inside else f"no folder '{below[:-1]}'"
        raise InputError(
            f"{said}: the hub's cache has {lacks} of it, and cannot be filled from here "
            f"({type(unreachable).__name__}); {_elsewhere(name, revision)}"
        ) from unreachable
    if not inside:
        raise InputError(f"{said} has no folder '{below[:-1]}'; {nearest(below, map(os.path.dirname, there))}")
    raise InputError(
        f"{said}: its repository has no safetensors, and pickled weights, as pytorch_model.bin, are not read, "
        "as reading a pickle runs whatever code is in it; convert them where you trust them: "
        f"{conversion(name, what)}"
    )


def _or_embedded(name, what, before="; "):
    """The embedded backbone that may have been meant, for the end of an error; of adapters none is embedded."""
    return f"{before}{nearest(name, embedded())}" if what == "backbone" else ""


def _elsewhere(name, revision):
    at = f" --revision {revision}" if revision else ""
    return f"where there is a network, run 'hf download {name}{at} --local-dir DIR', and name DIR"
