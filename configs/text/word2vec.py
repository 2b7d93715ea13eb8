"""word2vec by skip-gram with negative sampling, or by CBOW, of the news in ag_news_subset.

jtransfer train --config=configs/text/word2vec.py --workdir=runs/word2vec
jtransfer train --config=configs/text/word2vec.py:objective=cbow,batch=256 --workdir=runs/cbow
jtransfer export --workdir=runs/word2vec --format=word2vec --out=exports/word2vec

14 seconds on two x86 cores with other work, start and compilation in it; it answers 2.7% of the 3,855 analogies of
google_analogies whose words are known, as gensim does (experiments/word_vectors). CBOW takes 16 seconds and answers
0.6%, as gensim too.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Five epochs with gensim's defaults: window 5, 5 negative words, words that are there 5 times, rate 0.025."""
    return ConfigDict(
        {
            "data": "tfds:ag_news_subset",
            "model": {"architecture": "word_vectors", "width": 100},
            "objective": "skip_gram",
            "batch": 1024,
            "steps": 75,
            "optimiser": {
                "name": "sgd",
                "rate": 0.025,
                "schedule": "linear",
                "warmup": 0,
                "momentum": 0.0,
                "clip": 0.0,
            },
            "log_every": 15,
            "eval_every": 75,
            "checkpoint_every": 75,
            **arguments(arg),
        }
    )
