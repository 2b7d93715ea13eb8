"""A small ELMo on WikiText-2: two layers of each direction, states of width 64 from memories of 256, rows of 64 words.

jtransfer train --config=configs/text/elmo_small.py --workdir=runs/elmo
jtransfer curve --config=configs/few_shot_text.py --config.backbone=runs/elmo/model --workdir=runs/elmo-sst \
    --config.methods="probe,scalar_mix,scalar_mix + finetune"

`--config.data_dir` says where prepared data lie. Of WikiText-2 the 60 articles of `validation` are trained on, 245,000
words and marks with 9,200 different ones that come twice, and the first 20 of `test` are measured.

A step is 2048 words. The whole took nine minutes of two x86 cores that had other work (seven of processor time, with
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) and came to a test perplexity of 131 in the mean of both
directions: 196, 150, 133 and 131 after each 200 steps (one seed).
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of a training run, as `steps=100`, changes it."""
    config = ConfigDict(
        {
            "data": "tfds:wikitext2?train=validation&test=test[:20]",
            "tokenizer": "words(size=20000, least=2)",
            "model": {
                "architecture": "elmo",
                "filters": (16, 16, 32, 64),
                "width": 64,
                "hidden": 256,
                "dropout": 0.1,
            },
            "objective": "bilm",
            "packing": "joined",
            "load": {"tokens": 64},
            "batch": 32,
            "steps": 800,
            "optimiser": {"rate": 2e-3, "warmup": 0.1, "decay": 0.0, "clip": 1.0},
            "log_every": 40,
            "eval_every": 200,
            "checkpoint_every": 200,
        }
    )
    config.update(arguments(arg))
    return config
