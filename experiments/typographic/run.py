"""A wrong word written on the image, and what it does to a CLIP, by how many of its training images had words on them.

    python experiments/typographic/run.py --data-dir=DIR --tokenizer=FILE --workdir=runs/typographic

trains configs/clip/emoji.py, with smaller patches, on `emoji_captions` with a word on a share of the images (unless the
workdir has it), runs `jtransfer evaluate` with the protocol `typographic` on held-out emoji, and writes
`results.jsonl`, `table.md`, `typographic.png` and `images.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from jtransfer import cli
from jtransfer.data import sources
from jtransfer.evaluate.report import canvas
from jtransfer.evaluate.typographic import neutral_words, overlay, wrong_classes
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = "tfds:emoji_captions?input=image&caption=name+keywords&label=group"
WORDS = {
    "Smileys & Emotion": "face",
    "People & Body": "person",
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "game",
    "Objects": "thing",
    "Symbols": "sign",
    "Flags": "flag",
}
TEMPLATES = ("{}", "an emoji of {}", "a picture of {}")
READER = ("--config.model.vision.patch=8", "--config.model.vision.depth=3", "--config.steps=1200")
SIZE = 0.3  # of a line, as a share of the image's height
DRAWS = 4  # versions of each training image, which differ in whether a word is on it and where


def main(argv):
    """Train, write on images, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where emoji_captions is prepared")
    parser.add_argument("--tokenizer", default="openai/clip-vit-base-patch32", help="CLIP's merges, or a checkpoint")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.25, 0.5], help="of images with a word")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    data = sources.load(DATA, options.data_dir)
    words = [WORDS[name] for name in data.classes]
    options.workdir.mkdir(parents=True, exist_ok=True)
    names, templates = options.workdir / "names.json", options.workdir / "templates.json"
    names.write_text(json.dumps(words))
    templates.write_text(json.dumps(TEMPLATES))
    found = []
    for share in options.shares:
        for seed in range(options.seeds):
            name = f"{share:g}-{seed}"
            file, workdir = options.workdir / f"{name}.npz", options.workdir / name
            if not (workdir / "model").exists():
                written(data, words, share, file)
                cli.run(
                    *("train", f"--config={CONFIGS}/clip/emoji.py", f"--workdir={workdir}", f"--config.seed={seed}"),
                    *(f"--config.data=npz:{file}", f"--config.tokenizer={options.tokenizer}", *READER),
                )
                file.unlink()
            cli.run(
                *("evaluate", f"--config={CONFIGS}/evaluate.py", f"--workdir={workdir}-evaluate"),
                *(
                    f"--config.backbone={workdir}/model",
                    f"--config.data={DATA}",
                    f"--config.data_dir={options.data_dir}",
                ),
                f"--config.protocols=typographic(names='{names}', templates='{templates}', size={SIZE})",
                f"--config.store={options.workdir}/features",
            )
            (row,) = map(json.loads, (options.workdir / f"{name}-evaluate" / "results.jsonl").read_text().splitlines())
            found.append({"share": share, "seed": seed} | row)
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (options.workdir / "results.jsonl").write_text(lines)
    (options.workdir / "table.md").write_text(table(found))
    (options.workdir / "typographic.png").write_bytes(render(figure(found), "png"))
    (options.workdir / "images.png").write_bytes(render(examples(data, words), "png"))
    print(f"\nWritten to {options.workdir}: results.jsonl, table.md, typographic.png, images.png")


def written(data, words, share, file):
    """The pairs as a file: name, keywords and group as captions; on a share of the images a word, which they quote."""
    parts = {}
    for prefix, rows, draws in (("", data.pool, DRAWS), ("test_", data.test, 1)):
        images = np.tile(np.stack(data.inputs[rows]), (draws, 1, 1, 1))
        own = [words[label] for label in data.labels[rows]]
        captions = [[*texts, word] for texts, word in zip(data.captions[rows], own, strict=True)] * draws
        for draw in range(draws):
            marked = np.flatnonzero(np.random.default_rng([draw, len(rows)]).random(len(rows)) < share)
            if len(marked):
                places = draw * len(rows) + marked
                texts = [own[i] for i in marked]
                images[places] = overlay(images[places], texts, draw, size=SIZE, rows=marked)
                for place, text in zip(places, texts, strict=True):
                    captions[place] = [text]
        longest = max(map(len, captions))
        parts |= {f"{prefix}images": images}
        parts |= {f"{prefix}captions": np.array([[*texts, *[""] * (longest - len(texts))] for texts in captions])}
    np.savez(file, **parts)


COLUMNS = {
    "accuracy without": "clean",
    "accuracy with a neutral word": "neutral word",
    "accuracy with a wrong name": "wrong word",
    "share taken for the written class": "read as the wrong word",
}


def means(found, key):
    """By share: the share, the mean over seeds and its range, in %."""
    for share in sorted({row["share"] for row in found}):
        values = [100 * row["metrics"][key] for row in found if row["share"] == share]
        yield 100 * share, np.mean(values), min(values), max(values)


def table(found):
    """A line for each share."""
    keys = (
        *COLUMNS,
        "share taken for it with nothing written",
        "share lost to covered pixels",
        "share lost to the name",
    )
    heads = [*COLUMNS.values(), "the same, nothing written", "lost to any word", "lost to the wrong one"]
    lines = [f"| training images with a word | {' | '.join(heads)} |", f"| ---: |{' ---: |' * len(heads)}"]
    columns = [list(means(found, key)) for key in keys]
    for cells in zip(*columns, strict=True):
        values = (f"{mean:.1f}" + f" ({low:.1f} to {high:.1f})" * (low < high) for _, mean, low, high in cells)
        lines.append(f"| {cells[0][0]:g}% | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def figure(found):
    """Accuracy by what is written on the image, against the share of training images with a word."""
    with style():
        picture, axes = canvas(6.5, 4.2, 1, 1)
        for number, (key, label) in enumerate(COLUMNS.items()):
            shares, mean, low, high = np.transpose(list(means(found, key)))
            places = np.arange(len(shares))
            axes.plot(places, mean, color=COLOURS[number], marker=MARKERS[number], label=label)
            axes.fill_between(places, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
        axes.set_xticks(places, [f"{share:g}%" for share in shares])
        axes.set(
            xlabel="training images with a word that the caption quotes", ylabel="held-out emoji (%)", ylim=(0, 100)
        )
        axes.set_title("What a word on the image does to zero-shot", loc="left", fontsize=11)
        axes.legend(frameon=False)
        return picture


def examples(data, words):
    """A few held-out emoji as they are and with the two words that the protocol writes."""
    wrong = [words[i] for i in wrong_classes(data.labels[data.test], words, seed=0)]
    rows = np.linspace(0, len(wrong) - 1, 8).astype(int)
    images, texts = np.stack(data.inputs[data.test[rows]]), [wrong[row] for row in rows]
    versions = (
        images,
        *(overlay(images, t, 0, size=SIZE, rows=data.test[rows]) for t in (neutral_words(texts, words), texts)),
    )
    with style():
        picture, *panels = canvas(8, 3.2, len(versions), len(rows))
        panels = np.reshape(panels, (len(versions), len(rows)))
        for line, version, what in zip(panels, versions, COLUMNS.values(), strict=False):
            for panel, image in zip(line, version, strict=True):
                panel.imshow(image, interpolation="nearest")
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
            line[0].set_ylabel(what)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
