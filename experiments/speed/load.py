"""Time loading a checkpoint, interleaved with the peers in one process, and measure its memory.

    python experiments/speed/load.py --repeats 7
    python experiments/speed/load.py --directory DIR            # a checkpoint of your own, in Hugging Face's layout

Without a directory it writes a ViT-B/16 with random weights in Hugging Face's names. README.md beside this file says
what is compared and what came out.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

import jtransfer as jt
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.models import Head, Headed, ViT, ViTConfig, complete


def main():
    """Print medians, ratios, and the memory of one load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", help="a checkpoint in Hugging Face's layout with one model.safetensors")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.directory or write_vit(Path(scratch) / "vit-b-16", ViTConfig(), 1000)
        weights = Path(directory) / "model.safetensors"
        size = weights.stat().st_size
        contestants = {
            "safetensors + NumPy transposes": lambda: _reference(weights),
            "jtransfer": lambda: jax.block_until_ready(jt.load(str(directory)).params),
            "jtransfer, mapped": lambda: jt.load(str(directory), sharding="host").params,
        }
        try:
            import torch
            from transformers import AutoModelForImageClassification as Auto

            def copied():
                model = Auto.from_pretrained(directory)
                with torch.no_grad():
                    return [parameter.clone() for parameter in model.parameters()]

            contestants["transformers, mapped"] = lambda: Auto.from_pretrained(directory)
            contestants["transformers, copied out of the file"] = copied
        except ImportError:
            print("torch and transformers are not here: timed without them")
        seconds = {name: [] for name in contestants}
        for name, load in contestants.items():
            start = time.perf_counter()
            load()  # the file comes into the page cache, and everything is imported
            print(f"{name}: first {time.perf_counter() - start:.2f} s")
        for _ in range(arguments.repeats):
            for name, load in contestants.items():
                gc.collect()
                start = time.perf_counter()
                load()
                seconds[name].append(time.perf_counter() - start)
        print(f"{size / 1e6:.0f} MB, medians of {arguments.repeats} interleaved loads:")
        for name, values in seconds.items():
            others = [a / b for a, b in zip(seconds["jtransfer"], values, strict=True)]
            print(
                f"  {name}: {median(values):.3f} s; jtransfer takes {median(others):.2f} of it "
                f"({min(others):.2f} to {max(others):.2f})"
            )
        print(memory_line(directory))


def memory_line(directory) -> str:
    """What a load takes above its result, in words."""
    params, above = anonymous_above_result(lambda: jax.block_until_ready(jt.load(str(directory)).params))
    largest = max(leaf.nbytes for leaf in params.values())
    return f"peak of anonymous memory above the result: {above / 1e6:.1f} MB, {above / largest:.2f} of the largest leaf"


def anonymous_above_result(load) -> tuple[dict, int]:
    """The result of `load()` and the bytes by which anonymous memory (no mapped files) rose above it on the way."""
    gc.collect()
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = load()
    done.set()
    watcher.join()
    return result, peak - before - sum(leaf.nbytes for leaf in result.values())


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("the kernel does not report RssAnon")


def _reference(path):
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return {name: np.ascontiguousarray(x.T) if x.ndim == 2 else x for name, x in tensors.items()}


def write_vit(directory: Path, config: ViTConfig, classes: int) -> Path:
    """A ViT with random weights as Hugging Face has it on disk."""
    from safetensors.numpy import save_file

    tree = complete(Headed(ViT(config), Head(classes)), jax.random.key(0), {}, config.inputs)
    values = FAMILIES["vit"].write(config) | {"id2label": {i: str(i) for i in range(classes)}}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(values | {"architectures": ["ViTForImageClassification"]}))
    save_file(
        FAMILIES["vit"].names(config, "classification").write(tree), directory / "model.safetensors", {"format": "pt"}
    )
    return directory


if __name__ == "__main__":
    main()
