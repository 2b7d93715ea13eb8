"""A run's directory, local or in an object store: it belongs to one config, and nothing in it is lost."""

import hashlib
import json
import logging
import re
from typing import Any

from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged, InputError

log = logging.getLogger("jtransfer")

MOST = 10
"""The most keys that an error names."""


def claim(
    workdir: epath.Path,
    config: dict[str, Any],
    defaults: dict[str, Any],
    may_grow: tuple[str, ...] = (),
    may_change: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write `config.json` into a run's directory, if the directory is new or belongs to this config.

    Args:
        workdir: The directory; it is made if it does not exist.
        config: Plain values, as `jtransfer.config.resolved` gives them.
        defaults: Of the config's keys, as `jtransfer.config.defaults` gives them.
        may_grow: Keys that may differ: lists become the union of both, numbers the larger of both.
        may_change: Patterns of keys that may differ: a warning says which do, and the directory keeps what it has.

    Returns:
        The config that was written: see `check`.

    Raises:
        InputError, Damaged, MachineError: as `check`.
    """
    config = check(workdir, config, defaults, may_grow, may_change=may_change)
    files.write_record(workdir / "config.json", config)
    return config


def check(
    workdir: epath.Path,
    config: dict[str, Any],
    defaults: dict[str, Any],
    may_grow: tuple[str, ...] = (),
    later: tuple[str, ...] = (),
    may_change: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Check what `claim` checks, and leave no trace: for use before anything is loaded or computed.

    The config of an earlier version may lack keys: such a key is compared as its default, and a fingerprint that is
    lacking is not compared. The directory keeps the config that it has, so that the fingerprint of its cells stays.

    Args:
        workdir: The directory.
        config: Plain values, as `jtransfer.config.resolved` gives them.
        defaults: Of the config's keys, as `jtransfer.config.defaults` gives them.
        may_grow: Keys that may differ: lists become the union of both, numbers the larger of both.
        later: Keys that the config does not have yet, and that are not compared.
        may_change: As of `claim`.

    Returns:
        The config that the directory has, with what has grown; `config` if it has none.

    Raises:
        InputError: any other key differs (the error names each), or there is a file in the directory's place.
        Damaged: `config.json` is not as it was written.
        MachineError: nothing can be written there.
    """
    path = workdir / "config.json"
    files.check_directory(workdir, f"workdir {workdir}")
    with files.writing(f"workdir {workdir}"):
        there = files.exists(path)
    if there:
        _, before = files.read_record(
            path, "choose another --workdir, or remove it: what is of another config stays out"
        )
        known = defaults | {"fingerprints": config.get("fingerprints", {}) if "fingerprints" in before else None}
        differ = {
            key: f"{key} is {json.dumps(ours)} here and {json.dumps(theirs)} there"
            for key, (ours, theirs) in _differences(config, before, known)
            if key not in may_grow
            and key.partition(".")[0] not in later
            and not (key == DATA and same_data(ours, theirs))
        }
        changed = [key for key in sorted(differ) if any(re.fullmatch(pattern, key) for pattern in may_change)]
        differing = sorted(said for key, said in differ.items() if key not in changed)
        if differing:
            more = f"; and {len(differing) - MOST} keys more" if len(differing) > MOST else ""
            raise InputError(
                f"workdir {workdir} belongs to another config: {'; '.join(differing[:MOST])}{more}; choose another "
                "--workdir"
            )
        if changed:
            log.warning("workdir %s was begun otherwise: %s", workdir, "; ".join(differ[key] for key in changed))
        if odd := [key for key in may_grow if type(before.get(key)) is not type(config[key])]:
            raise Damaged(f"{path} is damaged ({odd[0]} is {before.get(odd[0])!r}); choose another --workdir")
        return before | {key: _union(before[key], config[key]) for key in may_grow}
    return config


DATA = "fingerprints.data"


def fingerprint(config: dict[str, Any], may_grow: tuple[str, ...] = ()) -> str:
    """16 hex digits of a SHA-256 over the values of a config that may not differ between two runs in a directory."""
    fixed = {key: value for key, value in config.items() if key not in may_grow}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def same_data(ours: Any, theirs: Any) -> bool:
    """Whether a fingerprint of data is the one that a run was started with.

    If names and sizes stand for the data, a digest of all bytes follows after a dot. Format 1 had the part before the
    dot alone: then this part is compared, and the run keeps it.

    Args:
        ours: The fingerprint of the data as they are now.
        theirs: The fingerprint that the run has kept.
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
