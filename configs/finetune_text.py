"""Train a sentence encoder on labelled texts, or on words that have a label each, by any method.

jtransfer train --config=configs/finetune_text.py:data=tfds:ag_news_subset,method=finetune --workdir=runs/ag_news
jtransfer evaluate --config=configs/evaluate.py:backbone=runs/ag_news/model,data=tfds:sst_binary
jtransfer train --config=configs/finetune_text.py:data=conll:DIR,objective=tokens,method=finetune --workdir=runs/words
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = "data=tfds:ag_news_subset,method=finetune"):
    """A short run for two CPU cores; the model that it leaves keeps the tokenizer, so that it can be evaluated."""
    return ConfigDict(
        {
            "backbone": "sentence-transformers/all-MiniLM-L6-v2",
            "load": {"tokens": 48},
            "batch": 16,
            "steps": 200,
            "optimiser": {"rate": 1e-4},
            "log_every": 20,
            "eval_every": 200,
            "checkpoint_every": 200,
            **arguments(arg),
        }
    )
