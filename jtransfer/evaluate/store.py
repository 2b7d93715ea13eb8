"""The feature store: what was extracted once is read by every protocol, and known by what it is of."""

import hashlib
import io
import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.errors import Damaged

log = logging.getLogger("jtransfer")

AGAIN = "the features are extracted again"
LARGEST_HEADER = 4096
"""Bytes before the numbers in a `.npy` file, at most."""


@dataclass(frozen=True)
class FeatureOrigin:
    """Which features these are. Sets of one `space` may be compared; sets of one origin are equal.

    Attributes:
        weights: Fingerprint of the backbone.
        preprocessing: Fingerprint of what makes its inputs.
        layer: Name of the layer.
        data: Fingerprint of the inputs, whatever their labels.
        rows: How many there are.
    """

    weights: str
    preprocessing: str
    layer: str
    data: str
    rows: int

    @property
    def key(self) -> str:
        """16 hexadecimal digits, by which the store finds them."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FeatureStore:
    """A directory of features: for each `FeatureOrigin` an array `KEY.npy` and, beside it, a sealed record `KEY.json`.

    The record says what the features are of, their width, and the SHA-256 of the array's file. Whatever does not agree
    with that is not there: it is extracted again, and a warning names the file. While features are extracted, what is
    there already lies in parts `KEY.FROM-TO.npy`, each with a record of its own.
    """

    directory: epath.Path

    def read(self, origin: FeatureOrigin) -> np.ndarray | None:
        """The features `[rows, width]` of an origin, mapped from a local disk; None if they are not there, whole."""
        found = self._entry(origin, (0, origin.rows), origin.key)
        return None if found is None else found[1]

    def write(self, origin: FeatureOrigin, values: np.ndarray, **also: Any) -> None:
        """Keep features; what is written is there whole or not at all. The parts that there are of them go."""
        self._keep(origin, (0, origin.rows), origin.key, values, also)
        for path in self._parts(origin):
            path.unlink(missing_ok=True)

    def read_parts(self, origin: FeatureOrigin) -> tuple[np.ndarray, np.ndarray] | None:
        """What an interrupted extraction kept: numbers of rows `[some]`, and their features `[some, width]`."""
        found = []
        bounds = sorted(_bounds(path.name) for path in self._parts(origin) if path.suffix == ".json")
        for start, stop in bounds:
            if start < stop <= origin.rows:
                part = self._entry(origin, (start, stop), f"{origin.key}.{start}-{stop}")
                found += [] if part is None else [part]
        return tuple(map(np.concatenate, zip(*found, strict=True))) if found else None

    def write_part(self, origin: FeatureOrigin, rows: np.ndarray, values: np.ndarray) -> None:
        """Keep some rows, `[some]` numbers in any order, of features of which the rest is still to come."""
        bounds = int(rows.min()), int(rows.max()) + 1
        also = {} if np.array_equal(rows, np.arange(*bounds)) else {"some": rows.tolist()}
        self._keep(origin, bounds, f"{origin.key}.{bounds[0]}-{bounds[1]}", values, also)

    def _parts(self, origin):
        # No pattern: a directory's name may hold what patterns are made of.
        there = epath.Path(self.directory)
        if not there.exists():
            return []
        return [path for path in there.iterdir() if path.name.startswith(f"{origin.key}.") and "-" in path.name]

    def _entry(self, origin, rows, name):
        array, about = (epath.Path(self.directory) / f"{name}.{end}" for end in ("npy", "json"))
        if not about.exists() and not array.exists():
            return None
        try:
            version, found = files.read_record(about, AGAIN)
            expected = asdict(origin) | {"from": rows[0], "to": rows[1]}
            if version == 1 or any(found.get(key) != value for key, value in expected.items()):
                raise Damaged(f"{about} is of other features; {AGAIN}")
            some = np.array(found.get("some", range(*rows)), int)
            return some, _checked(array, len(some), found)
        except Damaged as error:
            log.warning("%s", error)
            return None
        except (OSError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be read (%s); %s", array, error, AGAIN)
            return None

    def _keep(self, origin, rows, name, values, also):
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(values, np.float32))
        content = buffer.getbuffer()
        about = asdict(origin) | {"from": rows[0], "to": rows[1], "width": values.shape[1]} | also
        files.write(self.directory / f"{name}.npy", content)
        files.write_record(self.directory / f"{name}.json", about | {"array": hashlib.sha256(content).hexdigest()})


def _checked(path, rows, about):
    """The array of a file that is to the byte what its record says."""
    shape = rows, about["width"]
    nbytes = 4 * shape[0] * shape[1]
    size = files.length(path)
    if not nbytes < size <= nbytes + LARGEST_HEADER:
        raise Damaged(f"{path} is damaged ({size} bytes, expected {nbytes} and a header); {AGAIN}")
    if files.digest(path).hex() != about.get("array"):
        raise Damaged(f"{path} is damaged (its checksum differs); {AGAIN}")
    if "://" in os.fspath(path):
        return np.frombuffer(path.read_bytes(), np.float32, offset=size - nbytes).reshape(shape)
    return np.memmap(path, np.float32, "r", offset=size - nbytes, shape=shape)


def _bounds(name):
    """The rows of a part by the name of its file; none where the name says none."""
    found = re.search(r"\.(\d{1,12})-(\d{1,12})\.json$", name)
    return tuple(map(int, found.groups())) if found else (0, 0)


def default_store() -> epath.Path:
    """Where features are kept unless the config says otherwise: the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or epath.Path("~/.cache").expanduser()
    return epath.Path(base) / "jtransfer" / "features"
