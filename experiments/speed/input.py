"""Time the making of training batches from JPEG files next to PyTorch's DataLoader, interleaved in one process.

    taskset -c 0 python experiments/speed/input.py --repeats 9 --out input.json
    taskset -c 0 python experiments/speed/input.py --libraries       # what decodes a JPEG, and how fast

Needs torch, torchvision and scikit-learn's two photographs; without torchvision it times jtransfer alone. README.md
beside this file says what is compared and what came out.
"""

import argparse
import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from steps import Program, measure, surroundings

from jtransfer.data import images, jpegs
from jtransfer.data.sources import open_stream
from jtransfer.data.streams import taken
from jtransfer.starts.inputs import gathered, through

SIZE, QUALITY, SIDE = (500, 375), 90, 224
BATCH = 32
WHOLE = {"scale": (1.0, 1.0), "ratio": (SIZE[0] / SIZE[1], SIZE[0] / SIZE[1])}
"""A crop that is the whole image, for which both sides must give the same numbers."""


def write_photographs(root: Path, count: int) -> list[bytes]:
    """JPEG files in two classes: parts of 500 x 375 pixels of scikit-learn's two photographs, each at another place."""
    from sklearn.datasets import load_sample_images

    photographs, draws, contents = load_sample_images().images, np.random.default_rng(0), []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (draws.integers(x - y + 1) for x, y in zip(photograph.shape, SIZE[::-1], strict=False))
        content = io.BytesIO()
        part = Image.fromarray(photograph[top : top + SIZE[1], left : left + SIZE[0]])
        part.save(content, "JPEG", quality=QUALITY)
        contents.append(content.getvalue())
        directory = root / "train" / "ab"[number % 2]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:05d}.jpg").write_bytes(contents[-1])
    (root / "test").mkdir()
    for name in "ab":
        (root / "test" / name).mkdir()
        (root / "test" / name / "0.jpg").write_bytes(contents["ab".index(name)])
    return contents


def ours(root: Path, augment: tuple[str, ...]) -> Callable[[], dict[str, np.ndarray]]:
    """What gives batch after batch as `jtransfer train` makes them, normalised as for ImageNet."""
    processor = images.processor(images.IMAGENET | {"size": SIDE}, "ViTImageProcessor", (SIDE, SIDE, 3))
    prepare = through(processor).of_parts
    stream = open_stream(f"folder:{root}", BATCH, 0, augment=augment)
    batches = taken(stream, BATCH, 0)

    def following():
        batch, _ = next(batches)
        return gathered(prepare, batch["inputs"], np.arange(BATCH)) | {"labels": batch["labels"]}

    return following


def theirs(root: Path, whole: bool) -> Callable[[], tuple]:
    """What gives batch after batch as imagenet/main.py of pytorch/examples makes them."""
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    mean, std = images.IMAGENET["image_mean"], images.IMAGENET["image_std"]
    change = [transforms.RandomResizedCrop(SIDE, **(WHOLE if whole else {}))]
    change += [] if whole else [transforms.RandomHorizontalFlip()]
    change += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    data = datasets.ImageFolder(str(root / "train"), transforms.Compose(change))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=not whole, num_workers=0, drop_last=True)

    def batches():
        while True:
            yield from loader

    return batches().__next__


def check(root: Path) -> None:
    """Refuse to compare what does not give the same numbers: of whole images, in the order of the files."""
    crop = f"random_resized_crop({SIDE}, scale={WHOLE['scale']}, ratio={WHOLE['ratio']})"
    own, other = ours(root, (crop,)), theirs(root, True)
    found = np.concatenate([own()["pixel_values"] for _ in range(len(list(root.glob("train/*/*"))) // BATCH)])
    expected = other()[0].numpy().transpose(0, 2, 3, 1)
    apart = max(min(np.abs(found - one).max((1, 2, 3))) for one in expected)
    if apart > 1e-6:
        raise SystemExit(f"the images of PyTorch are {apart} away from those of jtransfer")


def program(following: Callable) -> Program:
    """Batches as the steps of a program."""

    def advance(count):
        for _ in range(count):
            following()

    return Program(advance, 0)


def libraries(contents: list[bytes], repeats: int) -> str:
    """Milliseconds of processor time for an image, and the largest difference to PIL's pixels, as Markdown."""

    def pil(content):
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def drafted(content):
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", (SIZE[0] // 2, SIZE[1] // 2))
        return np.asarray(image)

    def upper(content):
        image = Image.open(io.BytesIO(content), formats=("JPEG",))
        return jpegs.rows(content, image, SIZE[1] * 2 // 3)[: SIZE[1] * 2 // 3]

    decoders = {"PIL": pil, "PIL, draft mode, half the size": drafted, "`jpegs.rows`, upper two thirds": upper}
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        decoders["simplejpeg"] = simplejpeg.decode_jpeg
        decoders["simplejpeg, fastdct and fastupsample"] = lambda content: simplejpeg.decode_jpeg(
            content, fastdct=True, fastupsample=True
        )
    if importlib.util.find_spec("cv2"):
        import cv2

        decoders["OpenCV"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)

    def over(decode):
        return program(lambda: [decode(content) for content in contents])

    seconds = measure([over(decode) for decode in decoders.values()], repeats, time.process_time)
    lines = ["| decoder | ms an image (min to max) | pixels apart, at most |", "| --- | --- | --- |"]
    for i, (name, decode) in enumerate(decoders.items()):
        apart = [
            np.abs(found.astype(int) - whole[: len(found)]).max() if found.shape[1] == SIZE[0] else "-"
            for whole, found in ((pil(content), decode(content)) for content in contents)
        ]
        each = 1e3 * seconds[:, i] / len(contents)
        apart = "another size" if "-" in apart else max(apart)
        lines.append(f"| {name} | {median(each):.3f} ({min(each):.3f} to {max(each):.3f}) | {apart} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
    parser.add_argument("--count", type=int, default=256, help="image files, a multiple of 32")
    parser.add_argument("--libraries", action="store_true", help="compare decoders alone")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    options = parser.parse_args()
    peer = importlib.util.find_spec("torchvision") is not None
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        contents = write_photographs(root, options.count)
        about = surroundings(("pillow", "torch", "torchvision") if peer else ("pillow",))
        about |= {"simplejpeg": importlib.util.find_spec("simplejpeg") is not None}
        print(json.dumps(about | {"bytes_an_image": round(sum(map(len, contents)) / len(contents))}))
        if options.libraries:
            print(libraries(contents[:64], options.repeats))
            return
        programs = [program(ours(root, (f"random_resized_crop({SIDE})", "flip")))]
        if peer:
            check(root)
            programs.append(program(theirs(root, False)))
        seconds = measure(programs, options.repeats, time.process_time)
    rates = BATCH / np.median(seconds, axis=0)
    print("images a second of one core: " + ", ".join(f"{rate:.0f}" for rate in rates))
    if peer:
        ratios = seconds[:, 1] / seconds[:, 0]
        print(f"PyTorch / jtransfer (min to max): {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print("by turn: " + " ".join(f"{ratio:.2f}" for ratio in ratios))
    if options.out:
        options.out.write_text(json.dumps(about | {"seconds": seconds.tolist()}, indent=1))


if __name__ == "__main__":
    main()
