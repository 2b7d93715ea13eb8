"""A run's directory, local or in an object store: it belongs to one config, and nothing in it is lost."""

import json
from typing import Any

from etils import epath

from jtransfer import files
from jtransfer.errors import InputError


def claim(workdir: epath.Path, config: dict[str, Any], may_grow: tuple[str, ...] = ()) -> dict[str, Any]:
    """Write `config.json`, or check that the one that is there is of the same config.

    Args:
        workdir: The directory; it is made where it does not exist.
        config: Plain values, as `jtransfer.config.resolved` gives them.
        may_grow: Keys that may differ: lists become the union of both, numbers the larger of both.

    Returns:
        The config with what was there before.

    Raises:
        InputError: any other key differs (the error names each), or the directory cannot be used.
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else None
    except (OSError, ImportError) as error:  # ImportError: the object store's client is not installed
        raise InputError(f"workdir {workdir} cannot be used: {error}") from None
    if text is not None:
        try:
            before = json.loads(text)
        except ValueError:
            raise InputError(f"{path} is damaged: not JSON; choose another --workdir, or remove it") from None
        differing = sorted(
            f"{key} is {json.dumps(ours)} here and {json.dumps(theirs)} there"
            for key, (ours, theirs) in _differences(config, before)
            if key not in may_grow and not (key == "fingerprints.data" and same_data(ours, theirs))
        )
        if differing:
            raise InputError(
                f"workdir {workdir} belongs to another config: {'; '.join(differing)}; choose another --workdir"
            )
        config = config | {key: _union(before[key], config[key]) for key in may_grow}
    files.write(path, json.dumps(config, indent=2) + "\n")
    return config


def same_data(ours: Any, theirs: Any) -> bool:
    """Whether a fingerprint of data is the one that a run was started with.

    Where names and sizes stand for the data, a digest of all bytes follows after a dot. Earlier versions wrote what
    stands before the dot alone: then that counts, and `claim` writes the whole fingerprint in its place.
    """
    return theirs in (ours, str(ours).partition(".")[0])


def _differences(ours: Any, theirs: Any, prefix: str = ""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            yield from _differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
    elif ours != theirs:
        yield prefix, (ours, theirs)


def _union(before, now):
    return [*before, *(item for item in now if item not in before)] if isinstance(now, list) else max(before, now)
