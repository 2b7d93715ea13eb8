"""ULMFiT's second step (Howard and Ruder 2018, section 3.2): a language model goes on learning on the target's texts.

jtransfer train --config=configs/text/ulmfit_lm.py:backbone=runs/awd_lstm/model --workdir=runs/ag
jtransfer train --config=configs/text/ulmfit_lm.py:backbone=runs/awd_lstm/model,data=tfds:sst_binary --workdir=runs/sst

Labels are not read. Rates fall by 2.6 from layer to layer and follow the slanted triangle; `method=finetune` and
`optimiser.schedule=constant` turn each off. The table of words is also what predicts them, and learns at the head's
rate, as in fastai: with that of the lowest layer new words learn next to nothing, and 600 steps on ag_news_subset came
to a test perplexity of 439. 1200 steps without discriminative rates came to 134 in six minutes of processor time. The
words are those of the target's texts, as in fastai: a word that the language model knows keeps its embedding, any other
begins with the mean of all. `tokenizer=` keeps the words of the language model, and leaves others unknown.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.train_defaults` may follow the colon."""
    config = ConfigDict(
        {
            "data": "tfds:ag_news_subset",
            "tokenizer": "words(size=20000, least=2)",
            "objective": "lm(ar=2.0, tar=1.0)",
            "packing": "streams",
            "load": {"tokens": 35},
            "method": "layerwise(0.385, tied='embeddings/.*')",
            "batch": 32,
            "steps": 1200,
            "optimiser": {"rate": 8e-3, "schedule": "slanted", "clip": 0.25, "b1": 0.8, "b2": 0.99},
            "log_every": 50,
            "eval_every": 600,
            "checkpoint_every": 600,
        }
    )
    config.update(arguments(arg))
    return config
