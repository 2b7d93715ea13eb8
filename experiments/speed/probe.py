"""Time the linear probe's whole regularisation path next to scikit-learn, in turns in one process.

    python experiments/speed/probe.py                                   # synthetic features
    python experiments/speed/probe.py --features sentences.npz --checkpoint DIR --tfds DIR     # also a real encoder's
    taskset -c 0 python experiments/speed/probe.py --cpu-time           # on a CPU with other work

`--features` names a file of `features [n, d]` and `labels [n]`; if it is not there, it is written from 4000 texts of
ag_news_subset. Ours runs on JAX's device, a GPU if there is one; scikit-learn on the CPU. README.md beside this file
says what is compared and what came out.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

from jtransfer.solvers.logistic import logistic_path, objectives

ROWS, WIDTH, CLASSES, CONDITION = 4000, 384, 20, 1e4
PENALTIES = np.logspace(-6, 6, 96)
"""On the summed loss, as CLIP's search has them."""
EQUAL = 1e-5
"""How far above ours, relatively, an objective may be to count as equal."""
LIMIT = 30
"""Seconds after which a solver need not become equal any more."""


def synthetic() -> tuple[np.ndarray, np.ndarray]:
    """Features `[4000, 384]` whose directions differ in scale by 1e4, rotated out of the axes, and 20 classes."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, WIDTH))
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    features = hidden * np.logspace(0, -np.log10(CONDITION), WIDTH) @ rotation.T + 0.5 * rng.normal(size=WIDTH)
    logits = hidden @ rng.normal(size=(WIDTH, CLASSES)) * 2 / np.sqrt(WIDTH) + rng.gumbel(size=(ROWS, CLASSES))
    return features.astype(np.float32), logits.argmax(1)


def sentences(path: Path, checkpoint: str | None, tfds: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The first 4000 stored features, or those of a sentence encoder on news of four classes, which it then stores."""
    if not path.exists():
        import tensorflow_datasets

        import jtransfer

        source = tensorflow_datasets.data_source("ag_news_subset", data_dir=tfds, split="train", download=False)
        backbone = jtransfer.load(checkpoint)
        chosen = [source[int(row)] for row in np.random.default_rng(0).permutation(len(source))[:ROWS]]
        texts = [f"{one['title'].decode()} {one['description'].decode()}" for one in chosen]
        parts = [backbone(backbone.preprocess(texts[i : i + 100]))["features"] for i in range(0, ROWS, 100)]
        np.savez(path, features=np.concatenate(parts), labels=np.array([int(one["label"]) for one in chosen]))
    stored = np.load(path)
    return stored["features"][:ROWS], stored["labels"][:ROWS]


def compare(
    name: str, features: np.ndarray, labels: np.ndarray, every: int, warm: bool, clock: Callable[[], float]
) -> str:
    """Solve in turns, print each, and return a row of the table.

    A turn is our whole path, then one penalty by scikit-learn: as it is, and until its objective equals ours.
    """
    from sklearn.linear_model import LogisticRegression

    wide, l2 = features.astype(np.float64), PENALTIES / len(labels)
    solvers = ["newton-cg", "lbfgs"]
    if features.shape[1] * len(np.unique(labels)) < 2000:  # its Hessian has as many rows and columns
        solvers.append("newton-cholesky")

    def timed(call: Callable, *args):
        began = clock()
        result = call(*args)
        return clock() - began, result

    def ours():
        return logistic_path(features, labels, l2)

    def fit(i, model, tol):
        model.set_params(tol=tol)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the limit of iterations
            seconds, _ = timed(model.fit, wide, labels)
        (value,) = objectives(features, labels, l2[[i]], [model.coef_.T], [model.intercept_])
        return seconds, float(value / best[i] - 1)

    def equal(i, solver, limit):
        """Ever more exact, from zero or from our optimum of the next stronger penalty."""
        model = LogisticRegression(C=1 / PENALTIES[i], max_iter=1000, solver=solver, warm_start=True)
        if warm and i + 1 < len(l2):
            model.coef_, model.intercept_ = kernels[i + 1].T.astype(np.float64), biases[i + 1].astype(np.float64)
        spent, gap, tol = 0.0, np.inf, 1e-4
        while gap > EQUAL and spent < limit and tol > 1e-13:
            seconds, gap = fit(i, model, tol)
            spent, tol = spent + seconds, tol / 10
        return (spent, solver) if gap <= EQUAL else (np.inf, "none")

    first, (kernels, biases) = timed(ours)
    best = objectives(features, labels, l2, kernels, biases)
    paths, as_it_is, gaps, equals = [], [], [], []
    for i in range(len(l2) - 1 - every // 2, -1, -every):
        paths.append(timed(ours)[0])
        seconds, gap = fit(i, LogisticRegression(C=1 / PENALTIES[i], max_iter=1000), 1e-4)
        fastest = LIMIT, "none"
        for solver in solvers:
            fastest = min(fastest, equal(i, solver, fastest[0]))
        as_it_is.append(seconds)
        gaps.append(gap)
        equals.append(fastest[0])
        print(f"{name}, λ = {PENALTIES[i]:.1e}: our whole path {paths[-1]:.2f} s; {seconds:.2f} s as it is,", end=" ")
        print(f"{gap:.0e} above ours; equal in {fastest[0]:.2f} s by {fastest[1]}", flush=True)
    path, default, exact = median(paths), len(l2) * mean(as_it_is), len(l2) * mean(equals)
    above = "over " if LIMIT in equals else ""
    return (
        f"| {name} | {first:.1f} s | {path:.2f} s ({min(paths):.2f} to {max(paths):.2f}) | {default:.0f} s, "
        f"{default / path:.0f} | {max(gaps):.0e} | {above}{exact:.0f} s, {above}**{exact / path:.0f}** |"
    )


def main():
    """Print every turn, and then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, help="a file of stored features, to be written if it is not there")
    parser.add_argument("--checkpoint", help="the encoder that writes it")
    parser.add_argument("--tfds", help="where ag_news_subset lies")
    parser.add_argument("--every", type=int, default=16, help="scikit-learn solves each so many-th of the 96 penalties")
    parser.add_argument(
        "--warm", action="store_true", help="start scikit-learn's equal fits from our neighbouring optimum"
    )
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, under 'taskset -c 0'")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if options.cpu_time and (jax.default_backend() != "cpu" or cores > 1):
        parser.error("--cpu-time needs JAX on the CPU and one core, as under 'taskset -c 0'")
    data = {"synthetic": synthetic()}
    if options.features:
        data["sentences"] = sentences(options.features, options.checkpoint, options.tfds)
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "scikit-learn", "numpy", "scipy"))
    print(f"{jax.devices()[0].device_kind}, cores: {cores}, load {os.getloadavg()[0]:.1f}; {packages}", flush=True)
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = [compare(name, *own, options.every, options.warm, clock) for name, own in data.items()]
    print("\n| features | first call | ours (range) | as it is, / ours | gap, at most | equal, / ours |")
    print(f"|{' --- |' * 6}", *rows, f"\nload {os.getloadavg()[0]:.1f}", sep="\n")


if __name__ == "__main__":
    main()
