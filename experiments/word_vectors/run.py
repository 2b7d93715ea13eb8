"""Analogies against the size of the corpus, and what king - man + woman is.

python experiments/word_vectors/run.py --data-dir=../shared/tfds --workdir=runs/word_vectors

trains skip-gram on growing shares of the news of ag_news_subset, and on these with wikitext2, for five epochs each
(unless the workdir has it), asks the questions of google_analogies, and writes `results.csv` and `word_vectors.png`.
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
EPOCHS, BATCH = 5, 1024
OBJECTIVE = "skip_gram"


def main(argv):
    """Train, ask, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where the datasets are prepared")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(argv)
    asked = questions.analogies("tfds:google_analogies", options.data_dir)
    models, counts = {}, {}
    for number, (name, data) in enumerate(CORPORA.items()):
        workdir = options.workdir / str(number)
        counts[name], steps = size(data, options.data_dir)
        overrides = {"data": data, "data_dir": options.data_dir, "steps": steps, "log_every": steps}
        overrides |= {"eval_every": steps, "checkpoint_every": steps, "batch": BATCH, "objective": OBJECTIVE}
        flags = [f"--config.{key}={value}" for key, value in overrides.items()]
        cli.run("train", f"--config={CONFIG}", f"--workdir={workdir}", *flags)
        found = jtransfer.load(str(workdir / "model"))
        models[name] = words.read(tokenizer_files(found)).words, table(found.config, found.params)
    smallest = next(iter(models.values()))
    both = measure.analogies(*smallest, asked.words).asked
    rows = [row(name, counts[name], models[name], asked, both) for name in CORPORA]
    for one in rows:
        print(one)
    with (options.workdir / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (options.workdir / "word_vectors.png").write_bytes(render(figure(rows), "png"))


def size(data, data_dir):
    """The words of a corpus that are in its vocabulary, and the steps of all epochs."""
    stream, windows = (
        open_stream(data, BATCH, 0, data_dir=data_dir, reads=("texts",)),
        objectives.parse(OBJECTIVE).words,
    )
    vocabulary = words.of_texts(stream.inputs, stream.rows, windows.least, 1 << 20, windows.lower, data)
    corpus = words.corpus(vocabulary, stream.inputs, stream.rows)
    walk = Walk(corpus, windows, np.bincount(corpus.ids, minlength=len(vocabulary)), BATCH, 0)
    return len(corpus), round(EPOCHS * walk.rows_of(0) / BATCH)


def row(name, count, model, asked, both):
    """What a model of a corpus answers: of all questions that it can be asked, and of those that all corpora know."""
    found = {method: measure.analogies(*model, asked.words, method) for method in ("3CosAdd", "3CosMul")}
    add = found["3CosAdd"]
    one = {"corpus": name, "words": count, "vocabulary": len(model[0]), "asked": int(add.asked.sum())}
    for method, own in found.items():
        one[method] = round(float(own.right[own.asked].mean()), 5)
    one |= {"asked of all": int(both.sum()), "3CosAdd of all": round(float(add.right[both].mean()), 5)}
    for title, which in groups(asked).items():
        own = add.asked & which
        one[title] = round(float(add.right[own].mean()), 5)
    known = {"king", "man", "woman"} <= set(model[0])
    nearest = measure.neighbours(*model, ["king", "woman"], ["man"], 5) if known else []
    return one | {"king - man + woman": " ".join(word for word, _ in nearest)}


def groups(asked):
    """Which questions are of meaning and which of grammar, whose categories begin with `gram`."""
    grammar = np.array([name.startswith("gram") for name in asked.names])[asked.categories]
    return {"meaning": ~grammar, "grammar": grammar}


def figure(rows):
    """Accuracy against the words of the corpus."""
    with style():
        picture, axes = canvas(6.5, 4.2, 1, 1)
        x = [one["words"] for one in rows]
        for number, key in enumerate(("3CosAdd", "3CosMul", "3CosAdd of all", "meaning", "grammar")):
            look = {"color": COLOURS[number], "marker": MARKERS[number], "label": key}
            axes.plot(x, [100 * one[key] for one in rows], **look)
        axes.set(xscale="log", xlabel="words of the corpus", ylabel="analogies answered rightly (%)", ylim=(0, None))
        axes.set_title("Analogies against the size of the corpus", loc="left", fontsize=11)
        axes.legend(frameon=False)
        return picture


if __name__ == "__main__":
    main(sys.argv[1:])
