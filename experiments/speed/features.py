"""Time features of texts and images next to sentence-transformers and to PyTorch's DataLoader, interleaved.

    python experiments/speed/features.py --shared=DIR --out features.json
    taskset -c 0 python experiments/speed/features.py --shared=DIR --cpu-time     # on a CPU with other work
    python experiments/speed/features.py --shared=DIR --tiny                      # does it run at all?

DIR holds `checkpoints/all-MiniLM-L6-v2`, `checkpoints/tf_efficientnet_lite0` and `tfds/{sst_binary,ag_news_subset}`.
Needs torch, sentence-transformers and, for images, timm; the photographs are scikit-learn's. README.md beside this file
says what is compared and what came out.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax
import numpy as np
from PIL import Image

from jtransfer import starts
from jtransfer.data import sources
from jtransfer.evaluate.features import extract

ENCODER, NETWORK = "all-MiniLM-L6-v2", "tf_efficientnet_lite0"
TEXTS = {"sst_binary": 4096, "ag_news_subset": 1024}
IMAGES, PEER_BATCH = 256, 32

Reading = Callable[[], np.ndarray]
"""Reads features `[rows, width]` of all rows, from the texts or files on."""


def texts(shared: Path, name: str, rows: int) -> tuple[Reading, Reading, int]:
    """Sentence embeddings by jtransfer and by sentence-transformers, and how many there are."""
    import torch
    from sentence_transformers import SentenceTransformer

    checkpoint = str(shared / "checkpoints" / ENCODER)
    data = sources.load(f"tfds:{name}", str(shared / "tfds"))
    some = np.linspace(0, len(data.inputs) - 1, rows).astype(int)
    sentences = data.inputs[some]
    backbone, prepare = starts.load_for(checkpoint, {}, data)
    peer = SentenceTransformer(checkpoint, device="cpu", model_kwargs={"dtype": torch.float32})

    class Rows:
        """The sentences, indexed as a dataset's inputs are."""

        def __len__(self):
            return rows

        def __getitem__(self, at):
            return [sentences[row] for row in at]

    def ours():
        return extract(backbone, Rows(), prepare, ["sentence_embedding"])["sentence_embedding"]

    return ours, lambda: peer.encode(sentences, batch_size=PEER_BATCH, show_progress_bar=False), rows


def photographs(directory: Path, count: int) -> None:
    """Write crops of 320x256 pixels of two photographs as JPEG files, in folders of two classes."""
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(0)
    for name, photograph in zip("ab", load_sample_images().images, strict=True):
        (directory / name).mkdir()
        for i in range(count // 2):
            top, left = draw.integers(0, np.array(photograph.shape[:2]) - (256, 320))
            crop = photograph[top : top + 256, left : left + 320]
            Image.fromarray(crop).save(directory / name / f"{i:04}.jpg", quality=90)


def images(shared: Path, directory: Path, workers: int) -> tuple[Reading, Reading, int]:
    """Features of JPEG files by jtransfer and by timm behind a DataLoader, and how many there are."""
    import timm
    import torch
    from timm.data import create_transform, resolve_data_config

    checkpoint = shared / "checkpoints" / NETWORK
    data = sources.load(f"folder:{directory}")
    backbone, prepare = starts.load_for(str(checkpoint), {}, data)
    model = timm.create_model(NETWORK, checkpoint_path=str(checkpoint / "model.safetensors")).eval()
    model.reset_classifier(0)
    config = json.loads((checkpoint / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=config))
    files = sorted(directory.glob("*/*.jpg"))

    class Files(torch.utils.data.Dataset):
        """The files in the order of the folder."""

        def __len__(self):
            return len(files)

        def __getitem__(self, row):
            return transform(Image.open(files[row]).convert("RGB"))

    def ours():
        return extract(backbone, data.inputs, prepare, ["features"])["features"]

    def theirs():
        loader = torch.utils.data.DataLoader(Files(), batch_size=PEER_BATCH, num_workers=workers)
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in loader]).numpy()

    return ours, theirs, len(files)


def row(name: str, ours: Reading, theirs: Reading, count: int, repeats: int, clock: Callable[[], float]) -> dict:
    """Measure the two in turns; the first turn of both is warm-up and must give equal features."""
    began = clock()
    found = ours()
    first = clock() - began
    expected = theirs()
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if difference > 1e-4:
        raise SystemExit(f"{name}: the features differ by {difference:.1e} of the largest")
    seconds = np.zeros((repeats, 2))
    for i in range(repeats):
        for j, read in enumerate((ours, theirs)):
            began = clock()
            read()
            seconds[i, j] = clock() - began
    ratios = seconds[:, 1] / seconds[:, 0]
    return {
        "data": name,
        "rows": count,
        "difference": difference,
        "first_seconds": first,
        "ours": count / median(seconds[:, 0]),
        "theirs": count / median(seconds[:, 1]),
        "ratio": median(ratios),
        "range": f"{ratios.min():.2f} to {ratios.max():.2f}",
        "seconds": seconds.tolist(),
    }


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="where checkpoints and datasets lie")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    parser.add_argument("--only", default="", help="one of sst_binary, ag_news_subset, images")
    parser.add_argument("--tiny", action="store_true", help="few rows, one turn")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, under 'taskset -c 0'")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    options = parser.parse_args()
    if options.cpu_time and (jax.default_backend() != "cpu" or len(os.sched_getaffinity(0)) > 1):
        parser.error("--cpu-time needs JAX on the CPU and one core, as under 'taskset -c 0'")
    clock = time.process_time if options.cpu_time else time.perf_counter
    repeats = 1 if options.tiny else options.repeats
    names = ["jax", "flax", "tokenizers", "torch", "transformers", "sentence-transformers", "timm"]
    about = {
        "device": f"{jax.devices()[0].device_kind} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "cpu_time": options.cpu_time,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    print(json.dumps(about))
    rows = []
    for name, count in TEXTS.items():
        if options.only in ("", name):
            pair = texts(options.shared, name, 64 if options.tiny else count)
            rows.append(row(name, *pair, repeats, clock))
            print(json.dumps(rows[-1]), flush=True)
    if options.only in ("", "images"):
        with tempfile.TemporaryDirectory() as directory:
            photographs(Path(directory), 16 if options.tiny else IMAGES)
            pair = images(options.shared, Path(directory), 0 if options.cpu_time else about["cores"])
            rows.append(row("images", *pair, repeats, clock))
            print(json.dumps(rows[-1]), flush=True)
    print("| data | rows | rows/s ours | rows/s theirs | theirs / ours, of time (range) | first s | difference |")
    print("| --- " * 7 + "|")
    shown = ("{data}", "{rows}", "{ours:.1f}", "{theirs:.1f}", "{ratio:.2f} ({range})", "{first_seconds:.1f}")
    for one in rows:
        print(f"| {' | '.join((*shown, '{difference:.1e}')).format(**one)} |")
    if options.out:
        options.out.write_text(json.dumps(about | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
