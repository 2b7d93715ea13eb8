"""Time one training step of jtransfer next to the same step in PyTorch, interleaved in one process.

    python experiments/speed/steps.py --repeats 9 --out steps.json
    taskset -c 0 python experiments/speed/steps.py --repeats 3 --cpu-time     # on a CPU with other work
    python experiments/speed/steps.py --dtype bfloat16          # on a GPU
    python experiments/speed/steps.py --tiny                    # does it run at all?

Needs jax, flax and optax; without torch, transformers and peft it times jtransfer alone. README.md beside this file
says what is compared and what came out.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch its part of the GPU

import jax
import numpy as np

from jtransfer import methods, models
from jtransfer.objectives import classification, make_loss
from jtransfer.train import Optimiser, TrainState, make_step
from jtransfer.train.costs import step_flops, step_shapes
from jtransfer.tree import FROZEN, partition

CLASSES, RATE, DECAY, CLIP = 100, 1e-4, 0.05, 1.0
METHODS = {"finetune": methods.finetune(), "probe": methods.probe(), "lora": methods.lora(rank=8, alpha=8.0)}
PEER = ("torch", "transformers", "peft")
SMALL = {"width": 384, "depth": 12, "heads": 6}
TINY = {"width": 64, "depth": 2, "heads": 2}


class Program(NamedTuple):
    """A training run: `advance(n)` takes `n` steps and waits for the last; `learns` parameters change."""

    advance: Callable[[int], None]
    learns: int


class Started(NamedTuple):
    """A run of jtransfer before its first step; `step(state, frozen, batch)` is jitted, and `state` donated to it."""

    adapted: methods.Adapted
    options: Optimiser
    step: Callable
    state: TrainState
    frozen: dict[str, jax.Array]


def started(name: str, shape: dict, dtype: str, image: int) -> Started:
    """A ViT with random weights under a method of `METHODS`, for images of `image` pixels a side."""
    backbone = models.build("vit", image=(image, image), dtype=dtype, **shape)
    adapted = methods.adapt(METHODS[name], models.Classifier(backbone, CLASSES), {}, (image, image, 3))
    options = Optimiser("adamw", rate=RATE, decay=DECAY, clip=CLIP)
    transformation = options.build(adapted.rates, steps=1000)

    @jax.jit
    def create(key):
        tree, state = adapted.start(key, {})
        trainable, frozen = partition(tree, adapted.rates)
        return TrainState.create(key, trainable, state, transformation), frozen

    step = jax.jit(make_step(make_loss(adapted.model, classification()), transformation), donate_argnums=0)
    return Started(adapted, options, step, *create(jax.random.key(0)))


def random_batch(batch: int, image: int) -> dict[str, np.ndarray]:
    """Images `[batch, image, image, 3]` and labels."""
    draw = np.random.default_rng(0)
    pixels = draw.standard_normal((batch, image, image, 3)).astype(np.float32)
    return {"inputs": pixels, "labels": draw.integers(0, CLASSES, batch)}


def ours(name: str, shape: dict, dtype: str, image: int, batch: dict[str, np.ndarray]) -> tuple[Program, float]:
    """The step that `jtransfer train` runs, and the floating-point operations of one."""
    adapted, options, step, state, frozen = started(name, shape, dtype, image)
    batch = jax.device_put(batch)

    def advance(n):
        nonlocal state
        for _ in range(n):
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    learns = sum(math.prod(adapted.shapes[path].shape) for path, rate in adapted.rates.items() if rate != FROZEN)
    return Program(advance, learns), step_flops(step_shapes(adapted, classification(), options, len(batch["labels"])))


def hugging_face(name: str, shape: dict, image: int):
    """transformers' ViT, with PEFT's LoRA, of which the parameters learn that learn in a method of `METHODS`."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=image,
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["width"],
        num_labels=CLASSES,
    )
    model = ViTForImageClassification(config)
    if name == "probe":
        model.vit.requires_grad_(False)
    if name == "lora":
        model = with_lora(model, ["q_proj", "v_proj"], "classifier", rank=8, alpha=8)
    return model


def theirs(
    name: str, shape: dict, dtype: str, image: int, batch: dict[str, np.ndarray], compiled: bool, network=hugging_face
) -> Program:
    """The step in PyTorch: `network(name, shape, image)`, fused AdamW, clipping, and autocast for bfloat16."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = network(name, shape, image).to(device).train()
    learning = [x for x in model.parameters() if x.requires_grad]
    optimiser = adamw(learning, RATE, DECAY)
    pixels = torch.from_numpy(batch["inputs"].transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(batch["labels"]).to(device)
    forward = torch.compile(model) if compiled else model

    def precision():
        return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()

    def advance(n):
        for _ in range(n):
            with precision():
                logits = forward(pixels).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(learning, CLIP)
            optimiser.step()
            optimiser.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return Program(advance, sum(x.numel() for x in learning))


def with_lora(model, targets: list[str], head: str, rank: int, alpha: float):
    """A PyTorch model under PEFT's LoRA on the layers that are called as in `targets`; its head learns too."""
    import peft

    options = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "modules_to_save": [head]}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def adamw(learning: list, rate: float, decay: float):
    """PyTorch's fused AdamW of some parameters, of which kernels alone decay."""
    import torch

    decaying, others = [x for x in learning if x.ndim == 2], [x for x in learning if x.ndim != 2]
    groups = [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)


