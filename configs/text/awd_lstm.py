"""The AWD-LSTM of ULMFiT (Howard and Ruder 2018, arXiv:1801.06146) on WikiText-103: 400 wide, three layers of 1152.

jtransfer train --config=configs/text/awd_lstm.py --workdir=gs://BUCKET/awd_lstm
jtransfer inspect --config=configs/text/awd_lstm.py --topology=v5e:2x2

The paper's sizes (section 4.1: embeddings of 400, three layers of 1150, windows of 70; fastai's published weights have
1152) and fastai's rates of dropout. 103 million words, a vocabulary of 60,000, 128 rows of 70 tokens: one pass is
11,500 steps, ten are 115,000. The paper gives no perplexity for WikiText-103, but what it is worth: a test error of
5.01 on AG News and 4.6 on IMDb (tables 2 and 3, forward and backward models together). None of it was measured here.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.train_defaults` may follow the colon."""
    config = ConfigDict(
        {
            "data": "tfds:wikitext103?train=train&test=validation",
            "tokenizer": "words(size=60000, least=3)",
            "objective": "lm(ar=2.0, tar=1.0)",
            "packing": "random_streams",
            "load": {"tokens": 70},
            "model": {
                "architecture": "awd_lstm",
                "vocabulary": 60_000,
                "word_dropout": 0.02,
                "embedding_dropout": 0.25,
                "hidden_dropout": 0.15,
                "dropout": 0.1,
                "weight_dropout": 0.2,
                "dtype": "bfloat16",
            },
            "batch": 128,
            "steps": 115_000,
            "optimiser": {"rate": 3e-3, "decay": 0.1, "clip": 0.25, "b1": 0.7, "b2": 0.99},
            "log_every": 100,
            "eval_every": 11_500,
            "checkpoint_every": 2_500,
        }
    )
    config.update(arguments(arg))
    return config
