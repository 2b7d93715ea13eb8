"""Time features and a finetuning step of EfficientNet-Lite0 next to timm, interleaved in one process.

    python experiments/speed/convnet.py --backbone=DIR --repeats 5
    taskset -c 0 python experiments/speed/convnet.py --backbone=DIR --cpu-time     # on a CPU with other work

Needs torch and timm. README.md beside this file says what is compared and what came out.
"""

import argparse
import os
import time
from statistics import median

import jax
import numpy as np
import timm
import torch
from steps import CLASSES, CLIP, DECAY, RATE, Program, measure

import jtransfer
from jtransfer import methods, models
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, make_step
from jtransfer.tree import FROZEN, partition, size

NAME = "tf_efficientnet_lite0"


def ours(backbone, images: np.ndarray, labels: np.ndarray) -> dict[str, Program]:
    """What `jtransfer evaluate` and `jtransfer train` run."""
    tree, batch = jax.device_put((backbone.params | backbone.state, {"inputs": images, "labels": labels}))
    read = jax.jit(lambda tree, x: models.apply(backbone.model, tree, x)["features"])
    adapted = methods.adapt(methods.finetune(), models.Classifier(backbone.model, CLASSES), tree, images.shape[1:])
    transformation = Optimiser("adamw", rate=RATE, decay=DECAY, clip=CLIP).build(adapted.rates, steps=1000)
    step = jax.jit(make_step(make_loss(adapted.model, classification()), transformation), donate_argnums=0)
    start, others = adapted.start(jax.random.key(0), adapted.base)
    trainable, frozen = partition(jax.tree.map(jax.numpy.array, start), adapted.rates)
    state = TrainState.create(jax.random.key(0), trainable, others, transformation)

    def features(n):
        for _ in range(n):
            jax.block_until_ready(read(tree, batch["inputs"]))

    def finetune(n):
        nonlocal state
        for _ in range(n):
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    learns = size({path: x for path, x in adapted.shapes.items() if adapted.rates.get(path, FROZEN) != FROZEN})
    return {"features": Program(features, 0), "finetune": Program(finetune, learns)}


def theirs(images: np.ndarray, labels: np.ndarray) -> dict[str, Program]:
    """The same by timm, eager; its weights are random, which takes as long."""
    reader = timm.create_model(NAME, num_classes=0).eval()
    model = timm.create_model(NAME, num_classes=CLASSES).train()
    parts = [[x for x in model.parameters() if (x.ndim > 1) == decays] for decays in (True, False)]
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (DECAY, 0.0), strict=True)]
    optimiser = torch.optim.AdamW(groups, lr=RATE, fused=True)
    pixels, targets = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)

    def features(n):
        with torch.inference_mode():
            for _ in range(n):
                reader(pixels)

    def finetune(n):
        for _ in range(n):
            torch.nn.functional.cross_entropy(model(pixels), targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            optimiser.zero_grad()

    return {"features": Program(features, 0), "finetune": Program(finetune, sum(x.numel() for x in model.parameters()))}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default=f"timm/{NAME}.in1k")
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, under 'taskset -c 0'")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"load {os.getloadavg()[0]:.1f}; PyTorch {torch.__version__} with {torch.get_num_threads()} threads, "
          f"timm {timm.__version__}, jax {jax.__version__}, {len(os.sched_getaffinity(0))} cores")  # fmt: skip
    print("| pixels | | images/s ours | images/s timm | timm / ours, shortest turns | medians |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    draw = np.random.default_rng(0)
    for side in options.sides:
        images = draw.standard_normal((options.batch, side, side, 3)).astype(np.float32)
        labels = draw.integers(0, CLASSES, options.batch)
        mine = ours(jtransfer.load(options.backbone, image=side), images, labels)
        for name, peer in theirs(images, labels).items():
            if mine[name].learns != peer.learns:
                raise SystemExit(f"{name}: {mine[name].learns} parameters learn in jtransfer, {peer.learns} in timm")
            seconds = measure([mine[name], peer], options.repeats, clock)
            best, typical = seconds.min(0), [median(column) for column in seconds.T]
            speed = " | ".join(f"{options.batch / value:.1f}" for value in best)
            print(
                f"| {side} | {name} | {speed} | {best[1] / best[0]:.2f} | {typical[1] / typical[0]:.2f} |", flush=True
            )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