def measure(programs: list[Program], repeats: int, clock: Callable[[], float]) -> np.ndarray:
    """Seconds a step, `[repeats, programs]`: the programs take turns, and a turn is at least a tenth of a second."""
    for program in programs:
        program.advance(2)
    began = clock()
    programs[0].advance(1)
    turn = math.ceil(0.1 / (clock() - began))
    seconds = np.zeros((repeats, len(programs)))
    for i in range(repeats):
        for j, program in enumerate(programs):
            began = clock()
            program.advance(turn)
            seconds[i, j] = (clock() - began) / turn
    return seconds


def row(name: str, programs: list[Program], flops: float, batch: int, repeats: int, clock: Callable) -> dict:
    """Measure one method: jtransfer's program, and that of PyTorch if there is one."""
    if len({program.learns for program in programs}) > 1:
        both = [program.learns for program in programs]
        raise SystemExit(f"{name}: {both[0]} parameters learn in jtransfer, {both[1]} in PyTorch")
    seconds = measure(programs, repeats, clock)
    result = {
        "method": name,
        "learns": programs[0].learns,
        "gflop": flops / 1e9,
        "ms_ours": 1e3 * median(seconds[:, 0]),
        "images_per_second": batch / median(seconds[:, 0]),
    }
    if len(programs) > 1:
        ratios = seconds[:, 1] / seconds[:, 0]
        result |= {
            "ms_torch": 1e3 * median(seconds[:, 1]),
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "ratio_of_shortest": min(seconds[:, 1]) / min(seconds[:, 0]),
        }
    return result | {"seconds": seconds.tolist()}


def table(rows: list[dict], peer: bool) -> str:
    """The rows as Markdown; a ratio above 1 means that jtransfer is faster."""
    columns = {"method": "{method}", "learns": "{learns:,}", "GFLOP": "{gflop:.1f}", "ms ours": "{ms_ours:.1f}"}
    if peer:
        columns |= {"ms PyTorch": "{ms_torch:.1f}", "PyTorch / ours (min to max)": "{ratio:.2f} ({range})"}
        columns |= {"of the shortest turns": "{ratio_of_shortest:.2f}"}
    columns |= {"images/s": "{images_per_second:.1f}"}
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for one in rows:
        spread = f"{one['ratio_min']:.2f} to {one['ratio_max']:.2f}" if peer else ""
        lines.append(" | ".join(cell.format(**one, range=spread) for cell in columns.values()))
    return "\n".join(f"| {line} |" for line in lines)


def whole_peer(packages: tuple[str, ...] = PEER) -> str:
    """Why PyTorch cannot be timed here; empty if it can."""
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        return f"jtransfer alone: {missing[0]} is not installed"
    import torch

    if jax.default_backend() == "gpu":
        if not torch.cuda.is_available():
            return "jtransfer alone: JAX runs on the GPU, and this PyTorch has none"
        torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default
    return ""


def surroundings(packages: tuple[str, ...]) -> dict:
    """The machine, and the versions of JAX and of the packages that it is compared with."""
    names = ["jax", "flax", "optax", *packages]
    found = {"device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    if jax.default_backend() == "cpu":
        found["device"] = f"CPU {platform.machine()}"
    if "torch" in packages:
        import torch

        found["torch_threads"] = torch.get_num_threads()
    return found | {"versions": {name: importlib.metadata.version(name) for name in names}}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="turns of each framework (default 9, with --tiny 2)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--methods", default="finetune,probe,lora")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation")
    parser.add_argument("--image", type=int, default=224, help="side in pixels, a multiple of 16")
    parser.add_argument("--tiny", action="store_true", help="two narrow blocks instead of ViT-S")
    parser.add_argument("--compile", action="store_true", help="torch.compile the PyTorch model")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time, under 'taskset -c 0' on a busy CPU"
    )
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    options = parser.parse_args()
    options.repeats = options.repeats or (2 if options.tiny else 9)
    names = options.methods.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"unknown method '{unknown[0]}'; there are {', '.join(METHODS)}")
    if options.cpu_time and (jax.default_backend() != "cpu" or len(os.sched_getaffinity(0)) > 1):
        parser.error("--cpu-time needs JAX on the CPU and one core, as under 'taskset -c 0'")
    if options.image < 16 or options.image % 16:
        parser.error(f"--image {options.image} is not a multiple of 16")

    alone = whole_peer()
    shape = TINY if options.tiny else SMALL
    batch = random_batch(options.batch, options.image)
    clock = time.process_time if options.cpu_time else time.perf_counter
    about = {"settings": vars(options) | {"out": None} | shape} | surroundings(() if alone else PEER)
    print(json.dumps(about))
    if alone:
        print(alone)
    if not options.cpu_time and about["load"] > 0.5:
        print(f"the machine has other work (load {about['load']:.1f}): PyTorch's OpenMP threads wait in a spin for one")
        print("that is not running, so a busy machine flatters jtransfer; see --cpu-time")
    rows = []
    for name in names:
        program, flops = ours(name, shape, options.dtype, options.image, batch)
        programs = [program]
        if not alone:
            programs.append(theirs(name, shape, options.dtype, options.image, batch, options.compile))
        rows.append(row(name, programs, flops, options.batch, options.repeats, clock))
        print(f"{name} done", flush=True)
    print(table(rows, not alone))
    if options.out:
        options.out.write_text(json.dumps(about | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
