"""Words with two senses: what a static vector and the states of a contextual model tell of the sense, layer by layer.

    python experiments/polysemy/run.py --models=DIR,runs/elmo/model --workdir=runs/polysemy

The words come from AG News (`TFDS_DATA_DIR` says where it lies). README.md beside this file says how senses are
labelled. Writes `results.csv` (a row for each word and layer), `table.md` and `polysemy.png`.
"""

import argparse
import csv
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import jtransfer as jt
from jtransfer.curves.report import interval
from jtransfer.data import sources
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

DATA = "tfds:ag_news_subset"
AMBIGUOUS = ("court", "draft", "drive", "field", "giants", "match", "net", "pitch", "race", "record", "strike", "virus")
"""Words with senses of two sections of a newspaper, as the court of judges and that of tennis."""
AROUND, FOLDS, BATCH = 10, 5, 32
"""Words on each side of an occurrence that a model reads; folds of the probe; texts at once."""
COMMON, RARE = 100, 40
"""Pseudo-words are made of words that come at least `RARE` times, and are not among the `COMMON` most frequent ones."""
COLUMNS = ("kind", "word", "model", "layer", "occurrences", "majority", "probe", "rand")
CONTEXT = "words around"


class Word(NamedTuple):
    """A word with two senses.

    Attributes:
        kind: "pseudo" or "real".
        name: How it is written in all of its texts.
        texts: Texts with one occurrence each.
        places: The first and one after the last character of the occurrence.
        senses: 0 or 1 for each text.
    """

    kind: str
    name: str
    texts: list[str]
    places: list[tuple[int, int]]
    senses: np.ndarray


def main(argv):
    """Collect the words, read them by every model, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="sentence-transformers/all-MiniLM-L6-v2", help="with commas between")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=20, help="number of pseudo-words")
    parser.add_argument("--each", type=int, default=30, help="occurrences of each sense, at most")
    options = parser.parse_args(argv)
    options.workdir.mkdir(parents=True, exist_ok=True)
    data = sources.load(DATA)
    rows = np.arange(len(data.inputs))
    texts, labels = data.inputs[rows], data.labels[rows]
    words = [*pseudo_words(texts, options.pairs, options.each), *real_words(texts, labels, options.each)]
    found = []
    for name in options.models.split(","):
        backbone = jt.load(name, head="")
        for word in words:
            for layer, x in vectors(backbone, word).items():
                with threadpool_limits(1):  # or threads that wait for each other take most of the time
                    of = *about(word, short(name), layer), *measured(x, word)
                found.append(dict(zip(COLUMNS, of, strict=True)))
            print(f"{short(name)}: {word.name}", flush=True)
    with open(options.workdir / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(found)
    (options.workdir / "table.md").write_text(table(found))
    (options.workdir / "polysemy.png").write_bytes(render(figure(found), "png"))
    print(f"\nWritten to {options.workdir}: results.csv, table.md, polysemy.png")


def short(name):
    """The last part of a path that tells a model apart."""
    parts = [part for part in Path(name).parts if part not in ("model", "/")]
    return parts[-1]


def occurrences(texts, word):
    """Around each text's first occurrence of a word: the texts before and behind it, with the number of the text."""
    for number, text in enumerate(texts):
        tokens = re.findall(r"\w+|[^\w\s]", text)
        lower = [token.lower() for token in tokens]
        if word in lower:
            at = lower.index(word)
            yield number, " ".join(tokens[max(0, at - AROUND) : at]), " ".join(tokens[at + 1 : at + 1 + AROUND])


def pseudo_words(texts, pairs, each):
    """Two words written as one that is neither of them (Schuetze 1992): which one stood there is the sense."""
    counts = Counter(word for text in texts for word in {*re.findall(r"\b[a-z]{5,}\b", text)})
    usual = [word for word, count in counts.most_common() if count >= RARE][COMMON:]
    drawn = np.random.default_rng(0).permutation(usual)[: 2 * pairs]
    for one, other in drawn.reshape(-1, 2):
        yield made("pseudo", one + other, [[*occurrences(texts, word)][:each] for word in (one, other)])


def real_words(texts, labels, each):
    """The words of `AMBIGUOUS`, whose sense is told by which of its two most frequent sections a text is of."""
    for word in AMBIGUOUS:
        of = defaultdict(list)
        for number, *around in occurrences(texts, word):
            of[int(labels[number])].append((number, *around))
        both = sorted(of.values(), key=len, reverse=True)[:2]
        if len(both) == 2 and len(both[1]) >= 2 * FOLDS:
            yield made("real", word, [own[:each] for own in both])


