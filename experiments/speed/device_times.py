"""What `device.py` times on one accelerator, with the checks that go with it."""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import few_shot
import probe
import steps  # before JAX: leaves PyTorch its part of the GPU
from device_checks import MIDDLE, Cases, Row, row

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from jtransfer import methods, models
from jtransfer.errors import first_line
from jtransfer.evaluate import knn
from jtransfer.evaluate.episodes import CLASSIFIERS
from jtransfer.objectives import classification
from jtransfer.solvers.logistic import logistic_path, objectives
from jtransfer.train import Optimiser, TrialData, make_trial, plan

PEAK = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}
"""Published FLOP/s of dense bfloat16 products, by the name that JAX gives a card."""
GAP = 1e-5
"""How far above the CPU's, relatively, an objective of the probe's path may be."""
SCORES = 1e-5
"""Largest error of a score of nearest neighbours, which are computed in float32 proper."""
TRIALS = 5e-2
"""Largest difference of a trial's loss alone and among others, as a share of the spread of all losses."""
LARGE = {"width": 1024, "depth": 24, "heads": 16}


def timed(call: Callable, repeats: int = 0) -> tuple[float, float, Any]:
    """Seconds of the first call, the median of `repeats` more (NaN for none), and what the last gave."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return seconds[0], median(seconds[1:] or [float("nan")]), result


def step_times(tiny: bool) -> Cases:
    """Steps of ViT-L/16 in bfloat16, beside PyTorch's."""
    shape, image, batch, repeats = (steps.TINY, 32, 4, 2) if tiny else (LARGE, 224, 64, 7)
    for name in ("finetune", "lora", "probe"):
        yield f"{name}, {image} pixels, batch of {batch}", partial(stepped, name, shape, image, batch, repeats, tiny)


def stepped(name: str, shape: dict, image: int, batch: int, repeats: int, tiny: bool) -> Row:
    """Milliseconds, images a second and model FLOPs utilisation of one method."""
    data = steps.random_batch(batch, image)
    program, flops = steps.ours(name, shape, "bfloat16", image, data)
    peer, said = beside(name, shape, image, data, tiny)
    programs = [program, *([peer] if peer else [])]
    found = steps.row(name, programs, flops, batch, repeats, time.perf_counter)
    figures = {"learn": found["learns"], "TFLOP": flops / 1e12, "ms ours": found["ms_ours"]}
    figures["images/s"] = found["images_per_second"]
    kind = jax.devices()[0].device_kind
    peak = PEAK.get(kind, float("nan"))
    figures["MFU"] = flops / peak / found["ms_ours"] * 1e3
    if peer:
        figures |= {"ms PyTorch": found["ms_torch"], "MFU PyTorch": flops / peak / found["ms_torch"] * 1e3}
        figures |= {"PyTorch / ours": found["ratio"], "least": found["ratio_min"], "most": found["ratio_max"]}
    if kind not in PEAK:
        said += f"; no peak is known of '{kind}', so no MFU"
    return row({name: value for name, value in figures.items() if np.isfinite(value)}, said=said)


def beside(name: str, shape: dict, image: int, data: dict, tiny: bool) -> tuple[steps.Program | None, str]:
    """PyTorch's step, by torch.compile and by transformers where they work, and in words what it is."""
    if why := steps.whole_peer(("torch",)):
        return None, why
    refused = []
    for library, network in (("transformers", steps.hugging_face), ("plain PyTorch", plain_network)):
        for compiled in (False,) if tiny else (True, False):
            how = f"{library}, {'torch.compile' if compiled else 'eager'}"
            try:
                program = steps.theirs(name, shape, "bfloat16", image, data, compiled, network)
                program.advance(1)
                return program, "; ".join([how, *refused])
            except Exception as error:  # of whatever does not fit together there
                refused.append(f"not {how}: {first_line(error)[:100]}")
    return None, "; ".join(["jtransfer alone", *refused])


def plain_network(name: str, shape: dict, image: int):
    """`plain_vit.plain`, which is imported with PyTorch."""
    from plain_vit import plain

    return plain(name, shape, image)


def path(tiny: bool) -> Cases:
    """The regularisation path of a linear probe, and one penalty by scikit-learn."""
    features, labels = probe.synthetic()
    if tiny:
        features, labels = features[:500], labels[:500]
    penalties = probe.PENALTIES[:: 12 if tiny else 1]
    yield f"{len(penalties)} penalties, {list(features.shape)}", partial(solved, features, labels, penalties)
    yield "scikit-learn as it is, λ = 1", partial(peer_path, features, labels)


def solved(features: np.ndarray, labels: np.ndarray, penalties: np.ndarray) -> Row:
    """Seconds of the whole path, here and on the CPU, and how far the objectives are above the CPU's."""
    l2 = penalties / len(labels)
    first, then, heads = timed(lambda: logistic_path(features, labels, l2), 3)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        _, on_cpu, others = timed(lambda: logistic_path(features, labels, l2), 1)
    gap = np.max(objectives(features, labels, l2, *heads) / objectives(features, labels, l2, *others) - 1)
    return row({"first s": first, "s": then, "s on the CPU": on_cpu, "gap": gap}, gap <= GAP, f"at most {GAP}")


