"""A run's directory, local or in an object store: it belongs to one config, and nothing in it is lost."""

import hashlib
import json
from typing import Any

from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged, InputError

MOST = 10
"""Keys that an error names."""


def claim(
    workdir: epath.Path, config: dict[str, Any], defaults: dict[str, Any], may_grow: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Write `config.json`, or check that the one that is there is of the same config.

    Args:
        workdir: The directory; it is made where it does not exist.
        config: Plain values, as `jtransfer.config.resolved` gives them.
        defaults: As of `check`.
        may_grow: Keys that may differ: lists become the union of both, numbers the larger of both.

    Returns:
        As `check`.

    Raises:
        InputError: as `check`.
        Damaged: `config.json` is not as it was written.
    """
    config = check(workdir, config, defaults, may_grow)
    files.write_record(workdir / "config.json", config)
    return config


def check(
    workdir: epath.Path,
    config: dict[str, Any],
    defaults: dict[str, Any],
    may_grow: tuple[str, ...] = (),
    later: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What `claim` checks, without a trace: so that a bad directory is known before anything is loaded or computed.

    An earlier version may have left less. A key that its config lacks had its default there; a fingerprint that it
    lacks is not compared. The directory keeps the config that it has, so that the fingerprint of its cells stays.

    Args:
        workdir: The directory.
        config: As of `claim`.
        defaults: Of the config's keys, as `jtransfer.config.defaults` gives them.
        may_grow: As of `claim`.
        later: Keys that the config does not have yet, and that are not compared.

    Returns:
        The config as it was there before, with what has grown; where there was none, as it is.

    Raises:
        InputError: any other key differs (the error names each), or there is a file in the directory's place.
        Damaged: `config.json` is not as it was written.
        MachineError: nothing can be written there.
    """
    path = workdir / "config.json"
    files.check_directory(workdir, f"workdir {workdir}")
    with files.writing(f"workdir {workdir}"):
        there = path.exists()
    if there:
        _, before = files.read_record(
            path, "choose another --workdir, or remove it: what is of another config stays out"
        )
        known = defaults | {"fingerprints": config.get("fingerprints", {}) if "fingerprints" in before else None}
        differing = sorted(
            f"{key} is {json.dumps(ours)} here and {json.dumps(theirs)} there"
            for key, (ours, theirs) in _differences(config, before, known)
            if key not in may_grow
            and key.partition(".")[0] not in later
            and not (key == DATA and same_data(ours, theirs))
        )
        if differing:
            more = f"; and {len(differing) - MOST} keys more" if len(differing) > MOST else ""
            raise InputError(
                f"workdir {workdir} belongs to another config: {'; '.join(differing[:MOST])}{more}; choose another "
                "--workdir"
            )
        if odd := [key for key in may_grow if type(before.get(key)) is not type(config[key])]:
            raise Damaged(f"{path} is damaged ({odd[0]} is {before.get(odd[0])!r}); choose another --workdir")
        return before | {key: _union(before[key], config[key]) for key in may_grow}
    return config


DATA = "fingerprints.data"


def fingerprint(config: dict[str, Any], may_grow: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits over what may not differ between two runs in one directory."""
    fixed = {key: value for key, value in config.items() if key not in may_grow}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def same_data(ours: Any, theirs: Any) -> bool:
    """Whether a fingerprint of data is the one that a run was started with.

    Where names and sizes stand for the data, a digest of all bytes follows after a dot. Format 1 had what stands
    before the dot alone: then that counts, and the run keeps it.
    """
    return theirs in (ours, str(ours).partition(".")[0])


def _differences(ours: Any, theirs: Any, known: Any, prefix: str = ""):
    """Keys whose values differ, with both; what `theirs` lacks is as it is known."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        known = known if isinstance(known, dict) else {}
        for key in ours.keys() | theirs.keys():
            default, path = known.get(key), f"{prefix}.{key}" if prefix else key
            yield from _differences(ours.get(key), theirs.get(key, default), default, path)
    elif ours != theirs:
        yield prefix, (ours, theirs)


def _union(before, now):
    return [*before, *(item for item in now if item not in before)] if isinstance(now, list) else max(before, now)
