"""A wrong word written on the image, and what it does to a CLIP, by how many of its training images had words on them.

    python experiments/typographic/run.py --data-dir=DIR --tokenizer=FILE --workdir=runs/typographic

trains the network of configs/clip/emoji.py on `emoji_captions` with the word of its group written on a share of the
images (unless the workdir has it), classifies held-out emoji into the groups as they are, with a neutral word and with
the word of a wrong group, and writes `results.jsonl`, `table.md`, `typographic.png` and `images.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import jtransfer
from jtransfer import cli
from jtransfer.data import sources
from jtransfer.evaluate.features import extract
from jtransfer.evaluate.report import canvas
from jtransfer.evaluate.typographic import neutral_words, overlay, typographic, wrong_classes
from jtransfer.evaluate.zero_shot import text_classifier
from jtransfer.report import COLOURS, MARKERS, render, style

CONFIG = Path(__file__).parents[2] / "configs" / "clip" / "emoji.py"
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


def main(argv):
    """Train, write on images, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where emoji_captions is prepared")
    parser.add_argument("--tokenizer", default="openai/clip-vit-base-patch32", help="CLIP's merges, or a checkpoint")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.5], help="of images with a word")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    data = sources.load("tfds:emoji_captions?input=image&caption=name+keywords&label=group", options.data_dir)
    words = [WORDS[name] for name in data.classes]
    options.workdir.mkdir(parents=True, exist_ok=True)
    attack = attacked(data, words)
    found = []
    for share in options.shares:
        for seed in range(options.seeds):
            name = f"{share:g}-{seed}"
            file, workdir = options.workdir / f"{name}.npz", options.workdir / name
            if not (workdir / "model").exists():
                written(data, words, share, seed, file)
            arguments = (
                *("train", f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data=npz:{file}"),
                *(f"--config.tokenizer={options.tokenizer}"),
                f"--config.seed={seed}",
            )
            print("\njtransfer", *arguments, flush=True)
            if code := cli.main(list(arguments)):
                sys.exit(code)
            file.unlink(missing_ok=True)
            found.append({"share": share, "seed": seed} | asked(workdir / "model", words, *attack))
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (options.workdir / "results.jsonl").write_text(lines)
    (options.workdir / "table.md").write_text(table(found))
    (options.workdir / "typographic.png").write_bytes(render(figure(found), "png"))
    (options.workdir / "images.png").write_bytes(render(examples(*attack), "png"))
    print(f"\nWritten to {options.workdir}: results.jsonl, table.md, typographic.png, images.png")


def written(data, words, share, seed, file):
    """The pairs as a file: name, keywords and the group's word as captions, that word on a share of the images."""
    parts = {}
    for prefix, rows in (("", data.pool), ("test_", data.test)):
        images = np.stack(data.inputs[rows])
        own = [words[label] for label in data.labels[rows]]
        marked = np.flatnonzero(np.random.default_rng([seed, len(rows)]).random(len(rows)) < share)
        if len(marked):
            images[marked] = overlay(images[marked], [own[i] for i in marked], seed, rows=marked)
        captions = [[*texts, word] for texts, word in zip(data.captions[rows], own, strict=True)]
        longest = max(map(len, captions))
        parts |= {f"{prefix}images": images}
        parts |= {f"{prefix}captions": np.array([[*texts, *[""] * (longest - len(texts))] for texts in captions])}
    np.savez(file, **parts)


def attacked(data, words):
    """Labels of the held-out emoji, the wrong ones that are written, and three versions of the images."""
    images, labels = np.stack(data.inputs[data.test]), data.labels[data.test]
    wrong = wrong_classes(labels, words, seed=0)
    texts = [words[i] for i in wrong]
    versions = images, overlay(images, neutral_words(texts, words), seed=0), overlay(images, texts, seed=0)
    return labels, wrong, versions


def asked(model, words, labels, wrong, versions):
    """What the model says of each version, by the words of the groups."""
    backbone = jtransfer.load(str(model))
    classifier = text_classifier(backbone, words, ("{}", "an emoji of {}", "a picture of {}"))

    def logits(images):
        found = extract(backbone, images, lambda part: backbone.preprocess(images=part), ["image_embeds"])
        return classifier(found["image_embeds"])

    return typographic(*map(logits, versions), labels, wrong)._asdict()


COLUMNS = {"clean": "clean", "neutral": "neutral word", "written": "wrong word", "fooled": "read as the wrong word"}


def means(found, key):
    """By share: the share, the mean over seeds and its range, in %."""
    for share in sorted({row["share"] for row in found}):
        values = [100 * row[key] for row in found if row["share"] == share]
        yield 100 * share, np.mean(values), min(values), max(values)


def table(found):
    """A line for each share."""
    keys = [*COLUMNS, "confused", "occlusion", "reading"]
    heads = [*COLUMNS.values(), "the same, nothing written", "lost to covering", "lost to reading"]
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
        axes.set(xlabel="training images with their group's word on them", ylabel="held-out emoji (%)", ylim=(0, 100))
        axes.set_title("What a word on the image does to zero-shot", loc="left", fontsize=11)
        axes.legend(frameon=False)
        return picture


def examples(labels, wrong, versions):
    """A few emoji in the three versions."""
    rows = np.linspace(0, len(labels) - 1, 8).astype(int)
    with style():
        picture, *panels = canvas(8, 3.2, len(versions), len(rows))
        panels = np.reshape(panels, (len(versions), len(rows)))
        for line, images, what in zip(panels, versions, COLUMNS.values(), strict=False):
            for panel, row in zip(line, rows, strict=True):
                panel.imshow(images[row], interpolation="nearest")
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
            line[0].set_ylabel(what)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
