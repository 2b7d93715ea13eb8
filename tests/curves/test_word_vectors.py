"""A curve on word vectors that were read from a file: the mean of a text's words, kept or changed."""

import numpy as np
from ml_collections import ConfigDict

from jtransfer import config
from jtransfer.checkpoints import vectors
from jtransfer.curves import run as curves

WORDS = ("good", "bad", "film", "plot", "very", "not", "the", "a", "was")


def test_the_mean_of_word_vectors_is_probed_finetuned_and_adapted(reviews, tmp_path):
    rows = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    rows[:2] *= 4  # the two words that tell the classes
    vectors.write(tmp_path / "vectors.txt", WORDS, rows, "word2vec")
    values = {"data": "tfds:reviews", "data_dir": reviews, "backbone": str(tmp_path / "vectors.txt"), "steps": 20}
    values |= {"methods": ("probe", "finetune", "lora(rank=2, target='in')"), "shots": (5,), "seeds": 1, "batch": 4}
    values |= {"hyper": {"default": {"rate": (3e-2,)}}}
    curve = curves.prepare(ConfigDict(config.completed("curve", values)))
    found = curves.run(curve, tmp_path / "curve", lambda *given: None)
    assert {row["method"]: row["test_accuracy"] for row in found} == dict.fromkeys(values["methods"], 1.0)
