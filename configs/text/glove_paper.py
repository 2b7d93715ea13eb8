"""GloVe at the size of the paper: vectors of 300 values of 400,000 words, windows of ten words, 100 passes.

jtransfer train --config=configs/text/glove_paper.py --workdir=runs/glove_paper
jtransfer inspect --config=configs/text/glove_paper.py --topology=v5e:2x2

The values are those of Pennington et al. 2014 (doi:10.3115/v1/D14-1162, section 4.2): x_max 100, power 3/4, AdaGrad at
0.05, 100 passes over the pairs, which are drawn one by one there and in batches here. Of all analogies (table 2) 71.7%
are right for 6 billion words of Wikipedia and Gigaword (77.4% of meaning, 67.0% of grammar), and 75.0% for 42 billion
of Common Crawl. The One Billion Word benchmark, which TFDS prepares, has 0.8 billion words, all of whose pairs are kept
in memory, 12 bytes each. How many these are was not counted: a million steps are 100 passes over 655 million. Compiled
for that slice a chip needs 4.7 of 16 GiB. Not run here.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.train_defaults` may follow the colon."""
    return ConfigDict(
        {
            "data": "tfds:lm1b",
            "model": {
                "architecture": "word_vectors",
                "width": 300,
                "vocabulary": 400_002,
                "symmetric": True,
                "spread": 0.5,
            },
            "objective": "glove(window=10, x_max=100)",
            "batch": 65536,
            "steps": 1_000_000,
            "optimiser": {"name": "adagrad", "rate": 0.05, "schedule": "constant", "warmup": 0, "clip": 0.0},
            "log_every": 1000,
            "eval_every": 50_000,
            "checkpoint_every": 50_000,
            **arguments(arg),
        }
    )
