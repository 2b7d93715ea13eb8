"""The feature store: what was extracted once is read by every protocol, and known by what it is of."""

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.errors import InputError


@dataclass(frozen=True)
class Origin:
    """What features are of: two sets with the same `space` may be compared, and with the same origin are the same.

    Attributes:
        weights: Fingerprint of the backbone.
        preprocessing: Fingerprint of what makes its inputs.
        layer: Name of the layer.
        data: Fingerprint of the dataset.
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


def same_space(one: Origin, other: Origin, what: str) -> None:
    """Refuse to compare features that mean different things.

    Raises:
        InputError: another backbone, preprocessing or layer.
    """
    for field in ("weights", "preprocessing", "layer"):
        ours, theirs = getattr(one, field), getattr(other, field)
        if ours != theirs:
            raise InputError(f"{what}: features of {field} {ours} and of {field} {theirs} cannot be compared")


@dataclass(frozen=True)
class Store:
    """A directory of features: for each `Origin` an array `KEY.npy` and, beside it, what it is of in `KEY.json`."""

    directory: epath.Path

    def read(self, origin: Origin) -> np.ndarray | None:
        """The features `[rows, width]` of an origin, mapped from a local disk; None if they are not there.

        Raises:
            InputError: the entry is of something else, as of another preprocessing, or damaged.
        """
        array, about = self._paths(origin)
        if not about.exists() or not array.exists():
            return None
        found, expected = files.read_json(about), asdict(origin)
        if differing := [f"{k} {found.get(k)}, not {v}" for k, v in expected.items() if found.get(k) != v]:
            raise InputError(f"{array}: features of {'; '.join(differing)}; remove it, or choose another store")
        try:
            values = np.load(array.open("rb")) if "://" in str(array) else np.load(array, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{array}: damaged features ({error}); remove it") from None
        if len(values) != origin.rows or values.ndim != 2:
            raise InputError(f"{array}: shape {list(values.shape)}, expected [{origin.rows}, width]; remove it")
        return values

    def write(self, origin: Origin, values: np.ndarray, **also: Any) -> None:
        """Keep features; what is written is there whole or not at all."""
        array, about = self._paths(origin)
        buffer = io.BytesIO()
        np.save(buffer, values)
        files.write(array, buffer.getbuffer())
        files.write(about, json.dumps(asdict(origin) | also, indent=2) + "\n")

    def _paths(self, origin):
        return self.directory / f"{origin.key}.npy", self.directory / f"{origin.key}.json"


def default_store() -> epath.Path:
    """Where features are kept unless the config says otherwise: the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or epath.Path("~/.cache").expanduser()
    return epath.Path(base) / "jtransfer" / "features"