def peer_path(features: np.ndarray, labels: np.ndarray) -> Row:
    """Seconds of scikit-learn for one penalty, at its default tolerance."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000)
    return row({"s": timed(lambda: model.fit(features.astype(np.float64), labels) and None)[0]})


def episodes(tiny: bool) -> Cases:
    """600 few-shot episodes by each classifier."""
    for name in ("cosine",) if tiny else CLASSIFIERS:
        yield name, partial(episodic, name, *((1, 20) if tiny else (5, 600)))


def episodic(classifier: str, repeats: int, number: int) -> Row:
    """Seconds of the first call and of others, and the accuracy."""
    (first, *rest), _, found = few_shot.timed_episodes(classifier, repeats, number)
    figures = {"episodes": number, "first s": first, "s": median(rest), "accuracy": found.mean, "±": found.half}
    return row(figures)


def neighbours(tiny: bool) -> Cases:
    """Neighbours among keys in the host's memory, a million where a quarter of it holds them."""
    fit = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // (4 * 384)
    count, asked = (20_000, 64) if tiny else (min(1_000_000, fit), 1024)
    yield f"{asked} queries among {count:,} keys", partial(nearest, count, asked)


def nearest(count: int, asked: int) -> Row:
    """Seconds of a search, and the largest error of four queries' scores against float64."""
    keys, labels, queries = few_shot.random_keys(count, asked)
    first, then, scores = timed(lambda: knn.knn(keys, labels, queries, classes=few_shot.NEIGHBOURS[0]), 1)
    error = few_shot.error(keys, labels, queries, scores)
    return row({"first s": first, "s": then, "error": error}, error <= SCORES, f"at most {SCORES}")


def trials(tiny: bool) -> Cases:
    """Sixteen trials as one program, and as sixteen calls of another."""
    for name in ("finetune", "lora"):
        yield name, partial(tried, name, *((steps.TINY, 32, 8, 1) if tiny else (MIDDLE, 96, 30, 3)))


def tried(name: str, shape: dict, image: int, number: int, repeats: int) -> Row:
    """Seconds of both, their ratio, and how far the losses are apart: sixteen seeds, four rates."""
    model = models.Classifier(models.build("vit", image=(image, image), **shape), 10)
    fresh = methods.adapt(methods.finetune(), model, {}, (image, image, 3))
    tree, _ = jax.jit(lambda key: fresh.start(key, {}))(jax.random.key(0))
    base = {path: leaf for path, leaf in tree.items() if not path.startswith("head/")}
    adapted = methods.adapt(steps.METHODS[name], model, base, (image, image, 3))
    trial = make_trial(adapted, classification(), Optimiser(), plan(1, number))
    draw = np.random.default_rng(0)
    examples = {"inputs": draw.standard_normal((256, image, image, 3)).astype(np.float32)}
    examples = jax.device_put(examples | {"labels": draw.integers(0, 10, 256).astype(np.int32)})
    data = TrialData(draw.integers(0, 192, (number, 16)), np.arange(192, 256), np.ones(64, np.float32))
    keys = jax.random.split(jax.random.key(1), 16)
    hyper = {"rate": jnp.tile(jnp.array([1e-5, 3e-5, 1e-4, 3e-4]), 4), "decay": jnp.zeros(16)}

    def losses(*of):
        return trial(*of).losses

    together, alone = jax.jit(jax.vmap(losses, (0, 0, None, None, None))), jax.jit(losses)

    def in_a_row():
        each = [(keys[i], {key: x[i] for key, x in hyper.items()}) for i in range(16)]
        return jnp.stack([alone(*one, base, examples, data) for one in each])

    first, beside, one = timed(lambda: together(keys, hyper, base, examples, data), repeats)
    first_alone, after, other = timed(in_a_row, repeats)
    apart = np.max(np.abs(one - other)) / np.ptp(other)
    figures = {"first s vmapped": first, "s vmapped": beside, "first s in a row": first_alone, "s in a row": after}
    figures |= {"in a row / vmapped": after / beside, "losses apart": apart}
    return row(figures, apart <= TRIALS, f"16 trials of {number} steps, at most {TRIALS}")


def curve(tiny: bool) -> Cases:
    """A curve on the embedded digits with the embedded ViT."""
    changed = {"backbone": "glyphs-vit", "methods": "probe,lora(rank=4)" if tiny else "probe,finetune,lora(rank=4)"}
    if tiny:
        changed |= {"shots": "(1, 2)", "seeds": 1, "steps": 3, "hyper.probe.steps": 3}
    yield "digits, glyphs-vit", partial(curved, [f"--config.{key}={value}" for key, value in changed.items()])


def curved(changed: list[str]) -> Row:
    """Seconds from the config to the last row, and what XLA compiled of them; `configs/quickstart.py`, changed."""
    from jtransfer import config as configs
    from jtransfer.curves import run
    from jtransfer.devices import compiled

    compiled.count()
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart.py"
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        _, config = configs.load("curve", str(quickstart), changed)
        rows = run.run(run.prepare(config), directory, lambda *_: None)
        seconds = time.perf_counter() - began
    figures = {"s": seconds, "rows": len(rows)}
    for name in config.methods:
        own = [x["test_accuracy"] for x in rows if x["method"] == name and x["shots"] == max(config.shots)]
        figures[f"accuracy of {name}, {max(config.shots)} shots"] = np.mean(own)
    return row(figures, said=compiled.said())
