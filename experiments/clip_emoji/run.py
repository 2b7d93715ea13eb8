"""Names of emoji that were never seen, in styles that were and one that was not, against the number of training pairs.

    python experiments/clip_emoji/run.py --data-dir=DIR --tokenizer=FILE --workdir=runs/clip_emoji

trains configs/clip/emoji.py on two styles at several numbers of pairs (unless the workdir has it), asks for the name of
every held-out emoji among those of all held-out ones, and writes `results.jsonl`, `table.md` and `clip_emoji.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import jtransfer
from jtransfer import cli
from jtransfer.data import sources
from jtransfer.data.streams import Rows
from jtransfer.evaluate.features import extract
from jtransfer.evaluate.report import canvas
from jtransfer.evaluate.retrieval import ranks
from jtransfer.evaluate.zero_shot import embed
from jtransfer.figures import COLOURS, MARKERS, render, style

CONFIG = Path(__file__).parents[2] / "configs" / "clip" / "emoji.py"
STYLES = ("noto", "twemoji", "openmoji")


def main(argv):
    """Train, ask, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where emoji_captions is prepared")
    parser.add_argument("--tokenizer", default="openai/clip-vit-base-patch32", help="CLIP's merges, or a checkpoint")
    parser.add_argument("--rows", type=int, nargs="+", default=[600, 2000, 4830], help="of the training split")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    found = []
    for unseen in STYLES:
        for rows in options.rows:
            workdir = options.workdir / f"{unseen}-{rows}"
            seen = "+".join(style for style in STYLES if style != unseen)
            cli.run(
                *("train", f"--config={CONFIG}:only={seen},test_only={unseen},pairs={rows}", f"--workdir={workdir}"),
                *(f"--config.data_dir={options.data_dir}", f"--config.tokenizer={options.tokenizer}"),
            )
            found += [asked(workdir / "model", options.data_dir, unseen, rows, shown) for shown in STYLES]
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (options.workdir / "results.jsonl").write_text(lines)
    (options.workdir / "table.md").write_text(table(found))
    (options.workdir / "clip_emoji.png").write_bytes(render(figure(found), "png"))
    print(f"\nWritten to {options.workdir}: results.jsonl, table.md, clip_emoji.png")


def asked(model, data_dir, unseen, rows, shown):
    """Recall of the names of the held-out emoji in one style."""
    name = "tfds:emoji_captions?input=image&caption=name&label=style"
    data = sources.load(f"{name}&train=train[:{rows}]&only=style:{shown}&test_only=style:{shown}", data_dir)
    pool = sources.load(f"{name}&train=train[:{rows}]", data_dir)
    trained = int((pool.labels[pool.pool] != pool.classes.index(unseen)).sum())
    backbone = jtransfer.load(str(model))
    held_out = Rows(data.inputs, data.test)
    found = extract(backbone, held_out, lambda part: backbone.preprocess(images=part), ["image_embeds"])
    names, labels = np.unique([own[0] for own in data.captions[data.test]], return_inverse=True)
    places = ranks(found["image_embeds"], labels, embed(backbone, names.tolist()), np.arange(len(names)))
    recalls = {f"r{k}": float((places <= k).mean()) for k in (1, 5, 10)}
    return {"unseen": unseen, "shown": shown, "rows": rows, "pairs": trained, "names": len(names), **recalls}


def grouped(found):
    """Mean recall at 5 by number of rows, in styles that were trained on and in the one that was not."""
    rows = sorted({row["rows"] for row in found})
    kinds = {
        "styles that were trained on": lambda r: r["shown"] != r["unseen"],
        "a new style": lambda r: r["shown"] == r["unseen"],
    }
    return rows, {
        kind: [[row for row in found if row["rows"] == count and is_kind(row)] for count in rows]
        for kind, is_kind in kinds.items()
    }


def table(found):
    """A line for each number of pairs."""
    counts, kinds = grouped(found)
    lines = [
        "| training pairs | held-out emoji in | R@1 | R@5 | R@10 | R@5 by chance |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for i, _ in enumerate(counts):
        for kind, own in kinds.items():
            pairs = np.mean([row["pairs"] for row in own[i]])
            recalls = " | ".join(f"{100 * np.mean([row[f'r{k}'] for row in own[i]]):.1f}" for k in (1, 5, 10))
            chance = 100 * np.mean([5 / row["names"] for row in own[i]])
            lines.append(f"| {pairs:.0f} | {kind} | {recalls} | {chance:.1f} |")
    return "\n".join(lines) + "\n"


def figure(found):
    """Recall at 5 against training pairs, a point for each choice of the new style."""
    _, kinds = grouped(found)
    with style():
        picture, axes = canvas(6.5, 4.2, 1, 1)
        for number, (kind, own) in enumerate(kinds.items()):
            pairs = [np.mean([row["pairs"] for row in rows]) for rows in own]
            axes.plot(
                pairs,
                [100 * np.mean([row["r5"] for row in rows]) for rows in own],
                color=COLOURS[number],
                marker=MARKERS[number],
                label=kind,
            )
            for rows in own:
                axes.scatter(
                    [row["pairs"] for row in rows],
                    [100 * row["r5"] for row in rows],
                    s=9,
                    color=COLOURS[number],
                    alpha=0.5,
                )
        chance = 100 * np.mean([5 / row["names"] for row in found])
        axes.axhline(chance, color="#8f8f8f", linewidth=1, label="chance")
        axes.set(xscale="log", xlabel="training pairs", ylabel="R@5 of names never seen (%)", ylim=(0, None))
        axes.set_xticks(pairs, [f"{count:.0f}" for count in pairs])
        axes.minorticks_off()
        axes.set_title("Naming emoji that no pair has shown", loc="left", fontsize=11)
        axes.legend(frameon=False)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
