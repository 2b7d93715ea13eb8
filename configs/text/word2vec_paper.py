"""word2vec at the size of the paper: skip-gram vectors of 300 values, a million words, three epochs of 783M words.

jtransfer train --config=configs/text/word2vec_paper.py --workdir=runs/word2vec_paper
jtransfer inspect --config=configs/text/word2vec_paper.py --topology=v5e:2x2

Mikolov et al. 2013 (arXiv:1301.3781, table 4) report 53.3% of all analogies (50.0% of meaning, 55.9% of grammar) for
783M words of Google News, with hierarchical softmax in place of negative words. Not run here. The One Billion Word
benchmark, which TFDS prepares, has about as many words; another corpus is `texts:FILE`, one text a line.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """A step has 16384 rows of 16 words, a small step each; 9000 are three epochs, less what is left out."""
    return ConfigDict(
        {
            "data": "tfds:lm1b",
            "model": {"architecture": "word_vectors", "width": 300, "vocabulary": 1_000_002},
            "objective": "skip_gram(window=10, lower=False)",
            "batch": 16384,
            "steps": 9000,
            "optimiser": {
                "name": "sgd",
                "rate": 0.025,
                "schedule": "linear",
                "warmup": 0,
                "momentum": 0.0,
                "clip": 0.0,
            },
            "log_every": 100,
            "eval_every": 3000,
            "checkpoint_every": 3000,
            **arguments(arg),
        }
    )
