"""What Google's metadata server tells a machine of its cloud: the workers of a TPU slice, and that it is taken away.

The server is asked at `GCE_METADATA_HOST` (host or host:port) if that is set, as Google's own libraries do.
"""

import logging
import os
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

log = logging.getLogger("jtransfer")

HOST = "metadata.google.internal"

PERIOD = 5.0
"""Seconds between two questions for a notice, which comes at least 30 seconds before a machine is taken away."""

NOTICES = {"maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",), "preempted": ("TRUE",)}
"""Keys of an instance, and the values that say that it ends; a machine that is moved while it runs does not."""


@dataclass(frozen=True)
class Slice:
    """The workers of a TPU slice, or of several slices.

    Attributes:
        index: The number of this worker, over all slices.
        number: How many workers there are.
        first: The address of worker 0.
    """

    index: int
    number: int
    first: str


def is_here() -> bool:
    """Whether this is a machine of Google's cloud, by what its firmware says, or `GCE_METADATA_HOST` is set."""
    if os.environ.get("GCE_METADATA_HOST"):
        return True
    with suppress(OSError):
        return Path("/sys/class/dmi/id/product_name").read_text().startswith("Google")
    return False


def slice_of_tpus() -> Slice | None:
    """The TPU slice that this machine is a worker of; None if it is of none.

    Nothing is asked where JAX does not take TPUs (`JAX_PLATFORMS`), or `TPU_SKIP_MDS_QUERY` is set, as by
    GKE, and by JAX where it finds no TPU.
    """
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    if "TPU_SKIP_MDS_QUERY" in os.environ or "tpu" not in platforms.split(",") or not is_here():
        return None
    return _slice(_host())


@lru_cache
def _slice(host):
    index, workers = (_asked(host, f"attributes/{key}") for key in ("agent-worker-number", "worker-network-endpoints"))
    if not workers or not re.fullmatch(r"\d{1,6}", index or ""):
        return None
    # Names or addresses, or with older machines NAME:NUMBER:ADDRESS.
    hosts = [worker.strip().rpartition(":")[2] for worker in workers.split(",")]
    # Lines as MEGASCALE_NUM_SLICES: '2'.
    more = dict(re.findall(r"(?m)^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)", _asked(host, "attributes/tpu-env") or ""))
    slices, at = (int(more.get(f"MEGASCALE_{key}") or least) for key, least in (("NUM_SLICES", 1), ("SLICE_ID", 0)))
    first = more.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0] or hosts[0]
    return Slice(int(index) + at * len(hosts), slices * len(hosts), first)


def answer_notices() -> None:
    """From now on, send this process SIGTERM when this machine is about to be taken away; a thread asks for that."""
    if is_here():
        threading.Thread(target=_listen, args=(_host(),), daemon=True).start()


def _listen(host):
    while not (notice := _notice(host)):
        threading.Event().wait(PERIOD)
    log.warning("%s is about to be taken away (%s); stopping as by SIGTERM", socket.gethostname(), notice)
    os.kill(os.getpid(), signal.SIGTERM)


def _notice(host):
    for key, values in NOTICES.items():
        with suppress(OSError):
            if (value := _once(host, key)) in values:
                return f"{key} is {value}"
    return ""


def _host():
    return os.environ.get("GCE_METADATA_HOST") or HOST


def _asked(host, key):
    """The value of a key; None where there is none, or nobody answers in three tries."""
    for _ in range(3):
        with suppress(OSError):
            return _once(host, key)
        threading.Event().wait(0.5)
    return None


def _once(host, key):
    url = f"http://{host}/computeMetadata/v1/instance/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this address
    try:
        with opener.open(request, timeout=3) as answer:
            return answer.read(1 << 16).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
