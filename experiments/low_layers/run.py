"""What finetuning changes in an ImageNet network, layer by layer: filters, weights, features, and probes on them.

    python experiments/low_layers/run.py --backbone=DIR --data-dir=DIR --workdir=runs/low_layers

finetunes on CIFAR-10 (unless the workdir has it), and writes `results.csv`, `table.md`, `low_layers.png` and
`filters.png`. README.md beside this file says what is measured.
"""

import argparse
import csv
import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

import jtransfer
from jtransfer import cli, models, starts
from jtransfer.curves.report import interval
from jtransfer.data import sources
from jtransfer.data.subsets import few_shot
from jtransfer.evaluate.features import extract
from jtransfer.evaluate.report import canvas
from jtransfer.evaluate.similarity import cka
from jtransfer.figures import COLOURS, MARKERS, render, style
from jtransfer.objectives.metrics import METRICS
from jtransfer.solvers import few_shot as fits

DATA = "tfds:cifar10?train=train[:700]&test=test[:600]"
SIDE, SHOTS, DRAWS, L2 = 64, 25, 5, (1e-3, 1e-2, 1e-1, 1.0)
BEFORE, AFTER, FRESH = "ImageNet", "finetuned", "fresh"


def main(argv):
    """Train, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0.in1k")
    parser.add_argument("--data-dir", required=True, help="where cifar10 is prepared")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2, help="of the finetuning: its order of rows and its new head")
    options = parser.parse_args(argv)
    networks = {(BEFORE, 0): options.backbone, (FRESH, 0): options.backbone}
    for seed in range(options.seeds):
        workdir = options.workdir / f"seed-{seed}"
        cli.run(
            *("train", f"--config={Path(__file__).with_name('finetune.py')}", f"--workdir={workdir}"),
            *(f"--config.backbone={options.backbone}", f"--config.data_dir={options.data_dir}"),
            f"--config.seed={seed}",
        )
        networks[AFTER, seed] = str(workdir / "model")
    rows = [row for key in networks for row in kept(options, networks, *key)]
    (options.workdir / "results.csv").write_text(values(rows))
    (options.workdir / "table.md").write_text(table(rows))
    (options.workdir / "low_layers.png").write_bytes(render(figure(rows), "png"))
    (options.workdir / "filters.png").write_bytes(render(filters(networks), "png"))
    print(f"\nWritten to {options.workdir}: results.csv, table.md, low_layers.png, filters.png")


def kept(options, networks, state, seed):
    """What is measured of a network, from the workdir if it is there."""
    file = options.workdir / f"{state}-{seed}.json"
    if not file.exists():
        print(f"{state}, seed {seed}", flush=True)
        file.write_text(json.dumps(measured(options, networks, state, seed)))
    return json.loads(file.read_text())


def loaded(networks, state, seed, data):
    """A network and what makes its inputs; the fresh one has the weights that a run from scratch starts from."""
    backbone, prepare = starts.load_for(networks[state, seed], {"image": SIDE}, data)
    if state == FRESH:
        tree = models.complete(backbone.model, jax.random.key(0), {}, backbone.config.inputs)
        params = {path: x for path, x in tree.items() if not path.startswith("batch_stats/")}
        state = {path: x for path, x in tree.items() if path not in params}
        backbone = dataclasses.replace(backbone.without_head(), params=params, state=state)
    return backbone, prepare


def layers_of(backbone):
    """The stem, the last block of each stage, and what a head reads: names of layers by those of parts."""
    blocks = [path.split("/")[0] for path in _blocks(backbone)]
    ends = {stage: len(blocks) - blocks[::-1].index(stage) for stage in dict.fromkeys(blocks)}
    return {"stem": "hidden_0.mean"} | {s: f"hidden_{i}.mean" for s, i in ends.items()} | {"top": "features"}


def _blocks(backbone):
    found = {match[0] for path in backbone.params if (match := re.match(r"stage_\d+/block_\d+", path))}
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path)])


def measured(options, networks, state, seed):
    """A row for each layer: probes, and what differs from the network before."""
    data = sources.load(DATA, options.data_dir)
    backbone, prepare = loaded(networks, state, seed, data)
    layers = layers_of(backbone)
    found = extract(backbone, data.inputs, prepare, list(layers.values()))
    if (state, seed) != (BEFORE, 0):
        before, _ = loaded(networks, BEFORE, 0, data)
        known = extract(before, data.inputs, prepare, list(layers.values()))
    rows = []
    for part, layer in layers.items():
        row = {"network": state, "seed": seed, "layer": part, "probe": probes(found[layer], data)}
        if state == AFTER:
            old, new = (kernels(one, part) for one in (before, backbone))
            row["change"] = float(np.linalg.norm(new - old) / np.linalg.norm(old))
        if state != BEFORE:
            row["CKA"] = cka(known[layer][data.test], found[layer][data.test])
        rows.append(row)
    return rows


def kernels(backbone, part):
    """All kernels of a part, end to end."""
    names = sorted(path for path in backbone.params if path.startswith(f"{part}/") and path.endswith("kernel"))
    return np.concatenate([np.ravel(backbone.params[path]) for path in names])


def probes(features, data):
    """Test accuracy of logistic regression, for each draw; λ is chosen on the validation rows of the draw."""
    train, validation = zip(*(few_shot(data.labels, data.pool, SHOTS, seed) for seed in range(DRAWS)), strict=True)
    draws = [(np.stack(rows), np.ones((DRAWS, len(rows[0])), np.float32)) for rows in (train, validation)]
    features = features / features.std()  # one scale, as λ has the same choices in all layers
    heads = fits.logistic(L2).call(features, data.labels, len(data.classes), *draws, METRICS["accuracy"])
    logits = features[data.test] @ np.asarray(heads.kernels) + np.asarray(heads.biases)[:, None]
    return (logits.argmax(-1) == data.labels[data.test]).mean(-1).tolist()


def gathered(rows, quantity):
    """Of each network and layer all values, `{network: {layer: [values]}}`, probes in %."""
    found = {}
    for row in rows:
        if quantity in row:
            own = found.setdefault(row["network"], {}).setdefault(row["layer"], [])
            own.append(100 * np.mean(row[quantity]) if quantity == "probe" else row[quantity])
    return found


def table(rows):
    """A line for each network and quantity, a column for each layer."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    lines = [["network", "", *layers], ["---", "---", *["---:"] * len(layers)]]
    for quantity, form in (("probe", "{:.1f}"), ("CKA", "{:.3f}"), ("change", "{:.4f}")):
        for network, by_layer in gathered(rows, quantity).items():
            cells = [" / ".join(form.format(value) for value in by_layer[layer]) for layer in layers]
            lines.append([network, f"{quantity} (%)" if quantity == "probe" else quantity, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def values(rows):
    """A line for each number."""
    buffer = io.StringIO()
    out = csv.writer(buffer, lineterminator="\n")
    out.writerow(("network", "seed", "layer", "quantity", "draw", "value"))
    for row in rows:
        head = row["network"], row["seed"], row["layer"]
        for draw, value in enumerate(row["probe"]):
            out.writerow((*head, "probe", draw, f"{value:.4f}"))
        for quantity in ("CKA", "change"):
            if quantity in row:
                out.writerow((*head, quantity, "", f"{row[quantity]:.5g}"))
    return buffer.getvalue()


def figure(rows):
    """Probes, CKA and the change of weights, layer by layer."""
    with style():
        picture, *axes = canvas(12, 4, 1, 3)
        panels = (("probe", f"accuracy of a probe, {SHOTS} labels (%)"), ("CKA", "CKA with the network before"))
        for panel, (quantity, label) in zip(axes, (*panels, ("change", "relative change of kernels")), strict=True):
            for network, by_layer in gathered(rows, quantity).items():
                number = (BEFORE, AFTER, FRESH).index(network)
                look = {"color": COLOURS[number], "marker": MARKERS[number], "label": network}
                if quantity == "probe":
                    draws = {layer: _draws(rows, network, layer) for layer in by_layer}
                    means, halves = zip(*(interval(sample) for sample in draws.values()), strict=True)
                    panel.errorbar(range(len(draws)), means, halves, elinewidth=1, capsize=2, **look)
                else:
                    panel.plot(range(len(by_layer)), [np.mean(sample) for sample in by_layer.values()], **look)
            names = [layer.removeprefix("stage_") for layer in by_layer]
            panel.set(xticks=range(len(names)), xticklabels=names, xlabel="after stage", ylabel=label, ylim=(0, None))
        axes[0].legend(frameon=False)
        return picture


def _draws(rows, network, layer):
    """Of each draw of labels the probe's accuracy in %, averaged over finetuning runs."""
    own = [row["probe"] for row in rows if (row["network"], row["layer"]) == (network, layer)]
    return 100 * np.mean(own, axis=0)


def filters(networks):
    """The filters of the first layer as pictures, each scaled to its own range: ImageNet's, finetuned, fresh, ours."""
    grids, data = {}, sources.load("digits")  # or any images
    for state, title in ((BEFORE, "ImageNet"), (AFTER, "after finetuning"), (FRESH, "fresh")):
        backbone, _ = loaded(networks, state, 0, data)
        grids[f"{title}: 32 of 3x3, colour"] = np.moveaxis(np.asarray(backbone.params["stem/conv/kernel"]), -1, 0)
    glyphs = np.asarray(jtransfer.load("glyphs-vit").params["embeddings/patch/kernel"])
    grids["glyphs-vit: 64 of 4x4, grey"] = np.repeat(glyphs.T.reshape(-1, 4, 4, 1), 3, -1)
    with style():
        picture, *axes = canvas(12, 3.6, 1, len(grids))
        for panel, (title, kernels) in zip(axes, grids.items(), strict=True):
            low, high = kernels.min((1, 2, 3), keepdims=True), kernels.max((1, 2, 3), keepdims=True)
            shown = np.pad((kernels - low) / (high - low), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
            side = shown.shape[1]
            grid = shown.reshape(-1, 8 if len(shown) > 32 else 4, side, side, 3).swapaxes(1, 2)
            panel.imshow(grid.reshape(-1, grid.shape[2] * side, 3), interpolation="nearest")
            panel.set_title(title, loc="left", fontsize=10)
            panel.axis("off")
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
