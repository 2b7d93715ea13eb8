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
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def by_safetensors(directory):
    """Every tensor read by safetensors, kernels transposed by NumPy."""
    import numpy as np
    from safetensors.numpy import load_file

    tensors = load_file(Path(directory) / "model.safetensors")
    return {name: np.ascontiguousarray(x.T) if x.ndim == 2 else x for name, x in tensors.items()}


def by_jtransfer(directory):
    """Every leaf an array of the default device."""
    import jax

    import jtransfer as jt

    return jax.block_until_ready(jt.load(str(directory)).params)


def by_jtransfer_mapped(directory):
    """Every leaf a view of the mapped file."""
    import jtransfer as jt

    return jt.load(str(directory), sharding="host").params


def by_transformers(directory):
    """Parameters that lie in the mapped file, which is what `from_pretrained` gives on the CPU."""
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(directory)


def by_transformers_copied(directory):
    """Parameters in memory of their own, as by_jtransfer gives them."""
    import torch

    with torch.no_grad():
        return [parameter.clone() for parameter in by_transformers(directory).parameters()]


LOADERS = {
    "safetensors and NumPy's transposes": by_safetensors,
    "jtransfer": by_jtransfer,
    "jtransfer, mapped": by_jtransfer_mapped,
    "transformers, mapped": by_transformers,
    "transformers, copied": by_transformers_copied,
}


def main():
    """Print medians and ratios of interleaved loads, the first load of a fresh process, and the memory of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", help="a ViT in Hugging Face's layout with one model.safetensors")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--first", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first:
        start = time.perf_counter()
        LOADERS[arguments.first](arguments.directory)
        print(f"{time.perf_counter() - start:.2f} s")
    elif arguments.memory:
        print(memory_line(arguments.directory))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compare(arguments.directory or _vit_b_16(Path(scratch) / "vit-b-16"), arguments.repeats)


def compare(directory: str | Path, repeats: int) -> None:
    """Take turns loading, and print what came out."""
    loaders = dict(LOADERS)
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        print("torch and transformers are not here: timed without them")
        loaders = {name: load for name, load in loaders.items() if not name.startswith("transformers")}

    def in_a_fresh_process(*flags):
        command = [sys.executable, __file__, f"--directory={directory}", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]

    seconds = {name: [] for name in loaders}
    for load in loaders.values():
        load(directory)  # the file comes into the page cache, and everything is imported
    for _ in range(repeats):
        for name, load in loaders.items():
            gc.collect()
            start = time.perf_counter()
            load(directory)
            seconds[name].append(time.perf_counter() - start)
    size = (Path(directory) / "model.safetensors").stat().st_size
    print(f"{size / 1e6:.0f} MB; medians of {repeats} interleaved loads; imports and first load of a fresh process")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds["jtransfer"], values, strict=True)]
        print(
            f"  {name}: {median(values):.3f} s, jtransfer takes {median(ratios):.2f} of it "
            f"({min(ratios):.2f} to {max(ratios):.2f}); first {in_a_fresh_process(f'--first={name}')}"
        )
    print(in_a_fresh_process("--memory"))


def memory_line(directory) -> str:
    """What a load takes above its result, in words; the first loads of a process also import and start threads."""
    with tempfile.TemporaryDirectory() as scratch:
        from jtransfer.models import ViTConfig

        small = write_vit(Path(scratch) / "small", ViTConfig(image=(32, 32), width=16, depth=1, heads=2), 10)
        for _ in range(2):
            by_jtransfer(small)
    params, above = anonymous_above_result(lambda: by_jtransfer(directory))
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


def write_vit(directory: Path, config, classes: int) -> Path:
    """A ViT with random weights as Hugging Face has it on disk."""
    import jax
    from safetensors.numpy import save_file

    from jtransfer.checkpoints.families import FAMILIES
    from jtransfer.models import Head, Headed, ViT, complete

    tree = complete(Headed(ViT(config), Head(classes)), jax.random.key(0), {}, config.inputs)
    values = FAMILIES["vit"].write(config) | {"id2label": {i: str(i) for i in range(classes)}}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(values | {"architectures": ["ViTForImageClassification"]}))
    save_file(
        FAMILIES["vit"].names(config, "classification").write(tree), directory / "model.safetensors", {"format": "pt"}
    )
    return directory


def _vit_b_16(directory):
    from jtransfer.models import ViTConfig

    return write_vit(directory, ViTConfig(), 1000)


if __name__ == "__main__":
    main()
