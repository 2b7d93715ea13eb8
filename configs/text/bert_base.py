"""BERT-base, uncased, as published: 1,000,000 steps of 256 texts, nine in ten of 128 tokens and the rest of 512.

jtransfer train --config=configs/text/bert_base.py --workdir=gs://BUCKET/bert
jtransfer train --config=configs/text/bert_base.py:phase=2,backbone=gs://BUCKET/bert/model --workdir=gs://BUCKET/bert-512
jtransfer inspect --config=configs/text/bert_base.py --topology=v5e:4x4

The first two are for a pod: start them on every host, one after the other. Any key of `jtransfer.config.train_defaults`
may follow the colon.

The values are those of Devlin et al. 2019 (arXiv:1810.04805, appendix A.2) and of google-research/bert
(`optimization.py`, `create_pretraining_data.py`): Adam at 1e-4 behind 10,000 steps of warmup, linear, decay 0.01,
clipped at 1, dropout 0.1, 15% of the words hidden, half of the second segments from another text. Published:
a perplexity of hidden words of 3.99 (table 6); after finetuning 84.6 on MNLI and 88.5 F1 on SQuAD 1.1 (tables 1, 2).

Unlike there: BooksCorpus is not public, and Wikipedia stands for both; segments are cut at a token, not at the end of a
sentence; words are hidden anew at each step; the rate falls to 0 in each phase; GELU is exact; Adam corrects the bias
of its moments; kernels start by LeCun's rule. It was never trained here.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

STEPS, SHORT, RATE = 1_000_000, 900_000, 1e-4
BACKBONE = "gs://BUCKET/bert/model"


def get_config(arg: str = ""):
    """`phase` is 1 for texts of 128 tokens, or 2 for 512, which goes on from a `backbone` at a tenth of the rate."""
    own = arguments(arg)
    first = own.pop("phase", 1) == 1
    config = ConfigDict(
        {
            "data": "tfds:wikipedia/20230601.en?input=text&train=train[:99%]&test=train[99%:]",
            "objective": "masked_lm(next_sentence=True)",
            "packing": "segments",
            "load": {"tokens": 128 if first else 512, "dtype": "float32" if first else "bfloat16"},
            "batch": 256,
            "steps": SHORT if first else STEPS - SHORT,
            "optimiser": {
                "rate": RATE if first else RATE * (STEPS - SHORT) / STEPS,
                "schedule": "linear",
                "warmup": 10_000 if first else 0,
                "decay": 0.01,
                "epsilon": 1e-6,
                "clip": 1.0,
            },
            "log_every": 100,
            "eval_every": 10_000,
            "checkpoint_every": 10_000,
        }
    )
    if first:
        config.tokenizer = "wordpiece(size=30522, rows=500000)"
        config.model = {"architecture": "bert", "dropout": 0.1, "attention_dropout": 0.1, "dtype": "bfloat16"}
    else:
        config.update({"backbone": BACKBONE, "method": "finetune"})
    config.update(own)
    return config
