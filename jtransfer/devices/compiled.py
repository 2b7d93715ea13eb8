"""Programs that XLA has compiled: kept between runs in the user's cache, and counted.

It is JAX's own cache, whose variables rule: `JAX_COMPILATION_CACHE_DIR` for another place,
`JAX_COMPILATION_CACHE_MAX_SIZE` for another limit in bytes, `JAX_ENABLE_COMPILATION_CACHE=false` for none.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections import Counter
from pathlib import Path

from jtransfer import files

LIMIT = 2 << 30
"""Bytes that the programs of one machine may take; those that were used longest ago go first."""
SHORTEST = 0.1
"""Seconds of compilation from which on a program is kept."""

_seconds: Counter[str] = Counter()
_programs: Counter[str] = Counter()


def keep() -> None:
    """Have JAX keep its programs in the user's cache; call it before JAX is imported.

    Each kind of machine has a directory of its own, as a program for one processor may stop another one, and homes are
    shared. Nothing is kept where the directory cannot be made, where the limit could not be held, or where JAX cannot
    read back what it keeps.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not importlib.util.find_spec("filelock") or not _read_back():
        return
    directory = files.user_cache() / "compiled" / _machine()
    with contextlib.suppress(OSError):
        Path(directory).mkdir(parents=True, exist_ok=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LIMIT))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SHORTEST))


def count() -> None:
    """Count the programs that are compiled from now on, and those that are read from the cache."""
    import jax.monitoring

    if not _programs["counted"]:
        _programs["counted"] = 1
        jax.monitoring.register_event_duration_secs_listener(_took)
        jax.monitoring.register_event_listener(_happened)


def said() -> str:
    """A sentence on what was compiled since `count`."""
    number, read = _programs["backend_compile_duration"], _programs["cache_hits"]
    found = f"; {read} of them came from the cache" if read else ""
    return f"XLA compiled {number} programs in {_seconds['backend_compile_duration']:.0f} s of one core{found}."


def _took(event, seconds, **_):
    name = event.rpartition("/")[2]
    _seconds[name] += seconds
    _programs[name] += 1


def _happened(event, **_):
    _programs[event.rpartition("/")[2]] += 1


def _machine() -> str:
    """16 hexadecimal digits over what a compiled program depends on beside JAX's own key."""
    said = [platform.machine(), importlib.metadata.version("jaxlib"), *sorted(_processor("flags", "features"))]
    return hashlib.sha256(" ".join(said).encode()).hexdigest()[:16]


def _read_back() -> bool:
    """Whether programs that are kept can be read again.

    On processors that leak what they gather ("gds" among their bugs) XLA's CPU programs name a preference that its
    loader takes for a missing instruction: it complains of each program and compiles it anew (jax-ml/jax#38445). Under
    macOS the loader can crash on large ones. An accelerator's programs are not concerned.
    """
    if glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return True
    return sys.platform != "darwin" and "gds" not in _processor("bugs")


def _processor(*keys: str) -> set[str]:
    """The words that Linux says of the first processor under some keys; empty elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip().lower() in keys:
                return set(words.split())
    return set()