def made(kind, name, both):
    """A word of the occurrences of both senses."""
    texts, places, senses = [], [], []
    for sense, own in enumerate(both):
        for _, before, behind in own:
            start = len(before) + bool(before)
            texts.append(f"{before} {name} {behind}".strip())
            places.append((start, start + len(name)))
            senses.append(sense)
    return Word(kind, name, texts, places, np.array(senses))


def vectors(backbone, word):
    """What is read of every occurrence, `[occurrences, width]` by name.

    `static` is the embedding of the word, which knows nothing of its text; a word of several pieces is their mean.
    `words around` is the mean of the embeddings of all other words of the text, in any order. The numbers are the
    states of the word after each block.
    """
    tokenizer, parts = backbone.preprocess, defaultdict(list)
    length = max(x.shape[1] for x in (tokenizer([text])["input_ids"] for text in word.texts))
    for start in range(0, len(word.texts), BATCH):
        texts = [word.texts[i] for i in range(start, min(start + BATCH, len(word.texts)))]
        filled = texts + texts[-1:] * (BATCH - len(texts))  # one shape to compile
        batch = tokenizer(filled, length=length)
        states = [np.asarray(x) for x in backbone(batch, output_hidden_states=True)["hidden_states"]]
        table = backbone.params.get("embeddings/word/embedding")
        static = np.asarray(table)[batch["input_ids"]] if table is not None else states[0]
        spans = tokenizer.places(filled, length=length)
        for row in range(len(texts)):
            first, last = word.places[start + row]
            own = (spans[row, :, 0] >= first) & (spans[row, :, 1] <= last)
            others = (spans[row, :, 0] >= 0) & ~own
            parts["static"].append(static[row, own].mean(0))
            parts[CONTEXT].append(static[row, others].mean(0))
            for layer, x in enumerate(states[1:], 1):
                parts[str(layer)].append(x[row, own].mean(0))
    return {name: np.array(x, np.float64) for name, x in parts.items()}


def about(word, model, layer):
    """What a row says of what was measured."""
    return word.kind, word.name, model, layer, len(word.texts)


def measured(x, word):
    """The share of the more frequent sense, that of a probe (5 folds), and the adjusted Rand index of two clusters."""
    majority = np.bincount(word.senses).max() / len(word.senses)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    right = cross_val_score(probe, x, word.senses, cv=folds).mean()
    if np.allclose(x, x[:1]):  # one point has no two clusters
        return majority, right, 0.0
    clusters = KMeans(2, n_init=10, random_state=0).fit_predict(x / np.linalg.norm(x, axis=1, keepdims=True))
    return majority, right, adjusted_rand_score(word.senses, clusters)


def mean(rows, key):
    """Mean over words, and half the width of its 95% interval."""
    return interval([row[key] for row in rows])


def groups(found):
    """Rows by kind, model and layer, in their order."""
    of = defaultdict(list)
    for row in found:
        of[row["kind"], row["model"], row["layer"]].append(row)
    return of


def table(found):
    """A line for each kind of words, model and layer."""
    lines = ["| words | model | read | probe (%) | more often (%) | adjusted Rand |", "| --- " * 6 + "|"]
    for (kind, model, layer), rows in groups(found).items():
        (probe, half), (most, _), (rand, own) = (mean(rows, key) for key in ("probe", "majority", "rand"))
        cells = f"{100 * probe:.1f} ± {100 * half:.1f} | {100 * most:.1f} | {rand:.2f} ± {own:.2f}"
        lines.append(f"| {len(rows)} {kind} | {model} | {layer} | {cells} |")
    return "\n".join(lines) + "\n"


def figure(found):
    """Probe on the left, clusters on the right; a line for each kind of words and model over its layers."""
    of = groups(found)
    with style():
        picture, *axes = canvas(9, 3.8, 1, 2)
        for number, (kind, model) in enumerate(dict.fromkeys((kind, model) for kind, model, _ in of)):
            layers = [layer for *key, layer in of if key == [kind, model] and layer != CONTEXT]
            colour = COLOURS[number % len(COLOURS)]
            for axis, key, scale in zip(axes, ("probe", "rand"), (100, 1), strict=True):
                pairs = [mean(of[kind, model, layer], key) for layer in layers]
                heights, halves = (scale * np.array(x) for x in zip(*pairs, strict=True))
                look = {"color": colour, "marker": MARKERS[number % len(MARKERS)]}
                axis.errorbar(range(len(layers)), heights, halves, capsize=2, label=f"{kind}, {model}", **look)
                axis.axhline(scale * mean(of[kind, model, CONTEXT], key)[0], color=colour, linestyle=":", linewidth=1)
        axes[0].set(xlabel="block (0: static embedding)", ylabel="probe (%)")
        axes[1].set(xlabel="block (0: static embedding)", ylabel="adjusted Rand index of two clusters")
        axes[0].legend(frameon=False, fontsize=8)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
