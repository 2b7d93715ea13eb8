"""Time few-shot episodes on stored features, and measure the memory of k nearest neighbours among a million keys.

    python experiments/speed/few_shot.py
    python experiments/speed/few_shot.py --keys 100000      # a smaller search, for a busy machine

Features are random: neither takes longer on others. README.md beside this file says what came out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

WIDTH = 384
NEIGHBOURS = 1000, 4
"""Classes of the keys, and queries whose scores are compared with a direct computation."""


def main():
    """Print what episodes take for every classifier, then what a search takes in a fresh process for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search is not None:
        search(arguments.keys, arguments.queries, arguments.search)
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    time_episodes(arguments.repeats)
    with tempfile.TemporaryDirectory() as scratch:
        for path in ("", str(Path(scratch) / "keys")):
            sizes = f"--keys={arguments.keys}", f"--queries={arguments.queries}"
            subprocess.run([sys.executable, __file__, *sizes, f"--search={path}"], check=True)


def time_episodes(repeats: int) -> None:
    """Print what the episodes of every classifier take."""
    from jtransfer.evaluate.episodes import CLASSIFIERS

    print("600 episodes of 5 ways, 5 shots, 15 queries on [10000, 384]: first call with compilation, then the median")
    for classifier in CLASSIFIERS:
        seconds, busy, result = timed_episodes(classifier, repeats)
        first, *rest = seconds
        print(
            f"  {classifier}: {first:.2f} s, then {median(rest):.3f} s ({min(rest):.3f} to {max(rest):.3f}), "
            f"processor {busy[0]:.2f} and {median(busy[1:]):.3f} s; accuracy {result.mean:.4f} ± {result.half:.4f}"
        )


def timed_episodes(classifier: str, repeats: int, episodes: int = 600) -> tuple[list[float], list[float], Any]:
    """Episodes of 5 ways, 5 shots and 15 queries on `[10000, 384]`, the check of the features included.

    Returns:
        Seconds and processor seconds of the first call and of `repeats` more, and what the last came to.
    """
    import jax
    import numpy as np

    from jtransfer.evaluate import episodes as evaluated

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100, 10_000)
    features = rng.standard_normal((10_000, WIDTH), np.float32) + 0.2 * rng.standard_normal((100, WIDTH))[labels]
    features = features.astype(np.float32)
    seconds, busy = [], []
    for i in range(repeats + 1):
        start = time.perf_counter(), time.process_time()
        result = evaluated.episodes(jax.random.key(i), features, labels, classifier=classifier, episodes=episodes)
        seconds.append(time.perf_counter() - start[0])
        busy.append(time.process_time() - start[1])
    return seconds, busy, result


def random_keys(count: int, asked: int, path: str = "") -> tuple[Any, Any, Any]:
    """Keys `[count, 384]` in memory or, given a path, in a mapped file, their labels, and queries `[asked, 384]`."""
    import numpy as np

    rng = np.random.default_rng(0)
    keys = np.memmap(path, np.float32, "w+", shape=(count, WIDTH)) if path else np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 16384):
        rng.standard_normal(out=keys[start : start + 16384], dtype=np.float32)
    if path:
        keys.flush()
        keys = np.memmap(path, np.float32, "r", shape=(count, WIDTH))
    return keys, rng.integers(0, NEIGHBOURS[0], count), rng.standard_normal((asked, WIDTH), np.float32)


def search(count: int, asked: int, path: str) -> None:
    """Neighbours among random keys in memory, or, given a path, in a mapped file; time, memory and agreement."""
    import jax

    from jtransfer.evaluate.knn import K, knn

    keys, labels, queries = random_keys(count, asked, path)
    classes, compared = NEIGHBOURS
    before = resident("VmRSS"), resident("RssAnon")
    start = time.perf_counter(), time.process_time()
    scores = jax.block_until_ready(knn(keys, labels, queries, classes=classes))
    seconds, busy = time.perf_counter() - start[0], time.process_time() - start[1]
    peak, anonymous = resident("VmHWM"), resident("RssAnon")
    where = "in a mapped file" if path else "in memory"
    print(f"{asked} queries among [{count}, {WIDTH}] keys ({keys.nbytes / 2**30:.2f} GiB) {where}, {classes} classes:")
    print(f"  {seconds:.1f} s, processor {busy:.1f} s; k {K}")
    print(f"  resident {before[0]:.2f} GiB before, at most {peak:.2f} GiB")
    print(f"  of that in no file {before[1]:.2f} GiB before, {anonymous:.2f} GiB after")
    print(f"  largest error of the scores of {compared} queries {error(keys, labels, queries, scores):.1e}")


def error(keys, labels, queries, scores) -> float:
    """The largest difference from the scores of the first queries by float64 NumPy."""
    import numpy as np

    from jtransfer.evaluate.knn import TEMPERATURE, K

    classes, compared = NEIGHBOURS
    queries = queries[:compared].astype(np.float64)
    blocks = (keys[start : start + 16384].astype(np.float64) for start in range(0, len(keys), 16384))
    cosines = [(block / np.linalg.norm(block, axis=1, keepdims=True)) @ queries.T for block in blocks]
    cosines = np.concatenate(cosines).T / np.linalg.norm(queries, axis=1, keepdims=True)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : max(K)]
    shares = np.exp(np.take_along_axis(cosines, nearest, 1) / TEMPERATURE)
    shares /= shares.sum(1, keepdims=True)
    votes = np.eye(classes)[labels[nearest]] * shares[..., None]
    expected = np.stack([votes[:, :k].sum(1) for k in K])
    return float(np.abs(expected - np.asarray(scores[:, :compared])).max())


def resident(what: str) -> float:
    """A line of this process's memory in GiB (Linux): VmRSS now, VmHWM at most so far, RssAnon without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError(f"the kernel does not report {what}")


if __name__ == "__main__":
    main()
