"""Analogies against the size of the corpus, and what king - man + woman is.

python experiments/word_vectors/run.py --data-dir=DIR --workdir=runs/word_vectors

trains skip-gram on growing shares of the news of ag_news_subset, and on these with wikitext2, for five epochs and three
seeds each (unless the workdir has it), asks the questions of google_analogies, and writes `results.csv`, `table.md` and
`word_vectors.png`.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

import jtransfer
from jtransfer import cli, objectives
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data import questions, words
from jtransfer.data.sources import open_stream
from jtransfer.data.windows import Walk
from jtransfer.evaluate import analogies as measure
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style
from jtransfer.intervals import interval
from jtransfer.models.word_vectors import table

CONFIG = Path(__file__).parents[2] / "configs" / "text" / "word2vec.py"
NEWS = "tfds:ag_news_subset?label=&train=train[:{}%]{}&test=test[95%:]"
WIKI = "tfds:wikitext2?train=test+validation[:90%]&test=validation[90%:]"
CORPORA = {
    "25% of the news": NEWS.format(25, ""),
    "the news": NEWS.format(100, ""),
    "the news, with their test split": NEWS.format(100, "+test[:95%]"),
    "these and wikitext2": f"0.5*{NEWS.format(100, '+test[:95%]')} + 0.5*{WIKI}",
}
EPOCHS, BATCH, SEEDS = 5, 1024, 3
OBJECTIVE = "skip_gram"
KING = "king - man + woman"
SHOWN = ("3CosAdd", "3CosMul", "3CosAdd, known to all", "meaning", "grammar")


def main(argv):
    """Train, ask, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where the datasets are prepared")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    asked = questions.analogies("tfds:google_analogies", options.data_dir)
    counts = {name: size(data, options.data_dir) for name, data in CORPORA.items()}
    found = {}
    for number, (name, data) in enumerate(CORPORA.items()):
        _, steps = counts[name]
        keys = {"data": data, "data_dir": options.data_dir, "steps": steps, "log_every": steps, "eval_every": steps}
        keys |= {"checkpoint_every": steps, "batch": BATCH, "objective": OBJECTIVE}
        for seed in range(SEEDS):
            workdir = options.workdir / f"{number}-{seed}"
            flags = [f"--config.{key}={value}" for key, value in (keys | {"seed": seed}).items()]
            cli.run("train", f"--config={CONFIG}", f"--workdir={workdir}", *flags)
            model = jtransfer.load(str(workdir / "model"))
            found[name, seed] = words.read(tokenizer_files(model)).words, table(model.config, model.params)
    smallest = found[next(iter(CORPORA)), 0]
    both = measure.analogies(*smallest, asked.words).asked
    rows = [row(*one, counts[one[0]][0], model, asked, both) for one, model in found.items()]
    with (options.workdir / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (options.workdir / "table.md").write_text(markdown(rows))
    (options.workdir / "word_vectors.png").write_bytes(render(figure(rows), "png"))
    print(f"Written to {options.workdir}: results.csv, table.md, word_vectors.png")


def size(data, data_dir):
    """The words of a corpus that are in its vocabulary, and the steps of all epochs."""
    stream, windows = (
        open_stream(data, BATCH, 0, data_dir=data_dir, reads=("texts",)),
        objectives.parse(OBJECTIVE).words,
    )
    vocabulary = words.of_texts(stream.inputs, stream.rows, windows.least, 1 << 20, windows.lower, data)
    corpus = words.corpus(vocabulary, stream.inputs, stream.rows)
    walk = Walk(corpus, windows, corpus.counts(len(vocabulary)), BATCH, 0)
    return len(corpus), round(EPOCHS * walk.rows_of(0) / BATCH)


def row(name, seed, count, model, asked, both):
    """What a model of a corpus answers: of all questions that it can be asked, and of those that all corpora know."""
    found = {method: measure.analogies(*model, asked.words, method) for method in ("3CosAdd", "3CosMul")}
    add = found["3CosAdd"]
    one = {"corpus": name, "seed": seed, "words": count, "vocabulary": len(model[0]), "asked": int(add.asked.sum())}
    for method, own in found.items():
        one[method] = round(float(own.right[own.asked].mean()), 5)
    one |= {"known to all": int(both.sum()), "3CosAdd, known to all": round(float(add.right[both].mean()), 5)}
    for title, which in groups(asked).items():
        own = add.asked & which
        one[title] = round(float(add.right[own].mean()), 5)
    known = {"king", "man", "woman"} <= set(model[0])
    nearest = measure.neighbours(*model, ["king", "woman"], ["man"], 5) if known else []
    return one | {KING: " ".join(word for word, _ in nearest)}


def groups(asked):
    """Which questions are of meaning and which of grammar, whose categories begin with `gram`."""
    grammar = np.array([name.startswith("gram") for name in asked.names])[asked.categories]
    return {"meaning": ~grammar, "grammar": grammar}


def means(rows, name, key):
    """Mean and half width of the 95% interval over seeds, in %."""
    return interval([100 * one[key] for one in rows if one["corpus"] == name])


def markdown(rows):
    """A line for each corpus."""
    head = ["corpus", "words", "vocabulary", "questions", *(f"{key} (%)" for key in SHOWN), "king - man + woman"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (3 + len(SHOWN))} --- |"]
    for name in CORPORA:
        one = next(one for one in rows if one["corpus"] == name)
        values = ["{:.1f} ± {:.1f}".format(*means(rows, name, key)) for key in SHOWN]
        cells = [name, *(f"{one[key]:,}" for key in ("words", "vocabulary", "asked")), *values, one[KING]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(rows):
    """Accuracy against the words of the corpus."""
    x = [next(one["words"] for one in rows if one["corpus"] == name) for name in CORPORA]
    with style():
        picture, axes = canvas(7, 4.2, 1, 1)
        for number, key in enumerate(SHOWN):
            mean, half = np.transpose([means(rows, name, key) for name in CORPORA])
            look = {"color": COLOURS[number], "marker": MARKERS[number], "label": key}
            axes.errorbar(x, mean, half, capsize=2, **look)
        axes.set(xscale="log", xlabel="words of the corpus", ylabel="analogies answered rightly (%)", ylim=(0, None))
        axes.set_xticks(x, [f"{count:,}" for count in x])
        axes.set_xticks([], minor=True)
        axes.set_title("Analogies against the size of the corpus", loc="left", fontsize=11)
        axes.legend(frameon=False)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
