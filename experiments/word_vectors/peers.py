"""word2vec here and in gensim, on one corpus, one after the other: words a second, and analogies over five seeds.

python experiments/word_vectors/peers.py --data_dir=../shared/tfds --out=experiments/word_vectors/peers.csv

Each seed trains gensim (two workers) and jtransfer in turn, so that what else the machine does falls on both. Both read
the words of the same vocabulary in the same texts, leave out frequent words at the same rate, and train as many epochs.
The time is that of training alone, without the vocabulary, and without compilation here: one step is taken before.
Seconds of the processor are beside those of the clock, which means little on a machine that does other things.
"""

import argparse
import csv
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jtransfer import objectives
from jtransfer.config import completed
from jtransfer.data import questions, words
from jtransfer.data.sources import load
from jtransfer.data.windows import Walk
from jtransfer.evaluate import analogies
from jtransfer.models.word_vectors import table
from jtransfer.train import feeding, runs
from jtransfer.train.programs import Programs

OBJECTIVES = {"skip_gram": 1, "cbow": 0}
"""Objectives, and gensim's `sg`."""
WORDS = 16384
"""Of a step."""


def main():
    """Train both for each seed and objective, and write a row for each at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="../shared/tfds")
    parser.add_argument("--data", default="tfds:ag_news_subset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--objectives", nargs="+", default=[*OBJECTIVES], choices=[*OBJECTIVES])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", default="peers.csv")
    given = parser.parse_args()
    asked = questions.analogies("tfds:google_analogies", given.data_dir)
    data = load(given.data, given.data_dir, ("texts",))
    vocabulary = words.of_texts(data.inputs, data.pool, 5, 1 << 20, True, given.data)
    corpus = words.corpus(vocabulary, data.inputs, data.pool)
    counts = corpus.counts(len(vocabulary))
    names = np.array(["", "", *vocabulary.words], object)
    ids, texts = corpus[:]
    sentences = [part.tolist() for part in np.split(names[ids], np.flatnonzero(np.diff(texts)) + 1)]
    rows = []
    for seed in given.seeds:
        for objective in given.objectives:
            sg = OBJECTIVES[objective]
            for peer, run in (("gensim", of_gensim), ("jtransfer", of_ours)):
                known, vectors, wall, cpu = run(given, objective, sg, sentences, corpus, counts, seed)
                found = analogies.analogies(known, vectors, asked.words)
                rows.append(
                    {
                        "peer": peer,
                        "objective": objective,
                        "seed": seed,
                        "accuracy": round(float(found.right[found.asked].mean()), 5),
                        "asked": int(found.asked.sum()),
                        "words": given.epochs * len(corpus),
                        "seconds": round(wall, 3),
                        "cpu_seconds": round(cpu, 3),
                    }
                )
                print(rows[-1], flush=True)
                with Path(given.out).open("w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


def of_gensim(given, objective, sg, sentences, corpus, counts, seed):
    """The words and vectors of gensim, and the seconds that its training took, by the clock and of the processor."""
    from gensim.models import Word2Vec

    model = Word2Vec(vector_size=100, window=5, negative=5, min_count=1, sample=1e-3, sg=sg, workers=2, seed=seed + 1)
    model.build_vocab(sentences)
    wall, cpu = time.perf_counter(), time.process_time()
    model.train(sentences, total_examples=len(sentences), epochs=given.epochs)
    return model.wv.index_to_key, model.wv.vectors, time.perf_counter() - wall, time.process_time() - cpu


def of_ours(given, objective, sg, sentences, corpus, counts, seed):
    """Ours, by the step and the batches of `jtransfer train`, without its checkpoints."""
    plain = {"name": "sgd", "rate": 0.025, "schedule": "linear", "warmup": 0, "momentum": 0.0, "clip": 0.0}
    values = {"data": given.data, "data_dir": given.data_dir, "objective": objective, "optimiser": plain}
    windows = objectives.parse(objective).words
    batch = WORDS // windows.block
    values |= {"model": {"architecture": "word_vectors", "width": 100}, "batch": batch, "seed": seed}
    rows = Walk(corpus, windows, counts, batch, seed).rows_of(0)
    steps = round(given.epochs * rows / batch)
    run = runs.prepare(ConfigDict(completed("train", values | {"steps": steps})))
    programs = Programs(run)
    start, compiled = programs.start(0), programs.step(0)
    batches = feeding.batches(programs, 0, 0)
    batch, _ = next(batches)
    state, _, frozen = start
    jax.block_until_ready(compiled(jax.tree.map(jax.numpy.copy, state), frozen, batch))
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(steps):
        state, _ = compiled(state, frozen, batch)
        if number + 1 < steps:
            batch, _ = next(batches)
    jax.block_until_ready(state)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()
    tree = {path: np.asarray(leaf) for path, leaf in state.trainable.items()}
    return run.task.data.stream.vocabulary.words, table(run.task.start.module.config, tree), wall, cpu


if __name__ == "__main__":
    main()
